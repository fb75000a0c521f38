"""Heat maps against closed forms, exact enumeration and the libraries where they are right."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import Curved, make_images, make_linear
from test_explainers import explain
from torch import nn

from robustcv.errors import UserError
from robustcv.explainers import EXPLAINERS, design
from robustcv.explainers.coalitions import draw, stands_for
from robustcv.explainers.design import FREE, TOGETHER, choose
from robustcv.explainers.integrated_gradients import _cuts, _integral, _missed, _plan, _unsure
from robustcv.explainers.kernel_shap import least_squares
from robustcv.explainers.lime import coefficients
from robustcv.explainers.odd_process import _averaged, _fit, _priors, exact, shapley_values
from robustcv.explainers.partition_shap import halving_tree, nearest_tree
from robustcv.explainers.pool import Pool
from robustcv.explainers.references import LEVELS, references
from robustcv.explainers.regions import counts, grid, neighbours, regions_of


@pytest.fixture
def problem():
    return Curved(), make_images(5, dtype=torch.float32), torch.tensor([0, 1, 2, 3, 1])


# -- a linear classifier: every method's answer is weights times change ---


def linear_case(dtype=torch.float64):
    model = make_linear(4, (3, 6, 5), dtype=dtype)
    images, targets = make_images(3, dtype=dtype), torch.tensor([3, 0, 2])
    weights = model.weights.detach()[targets].reshape(3, 3, 6, 5)
    return model, images, targets, weights


PIXELS = torch.arange(30).reshape(6, 5)
LINEAR_CASES = {
    "input_x_gradient": ({}, 0.0),
    "integrated_gradients": ({"baseline": 0.25, "steps": 1}, 0.25),
    "gradient_shap": ({"baselines": 0.25, "samples": 3}, 0.25),
    "deep_lift": ({"baseline": 0.25}, 0.25),
    "deep_shap": ({"baselines": 0.25}, 0.25),
    "captum_deep_lift": ({"baseline": 0.25}, 0.25),
    "occlusion": ({"regions": PIXELS, "fill": 0.25}, 0.25),
    "shapley": ({"regions": PIXELS, "fill": 0.25, "samples": 160}, 0.25),
    "kernel_shap": ({"regions": PIXELS, "fill": 0.25, "samples": 160}, 0.25),
    "lime": ({"regions": PIXELS, "fill": 0.25, "samples": 160, "ridge": 0.0}, 0.25),
    "partition_shap": ({"fill": 0.25, "evaluations": 4000}, 0.25),
}


@pytest.mark.parametrize("name", LINEAR_CASES)
def test_on_a_linear_model_the_map_is_weights_times_change(name) -> None:
    model, images, targets, weights = linear_case()
    options, level = LINEAR_CASES[name]
    found = explain(name, model, images, targets, **options)
    wanted = weights * (images - level)
    wanted = wanted if found.heatmaps.shape[1] == 3 else wanted.sum(1, keepdim=True)
    assert torch.allclose(found.heatmaps.double(), wanted, atol=1e-6 * float(wanted.abs().max()) * 10)
    assert found.gap is None or (found.gap < 1e-6).all()
    if name in ("integrated_gradients", "shapley", "kernel_shap", "lime"):
        assert found.error.isnan().all() or (found.error < 1e-6).all()


def test_saliency_and_smooth_grad_of_a_linear_model_are_its_weights_and_var_grad_is_nothing() -> None:
    model, images, targets, weights = linear_case()
    for name in ("saliency", "smooth_grad"):
        assert torch.allclose(explain(name, model, images, targets).heatmaps.double(), weights, atol=1e-6)
    assert explain("var_grad", model, images, targets).heatmaps.abs().max() < 1e-12


def test_gradient_shap_of_a_linear_model_is_weights_times_the_mean_change() -> None:
    model, images, targets, weights = linear_case(torch.float32)
    found = explain("gradient_shap", model, images, targets, samples=2 * LEVELS)  # every grey level twice: mean 0.5
    assert torch.allclose(found.heatmaps, weights * (images - 0.5), atol=1e-4)
    assert (found.gap < 1e-3).all()


def test_occlusion_with_overlapping_windows_is_the_mean_over_windows_that_hide_a_pixel() -> None:
    model, images, targets, weights = linear_case()
    found = explain("occlusion", model, images, targets, regions="grid:6x5", window=2, fill=0.0).heatmaps.double()
    share = (weights * images).sum(1)
    slow = torch.zeros_like(share)
    covers = torch.zeros(6, 5)
    for top, left in itertools.product(range(5), range(4)):
        window = (slice(None), slice(top, top + 2), slice(left, left + 2))
        slow[window] += share[window].sum((1, 2), keepdim=True) / 4
        covers[window[1:]] += 1
    assert torch.allclose(found[:, 0], slow / covers, atol=1e-5)


def test_rise_of_a_linear_model_approaches_the_regression_on_its_masks() -> None:
    """A logit that reads one place alone: the slope is highest there, and right in size."""
    weights = torch.zeros(2, 3 * 8 * 8, dtype=torch.float64)
    weights[1].reshape(3, 8, 8)[:, 2, 5] = 1.0
    model = make_linear(2, (3, 8, 8))
    model.weights.data, model.bias.data = weights, torch.zeros(2, dtype=torch.float64)
    images = make_images(1, (3, 8, 8))
    found = explain("rise", model, images, torch.tensor([1]), samples=3000, cells=4).heatmaps[0, 0]
    assert divmod(int(found.argmax()), 8) == (2, 5)
    assert float(found[2, 5]) == pytest.approx(float(images[0, :, 2, 5].sum()), rel=0.02)


# -- small functions with known integrals ---


class Formula(nn.Module):
    """A logit of the pixels by a formula; the other class is its negative."""

    def __init__(self, formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, images):
        value = self.formula(images.flatten(1))
        return torch.stack([value, -value], 1)


def pixels(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


FIRST = torch.tensor([0])


def test_integrated_gradients_of_squares_are_exact_with_one_point() -> None:
    x = pixels(0.3, 0.8, 0.5)
    found = explain("integrated_gradients", Formula(lambda p: (p**2).sum(1)), x, FIRST, steps=1)
    assert torch.allclose(found.heatmaps.double(), x**2, atol=1e-7)


def test_a_product_is_shared_equally() -> None:
    x, model = pixels(0.6, 0.9), Formula(lambda p: p[:, 0] * p[:, 1])
    halves = torch.arange(2).reshape(1, 2)
    cases = {"integrated_gradients": {"steps": 1}, "deep_lift": {}, "shapley": {"regions": halves, "fill": 0.0}}
    for name, options in cases.items():
        assert torch.allclose(explain(name, model, x, FIRST, **options).heatmaps.double(), torch.full_like(x, 0.27)), (
            name
        )


def test_integrated_gradients_of_nested_relus_is_the_published_example() -> None:
    """Sundararajan et al. 2017, appendix: ReLU(x1 - 1 - ReLU(x2)) at (3, 1) is (1.5, -0.5)."""
    model = Formula(lambda p: torch.relu(p[:, 0] - 1 - torch.relu(p[:, 1])))
    found = explain("integrated_gradients", model, pixels(3.0, 1.0), FIRST, steps=4000)
    assert torch.allclose(found.heatmaps.double(), pixels(1.5, -0.5), atol=2e-3)


@pytest.mark.parametrize("steps", [2, 5, 10])
def test_the_midpoint_rule_errs_on_cubes_by_what_is_known(steps: int) -> None:
    x = pixels(0.7)
    found = explain("integrated_gradients", Formula(lambda p: (p**3).sum(1)), x, FIRST, steps=steps)
    assert float(found.heatmaps) == pytest.approx(0.7**3 * (1 - 1 / (4 * steps**2)), rel=1e-6)


def test_the_path_of_integrated_gradients_is_the_midpoint_rule(problem) -> None:
    model, images, targets = problem
    fed = []

    class Spy(nn.Module):
        def forward(self, x):
            fed.append(x.detach().clone())
            return model(x)

    explain("integrated_gradients", Spy(), images[:1], targets[:1], steps=4, baseline=0.0)
    path = next(rows for rows in fed if len(rows) == 4)
    shares = (path / images[:1]).flatten(1).mean(1)
    assert shares.tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=1e-5)


class Kinked(nn.Module):
    """A random ReLU network with many kinks, so that its gradient jumps along every path."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
                nn.Linear(16 * 64, 32), nn.ReLU(), nn.Linear(32, 4),
            )  # fmt: skip
        for parameter in self.parameters():
            parameter.data *= 2

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("even", [True, False])
def test_the_expected_error_is_that_of_random_walks(even: bool) -> None:
    """Gradients that go like random walks along the path: squared errors have the mean that is expected of them."""
    generator, n, fine = torch.Generator().manual_seed(0), 400, 6000
    walks = torch.randn(n, fine, 8, generator=generator, dtype=torch.float64).cumsum(1) / fine**0.5
    t = (torch.arange(15, dtype=torch.float64) + 0.5) / 15
    t = t if even else t**1.5
    shares = walks[:, (t * fine).long(), :, None, None]
    maps = torch.stack([_integral(own, t) for own in shares])
    unsure = torch.stack([_unsure(own, t) for own in shares])
    true = (maps.flatten(1) - walks.mean(1)).square().sum(1)
    assert float(true.mean() / unsure.sum(1).mean()) == pytest.approx(1, abs=0.06)
    assert float(_missed(unsure[0])) == pytest.approx(1.3 * float(unsure[0].sum()) ** 0.5)


@pytest.mark.parametrize("seed", range(6))
def test_paths_are_cut_into_the_fewest_parts_that_suffice(seed: int) -> None:
    """Against every way of sharing points out among three points' gaps and ends, by the error that they would leave."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(3, generator=generator, dtype=torch.float64).sort().values
    rates = torch.rand(4, generator=generator, dtype=torch.float64) ** 3  # of the walk, in each gap and at each end

    def left(points: torch.Tensor) -> float:
        """Give the expected squared error by the rates themselves."""
        corners = torch.cat([t.new_zeros(1), points, t.new_ones(1)])
        where = torch.bucketize((corners[1:] + corners[:-1]) / 2, t)
        widths = corners.diff() ** 3 / torch.tensor([3.0, *[12.0] * (len(points) - 1), 3.0])
        return float((rates[where] * widths).sum())

    def shared(counts: tuple[int, ...]) -> torch.Tensor:
        """Give the points with so many more in each place; the half of an end's distance lies outside."""
        first = [float(t[0]) * (2 * j - 1) / (2 * counts[0] + 1) for j in range(1, counts[0] + 1)]
        last = [1 - float(1 - t[2]) * (2 * j - 1) / (2 * counts[3] + 1) for j in range(1, counts[3] + 1)]
        gaps = [
            torch.linspace(float(t[i]), float(t[i + 1]), counts[i + 1] + 2, dtype=torch.float64)[1:-1] for i in (0, 1)
        ]
        return torch.tensor([*first, *gaps[0], *gaps[1], *last, *t.tolist()], dtype=torch.float64).sort().values

    unsure = rates * torch.cat([t[:1] ** 3 / 3, t.diff() ** 3 / 12, (1 - t[-1:]) ** 3 / 3])
    every = [(sum(counts), left(shared(counts))) for counts in itertools.product(range(7), repeat=4)]
    for share in (0.5, 0.2, 0.1):
        allowed = share * float(unsure.sum())
        fewest = min(k for k, error in every if error <= allowed)
        counts = _plan(t, unsure, allowed, 50)
        assert int(counts.sum()) == fewest
        assert left(shared(tuple(counts.tolist()))) <= allowed
        assert int(_plan(t, unsure, allowed, 2).sum()) == min(2, fewest)
        new = _cuts(t, counts)
        assert len(new) == int((counts > 0).sum())
        assert float((new[:, None] - shared(tuple(counts.tolist()))).abs().amin(1).sum()) < 1e-9
    first, second, last = t.tolist()
    planned = torch.tensor([1, 3, 0, 2])
    assert _cuts(t, planned).tolist() == pytest.approx([first / 3, (first + second) / 2, last + (1 - last) * 0.4])


def test_a_map_that_is_zero_by_chance_is_no_certain_one() -> None:
    """Of |x - 0.52| from black to white the first points, as many on either side, cancel; the truth is -0.04."""
    one = torch.ones(1, 1, 2, 2)
    model = Formula(lambda p: (p - 0.52).abs().sum(1))
    found = explain("integrated_gradients", model, one, FIRST)
    assert torch.allclose(found.heatmaps, torch.full_like(one, -0.04), atol=0.04 * 0.05)
    assert 0 < float(found.error) <= 0.05
    assert math.isnan(float(explain("integrated_gradients", model, one, FIRST, steps=12).error))
    missed = explain("integrated_gradients", Formula(lambda p: torch.relu(p - 0.52).sum(1)), one, FIRST, steps=1)
    assert not missed.heatmaps.any() and math.isnan(float(missed.error))  # one point tells nothing of its error
    constant = explain("integrated_gradients", Formula(lambda p: 0 * p.sum(1)), one, FIRST)
    assert float(constant.error) == 0
    assert not constant.heatmaps.any()


def test_a_map_whose_squares_vanish_in_float32_is_as_certain_as_any() -> None:
    one = torch.ones(1, 1, 2, 2)
    small, usual = (
        explain("integrated_gradients", Formula(lambda p, s=s: s * (p**6).sum(1)), one, FIRST) for s in (1e-25, 1.0)
    )
    assert torch.allclose(small.heatmaps * 1e25, usual.heatmaps, rtol=1e-5)
    assert float(small.error) == pytest.approx(float(usual.error), rel=1e-3) and float(usual.error) > 0


def test_one_kink_is_found_as_far_as_numbers_tell_it_apart() -> None:
    x = torch.ones(1, 1, 2, 2)
    model = Formula(lambda p: torch.relu(p - 0.37).sum(1))
    found = explain("integrated_gradients", model, x, FIRST, error=0.0)
    assert torch.allclose(found.heatmaps, torch.full_like(x, 0.63), atol=1e-5)
    assert 0 < float(found.error) < 1e-5
    assert int(found.forwards) < 2 * 100


@pytest.mark.parametrize("error", [0.2, 0.05, 0.02])
def test_a_stated_error_is_met_and_never_claimed_wrongly(error: float) -> None:
    model, images = Kinked(), torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    targets = torch.arange(40) % 4
    found = explain("integrated_gradients", model, images, targets, error=error)
    truth = explain("integrated_gradients", model, images, targets, steps=1500).heatmaps
    true = (found.heatmaps - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    assert (found.error <= error).all()
    assert float((true <= error).float().mean()) >= 0.95
    cheap = explain("integrated_gradients", model, images, targets, error=0.5)
    assert (cheap.forwards <= found.forwards).all()


def test_integrated_gradients_are_complete_on_a_curved_model_and_more_so_with_more_steps(problem) -> None:
    model, images, targets = problem
    with torch.no_grad():
        change = (model(images) - model(torch.zeros_like(images)))[torch.arange(5), targets]
    gaps = []
    for steps in (4, 64):
        found = explain("integrated_gradients", model, images, targets, steps=steps)
        gap = (found.heatmaps.sum((1, 2, 3)) - change).abs() / change.abs()
        assert torch.allclose(gap, found.gap, atol=1e-4)
        gaps.append(gap)
    assert (gaps[1] < 0.01).all() and (gaps[1] <= gaps[0] + 1e-5).all()


def test_several_baselines_are_averaged(problem) -> None:
    model, images, targets = problem
    both = explain("integrated_gradients", model, images, targets, steps=20, baseline="black,blur").heatmaps
    each = [
        explain("integrated_gradients", model, images, targets, steps=20, baseline=b).heatmaps
        for b in ("black", "blur")
    ]
    assert torch.allclose(both, (each[0] + each[1]) / 2, atol=1e-6)


def test_gradient_shap_approaches_integrated_gradients_over_the_grey_baselines(problem) -> None:
    """Its expectation is the mean, over the baselines, of integrated gradients: a slow second version."""
    model, images, targets = problem
    greys = ",".join(str(k / (LEVELS - 1)) for k in range(LEVELS))
    slow = explain("integrated_gradients", model, images, targets, steps=64, baseline=greys).heatmaps
    errors, claimed = [], []
    for samples in (LEVELS * 2, LEVELS * 40):
        fast = explain("gradient_shap", model, images, targets, samples=samples)
        errors.append(float((fast.heatmaps - slow).norm() / slow.norm()))
        claimed.append(float(fast.error.max()))
    assert errors[1] < 0.05 and errors[1] < errors[0]
    assert claimed[1] < claimed[0]


def test_an_image_equal_to_its_baseline_gives_a_zero_map() -> None:
    model, images = Curved(), torch.full((2, 3, 6, 5), 0.4)
    for name, option in {"integrated_gradients": "baseline", "deep_lift": "baseline", "gradient_shap": "baselines",
                         "deep_shap": "baselines", "shapley": "fill", "kernel_shap": "fill", "lime": "fill",
                         "occlusion": "fill", "partition_shap": "fill"}.items():  # fmt: skip
        found = explain(name, model, images, torch.tensor([0, 1]), **{option: 0.4})
        assert found.heatmaps.abs().max() < 1e-6, name
        assert not (found.error > 1e-3).any(), name


def test_without_gradients_or_with_words_that_cannot_be_read_the_error_says_so(problem) -> None:
    model, images, targets = problem
    for option, value in {"baseline": "blu", "baselines": "2.0", "fill": "reddish"}.items():
        name = {"baseline": "deep_lift", "baselines": "gradient_shap", "fill": "shapley"}[option]
        with pytest.raises(ValueError, match="cannot be read"):
            explain(name, model, images, targets, **{option: value})
    for regions in ("slick:4", "grid:0", "slic:0", "grid:", torch.zeros(3, 3)):
        with pytest.raises(ValueError, match="regions"):
            explain("shapley", model, images, targets, regions=regions)


@pytest.mark.parametrize("name", ["gradient_shap", "integrated_gradients", "deep_shap"])
def test_a_reference_made_from_the_image_is_its_own(problem, name) -> None:
    model, images, targets = problem
    option = {"integrated_gradients": "baseline"}.get(name, "baselines")
    seeds = torch.arange(5)
    whole = explain(name, model, images, targets, seeds=seeds, **{option: "mean,black"})
    alone = explain(name, model, images[3:4], targets[3:4], seeds=seeds[3:4], **{option: "mean,black"})
    assert torch.allclose(whole.heatmaps[3:4], alone.heatmaps, atol=1e-5)


def test_the_error_of_several_baselines_is_of_their_mean() -> None:
    """Between black and white a nearly linear model's maps cancel, and what is left is far less certain."""
    model, images = Kinked(), torch.full((4, 3, 8, 8), 0.5)
    targets = torch.arange(4)
    found = explain("integrated_gradients", model, images, targets, steps=8, baseline="black,white")
    truth = explain("integrated_gradients", model, images, targets, steps=800, baseline="black,white").heatmaps
    true = (found.heatmaps - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    assert (found.error > 0.5 * true).all()


def test_shaps_explainer_leaves_the_model_as_it_was() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Modular()

        def forward(self, images):
            return self.inner(images)

    model, images = Outer(), make_images(2, (3, 8, 8), dtype=torch.float32)
    model(images).sum().backward()
    names, gradient = list(model.state_dict()), model.inner.body[0].weight.grad.clone()
    explain("shap_deep_explainer", model, images, torch.tensor([0, 1]))
    assert list(model.state_dict()) == names and torch.equal(model.inner.body[0].weight.grad, gradient)


# -- Shapley values ---


def enumerate_values(game, k: int) -> tuple[np.ndarray, np.ndarray]:
    masks = np.array(list(itertools.product([False, True], repeat=k)))
    return masks, game(masks)


def slow_shapley(game, k: int) -> np.ndarray:
    """By the definition: mean marginal contribution over all orders."""
    values = np.zeros(k)
    for order in itertools.permutations(range(k)):
        mask = np.zeros((1, k), bool)
        for player in order:
            before = game(mask)[0]
            mask[0, player] = True
            values[player] += game(mask)[0] - before
    return values / math.factorial(k)


def order_two_game(k: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    main, pairs = generator.normal(size=k), np.triu(generator.normal(size=(k, k)), 1)

    def game(masks):
        x = masks.astype(float)
        return 0.7 + x @ main + np.einsum("ni,ij,nj->n", x, pairs, x)

    return game, main + (pairs + pairs.T).sum(1) / 2


def deep_game(k: int, seed: int = 0):
    """A random two-layer network of the masks: interactions of every order."""
    generator = np.random.default_rng(seed)
    first, second = generator.normal(size=(k, 24)), generator.normal(size=24)
    return lambda masks: np.maximum(masks @ first - 0.5, 0) @ second


def test_exact_values_are_those_of_the_definition() -> None:
    game = deep_game(5)
    assert np.allclose(exact(*enumerate_values(game, 5)), slow_shapley(game, 5), atol=1e-12)


@pytest.mark.parametrize(("k", "budget"), [(2, 12), (3, 18), (5, 20), (6, 24), (7, 28), (7, 42), (12, 72), (25, 150)])
def test_paired_estimators_are_exact_on_games_of_order_two(k: int, budget: int) -> None:
    game, wanted = order_two_game(k)
    drawn = draw(k, budget, 4)
    values = game(drawn)
    estimate, margin = shapley_values(drawn, values)
    assert np.allclose(estimate, wanted, atol=1e-7) and margin.max() < 1e-6
    assert np.allclose(least_squares(drawn, values), wanted, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_estimators_are_exact_when_they_may_ask_for_everything(k: int) -> None:
    game = deep_game(k, 3)
    drawn = draw(k, 2**k, 0)
    assert len(np.unique(drawn, axis=0)) == 2**k
    wanted = exact(*enumerate_values(game, k))
    assert np.allclose(shapley_values(drawn, game(drawn))[0], wanted, atol=1e-10)
    assert np.allclose(least_squares(drawn, game(drawn)), wanted, atol=1e-9)


@pytest.mark.parametrize("budget", [2, 3, 10, 31, 64, 200])
@pytest.mark.parametrize("k", [1, 2, 5, 6, 13, 15])
@pytest.mark.parametrize("choice", [draw, choose])
def test_coalitions_are_paired_different_and_within_budget(choice, k: int, budget: int) -> None:
    drawn = choice(k, budget, 9)
    assert len(drawn) == max(2, min(budget, 2**k) // 2 * 2)
    assert (drawn[::2] == ~drawn[1::2]).all()
    assert not drawn[0].any() and drawn[1].all()
    assert len(np.unique(drawn, axis=0)) == len(drawn) or k == 1
    if len(drawn) >= 2**k:
        assert stands_for(drawn).sum() == pytest.approx(2**k)
    assert (choice(k, budget, 9) == drawn).all()
    other = choice(k, budget, 10)
    assert len(other) == len(drawn) and (k < 3 or budget < 4 or len(drawn) == 2**k or (other != drawn).any())


def test_masks_stand_for_all_masks_together() -> None:
    for k, budget in ((6, 30), (9, 64), (12, 100)):
        drawn = draw(k, budget, 1)
        assert stands_for(drawn).sum() == pytest.approx(2**k)


def test_axioms_hold() -> None:
    """Dummy, symmetry, additivity and efficiency, of estimates from the same coalitions."""
    k, drawn = 9, draw(9, 80, 2)
    first, second = deep_game(k, 1), deep_game(k, 2)
    values = [shapley_values(drawn, game(drawn))[0] for game in (first, second)]
    for game, estimate in zip((first, second), values, strict=True):
        assert estimate.sum() == pytest.approx(float(np.diff(game(drawn[:2]))[0]), abs=1e-6)
    linear = least_squares(drawn, first(drawn) + second(drawn))
    parts = [least_squares(drawn, game(drawn)) for game in (first, second)]
    assert np.allclose(linear, parts[0] + parts[1], atol=1e-9)

    def twins(masks):  # players 0 and 1 do the same, player 8 nothing
        return (masks[:, 0].astype(float) + masks[:, 1]) * masks[:, 2] + masks[:, 3] * 2.0

    whole = draw(k, 2**k, 0)
    estimate, _ = shapley_values(whole, twins(whole))
    assert estimate[0] == pytest.approx(estimate[1], abs=1e-10) and abs(estimate[8]) < 1e-10


def test_each_chosen_pair_is_the_one_that_leaves_least_unknown() -> None:
    """Against the posterior variance of every choice, from the prior's independent interactions one by one."""
    k, pairs = 7, 14
    sets = [each for size in (1, 3, 5, 7) for each in itertools.combinations(range(k), size)]
    own = np.array([(TOGETHER / k) ** len(each) + FREE * (len(each) == 1) for each in sets])
    phi = np.array([[2 / len(each) * (i in each) for each in sets] for i in range(k)])
    every = np.array(list(itertools.product([-1, 1], repeat=k)))[: 2 ** (k - 1)]
    basis = np.stack([every[:, list(each)].prod(1) for each in sets], 1)
    rows = np.abs(every @ np.where(choose(k, 2 * pairs, 5)[::2], 1, -1).T).argmax(0).tolist()

    def unknown(asked: list[int]) -> float:
        seen = basis[asked] * own
        gain = seen.T @ np.linalg.pinv(seen @ basis[asked].T, hermitian=True) @ seen
        return float(np.trace(phi @ (np.diag(own) - gain) @ phi.T))

    for step in range(1, pairs):
        left = [unknown([*rows[:step], row]) for row in range(len(every)) if row not in rows[:step]]
        assert unknown(rows[: step + 1]) == pytest.approx(min(left), rel=1e-6)


def test_chosen_coalitions_halve_the_error_of_drawn_ones() -> None:
    errors = []
    for seed in range(8):
        game = deep_game(12, 30 + seed)
        wanted = exact(*enumerate_values(game, 12))
        both = [shapley_values(masks, game(masks))[0] for masks in (draw(12, 100, seed), choose(12, 100, seed))]
        errors.append([np.linalg.norm(estimate - wanted) for estimate in both])
    drawn, chosen = np.median(errors, axis=0)
    assert chosen < 0.7 * drawn


@pytest.mark.parametrize("k", [8, 12, 16])
def test_intervals_cover_the_truth_as_often_as_they_say(k: int) -> None:
    """95 % intervals on games with interactions of every order: truth by enumeration, 60 draws of coalitions each."""
    covered, budget = [], 4 * k + 20
    for seed in range(3):
        game = deep_game(k, 20 + seed)
        wanted = exact(*enumerate_values(game, k))
        for draw_seed in range(60):
            drawn = choose(k, budget, 1000 * seed + draw_seed)
            estimate, margin = shapley_values(drawn, game(drawn))
            covered.append(np.mean(np.abs(estimate - wanted) <= margin + 1e-12))
    assert 0.90 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(("k", "budget"), [(12, 40), (12, 50), (16, 48), (16, 60)])
def test_intervals_of_few_coalitions_cover_games_of_their_own_prior(k: int, budget: int) -> None:
    """Where main effects have just been left free the scale is known from few pairs, and Student's t must know it."""
    generator, masks = np.random.default_rng(budget), choose(k, budget, 7)
    sets = np.array(list(itertools.product([0, 1], repeat=k)))
    sets = sets[sets.sum(1) % 2 == 1]
    size, z = sets.sum(1), np.where(masks, 1, -1)
    basis = 1.0 - 2 * (((1 - z) // 2 @ sets.T) % 2)  # the product of z over each set
    deviation = np.where(size == 1, 1.0, 0.25 ** (size / 2))
    covered = []
    for _ in range(150):
        own = deviation * generator.normal(size=len(sets))
        estimate, margin = shapley_values(masks, basis @ own)
        covered.append(np.mean(np.abs(estimate - 2 * (own / size) @ sets) <= margin))
    assert 0.94 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("budget", [200, 400])
def test_intervals_of_many_chosen_coalitions_cover_the_truth(budget: int) -> None:
    """As `shapley` makes them, with neighbours; with the whole likelihood those of 200 would cover too seldom."""
    covered, groups = [], neighbours(grid(3, 4, 3, 4))
    for seed in range(10):
        game = deep_game(12, 50 + seed)
        wanted = exact(*enumerate_values(game, 12))
        for draw_seed in range(6):
            masks = choose(12, budget, 100 * seed + draw_seed)
            estimate, margin = shapley_values(masks, game(masks), groups)
            covered.append(np.mean(np.abs(estimate - wanted) <= margin + 1e-12))
    assert 0.94 <= np.mean(covered) <= 0.99


def test_averages_are_mixtures() -> None:
    """Mean and deviation of draws from the mixture of two fits, weighed by the root of their likelihoods."""
    fits = [(-3.0, np.array([0.0, 2.0]), np.array([1.0, 0.5])), (-1.0, np.array([1.0, 2.0]), np.array([0.5, 0.5]))]
    mean, deviation = _averaged(fits, power=0.5)
    generator, second = np.random.default_rng(0), 1 / (1 + math.exp(-1))
    which = (generator.random(400_000) < second).astype(int)
    drawn = np.stack([fit[1] for fit in fits])[which]
    drawn = drawn + np.stack([fit[2] for fit in fits])[which] * generator.normal(size=drawn.shape)
    assert mean == pytest.approx(drawn.mean(0), abs=0.01) and deviation == pytest.approx(drawn.std(0), abs=0.01)


@pytest.mark.parametrize("choice", [draw, choose])
def test_no_more_regions_than_can_be_counted(choice) -> None:
    with pytest.raises(ValueError, match="more than the 500"):
        choice(501, 64, 0)


def test_few_coalitions_are_drawn_by_size_and_rounding_chooses_none(monkeypatch) -> None:
    assert (choose(16, 38, 3) == draw(16, 38, 3)).all() and (choose(16, 40, 3) != draw(16, 40, 3)).any()
    before, einsum, generator = choose(9, 50, 3), np.einsum, np.random.default_rng(0)
    design._designed.cache_clear()
    with monkeypatch.context() as patch:  # as another processor would round
        patch.setattr(design.np, "einsum", lambda *a: (f := einsum(*a)) * (1 + 1e-13 * generator.normal(size=f.shape)))
        assert (choose(9, 50, 3) == before).all()
    design._designed.cache_clear()


def test_groups_of_neighbours_are_blocks_of_a_grid_and_ignore_what_does_not_touch() -> None:
    assert neighbours(grid(6, 9, 2, 3)) == [[0, 1, 2, 3, 4, 5], [0, 1, 3, 4], [1, 2, 4, 5]]
    strip = torch.tensor([[0, 0, 1, 2, 2, 3]])
    assert neighbours(strip) == [[0, 1], [1, 2], [2, 3]]
    corner = torch.tensor([[0, 1], [2, 0]])  # 1 and 2 touch by a corner alone
    assert neighbours(corner) == [[0, 1, 2]]
    assert neighbours(torch.zeros(4, 4, dtype=torch.int64)) == []


def test_the_prior_is_the_sum_of_independent_interactions() -> None:
    """Covariances in closed form against sums over all odd sets of players."""
    groups, rho, k = neighbours(grid(2, 3, 2, 3)), 0.6, 6
    z = np.where(draw(k, 40, 3)[1::2], 1, -1)
    (prior,) = _priors(z, groups, [rho])
    between, reach, own = np.zeros((len(z), len(z))), np.zeros((len(z), k)), np.zeros(k)
    for size in (1, 3, 5):
        for together in itertools.combinations(range(k), size):
            variance = sum(rho**size for group in groups if set(together) <= set(group))
            product = z[:, list(together)].prod(1)
            between += variance * np.outer(product, product)
            for i in together:
                reach[:, i] += variance * 2 / size * product
                own[i] += variance * 4 / size**2
    assert np.allclose(prior.between, between) and np.allclose(prior.reach, reach) and np.allclose(prior.own, own)
    linear = sum(rho * len(group) for group in groups)
    assert prior.crooked == pytest.approx(between[0, 0] - linear)
    (whole,) = _priors(z, [range(k)], [0.2])
    assert whole.mixed(prior, 0.3).between == pytest.approx(
        0.7 * whole.between / whole.crooked + 0.3 * between / prior.crooked
    )


@pytest.mark.parametrize("free", [True, False])
def test_a_fit_is_the_posterior_by_inverse_matrices(free: bool) -> None:
    """Universal kriging as textbooks have it: generalised least squares, and the likelihood of what is left."""
    k, generator = 6, np.random.default_rng(0)
    z = np.where(choose(k, 32, 3)[1::2], 1, -1)
    odd = generator.normal(size=len(z))
    (prior,) = _priors(z, [range(k)], [0.4])
    likelihood, estimate, deviation = _fit(prior, z, odd, free=free)
    inverse = np.linalg.inv(prior.between + 1e-10 * prior.between[0, 0] * np.eye(len(z)))
    information = z.T @ inverse @ z
    slopes = np.linalg.solve(information, z.T @ inverse @ odd) if free else np.zeros(k)
    left = odd - z @ slopes
    dof = len(z) - (k if free else 0)
    scale = left @ inverse @ left / dof
    missing = 2 * np.eye(k) - z.T @ inverse @ prior.reach
    variance = prior.own - np.einsum("ij,ik,kj->j", prior.reach, inverse, prior.reach)
    variance += np.einsum("ij,ik,kj->j", missing, np.linalg.inv(information), missing) if free else 0
    log_determinant = -np.linalg.slogdet(inverse)[1] + (np.linalg.slogdet(information)[1] if free else 0)
    assert np.allclose(estimate, 2 * slopes + prior.reach.T @ inverse @ left, atol=1e-8)
    assert np.allclose(deviation, np.sqrt(scale * variance), rtol=1e-6)
    assert likelihood == pytest.approx(-0.5 * log_determinant - 0.5 * dof * np.log(scale), rel=1e-8)


def test_knowing_what_touches_helps_where_neighbours_act_together_and_keeps_intervals_honest() -> None:
    groups, generator = neighbours(grid(3, 4, 3, 4)), np.random.default_rng(0)
    errors, covered = [], []
    for _ in range(12):
        sets = [generator.choice(group, 3, replace=False) for group in groups for _ in range(2)]
        weights = generator.normal(size=len(sets))

        def game(masks, sets=sets, weights=weights):
            return sum(w * masks[:, own].all(1) for w, own in zip(weights, sets, strict=True))

        wanted = exact(*enumerate_values(game, 12))
        for seed in range(4):
            drawn = draw(12, 100, seed)
            pair = [shapley_values(drawn, game(drawn), known) for known in ((), groups)]
            errors.append([np.linalg.norm(estimate - wanted) for estimate, _ in pair])
            covered.append(np.mean(np.abs(pair[1][0] - wanted) <= pair[1][1]))
    alone, near = np.median(errors, axis=0)
    assert near < 0.85 * alone and 0.9 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("k", [4, 12])
def test_knowing_what_touches_leaves_exact_estimates_exact(k: int) -> None:
    game, wanted = order_two_game(k)
    drawn = draw(k, 6 * k, 4)
    estimate, _ = shapley_values(drawn, game(drawn), neighbours(grid(2, k // 2, 2, k // 2)))
    assert np.allclose(estimate, wanted, atol=1e-7)


def test_four_times_the_samples_at_least_halve_the_error() -> None:
    game, k = deep_game(14, 5), 14
    wanted = exact(*enumerate_values(game, k))
    errors = []
    for budget in (60, 270):
        estimates = [shapley_values(d, game(d))[0] for d in (draw(k, budget, seed) for seed in range(20))]
        errors.append(np.median([np.linalg.norm(estimate - wanted) for estimate in estimates]))
    assert errors[1] <= errors[0] / 2


@pytest.mark.parametrize("name", ["shapley", "kernel_shap"])
def test_one_region_has_the_whole_change(problem, name) -> None:
    model, images, targets = problem
    found = explain(name, model, images, targets, regions="grid:1", fill=0.0)
    with torch.no_grad():
        change = (model(images) - model(torch.zeros_like(images)))[torch.arange(5), targets]
    assert torch.allclose(found.heatmaps.sum((1, 2, 3)), change, atol=1e-5) and not (found.error > 0).any()


def test_shapley_values_of_a_network_are_those_of_enumeration(problem) -> None:
    model, images, targets = problem
    truth = explain("shapley", model, images, targets, regions="grid:3", samples=512)
    assert (truth.error == 0).all()
    quick = explain("shapley", model, images, targets, regions="grid:3", samples=100)
    assert float((quick.heatmaps - truth.heatmaps).norm() / truth.heatmaps.norm()) < 0.02
    within = ((quick.heatmaps - truth.heatmaps).abs() <= quick.margin + 1e-7).float().mean()
    assert float(within) > 0.8


def test_lime_is_weighted_ridge_regression_over_all_masks() -> None:
    """Against scikit-learn on every mask, equally likely, with lime's kernel."""
    from sklearn.linear_model import Ridge

    k, game = 8, deep_game(8, 6)
    masks, values = enumerate_values(game, k)
    weight = np.sqrt(np.exp(-((1 - np.sqrt(masks.sum(1) / k)) ** 2) / 0.25**2))
    weight /= weight.sum()
    wanted = Ridge(alpha=1e-3).fit(masks, values, sample_weight=weight).coef_
    drawn = draw(k, 2**k, 0)
    assert np.allclose(coefficients(drawn, game(drawn), 1e-3, 0.25), wanted, atol=1e-8)
    sampled = draw(k, 150, 1)
    near = coefficients(sampled, game(sampled), 1e-3, 0.25)
    assert np.linalg.norm(near - wanted) / np.linalg.norm(wanted) < 0.25


def test_region_numbers_may_begin_anywhere_and_leave_gaps(problem) -> None:
    """lime with numbers from 1 never perturbs the most important region; here relabelling changes nothing."""
    model, images, targets = problem
    labels = torch.arange(30).reshape(6, 5) // 6
    usual = explain("shapley", model, images, targets, regions=labels).heatmaps
    for other in (labels + 1, labels * 7 - 3):
        assert torch.equal(explain("shapley", model, images, targets, regions=other).heatmaps, usual)


def test_regions_cover_the_image_without_gaps() -> None:
    images = torch.rand(3, 1, 20, 30, generator=torch.Generator().manual_seed(1))
    for regions in ("grid:4", "grid:2x7", "slic:12", "grid:99"):
        found = regions_of(images, regions)
        assert found.shape == (3, 20, 30)
        for one, count in zip(found, counts(found), strict=True):
            assert one.unique().tolist() == list(range(count))
    assert counts(regions_of(images, "grid:2x7")) == [14] * 3


def test_a_noisy_picture_still_falls_into_about_as_many_superpixels_as_asked() -> None:
    noise = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    assert all(8 <= count <= 24 for count in counts(regions_of(noise, "slic:16")))


def test_a_shared_pool_asks_about_each_mask_once_for_every_method_and_class(problem) -> None:
    model, images, targets = problem
    pool = Pool(model, images)
    for name in ("shapley", "kernel_shap"):
        alone = explain(name, model, images, targets, samples=40).heatmaps
        assert torch.equal(explain(name, model, images, targets, samples=40, pool=pool).heatmaps, alone)
    spent = pool.forwards
    for name in ("kernel_shap", "lime", "shapley"):
        for classes in (targets, (targets + 1) % 4):
            explain(name, model, images, classes, samples=40, pool=pool)
    assert pool.forwards == spent
    explain("shapley", model, images, targets, samples=40, fill=0.5, pool=pool)
    assert pool.forwards > spent


def test_other_images_can_fill_and_are_averaged() -> None:
    model, images, targets, weights = linear_case()
    others = make_images(4, seed=7)
    found = explain("shapley", model, images, targets, regions=PIXELS, fill=others, samples=160)
    wanted = (weights * (images - others.mean(0))).sum(1, keepdim=True)
    assert torch.allclose(found.heatmaps.double(), wanted, atol=1e-5)
    assert found.forwards.tolist() == [160 * 4] * 3


def test_references_are_what_they_are_called() -> None:
    images = make_images(2, (3, 16, 12))
    (blur,) = references(images, "blur")
    assert blur.shape == images.shape and torch.allclose(blur.mean(), images.mean(), atol=0.02)
    assert blur.std() < images.std() / 4
    assert torch.allclose(references(torch.full_like(images, 0.3), "blur")[0], torch.tensor(0.3, dtype=torch.float64))
    assert torch.allclose(references(images, "mean")[0], images.mean((2, 3), keepdim=True).expand_as(images))
    assert [float(each.mean()) for each in references(images, "black, white,0.25")] == [0.0, 1.0, 0.25]


# -- partition ---


def test_partition_shap_is_complete_at_any_budget(problem) -> None:
    model, images, targets = problem
    for options in ({"evaluations": 10}, {"evaluations": 100}, {"evaluations": 60, "regions": "slic:9"}):
        assert (explain("partition_shap", model, images, targets, **options).gap < 1e-4).all()


@pytest.mark.parametrize(("height", "width"), [(1, 2), (1, 5), (4, 4), (7, 3)])
def test_the_tree_joins_every_pixel_once(height: int, width: int) -> None:
    tree = halving_tree(height, width)
    joins_everything_once(tree, height * width)


def test_the_tree_of_superpixels_joins_every_one_once() -> None:
    labels = regions_of(torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(2)), "slic:9")[0]
    joins_everything_once(nearest_tree(labels), int(labels.max()) + 1)


def joins_everything_once(tree, players: int) -> None:
    assert tree.shape == (players - 1, 4)
    members = {i: {i} for i in range(players)}
    for k, (a, b, _, size) in enumerate(tree):
        assert not members[int(a)] & members[int(b)]
        members[players + k] = members[int(a)] | members[int(b)]
        assert len(members[players + k]) == size
    assert members[2 * players - 2] == set(range(players))


# -- memory ---


def test_a_thousand_images_keep_no_graph_alive(problem) -> None:
    import gc

    model = problem[0]
    for name in ("integrated_gradients", "deep_lift", "grad_cam", "shapley"):
        options = {"samples": 8} if name == "shapley" else {"steps": 2} if name == "integrated_gradients" else {}
        tensors = []
        for start in range(0, 1000, 250):
            images = torch.rand(250, 3, 6, 5, generator=torch.Generator().manual_seed(start))
            explain(name, model, images, torch.zeros(250, dtype=torch.long), **options)
            gc.collect()
            tensors.append(sum(type(each) is torch.Tensor for each in gc.get_objects()))
        assert max(tensors[1:]) <= tensors[0] + 5, name


# -- the libraries, where they are right and where they are not ---


class Modular(nn.Module):
    """Activations as modules, each used once: what captum and shap can do."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body = nn.Sequential(
                nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4)
            )
            self.body(torch.zeros(1, 3, 8, 8))

    def forward(self, images):
        return self.body(images)


@pytest.mark.parametrize("name", ["captum_deep_lift", "shap_deep_explainer"])
def test_our_deep_lift_is_theirs_where_they_are_exact(name) -> None:
    model, images, targets = Modular(), make_images(3, (3, 8, 8), dtype=torch.float32), torch.tensor([0, 3, 1])
    for baseline in (0.0, 0.6):
        ours = explain("deep_lift", model, images, targets, baseline=baseline).heatmaps
        theirs = explain(name, model, images, targets, baseline=baseline).heatmaps
        assert torch.allclose(ours, theirs, atol=1e-5 * float(ours.abs().max()) * 10)


class Functional(Modular):
    """The same network with a functional ReLU, of which captum sees nothing."""

    def forward(self, images):
        x = torch.relu(self.body[0](images))
        return self.body[5](torch.tanh(self.body[2](x)).flatten(1))


@pytest.mark.parametrize("name", ["captum_deep_lift", "shap_deep_explainer"])
def test_a_library_that_is_wrong_on_functional_activations_is_refused(name) -> None:
    images, targets = make_images(3, (3, 8, 8), dtype=torch.float32), torch.tensor([0, 3, 1])
    with pytest.raises(UserError, match="is not exact on this model"):
        explain(name, Functional(), images, targets)
    ours = explain("deep_lift", Functional(), images, targets)
    assert torch.allclose(ours.heatmaps, explain("deep_lift", Modular(), images, targets).heatmaps, atol=1e-6)


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_captums_trapezoid_loses_a_share_that_the_midpoint_rule_does_not(steps: int) -> None:
    from captum.attr import IntegratedGradients

    model, images, targets, weights = linear_case(torch.float32)
    theirs = IntegratedGradients(model).attribute(images, target=targets, n_steps=steps, method="riemann_trapezoid")
    assert float((theirs.detach() / (weights * images)).median()) == pytest.approx(1 - 1 / steps, abs=1e-3)
    ours = explain("integrated_gradients", model, images, targets, steps=steps).heatmaps
    assert torch.allclose(ours, weights * images, atol=1e-5)
    right = IntegratedGradients(model).attribute(images, target=targets, n_steps=steps, method="riemann_middle")
    assert torch.allclose(ours, right.detach().float(), atol=1e-5)


def test_shaps_kernel_explainer_drops_features_of_a_linear_model_and_ours_does_not() -> None:
    import shap

    weights = np.linspace(0.1, 2.5, 25)
    theirs = shap.KernelExplainer(lambda x: x @ weights, np.zeros((1, 25)), silent=True)
    found = theirs.shap_values(np.ones((1, 25)), nsamples=400, silent=True, l1_reg="num_features(10)")[0]
    assert (np.abs(found) > 1e-9).sum() <= 10
    drawn = draw(25, 400, 0)
    assert np.allclose(shapley_values(drawn, drawn @ weights)[0], weights, atol=1e-6)
    assert set(EXPLAINERS) >= {"kernel_shap", "shapley"}

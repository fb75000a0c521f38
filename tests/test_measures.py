"""Measures of heat maps against closed forms, slow second versions and the sanity checks that guard them."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from conftest import Curved, make_images, make_linear
from scipy import stats
from sklearn.metrics import average_precision_score
from torch import nn

from robustcv.classifier import frozen
from robustcv.errors import UserError
from robustcv.explainers import EXPLAINERS
from robustcv.measures import CONTROLS, MEASURES
from robustcv.measures.deletion import area, deletion, insertion, removal_curve
from robustcv.measures.infidelity import infidelity
from robustcv.measures.localisation import average_precision, pointing, relevance_mass, relevance_rank
from robustcv.measures.randomisation import cascade, randomisation_efficient, randomisation_smooth, spearman
from robustcv.measures.ranking import ranks
from robustcv.measures.road import imputed, road
from robustcv.measures.sensitivity import max_sensitivity
from robustcv.measures.sparseness import sparseness


def by(name: str, **options):
    """Give a method as the measures take one."""

    def explain(classifier, images, targets):
        with frozen(classifier):
            return EXPLAINERS[name](classifier, images, targets, **options).heatmaps

    return explain


def needed(measure) -> dict:
    masks = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(7)) < 0.3
    return {"explain": {"explain": by("saliency")}, "masks": {"masks": masks}}.get(measure.needs, {})


@pytest.fixture
def problem():
    model, images, targets = Curved(), make_images(4, dtype=torch.float32), torch.tensor([0, 1, 2, 3])
    return model, images, targets, by("input_x_gradient")(model, images, targets)


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_gives_one_number_per_image_and_leaves_all_as_it_was(problem, name) -> None:
    model, images, targets, maps = problem
    kept, state = maps.clone(), torch.get_rng_state()
    found = MEASURES[name].function(model, images, targets, maps, **needed(MEASURES[name]))
    assert found.shape == (4,) and found.isfinite().all() and not found.requires_grad
    assert torch.equal(maps, kept) and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in MEASURES if MEASURES[name].needs != "masks"])
def test_a_measure_does_not_depend_on_the_batch(problem, name) -> None:
    model, images, targets, maps = problem
    function = MEASURES[name].function
    seeds = {"seeds": torch.arange(4) * 17} if "seeds" in inspect.signature(function).parameters else {}
    one = {key: value[2:3] for key, value in seeds.items()}
    whole = function(model, images, targets, maps, **needed(MEASURES[name]), **seeds)
    alone = function(model, images[2:3], targets[2:3], maps[2:3], **needed(MEASURES[name]), **one)
    assert torch.allclose(whole[2:3], alone, atol=1e-5)
    if "rows" in inspect.signature(function).parameters:
        assert torch.allclose(whole, function(model, images, targets, maps, **seeds, rows=3), atol=1e-5)


# -- deletion and insertion on an additive model ---


def additive():
    model, images = make_linear(3), make_images(4)
    targets = torch.tensor([0, 2, 1, 0])
    shares = (model.weights.detach()[targets].reshape(4, 3, 6, 5) * (images - 0.25)).sum(1)  # what hiding a pixel takes
    return model, images, targets, shares


def test_deletion_of_the_true_order_on_an_additive_model_is_its_closed_form() -> None:
    model, images, targets, shares = additive()
    with torch.no_grad():
        logit = model(images).gather(1, targets[:, None])
    ordered = shares.flatten(1).sort(dim=1, descending=True).values
    curve = torch.cat([logit, logit - ordered.cumsum(1)], 1)
    found = deletion(model, images, targets, shares[:, None], steps=30, fill=0.25, of="logit")
    assert torch.allclose(found, ((curve[:, 1:] + curve[:, :-1]) / 2).mean(1), atol=1e-9)
    ends = torch.cat([curve[:, :1], curve[:, -1:]], 1)
    shown = torch.cat([ends[:, 1:], ends[:, 1:] + ordered.cumsum(1)], 1)
    inserted = insertion(model, images, targets, shares[:, None], steps=30, fill=0.25, of="logit")
    assert torch.allclose(inserted, ((shown[:, 1:] + shown[:, :-1]) / 2).mean(1), atol=1e-9)


def test_no_order_deletes_faster_than_the_true_one_and_random_ones_fall_on_the_ramp() -> None:
    model, images, targets, shares = additive()
    best = deletion(model, images, targets, shares[:, None], steps=30, fill=0.25, of="logit")
    with torch.no_grad():
        ends = torch.stack([model(images), model(torch.full_like(images, 0.25))])
    ramp = ends.mean(0).gather(1, targets[:, None]).squeeze(1)
    generator = torch.Generator().manual_seed(0)
    random = torch.stack(
        [
            deletion(
                model, images, targets, torch.rand(4, 1, 6, 5, generator=generator), steps=30, fill=0.25, of="logit"
            )
            for _ in range(300)
        ]
    )
    assert (best < random.amin(0)).all()
    assert ((random.mean(0) - ramp).abs() < 4 * random.std(0) / 300**0.5).all()


def test_insertion_is_deletion_of_the_reversed_order_mirrored() -> None:
    model, images, targets, shares = additive()
    curve = removal_curve(model, images, targets, ranks(-shares[:, None]), steps=30, fill=0.25, of="logit")
    found = insertion(model, images, targets, shares[:, None], steps=30, fill=0.25, of="logit")
    assert torch.allclose(found, area(curve.flip(1)), atol=1e-9)


def test_ties_are_broken_at_random_and_not_from_the_corner() -> None:
    flat = ranks(torch.zeros(1, 1, 20, 20))[0].float()
    corner, rest = flat[:10, :10].mean(), flat.mean()
    assert (corner - rest).abs() < 30 and sorted(flat.flatten().tolist()) == list(range(400))
    steps = torch.arange(400.0).reshape(1, 1, 20, 20) // 100
    assert (ranks(steps)[0, 15:] < 100).all()


# -- ROAD ---


def slow_imputation(image: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Set up and solve the system of the reference, one equation a missing pixel."""
    h, w = gone.shape
    places = [tuple(each) for each in np.argwhere(gone)]
    number = {place: k for k, place in enumerate(places)}
    system, right = np.zeros((len(places), len(places))), np.zeros((len(places), len(image)))
    for k, (y, x) in enumerate(places):
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            weight = 0 if dy == dx == 0 else 1 / 6 if dy == 0 or dx == 0 else 1 / 12
            v, u = y + dy, x + dx
            if weight and 0 <= v < h and 0 <= u < w:
                system[k, k] += weight
                if gone[v, u]:
                    system[k, number[v, u]] -= weight
                else:
                    right[k] += weight * image[:, v, u]
    filled = image.copy()
    for place, value in zip(places, np.linalg.solve(system, right), strict=True):
        filled[(slice(None), *place)] = value
    return filled


def test_imputation_in_a_batch_solves_each_images_own_system() -> None:
    images = torch.rand(6, 3, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    gone = (
        torch.rand(6, 9, 12, generator=torch.Generator().manual_seed(4)) < torch.linspace(0.1, 0.95, 6)[:, None, None]
    )
    gone[0] = False
    gone[0, 2:7, 3:9] = True  # one large hole
    found = imputed(images, gone, noise=0, tolerance=1e-9)
    for image, hole, filled in zip(images.numpy(), gone.numpy(), found.numpy(), strict=True):
        assert np.allclose(filled, slow_imputation(image, hole), atol=1e-6)
    for k in range(6):  # whoever is beside it
        alone = imputed(images[k : k + 1], gone[k : k + 1], noise=0, tolerance=1e-4)[0]
        assert torch.equal(alone, imputed(images, gone, noise=0, tolerance=1e-4)[k])


def test_imputation_of_a_constant_image_returns_that_constant() -> None:
    images = torch.full((3, 3, 8, 8), 0.37)
    gone = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.7
    gone[2] = True
    assert torch.allclose(imputed(images, gone, noise=0), images, atol=1e-5)


def test_road_is_positive_for_the_true_order_and_negative_for_its_opposite() -> None:
    model, images, targets, shares = additive()
    right, wrong = road(model, images, targets, shares[:, None]), road(model, images, targets, -shares[:, None])
    assert (right > 0).all() and torch.allclose(right, -wrong, atol=0.02)


# -- infidelity, sensitivity, completeness ---


def test_infidelity_of_the_gradient_of_a_linear_model_is_nothing_and_of_a_random_map_nearly_all() -> None:
    model, images = make_linear(3), make_images(4)
    targets = torch.tensor([0, 2, 1, 0])
    gradient = model.weights.detach()[targets].reshape(4, 3, 6, 5)
    assert infidelity(model, images, targets, gradient * 7).max() < 1e-9  # of any unit
    noise = torch.randn(4, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert infidelity(model, images, targets, noise, samples=200).min() > 0.85


def test_max_sensitivity_of_a_linear_models_gradient_is_nothing() -> None:
    model, images = make_linear(3, dtype=torch.float32), make_images(3, dtype=torch.float32)
    targets = torch.tensor([0, 2, 1])
    maps = by("saliency")(model, images, targets)
    assert max_sensitivity(model, images, targets, maps, explain=by("saliency")).max() < 1e-6
    shares = by("input_x_gradient")(model, images, targets)
    moved = max_sensitivity(model, images, targets, shares, explain=by("input_x_gradient"))
    assert (moved > 1e-3).all() and (moved < 0.2).all()


def test_completeness_is_the_explainers_own_gap(problem) -> None:
    model, images, targets, _ = problem
    with frozen(model):
        made = EXPLAINERS["integrated_gradients"](model, images, targets, steps=3, baseline=0.2)
    found = MEASURES["completeness"].function(model, images, targets, made.heatmaps, baseline=0.2)
    assert torch.allclose(found, made.gap, atol=1e-4)


# -- randomisation, guarded by methods whose answer is known ---


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 5),
            )  # fmt: skip

    def forward(self, images):
        return self.layers(images)


def test_an_edge_filter_fails_the_randomisation_test_and_the_gradient_passes_it() -> None:
    model, images, targets = Deep(), make_images(4, (3, 16, 16), dtype=torch.float32), torch.arange(4)

    def edges(classifier, x, t):
        return CONTROLS["sobel"](classifier, x, t)

    kept = randomisation_smooth(model, images, targets, edges(model, images, targets), explain=edges)
    assert (kept > 0.9).all()
    maps = by("saliency")(model, images, targets)
    lost = randomisation_smooth(model, images, targets, maps, explain=by("saliency"), stages=2)
    assert lost.mean() < 0.25
    entropy = randomisation_efficient(model, images, targets, edges(model, images, targets), explain=edges)
    assert torch.allclose(entropy, torch.zeros(4), atol=1e-6)


def test_the_cascade_redraws_from_the_top_down_and_leaves_the_model_alone() -> None:
    model = Deep()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, last = cascade(model, 2, seed=1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    changed = [
        {name for name, value in each.state_dict().items() if not torch.equal(before[name], value)}
        for each in (first, last)
    ]
    assert changed[0] == {"layers.4.weight", "layers.4.bias", "layers.8.weight", "layers.8.bias"}
    assert changed[1] == set(before)
    with pytest.raises(UserError, match="draw its weights"):
        cascade(nn.Flatten(), 1, 0)


def test_spearman_is_scipys_with_ties() -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randint(0, 6, (3, 1, 5, 7), generator=generator).float() for _ in range(2))
    wanted = [stats.spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
    assert torch.allclose(spearman(a, b), torch.tensor(wanted).float(), atol=1e-6)
    assert spearman(a, torch.ones_like(a)).abs().max() == 0


# -- localisation, sparseness, controls ---


def test_localisation_by_hand() -> None:
    maps = torch.tensor([[[[4.0, 1.0], [3.0, -2.0]]]])
    masks = torch.tensor([[[True, False], [False, True]]])
    images, targets = torch.zeros(1, 3, 2, 2), torch.tensor([0])
    assert float(relevance_mass(None, images, targets, maps, masks=masks)) == pytest.approx(4 / 8)
    assert float(relevance_rank(None, images, targets, maps, masks=masks)) == pytest.approx(1 / 2)
    assert float(pointing(None, images, targets, maps, masks=masks)) == 1.0
    assert float(average_precision(None, images, targets, maps, masks=masks)) == pytest.approx((1 + 2 / 4) / 2)
    assert float(relevance_mass(None, images, targets, maps * 0, masks=masks)) == 0.0
    assert float(pointing(None, images, targets, maps * 0, masks=masks)) == pytest.approx(0.5)


def test_average_precision_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(6)
    maps, masks = torch.randn(5, 1, 9, 8, generator=generator), torch.rand(5, 9, 8, generator=generator) < 0.2
    found = average_precision(None, maps.expand(5, 3, 9, 8), torch.zeros(5, dtype=torch.long), maps, masks=masks)
    wanted = [average_precision_score(mask.flatten(), each.flatten()) for mask, each in zip(masks, maps, strict=True)]
    assert torch.allclose(found, torch.tensor(wanted).float(), atol=1e-6)


def test_sparseness_of_equal_and_of_single_values() -> None:
    one = torch.zeros(1, 1, 5, 5)
    one[0, 0, 2, 2] = -3.0
    images, targets = torch.zeros(1, 3, 5, 5), torch.tensor([0])
    assert float(sparseness(None, images, targets, torch.ones(1, 1, 5, 5))) == pytest.approx(0.0, abs=1e-7)
    assert float(sparseness(None, images, targets, one)) == pytest.approx(24 / 25)


def test_controls_look_at_no_model() -> None:
    images, targets = make_images(2, (3, 12, 10), dtype=torch.float32), torch.tensor([0, 1])
    for name, control in CONTROLS.items():
        maps = control(None, images, targets)
        assert maps.shape == (2, 1, 12, 10) and (maps >= 0).all(), name
    flat = torch.full((1, 3, 8, 8), 0.4)
    flat[..., 4:] = 0.8
    edges = CONTROLS["sobel"](None, flat, targets[:1])[0, 0]
    assert (edges[:, 3:5] > 1).all() and edges[:, :3].abs().max() < 1e-6
    middle = CONTROLS["centre"](None, images, targets)[0, 0]
    assert int(middle.argmax()) // 10 in (5, 6) and int(middle.argmax()) % 10 in (4, 5)

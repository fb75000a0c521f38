"""What every explanation promises, as a table over `EXPLAINERS`; closed forms; second opinions."""

import inspect

import pytest
import torch
from conftest import Curved, make_images, make_linear
from torch import nn

from robustcv.classifier import frozen
from robustcv.explainers import EXPLAINERS
from robustcv.explainers.gradient_shap import LEVELS
from robustcv.explainers.partition_shap import halving_tree

FAST = {"partition_shap": {"evaluations": 60}}


def explain(name: str, model, images, targets, **options):
    with frozen(model):
        return EXPLAINERS[name](model, images, targets, **{**FAST.get(name, {}), **options})


@pytest.fixture
def problem():
    return Curved(), make_images(5, dtype=torch.float32), torch.tensor([0, 1, 2, 3, 1])


@pytest.mark.parametrize("name", EXPLAINERS)
def test_maps_have_the_promised_form_and_the_model_is_untouched(problem, name) -> None:
    model, images, targets = problem
    model.train()
    kept, parameters, state = images.clone(), [p.clone() for p in model.parameters()], torch.get_rng_state()
    found = explain(name, model, images, targets)
    assert found.heatmaps.shape[0] == 5 and found.heatmaps.shape[2:] == images.shape[2:]
    assert found.heatmaps.shape[1] in (1, 3) and found.heatmaps.dtype == torch.float32
    assert found.heatmaps.isfinite().all() and not found.heatmaps.requires_grad
    assert found.error.shape == (5,) and found.forwards.shape == (5,)
    assert {"target", "baseline"} <= set(found.details)
    assert torch.equal(images, kept) and model.training
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


@pytest.mark.parametrize("name", EXPLAINERS)
def test_a_map_does_not_depend_on_its_batch(problem, name) -> None:
    model, images, targets = problem
    seeds = torch.arange(5) * 31
    whole = explain(name, model, images, targets, seeds=seeds)
    alone = explain(name, model, images[2:3], targets[2:3], seeds=seeds[2:3])
    assert torch.allclose(alone.heatmaps[0], whole.heatmaps[2], atol=1e-5)


class Counting(nn.Module):
    """Counts rows through forward and backward."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, images):
        self.rows += len(images)
        if images.requires_grad:
            images.register_hook(lambda g: setattr(self, "rows", self.rows + len(g)))
        return self.inner(images)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_the_stated_cost_is_what_an_independent_count_finds(problem, name) -> None:
    model, images, targets = problem
    counting = Counting(model)
    found = explain(name, counting, images, targets)
    extra = LEVELS if name == "gradient_shap" else 0  # the grey baselines, once for all images
    assert counting.rows == int(found.forwards.sum()) + extra


OTHER = {"steps": 3, "baseline": 0.7, "samples": 5, "evaluations": 20, "seeds": torch.arange(5) + 50, "rows": 2}
KEYWORDS = [
    (name, key)
    for name, function in EXPLAINERS.items()
    for key, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
    and key != "rows"  # a memory bound: it must not change the map
    and (name, key) not in {("integrated_gradients", "seeds"), ("partition_shap", "seeds")}  # deterministic
]


@pytest.mark.parametrize(("name", "key"), KEYWORDS)
def test_every_keyword_is_alive(problem, name, key) -> None:
    model, images, targets = problem
    usual, changed = explain(name, model, images, targets), explain(name, model, images, targets, **{key: OTHER[key]})
    assert not torch.allclose(usual.heatmaps, changed.heatmaps, atol=1e-6)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_rows_bounds_memory_and_nothing_else(problem, name) -> None:
    model, images, targets = problem
    usual, changed = explain(name, model, images, targets), explain(name, model, images, targets, rows=7)
    if name == "partition_shap":  # shap refines in batches, so their size moves which rectangles are split
        assert torch.allclose(usual.heatmaps.sum((1, 2, 3)), changed.heatmaps.sum((1, 2, 3)), atol=1e-4)
    else:
        assert torch.allclose(usual.heatmaps, changed.heatmaps, atol=1e-5)


# -- closed forms on a linear classifier ---


def linear_case():
    model = make_linear(4, (3, 6, 5), dtype=torch.float32)
    images, targets = make_images(3, dtype=torch.float32), torch.tensor([3, 0, 2])
    weights = model.weights.detach()[targets].reshape(3, 3, 6, 5)
    return model, images, targets, weights


def test_integrated_gradients_of_a_linear_model_are_weights_times_change() -> None:
    model, images, targets, weights = linear_case()
    found = explain("integrated_gradients", model, images, targets, baseline=0.25, steps=4)
    assert torch.allclose(found.heatmaps, weights * (images - 0.25), atol=1e-5)
    assert (found.error < 1e-4).all()


def test_gradient_shap_of_a_linear_model_is_weights_times_the_mean_change() -> None:
    model, images, targets, weights = linear_case()
    found = explain("gradient_shap", model, images, targets, samples=2 * LEVELS)  # every grey level twice: mean 0.5
    assert torch.allclose(found.heatmaps, weights * (images - 0.5), atol=1e-4)
    assert (found.error < 1e-3).all()


def test_partition_shap_of_a_linear_model_is_exact_when_it_may_ask_for_every_pixel() -> None:
    model, images, targets, weights = linear_case()
    fill = images.mean((2, 3), keepdim=True)
    found = explain("partition_shap", model, images, targets, evaluations=4000)
    wanted = (weights * (images - fill)).sum(1, keepdim=True)
    assert torch.allclose(found.heatmaps, wanted, atol=1e-3)


def test_integrated_gradients_are_complete_on_a_curved_model_and_more_so_with_more_steps(problem) -> None:
    model, images, targets = problem
    with torch.no_grad():
        rows = torch.arange(5)
        change = (model(images) - model(torch.zeros_like(images)))[rows, targets]
    gaps = []
    for steps in (4, 64):
        found = explain("integrated_gradients", model, images, targets, steps=steps)
        gap = (found.heatmaps.sum((1, 2, 3)) - change).abs() / change.abs()
        assert torch.allclose(gap, found.error, atol=1e-4)
        gaps.append(gap)
    assert (gaps[1] < 0.01).all() and (gaps[1] <= gaps[0] + 1e-5).all()


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


def test_gradient_shap_approaches_integrated_gradients_over_the_grey_baselines(problem) -> None:
    """Its expectation is the mean, over the baselines, of integrated gradients: a slow second version."""
    model, images, targets = problem
    slow = torch.stack(
        [
            explain("integrated_gradients", model, images, targets, steps=64, baseline=k / (LEVELS - 1)).heatmaps
            for k in range(LEVELS)
        ]
    ).mean(0)
    errors = []
    for samples in (LEVELS * 2, LEVELS * 40):
        fast = explain("gradient_shap", model, images, targets, samples=samples).heatmaps
        errors.append(float((fast - slow).norm() / slow.norm()))
    assert errors[1] < 0.05 and errors[1] < errors[0]


def test_partition_shap_is_complete_at_any_budget(problem) -> None:
    model, images, targets = problem
    for evaluations in (10, 100):
        assert (explain("partition_shap", model, images, targets, evaluations=evaluations).error < 1e-4).all()


@pytest.mark.parametrize(("height", "width"), [(1, 2), (1, 5), (4, 4), (7, 3)])
def test_the_tree_joins_every_pixel_once(height: int, width: int) -> None:
    tree = halving_tree(height, width)
    pixels = height * width
    assert tree.shape == (pixels - 1, 4)
    members = {i: {i} for i in range(pixels)}
    for k, (a, b, _, size) in enumerate(tree):
        assert not members[int(a)] & members[int(b)]
        members[pixels + k] = members[int(a)] | members[int(b)]
        assert len(members[pixels + k]) == size
    assert members[2 * pixels - 2] == set(range(pixels))

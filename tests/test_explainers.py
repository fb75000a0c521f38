"""What every explanation promises, as a table over `EXPLAINERS`."""

import inspect

import pytest
import torch
from conftest import Curved, make_images
from torch import nn

from robustcv.classifier import frozen
from robustcv.errors import UserError
from robustcv.explainers import ALIASES, ASK_ONLY, EXPLAINERS

FAST = {
    "partition_shap": {"evaluations": 60},
    "shapley": {"samples": 40},
    "kernel_shap": {"samples": 40},
    "lime": {"samples": 40},
    "rise": {"samples": 24, "cells": 3},
}
LIBRARY = ("captum_deep_lift", "shap_deep_explainer")
REGIONAL = ("occlusion", "lime", "kernel_shap", "shapley")


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
    assert found.gap is None or found.gap.shape == (5,)
    assert found.margin is None or (found.margin.shape == found.heatmaps.shape and bool((found.margin >= 0).all()))
    assert {"target", "baseline"} <= set(found.details)
    assert torch.equal(images, kept) and model.training
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks or module._backward_pre_hooks for module in model.modules())


class Broken(Curved):
    """Fails half-way through its second call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        features = self.body(images)
        if self.calls >= 2:
            raise ArithmeticError("half-way")
        return self.head(features)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_the_model_is_untouched_when_its_forward_pass_fails_half_way(problem, name) -> None:
    _, images, targets = problem
    model, state = Broken().train(), torch.get_rng_state()
    with pytest.raises((ArithmeticError, UserError)):
        for _ in range(2):  # methods of a single pass
            explain(name, model, images, targets)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_a_map_does_not_depend_on_its_batch(problem, name) -> None:
    model, images, targets = problem
    seeds = torch.arange(5) * 31
    whole = explain(name, model, images, targets, seeds=seeds)
    alone = explain(name, model, images[2:3], targets[2:3], seeds=seeds[2:3])
    assert torch.allclose(alone.heatmaps[0], whole.heatmaps[2], atol=1e-5)
    order = torch.tensor([3, 2, 4, 0, 1])
    shuffled = explain(name, model, images[order], targets[order], seeds=seeds[order])
    assert torch.allclose(shuffled.heatmaps, whole.heatmaps[order], atol=1e-5)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_the_same_seeds_give_the_same_map_and_channels_last_changes_nothing(problem, name) -> None:
    model, images, targets = problem
    first = explain(name, model, images, targets)
    assert torch.equal(first.heatmaps, explain(name, model, images, targets).heatmaps)
    other = explain(name, model, images.to(memory_format=torch.channels_last), targets)
    assert torch.allclose(first.heatmaps, other.heatmaps, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in EXPLAINERS if name not in ("partition_shap", *LIBRARY)])
def test_float32_is_close_to_float64(problem, name) -> None:
    model, images, targets = problem
    single = explain(name, model, images, targets).heatmaps
    double = explain(name, model.double(), images.double(), targets).heatmaps
    assert float((single - double).norm() / double.norm()) < 1e-4


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


CAM = ("grad_cam", "grad_cam_pp", "hires_cam", "layer_cam")


@pytest.mark.parametrize("name", [name for name in EXPLAINERS if name not in LIBRARY])
def test_the_stated_cost_is_what_an_independent_count_finds(problem, name) -> None:
    model, images, targets = problem
    counting = Counting(model)
    found = explain(name, counting, images, targets)
    stated = int(found.forwards.sum()) + int(found.details.get("shared_forwards", 0))
    if name in CAM:  # the backward pass ends at the layer and never reaches the images
        assert stated == 2 * len(images) + 2 and counting.rows == len(images) + 1
    else:
        assert counting.rows == stated


OTHER = {
    "steps": 3,
    "error": 0.0005,
    "baseline": 0.7,
    "baselines": "white,black",
    "samples": 5,
    "noise": 0.3,
    "evaluations": 20,
    "seeds": torch.arange(5) + 50,
    "layer": "body.0",
    "signed": True,
    "window": 1,
    "regions": "grid:3",
    "fill": "blur",
    "ridge": 0.5,
    "width": 1.0,
    "cells": 2,
    "shown": 0.3,
}
DETERMINISTIC = {*CAM, *LIBRARY, "saliency", "input_x_gradient", "integrated_gradients", "deep_lift", "deep_shap"}
DETERMINISTIC |= {"occlusion", "partition_shap"}
KEYWORDS = [
    (name, key)
    for name, function in EXPLAINERS.items()
    for key, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
    and key not in ("rows", "pool")  # a memory bound, and passes that are shared: they must not change the map
    and not (key == "seeds" and name in DETERMINISTIC)
]


@pytest.mark.parametrize(("name", "key"), KEYWORDS)
def test_every_keyword_is_alive(problem, name, key) -> None:
    model, images, targets = problem
    fixed = {"layer": "body.0"} if key == "signed" else {}  # before its activation, where features have both signs
    usual = explain(name, model, images, targets, **fixed)
    changed = explain(name, model, images, targets, **fixed, **{key: OTHER[key]})
    assert usual.heatmaps.shape != changed.heatmaps.shape or not torch.allclose(
        usual.heatmaps, changed.heatmaps, atol=1e-6
    )


@pytest.mark.parametrize("name", [name for name in EXPLAINERS if name != "shap_deep_explainer"])
def test_rows_bounds_memory_and_nothing_else(problem, name) -> None:
    model, images, targets = problem
    usual, changed = explain(name, model, images, targets), explain(name, model, images, targets, rows=7)
    if name == "partition_shap":  # shap refines in batches, so their size moves which rectangles are split
        assert torch.allclose(usual.heatmaps.sum((1, 2, 3)), changed.heatmaps.sum((1, 2, 3)), atol=1e-4)
    else:
        assert torch.allclose(usual.heatmaps, changed.heatmaps, atol=1e-5)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_a_constant_model_gives_a_zero_map(name) -> None:
    class Constant(nn.Module):
        def forward(self, images):
            return images.mean((1, 2, 3))[:, None] * 0 + torch.tensor([1.0, 2.0])

    model = ConstantNet() if name in (*CAM, *LIBRARY) else Constant()
    found = explain(name, model, make_images(2, dtype=torch.float32), torch.tensor([0, 1]))
    assert not found.heatmaps.any()
    assert not (found.error > 0).any()


class ConstantNet(nn.Module):
    """Has layers, but a head that looks at nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4 * 12, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, images):
        return self.head(self.act(self.conv(images)).flatten(1))


@pytest.mark.parametrize("name", [name for name in EXPLAINERS if name not in (*LIBRARY, *CAM, "rise")])
def test_pixels_that_the_class_cannot_see_get_exactly_nothing(name) -> None:
    """Two branches, each seeing half of the image (DiFull, Rao et al. 2022): no training, no doubt what is used."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(3)
                self.left = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
                self.right = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

        def forward(self, images):
            half = images.shape[3] // 2
            seen = self.left(images[..., :half]), self.right(images[..., half:])
            return torch.stack([part.relu().mean((1, 2, 3)) for part in seen], 1) * 10

    model, images = Halves(), make_images(2, (3, 12, 16), dtype=torch.float32)
    options = {"regions": "grid:4"} if name in REGIONAL else {}
    options |= {"window": 1} if name == "occlusion" else {}
    found = explain(name, model, images, torch.tensor([0, 0]), **options)
    maps = found.heatmaps
    assert maps[..., :8].abs().sum() > 0
    unseen = maps[..., 8:].abs().max()
    if name in ("kernel_shap", "lime"):  # regressions from few samples: near nothing, as near as their error says
        assert unseen < 0.3 * maps[..., :8].abs().max()
    elif name == "shapley":
        assert (maps.abs() <= 2 * found.margin)[..., 8:].all()
    elif name == "partition_shap":
        assert unseen < 1e-4 * maps[..., :8].abs().max()
    else:
        assert unseen == 0


def test_methods_that_only_ask_need_no_gradients(problem) -> None:
    model, images, targets = problem

    class Box(nn.Module):
        def forward(self, x):
            return torch.from_numpy(model(x).detach().numpy())

    for name in EXPLAINERS:
        if name in ASK_ONLY:
            assert explain(name, Box(), images, targets).heatmaps.abs().sum() > 0
        else:
            with pytest.raises(UserError, match="RCV-E10"):
                explain(name, Box(), images, targets)


def test_aliases_name_explainers() -> None:
    assert set(ALIASES.values()) <= set(EXPLAINERS) and not set(ALIASES) & set(EXPLAINERS)

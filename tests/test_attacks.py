"""What every attack promises, as a table over `ATTACKS`; and the closed forms of a linear classifier."""

import inspect
from functools import cache

import exact
import numpy as np
import pytest
import torch
from conftest import Curved, make_images, make_linear
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcv import draws
from robustcv.attacks import ATTACKS, is_minimum_norm, norms_of
from robustcv.attacks.climb import Best
from robustcv.attacks.directions import directed_start
from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.losses import LOSSES
from robustcv.attacks.norms import NORMS, l2_ascend
from robustcv.attacks.pgd import pgd
from robustcv.classifier import frozen

EPS = {"linf": 0.05, "l2": 0.4, "l1": 2.0, "l0": 5.0}
OWN = {
    name: attack for name, attack in ATTACKS.items() if not name.startswith("foolbox-")
}  # those have their own tests
CASES = [(name, norm) for name, attack in OWN.items() for norm in norms_of(attack)]
FIXED = [(name, norm) for name, norm in CASES if not is_minimum_norm(ATTACKS[name])]
NEAREST = [(name, norm) for name, norm in CASES if is_minimum_norm(ATTACKS[name])]
FEW = {"queries": 60, "steps": 12}  # no more than a test needs


def options_of(name: str, norm: str, **more: object) -> dict[str, object]:
    """Give the options of a test's run: eps where the attack takes one, and no more queries than the test needs."""
    known = inspect.signature(ATTACKS[name]).parameters
    return {key: value for key, value in {"eps": EPS[norm], "norm": norm, **FEW, **more}.items() if key in known}


def distance(norm: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Measure a norm by numpy, independently of the package."""
    change = (a - b).double().reshape(len(a), -1).numpy()
    values = {
        "linf": abs(change).max(1),
        "l2": (change**2).sum(1) ** 0.5,
        "l1": abs(change).sum(1),
        "l0": (change != 0).sum(1).astype(float),
    }
    return torch.from_numpy(values[norm])


@pytest.fixture
def problem():
    """Give a curved classifier, images and their predicted classes."""
    model = Curved().double()
    images = make_images(8)
    with torch.no_grad():
        labels = model(images).argmax(1)
    with frozen(model):
        yield model, images, labels


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("targeted", [False, True])
def test_images_stay_in_the_ball_and_the_box_and_inputs_are_untouched(problem, name, norm, targeted) -> None:
    model, images, labels = problem
    images[0], images[1] = 0.0, 1.0
    kept, parameters = images.clone(), [p.clone() for p in model.parameters()]
    targets = (labels + 1) % 4 if targeted else None
    out = ATTACKS[name](model, images, labels, **options_of(name, norm, targets=targets))
    assert out.shape == images.shape and out.dtype == images.dtype and out.device == images.device
    assert out.min() >= 0 and out.max() <= 1
    if not is_minimum_norm(ATTACKS[name]):
        assert (distance(norm, out, images) <= EPS[norm] + 1e-9).all()
    assert torch.equal(images, kept)
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(model.parameters(), parameters, strict=True))
    assert not out.requires_grad


@pytest.mark.parametrize(("name", "norm"), FIXED)
def test_eps_zero_returns_the_images(problem, name, norm) -> None:
    model, images, labels = problem
    out = ATTACKS[name](model, images, labels, **options_of(name, norm, eps=0.0))
    assert torch.allclose(out, images, atol=1e-12)


@pytest.mark.parametrize(("name", "norm"), FIXED)
def test_each_image_may_have_an_eps_of_its_own(problem, name, norm) -> None:
    model, images, labels = problem
    each = torch.linspace(0.2, 1.0, 8, dtype=torch.float64) * EPS[norm]
    seeds = torch.arange(8)
    out = ATTACKS[name](model, images, labels, **options_of(name, norm, eps=each, seeds=seeds))
    assert (distance(norm, out, images) <= each + 1e-9).all()
    one = slice(5, 6)
    options = options_of(name, norm, eps=float(each[5]), seeds=seeds[one])
    assert torch.allclose(ATTACKS[name](model, images[one], labels[one], **options), out[one], atol=1e-9)


@pytest.mark.parametrize(("name", "norm"), NEAREST)
def test_the_nearest_candidate_fools_and_without_one_the_image_comes_back(problem, name, norm) -> None:
    model, images, labels = problem
    out = ATTACKS[name](model, images, labels, norm=norm)
    fooled = model(out).argmax(1) != labels
    assert fooled.all()
    never = make_linear(4)  # one class wins everywhere
    with torch.no_grad():
        never.weights *= 1e-6
        never.bias[:] = torch.tensor([5.0, 0, 0, 0], dtype=torch.float64)
    with frozen(never):
        assert torch.equal(ATTACKS[name](never, images, torch.zeros_like(labels), norm=norm), images)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_an_image_does_not_depend_on_its_batch(problem, name, norm) -> None:
    model, images, labels = problem
    seeds = torch.arange(8) * 7919
    options = options_of(name, norm)
    whole = ATTACKS[name](model, images, labels, **options, seeds=seeds)
    again = ATTACKS[name](model, images, labels, **options, seeds=seeds)
    assert torch.equal(whole, again)
    for i in (0, 3, 7):
        one = slice(i, i + 1)
        alone = ATTACKS[name](model, images[one], labels[one], **options, seeds=seeds[one])
        assert torch.allclose(alone, whole[one], atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_squares_of_float32_do_not_turn_rounding_into_directions(norm) -> None:
    model, images = Curved(), torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    seeds = torch.arange(60) * 31
    with frozen(model):
        labels = model(images).argmax(1)
        options = {"eps": 2 * EPS[norm], "norm": norm, "queries": 100}
        whole = ATTACKS["square"](model, images, labels, seeds=seeds, **options)
        parts = [
            ATTACKS["square"](model, images[k : k + 7], labels[k : k + 7], seeds=seeds[k : k + 7], **options)
            for k in range(0, 60, 7)
        ]
    assert (torch.cat(parts) - whole).abs().max() <= (3e-5 if norm == "l1" else 1e-5)  # it was 0.9


class Wavy(torch.nn.Module):
    """Logits that rise and fall with the brightness, faster than a step is long."""

    def forward(self, images):
        wave = torch.sin(90 * images.flatten(1).mean(1))
        return torch.stack([wave, -wave, 0 * wave, 0 * wave], dim=1)


OTHER_VALUES = {
    "steps": 3, "step_size": 0.001, "restarts": 4, "random_start": True, "loss": "dlr", "keep": "last",
    "targets": torch.tensor([0, 2, 1, 0, 2, 1, 0, 2]), "towards": torch.tensor([0, 2, 1, 0, 2, 1, 0, 2]),
    "seeds": torch.arange(8) + 99, "eps": 0.01,
    "classes": 1, "nearest_of": 1,
    "directions": 3, "decay": 0.1, "queries": 20,
    "share": 0.1, "pull": 0.5, "overshoot": 0.3, "backward": 0.3, "gamma": 0.3,
}  # fmt: skip
DEAD_BY_DESIGN = {
    (name, "seeds") for name in ("mi-fgsm", "deepfool", "ddn", "fmn", "fab")
}  # deterministic: they say so
DEAD_BY_DESIGN |= {("fgsm", "seeds")}  # needs random_start, tested below
DEAD_BY_DESIGN |= {(name, "norm") for name, attack in OWN.items() if len(norms_of(attack)) == 1}
KEYWORDS = [
    (name, key)
    for name, attack in OWN.items()
    for key, parameter in inspect.signature(attack).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and (name, key) not in DEAD_BY_DESIGN
]


@pytest.mark.parametrize(("name", "key"), KEYWORDS)
def test_every_keyword_is_alive(problem, name, key) -> None:
    model, images, labels = problem
    norm, eps = ("l2", 0.02) if "l2" in norms_of(ATTACKS[name]) else ("l1", 1.5)  # a sign hides small differences
    options = options_of(name, norm, eps=eps, steps=6)
    other = {**OTHER_VALUES, "norm": "linf", "random_start": name != "pgd"}
    if "dlr" in str(inspect.signature(ATTACKS[name]).parameters.get("loss")).split("=")[-1]:
        other["loss"] = "margin"
    if name == "deepfool":  # which arrives in two steps
        other["steps"] = 1
    if key in ("classes", "nearest_of"):  # a classifier whose likeliest wrong class is not always the nearest
        model, images, labels = scaled_linear(1.0, dtype=torch.float64)
        options |= {"eps": 0.25 if norm == "l2" else 1.5} if "eps" in options else {}
    if key == "keep":  # a classifier with valleys, so that the last iterate is not the best
        model = Wavy()
        options |= {"steps": 3, "step_size": 0.04, "norm": "linf", "eps": 0.05}
    usual = ATTACKS[name](model, images, labels, **options)
    changed = ATTACKS[name](model, images, labels, **{**options, key: other[key]})
    assert not torch.equal(usual, changed)


def test_fgsm_from_a_random_start_depends_on_the_seeds(problem) -> None:
    model, images, labels = problem
    outs = [
        fgsm(model, images, labels, eps=0.4, norm="l2", random_start=True, seeds=torch.arange(8) + k) for k in (0, 99)
    ]
    assert not torch.equal(*outs)


# -- closed forms -----------------------------------------------------------------------------------------------------


def binary_margin_and_dual(model, images, labels, norm):
    """Give the margin of the label and the dual norm of the weights' difference."""
    logits = model(images)
    rows = torch.arange(len(images))
    margin = logits[rows, labels] - logits[rows, 1 - labels]
    difference = model.weights[labels] - model.weights[1 - labels]
    return margin, difference.abs().sum(1) if norm == "linf" else difference.norm(dim=1)


SCALES = [1.0, *(pytest.param(scale, marks=pytest.mark.slow) for scale in (1000.0, 0.001))]
EXACT_EPS = {"linf": 0.015, "l2": 0.2, "l1": 1.5, "l0": 3.0}


def scaled_linear(scale: float, n: int = 40, classes: int = 10, dtype=torch.float32):
    """Give a linear classifier whose logits are scaled, images of which many touch the box, and their classes."""
    model = make_linear(classes, (3, 8, 8), seed=3, dtype=dtype)
    with torch.no_grad():
        model.weights *= scale
        model.bias *= scale
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        return model, images, model(images).argmax(1)


@cache
def exact_distance(norm: str, n: int):
    """Give the exact least distance of the first n images; the scale of the logits does not matter to it."""
    return exactly(exact.nearest, *scaled_linear(1.0, n=n), norm)


def exactly(function, model, images, labels, *more):
    """Ask a closed form about every image."""
    weights, bias = (part.detach().double().numpy() for part in (model.weights, model.bias))
    pixels = images.double().flatten(1).numpy()
    return np.array([function(weights, bias, pixels[i], int(labels[i]), *more) for i in range(len(images))])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("name", "norm", "steps"),
    [("apgd-t", "linf", 20), ("apgd-t", "l2", 20), ("apgd-t", "l1", 20), ("apgd-t-l1", "l1", 50)],
)
def test_apgd_t_reaches_the_exact_worst_case_of_a_linear_classifier(name, norm, steps, scale) -> None:
    model, images, labels = scaled_linear(scale)
    stands = exactly(exact.stands, model, images, labels, EXACT_EPS[norm], norm)
    assert 0.1 < stands.mean() < 0.8
    with frozen(model):
        out = ATTACKS[name](model, images, labels, eps=EXACT_EPS[norm], norm=norm, steps=steps)
        assert ((model(out).argmax(1) == labels).numpy() == stands).all()


@pytest.mark.parametrize(("name", "norm"), FIXED)
def test_no_attack_beats_the_exact_worst_case(name, norm) -> None:
    model, images, labels = scaled_linear(1.0)
    stands = exactly(exact.stands, model, images, labels, EXACT_EPS[norm], norm)
    with frozen(model):
        out = ATTACKS[name](model, images, labels, **options_of(name, norm, eps=EXACT_EPS[norm], steps=10))
        assert not (stands & (model(out).argmax(1) != labels).numpy()).any()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("name", "norm"), NEAREST)
def test_the_nearest_candidate_of_a_linear_classifier_is_the_exact_one(name, norm, scale) -> None:
    model, images, labels = scaled_linear(scale, n=25)
    with frozen(model):
        out = ATTACKS[name](model, images, labels, norm=norm)
        assert (model(out).argmax(1) != labels).all()
    ratio = distance(norm, out, images).numpy() / exact_distance(norm, len(images))
    assert np.median(ratio) <= 1.01 and ratio.max() <= 1.05
    assert ratio.min() >= 1 - 1e-3  # nothing can be nearer, but for float32's margins


def test_the_margin_loss_does_not_care_about_the_scale_of_the_logits() -> None:
    model, scaled = make_linear(4), make_linear(4)
    with torch.no_grad():
        scaled.weights *= 1e4
        scaled.bias *= 1e4
    images = make_images(32)
    labels = model(images).argmax(1)
    with frozen(model), frozen(scaled):
        outs = [pgd(each, images, labels, eps=0.02, loss="margin") for each in (model, scaled)]
    assert torch.allclose(*outs, atol=1e-9)


# -- PGD's own promises ------------------------------------------------------------------------------------------------


class Spy(torch.nn.Module):
    """Records what a method feeds its classifier."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner, self.fed = inner, []

    def forward(self, images):
        self.fed.append(images.detach().clone())
        return self.inner(images)


def test_one_step_from_the_image_is_fgsm(problem) -> None:
    model, images, labels = problem
    one = pgd(model, images, labels, eps=0.03, steps=1, step_size=0.03, random_start=False)
    assert torch.equal(one, fgsm(model, images, labels, eps=0.03))
    assert not torch.equal(one, images)


def test_the_best_iterate_is_kept_the_last_one_included(problem) -> None:
    model, images, labels = problem
    spy = Spy(model)
    steps = 6
    out = pgd(spy, images, labels, eps=0.03, steps=steps, step_size=0.02)
    assert len(spy.fed) == steps + 1
    with torch.no_grad():
        losses = torch.stack([LOSSES["cross_entropy"](model(fed), labels, None) for fed in spy.fed])
        fools = torch.stack([model(fed).argmax(1) != labels for fed in spy.fed])
        reached = LOSSES["cross_entropy"](model(out), labels, None)
        fooled = model(out).argmax(1) != labels
    assert torch.equal(fooled, fools.any(0))
    among = torch.where(fools == fools.any(0), losses, -torch.inf)
    assert torch.allclose(reached, among.amax(0))


def test_keeping_the_last_iterate_costs_one_pass_less_and_is_the_last(problem) -> None:
    model, images, labels = problem
    spy_best, spy_last = Spy(model), Spy(model)
    pgd(spy_best, images, labels, eps=0.03, steps=4)
    last = pgd(spy_last, images, labels, eps=0.03, steps=4, keep="last")
    assert (len(spy_best.fed), len(spy_last.fed)) == (5, 4)
    assert torch.equal(last, spy_best.fed[-1])


def test_more_restarts_never_break_less(problem) -> None:
    model, images, labels = problem
    one, five = (model(pgd(model, images, labels, eps=0.02, steps=2, restarts=k)).argmax(1) != labels for k in (1, 5))
    assert not (one & ~five).any()


def test_targets_are_reached_on_a_linear_classifier() -> None:
    model = make_linear(5)
    images = make_images(20)
    labels = model(images).argmax(1)
    targets = (labels + 2) % 5
    with frozen(model):
        assert (model(pgd(model, images, labels, eps=0.3, targets=targets)).argmax(1) == targets).all()


def test_pgd_is_no_weaker_than_foolbox_with_the_same_budget() -> None:
    """Foolbox as a second opinion: same model, images, steps and step size; ours keeps the best iterate."""
    foolbox = pytest.importorskip("foolbox")
    model = make_linear(6, dtype=torch.float32).eval()
    images = make_images(64, dtype=torch.float32)
    with frozen(model):
        labels = model(images).argmax(1)
        eps, steps = 0.008, 20
        attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=2.5 * eps / steps)
        fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        torch.manual_seed(0)
        _, theirs, _ = attack(fmodel, images, labels, epsilons=eps)
        ours = pgd(model, images, labels, eps=eps, steps=steps)
        broken = [(model(each).argmax(1) != labels) for each in (ours, theirs)]
    assert 0 < int(broken[1].sum()) < 64
    assert int(broken[0].sum()) >= int(broken[1].sum())
    assert float((broken[0] == broken[1]).float().mean()) >= 0.95


# -- where a climb begins ----------------------------------------------------------------------------------------------


def walked(model, images, labels, targets=None, *, steps, seeds, norm="linf", eps=0.04):
    """Walk from the images themselves; gives where the walk ended and the best candidate met."""
    best = Best(images)
    with frozen(model):
        end = directed_start(
            model, images, labels, targets, images, best, eps=eps, norm=norm, seeds=seeds, stream=7, steps=steps
        )
    return end, best


@pytest.mark.parametrize("targeted", [False, True])
def test_a_walk_goes_along_a_weighting_of_the_logits_that_leaves_the_label(targeted) -> None:
    model, images, seeds = make_linear(5), make_images(12), torch.arange(12) * 31
    labels = model(images).argmax(1)
    targets = (labels + 2) % 5 if targeted else None
    weights = 2 * draws.uniform(seeds, (5,), 7).double() - 1
    weights[range(12), labels] = -weights[range(12), labels].abs()
    if targeted:
        weights[range(12), targets] = 0.8
    wanted = images + 0.04 * (weights @ model.weights).sign().reshape_as(images)  # away from the box: nothing is cut
    end, _ = walked(model, images, labels, targets, steps=1, seeds=seeds)
    assert torch.allclose(end, wanted, atol=1e-9)
    assert torch.allclose(walked(model, images, labels, targets, steps=4, seeds=seeds)[0], wanted, atol=1e-9)
    assert torch.equal(walked(model, images, labels, targets, steps=0, seeds=seeds)[0], images)


@pytest.mark.parametrize("norm", list(NORMS))
def test_a_walk_stays_in_ball_and_box_and_does_not_depend_on_its_batch_or_the_scale_of_the_logits(
    problem, norm
) -> None:
    model, images, labels = problem
    images[0], images[1] = 0.0, 1.0
    seeds = torch.arange(8) * 7919
    end, _ = walked(model, images, labels, steps=3, seeds=seeds, norm=norm, eps=EPS[norm])
    assert (distance(norm, end, images) <= EPS[norm] + 1e-9).all() and end.min() >= 0 and end.max() <= 1
    alone, _ = walked(model, images[3:4], labels[3:4], steps=3, seeds=seeds[3:4], norm=norm, eps=EPS[norm])
    assert torch.allclose(alone, end[3:4], atol=1e-7)
    if norm != "l0":
        larger = torch.nn.Sequential(model, Times(1e3))
        assert torch.allclose(walked(larger, images, labels, steps=3, seeds=seeds, norm=norm, eps=EPS[norm])[0], end)


class Times(torch.nn.Module):
    """Multiplies."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return self.factor * logits


def test_what_a_walk_meets_is_not_lost_and_each_restart_walks_elsewhere() -> None:
    model, images = make_linear(4), make_images(30)
    labels = model(images).argmax(1)
    end, best = walked(model, images, labels, steps=6, seeds=torch.arange(30), eps=0.2)
    met = model(best.images).argmax(1) != labels
    assert met.sum() >= (model(end).argmax(1) != labels).sum() > 0 and torch.equal(met, best.fools)
    spy = Spy(model)
    with frozen(model):
        ATTACKS["apgd"](spy, images, labels, eps=0.002, steps=1, restarts=2, directions=2)
    assert len(spy.fed) == 2 * (2 + 2)
    assert not torch.allclose(spy.fed[2], spy.fed[6], atol=1e-4)


# -- norms -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(list(NORMS)), st.floats(0.001, 2.0), st.floats(0.0, 3.0))
def test_projection_is_idempotent_and_keeps_what_is_inside(seed, norm, eps, scale) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 2, 4, 3, generator=generator, dtype=torch.float64)
    moved = images + scale * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    once = NORMS[norm].project(moved, images, eps)
    assert (distance(norm, once, images) <= eps * (1 + 1e-9)).all()
    assert once.min() >= 0 and once.max() <= 1
    assert torch.allclose(NORMS[norm].project(once, images, eps), once, atol=1e-12)
    if norm == "l0":
        return  # where every change counts the same
    inside = (images + (moved - images) * 1e-6 * eps).clamp(0, 1)
    assert torch.allclose(NORMS[norm].project(inside, images, eps), inside, atol=1e-12)
    assert torch.allclose(NORMS[norm].distance(moved, images), distance(norm, moved, images))


@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("eps", [0.5, 3.0, 10.0])
def test_float32_images_of_224_pixels_stay_inside(norm, eps) -> None:
    """Rounding must not carry a projected candidate out of the ball, or it would be thrown away as a failure."""
    images = make_images(3, (3, 224, 224), dtype=torch.float32)  # away from the box, whose clipping would help
    moved = images + torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    ulp = 6e-8 if norm == "linf" else 0.0  # image + eps itself is rounded
    assert (distance(norm, NORMS[norm].project(moved, images, eps), images) <= eps + ulp).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_starts_fill_the_ball_uniformly(norm) -> None:
    images = torch.full((4000, 1, 1, 2), 0.5, dtype=torch.float64)
    start = NORMS[norm].start(images, 0.1, torch.arange(4000), 0)
    radius = distance(norm, start, images) / 0.1
    assert float((radius**2).mean()) == pytest.approx(0.5, abs=0.03)  # in two dimensions r^2 is uniform on [0, 1]
    assert (start - images).reshape(-1, 2).mean(0).abs().max() < 0.005


def test_the_l2_direction_of_a_tiny_gradient_is_still_a_direction() -> None:
    gradient = torch.zeros(2, 1, 2, 2)
    gradient[0, 0, 0, 0] = 1e-30
    direction = l2_ascend(gradient)
    assert direction[0, 0, 0, 0] == 1
    assert (direction[1] == 0).all()

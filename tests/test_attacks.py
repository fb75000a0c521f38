"""What every attack promises, as a table over `ATTACKS`; and the closed forms of a linear classifier."""

import inspect

import pytest
import torch
from conftest import Curved, make_images, make_linear
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcv.attacks import ATTACKS
from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.losses import LOSSES
from robustcv.attacks.norms import NORMS, l2_ascend
from robustcv.attacks.pgd import pgd
from robustcv.classifier import frozen

EPS = {"linf": 0.05, "l2": 0.4}
CASES = [(name, norm) for name in ATTACKS for norm in NORMS]


def distance(norm: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Measure a norm by numpy, independently of the package."""
    change = (a - b).double().reshape(len(a), -1).numpy()
    values = abs(change).max(1) if norm == "linf" else (change**2).sum(1) ** 0.5
    return torch.from_numpy(values)


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
    out = ATTACKS[name](model, images, labels, eps=EPS[norm], norm=norm, targets=targets)
    assert out.shape == images.shape and out.dtype == images.dtype and out.device == images.device
    assert out.min() >= 0 and out.max() <= 1
    assert (distance(norm, out, images) <= EPS[norm] + 1e-9).all()
    assert torch.equal(images, kept)
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(model.parameters(), parameters, strict=True))
    assert not out.requires_grad


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_eps_zero_returns_the_images(problem, name, norm) -> None:
    model, images, labels = problem
    assert torch.allclose(ATTACKS[name](model, images, labels, eps=0.0, norm=norm), images, atol=1e-12)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_an_image_does_not_depend_on_its_batch(problem, name, norm) -> None:
    model, images, labels = problem
    seeds = torch.arange(8) * 7919
    whole = ATTACKS[name](model, images, labels, eps=EPS[norm], norm=norm, seeds=seeds)
    again = ATTACKS[name](model, images, labels, eps=EPS[norm], norm=norm, seeds=seeds)
    assert torch.equal(whole, again)
    for i in (0, 3, 7):
        one = slice(i, i + 1)
        alone = ATTACKS[name](model, images[one], labels[one], eps=EPS[norm], norm=norm, seeds=seeds[one])
        assert torch.allclose(alone, whole[one], atol=1e-9)


class Wavy(torch.nn.Module):
    """Logits that rise and fall with the brightness, faster than a step is long."""

    def forward(self, images):
        wave = torch.sin(90 * images.flatten(1).mean(1))
        return torch.stack([wave, -wave, 0 * wave, 0 * wave], dim=1)


OTHER_VALUES = {
    "steps": 3, "step_size": 0.001, "restarts": 4, "random_start": False, "loss": "margin", "keep": "last",
    "norm": "l2", "targets": torch.tensor([3, 2, 1, 0, 3, 2, 1, 0]), "seeds": torch.arange(8) + 99, "eps": 0.01,
}  # fmt: skip
DEAD_BY_DESIGN = {("fgsm", "seeds")}  # FGSM is deterministic, and says so
KEYWORDS = [
    (name, key)
    for name, attack in ATTACKS.items()
    for key, parameter in inspect.signature(attack).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and (name, key) not in DEAD_BY_DESIGN
]


@pytest.mark.parametrize(("name", "key"), KEYWORDS)
def test_every_keyword_is_alive(problem, name, key) -> None:
    model, images, labels = problem
    options = {"eps": EPS["linf"]}
    if name == "fgsm" and key == "loss":  # the sign of the gradient differs only where more than two classes matter
        options["norm"] = "l2"
    if key == "keep":  # a classifier with valleys, so that the last iterate is not the best
        model = Wavy()
        options |= {"steps": 3, "step_size": 0.04}
    usual = ATTACKS[name](model, images, labels, **options)
    changed = ATTACKS[name](model, images, labels, **{**options, key: OTHER_VALUES[key]})
    assert not torch.equal(usual, changed)


# -- closed forms -----------------------------------------------------------------------------------------------------


def binary_margin_and_dual(model, images, labels, norm):
    """Give the margin of the label and the dual norm of the weights' difference."""
    logits = model(images)
    rows = torch.arange(len(images))
    margin = logits[rows, labels] - logits[rows, 1 - labels]
    difference = model.weights[labels] - model.weights[1 - labels]
    return margin, difference.abs().sum(1) if norm == "linf" else difference.norm(dim=1)


@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("name", list(ATTACKS))
def test_a_linear_classifier_is_broken_exactly_when_eps_exceeds_its_margin(name, norm) -> None:
    model = make_linear(2)
    images = make_images(64)
    labels = model(images).argmax(1)
    with frozen(model):
        margin, dual = binary_margin_and_dual(model, images, labels, norm)
        nearest = margin / dual
        eps = float(nearest.median())  # half of the images can be broken; none touches the box
        options = {} if name == "fgsm" else {"step_size": eps}  # large steps: L2 turns towards the gradient each time
        out = ATTACKS[name](model, images, labels, eps=eps, norm=norm, **options)
        broken = model(out).argmax(1) != labels
        clear = (nearest - eps).abs() > 1e-3 * eps
        assert torch.equal(broken[clear], (nearest < eps)[clear])
        wanted = margin - eps * dual
        reached, _ = binary_margin_and_dual(model, out, labels, norm)
        assert torch.allclose(reached, wanted, rtol=0.02, atol=0.02 * float(dual.mean()) * eps)


def exact_linear_worst_case(model, images, labels, eps):
    """Tell which images no L-inf change within the box can break (robustness notes 5.2, item 2)."""
    logits = model(images)
    stands = torch.ones(len(images), dtype=torch.bool)
    for other in range(len(model.weights)):
        d = model.weights[other] - model.weights[labels]
        flat = images.flatten(1)
        room = torch.where(d > 0, 1 - flat, flat).clamp_max(eps)
        gain = (d.abs() * room).sum(1)
        gap = logits.gather(1, labels[:, None]).squeeze(1) - logits[:, other]
        stands &= (labels == other) | (gap > gain)
    return stands


def test_no_attack_beats_the_exact_worst_case_and_pgd_on_each_class_reaches_it() -> None:
    model = make_linear(10, (3, 8, 8), seed=3)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(200, 3, 8, 8, generator=generator, dtype=torch.float64)  # many touch the box
    labels = model(images).argmax(1)
    eps = 0.015
    with frozen(model):
        exact = exact_linear_worst_case(model, images, labels, eps)
        assert 0.2 < exact.double().mean() < 0.8
        union = torch.ones(200, dtype=torch.bool)
        for target in range(10):
            wanted = torch.full_like(labels, target)
            out = pgd(model, images, labels, eps=eps, targets=wanted, loss="margin", steps=10, random_start=False)
            union &= model(out).argmax(1) == labels
        assert not (exact & ~union).any()
        assert torch.equal(union, exact)
        plain = model(pgd(model, images, labels, eps=eps)).argmax(1) == labels
        assert not (exact & ~plain).any()


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


@pytest.mark.parametrize("norm", list(NORMS))
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

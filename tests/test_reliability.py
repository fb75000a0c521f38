"""Broken defences are seen through or flagged; honest classifiers are not."""

from dataclasses import replace

import exact
import numpy as np
import pytest
import torch
from broken_defences import (
    Coupled,
    Dropping,
    Jpeg,
    Noisy,
    Probabilities,
    Purifying,
    Quantised,
    Resized,
    Scaled,
    Shattered,
    Thermometer,
    Valley,
    WinnersTakeAll,
)
from conftest import Curved, make_images, make_linear
from honest_models import conv, patches, trained
from test_worst_case import CPU, job_for

import robustcv as rc
from robustcv.attacks import ATTACKS
from robustcv.classifier import frozen
from robustcv.data import ImageSet
from robustcv.evaluation import reliability
from robustcv.evaluation.accuracy import predict
from robustcv.evaluation.job import Planned
from robustcv.evaluation.plans import plan_for
from robustcv.evaluation.preflight import preflight
from robustcv.evaluation.robustness import measure
from robustcv.evaluation.slopes import slope_flags
from robustcv.evaluation.worst_case import worst_case

SHAPE, EPS, N = (3, 8, 8), 0.012, 100


@pytest.fixture(scope="module")
def linear():
    return make_linear(10, SHAPE, seed=3, dtype=torch.float32)


def labelled(model, n=N, shape=SHAPE, classes=10) -> ImageSet:
    pixels = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return ImageSet(pixels, model(pixels).argmax(1), tuple("abcdefghij"[:classes]))


def exact_share(linear, images: ImageSet, eps: float = EPS) -> float:
    weights, bias = (part.detach().double().numpy() for part in (linear.weights, linear.bias))
    flat = images.images.double().flatten(1).numpy()
    stands = [exact.stands(weights, bias, x, int(y), eps, "linf") for x, y in zip(flat, images.labels, strict=True)]
    return float(np.mean(stands))


def audited(model, images, *, eps=EPS, escalate=False):
    """Give robust accuracy and the checks that were raised, by the standard plan."""
    with frozen(model):
        job = job_for(model, images)
        checks = preflight(
            model, images, predict(model, images, batch_size=64, device=CPU), was_training=False, trained_on=None,
            device=CPU,
        )  # fmt: skip
        escalation = plan_for("autoattack", "linf", {"square": {"queries": 1500}}) if escalate else []
        outcome, flags = measure(job, plan_for("standard", "linf"), eps=eps, escalation=escalation)
    raised = {check.check for check in (*checks, *flags) if check.status == "raised"}
    return float(outcome.robust(eps).double().mean()), raised


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_honest_scales_are_exact_and_raise_nothing(linear, scale) -> None:
    model = Scaled(linear, scale)
    robust, raised = audited(model, labelled(linear))
    assert raised == set()
    assert robust == pytest.approx(exact_share(linear, labelled(linear)), abs=1e-9)


def test_huge_logits_are_seen_through_and_flagged(linear) -> None:
    images = labelled(linear)
    robust, raised = audited(Scaled(linear, 1000.0), images)
    assert robust == pytest.approx(exact_share(linear, images), abs=1e-9)
    assert "zero gradient" in raised


def test_probabilities_are_seen_through_and_flagged(linear) -> None:
    images = labelled(linear)
    robust, raised = audited(Probabilities(linear), images)
    assert abs(robust - exact_share(linear, images)) <= 0.01
    assert "logits" in raised


def test_jpeg_is_flagged(linear) -> None:
    model = Jpeg(linear)
    assert "zero gradient" in audited(model, labelled(model, 40))[1]


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(k, marks=pytest.mark.every_case) for k in range(2, 8))])
@pytest.mark.parametrize(("widths", "share"), [((192, 2000, 2000, 10), 0.01), ((192, *4 * (1000,), 10), 0.01)])
def test_winners_that_take_all_are_flagged(widths, share: float, seed: int) -> None:
    model = WinnersTakeAll(widths, share, seed)
    assert audited(model, labelled(model), eps=0.004)[1]


@pytest.mark.slow
def test_quantised_inputs_are_flagged_and_the_escalation_breaks_many(linear) -> None:
    model = Quantised(linear)
    images = labelled(model, 40)
    plain, raised = audited(model, images)
    assert "zero gradient" in raised
    escalated, _ = audited(model, images, escalate=True)
    assert escalated < plain - 0.1  # Square needs no gradient


@pytest.mark.parametrize("defence", [Thermometer, Resized, Dropping])
def test_codes_without_gradient_and_answers_by_chance_are_flagged(linear, defence) -> None:
    torch.manual_seed(0)  # what the defence draws
    model = defence(linear).eval()
    _, raised = audited(model, labelled(model, 60))
    assert raised & ({"zero gradient"} if defence is Thermometer else {"deterministic"})


def test_shattered_gradients_are_flagged(linear) -> None:
    model = Shattered(linear)
    _, raised = audited(model, labelled(model))
    assert "gradient agreement" in raised


def test_shattered_gradients_jump(linear) -> None:
    model = Shattered(linear)
    assert "unstable predictions" in audited(model, labelled(model))[1]


def test_saturated_losses_are_told_by_the_scale_of_the_logits(linear) -> None:
    """PGD on cross-entropy finds nothing on huge logits; divided by their gap it finds what there is."""
    images, model = labelled(linear), Scaled(linear, 1000.0)
    with frozen(model):
        plan = [Planned("pgd", ATTACKS["pgd"], {"steps": 10, "loss": "cross_entropy"})]
        outcome, flags = measure(job_for(model, images), plan, eps=EPS)
    raised = {flag.check for flag in flags if flag.status == "raised"}
    assert float(outcome.robust(EPS).double().mean()) > exact_share(linear, images) + 0.2
    assert {"zero gradient", "scale of the logits"} <= raised


def test_attacks_that_stop_too_early_are_told(linear) -> None:
    images = labelled(linear)
    with frozen(linear):
        weak = Planned("pgd", ATTACKS["pgd"], {"steps": 2, "step_size": EPS / 50, "random_start": False})
        outcome, flags = measure(job_for(linear, images), [weak], eps=EPS)
    assert "unfinished optimisation" in {flag.check for flag in flags if flag.status == "raised"}
    assert float(outcome.robust(EPS).double().mean()) >= exact_share(linear, images)


class Speckled(torch.nn.Module):
    """Wrong almost everywhere but on the images themselves and along their gradients."""

    def __init__(self, inner: torch.nn.Module, images: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.known = inner, images

    def forward(self, images):
        logits = self.inner(images)
        change = (images[:, None] - self.known[None]).flatten(2)
        smooth = change.flatten(2).abs().amax(2).amin(1) < 1e-9
        return torch.where(smooth[:, None], logits, logits.flip(1))


def test_noise_that_wins_is_flagged() -> None:
    linear = make_linear(10, SHAPE, seed=3, dtype=torch.float32)
    images = labelled(linear, 30)
    model = Speckled(linear, images.images)
    with frozen(model):
        job = job_for(model, images)
        none = [Planned("fgsm", ATTACKS["fgsm"], {})]
        outcome = replace(worst_case(job, none, eps=EPS), broken_at=torch.full((30,), torch.inf).double(),
                          broken_by=torch.full((30,), -1))  # fmt: skip
        flag, (found,) = reliability._wins(job, outcome, torch.ones(30).bool(), "noise wins", "noise", {"queries": 4})
    assert flag.status == "raised" and found.results[0].broken > 20


class OffGrid(torch.nn.Module):
    """Two classes by brightness, turned round wherever a value is no multiple of 1/255."""

    def forward(self, images):
        light = 50 * (images.flatten(1).mean(1) - 0.5)
        off = ((255 * images).round() - 255 * images).abs().flatten(1).amax(1) > 0.01
        light = torch.where(off, -light, light)
        return torch.stack([-light, light], 1)


@pytest.mark.parametrize(("names", "starts", "broken"), [
    (("fgsm", "apgd"), 20, 20),  # FGSM stays on the grid; the random point at which APGD begins does not
    (("fgsm", "apgd-l1"), 0, 0),  # which begins outside the ball
    (("apgd", "fgsm"), 0, 0),  # nothing came before
])  # fmt: skip
def test_random_starts_of_a_plan_are_noise_that_it_must_beat(names, starts, broken) -> None:
    pixels = (255 * torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))).round() / 255
    images = ImageSet(pixels, OffGrid()(pixels).argmax(1), ("dark", "light"))
    norm, eps = ("l1", 0.05) if "apgd-l1" in names else ("linf", 1 / 255)
    plan = [Planned(name, ATTACKS[name], {"steps": 3} if name != "fgsm" else {}) for name in names]
    with frozen(OffGrid()) as model:
        job = job_for(model, images, norm=norm)
        outcome = worst_case(job, plan, eps=eps)
        assert reliability._by_starts(outcome) == (starts, broken)
        flags = {each.check: each for each in reliability.probe(job, outcome, plan).flags}
    told = flags["noise wins"]
    assert (f"{broken} of {starts} random starts" in told.figure) == (starts > 0)
    if starts:
        assert told.status == "raised" and told.source and told.fix and "1 % of the starts" in told.threshold


def test_what_an_attack_only_returns_is_not_taken_for_its_start(linear) -> None:
    images = labelled(linear)
    with frozen(linear):
        for more in ({}, {"reduced": linear}):
            (told,) = worst_case(
                job_for(linear, images, **more), [Planned("fgsm", ATTACKS["fgsm"], {})], eps=EPS
            ).results
            assert told.broken > 20 and (told.starts, told.at_start) == (N, 0)


def test_a_plan_put_together_by_hand_that_has_not_converged_is_flagged() -> None:
    """Steps of a tenth of what it takes: 40 images stand against them, and fall to an attack that converges."""
    run = rc.audit(trained(conv, seed=3), patches(60, 5), eps="8/255", sweep=False, attacks=["pgd"],
                   set=["pgd.step_size=0.0005"], explain=(), cases=0, fail_under={"robust_accuracy": 0.3},
                   quiet=True)  # fmt: skip
    raised = [flag.check for flag in run.flags if flag.status == "raised"]
    assert "unfinished optimisation" in raised and run.verdict == "INCONCLUSIVE"


def test_every_flag_tells_its_figure_threshold_and_source(linear) -> None:
    with frozen(linear):
        _, flags = measure(job_for(linear, labelled(linear)), plan_for("standard", "linf"), eps=EPS)
    assert len({flag.check for flag in flags}) == len(flags) == 9
    assert all(flag.figure and flag.threshold and flag.source for flag in flags if flag.status != "not run")
    assert sum(flag.status == "not run" for flag in flags) == 0


@pytest.mark.parametrize(
    "number", [1, 2, 3, *(pytest.param(k, marks=pytest.mark.every_case) for k in (0, *range(4, 25)))]
)
def test_honest_models_raise_nothing(number: int) -> None:
    """Linear, convolutional, residual and adversarially trained; seeds from 500 on, thresholds chosen below."""
    from honest_models import honest, patches

    for eps in (2 / 255, 8 / 255, 24 / 255):
        assert audited(honest(number, 500), patches(100, 700 + number), eps=eps)[1] == set()


@pytest.mark.parametrize("eps", [0.05, 0.2, 0.3])
def test_no_gradient_is_missed_where_a_label_ranks_third_at_a_large_eps(linear, eps) -> None:
    """DLR is a constant there, on any model: (z1 - z3) / (z1 - z3)."""
    with frozen(linear):
        zero, _, _ = slope_flags(job_for(linear, labelled(linear, 20)), torch.arange(20), eps)
    assert zero.status == "pass", zero.figure


def test_randomness_is_flagged(linear) -> None:
    assert "deterministic" in audited(Noisy(linear), labelled(linear))[1]


def test_optimisation_inside_is_flagged(linear) -> None:
    assert "no optimisation inside" in audited(Purifying(linear), labelled(linear))[1]


def test_images_that_depend_on_their_batch_are_flagged(linear) -> None:
    model = Coupled(linear)
    assert "images apart" in audited(model, labelled(model))[1]


def test_a_valley_that_one_step_leaps_over_is_found() -> None:
    weights = torch.randn(192, generator=torch.Generator().manual_seed(1))
    eps = 0.05
    model = Valley(
        weights, centre=-0.6 * eps * float(weights.abs().sum()), width=0.04 * float(weights.abs().sum()) * eps
    )
    pixels = make_images(100, SHAPE, dtype=torch.float32)
    with torch.no_grad():
        score = model.score(pixels)
        images = ImageSet(pixels, torch.zeros(100).long(), ("a", "b")).take(
            (score > model.centre + model.width).nonzero()[:, 0]
        )
        reach = model.score(images.images) - eps * float(weights.abs().sum())
    stands = float((reach > model.centre + model.width).double().mean())
    robust, raised = audited(model, images, eps=eps)
    assert robust == pytest.approx(stands, abs=0.01)
    assert raised == {"better than the majority class"}  # there is only one class


class OneStepOnly(torch.nn.Module):
    """Falls to a full step along the gradient and to nothing nearer: what one step breaks, ten small ones do not."""

    def __init__(self, weights: torch.Tensor, reach: float) -> None:
        super().__init__()
        self.weights, self.reach = torch.nn.Parameter(weights), reach

    def forward(self, images):
        off = (images - 0.5).abs().amax((1, 2, 3)) > self.reach  # only the corners of a ball of that size are wrong
        slope = (images - 0.5).flatten(1) @ self.weights
        gap = torch.where(off & (slope < -0.95 * self.reach * self.weights.abs().sum()), -1.0, 1.0) + 1e-3 * slope
        return torch.stack([gap, 0 * gap], 1)


def test_one_step_that_wins_is_flagged() -> None:
    weights = torch.randn(192, generator=torch.Generator().manual_seed(1))
    model = OneStepOnly(weights, 0.0499)
    images = ImageSet(torch.full((30, *SHAPE), 0.5), torch.zeros(30).long(), ("a", "b"))
    with frozen(model):
        job = job_for(model, images)
        plan = plan_for("quick", "linf")[:1]
        outcome = worst_case(job, plan, eps=0.05)
        assert int(outcome.robust(0.05).sum()) == 0
        sample = outcome.broken_by == 0
        weak = Planned("pgd", ATTACKS["pgd"], {"steps": 10, "loss": "margin", "step_size": 0.001})
        assert int(worst_case(job, [weak], eps=0.05).robust(0.05).sum()) == 30
        flag = reliability._one_step(job, replace(outcome, headline=0.04), sample)
    assert flag.status == "raised" and "misses 30 of 30" in flag.figure


def test_a_black_box_that_wins_is_flagged(linear) -> None:
    model = Quantised(linear)
    assert "black box wins" in audited(model, labelled(model), eps=0.1)[1]


class Never(torch.nn.Module):
    """Gives the same answer to everything, with a gradient that leads nowhere."""

    def forward(self, images):
        wave = 1e-3 * torch.sin(images.flatten(1).sum(1))
        return torch.stack([1 + wave, -wave], 1)


def test_a_model_that_stands_even_when_all_is_grey_is_flagged() -> None:
    images = ImageSet(torch.rand(12, *SHAPE), torch.zeros(12).long(), ("a", "b"))
    assert "unbounded attack fails" in audited(Never(), images)[1]


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.2])
def test_a_curved_classifier_raises_nothing(eps) -> None:
    model = Curved()
    images = labelled(model, 60, (3, 6, 5), 4)
    _, raised = audited(model, images, eps=eps)
    assert raised <= {"better than the majority class"}  # all images may be of one class


def test_a_trained_network_raises_nothing(trained) -> None:
    import robustcv as rc

    model, images = rc.load_classifier(str(trained)), rc.load_images("digits", n=100)
    for eps in (4 / 255, 16 / 255, 64 / 255):
        assert audited(model, images, eps=eps)[1] == set()


@pytest.mark.slow
def test_a_net_that_leaks_labels_to_one_step_is_seen_through() -> None:
    """Trained with one full step and no random start, it stands against that step and against nothing else."""
    from functools import partial

    from robustcv.data import load
    from robustcv.models import build
    from robustcv.training import OBJECTIVES, Recipe, fit

    eps, images = 48 / 255, load("digits", split="train").in_memory()
    torch.manual_seed(0)
    model = build("small_cnn", classes=10, size=32)
    one_step = partial(ATTACKS["fgsm"], eps=eps)
    fit(model, images.take(torch.arange(1000)), images.take(torch.arange(1000, 1100)), objective=OBJECTIVES["pgd-at"],
        attack_at=lambda _: one_step, recipe=Recipe(epochs=6, batch_size=64, learning_rate=3e-3))  # fmt: skip
    test = load("digits").in_memory().take(torch.arange(100))
    with frozen(model):
        job = job_for(model, test)
        alone = worst_case(job, [Planned("fgsm", one_step.func, {})], eps=eps)
        outcome, _ = measure(job, plan_for("standard", "linf"), eps=eps)
        _, flags = measure(job, [Planned("fgsm", one_step.func, {})], eps=eps)
    assert int(alone.robust(eps).sum()) >= 40
    assert int(outcome.robust(eps).sum()) <= 2
    assert "raised" in {flag.status for flag in flags}  # and where only that step is asked for, it is told


def test_a_class_for_rejected_images_is_refused_until_it_is_told_what_counts(linear) -> None:
    import robustcv as rc

    class Rejecting(torch.nn.Module):
        """Adds a class: "this is no image of mine"."""

        def forward(self, images):
            logits = linear(images)
            return torch.cat([logits, logits.amax(1, keepdim=True) - 1], 1)

    images = labelled(linear)
    with pytest.raises(rc.UserError, match="gives 11 classes but the data has 10"):
        rc.audit(Rejecting(), images, eps=EPS, quiet=True)

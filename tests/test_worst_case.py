"""The worst case: exact where it can be, independent of batches, the same after a resume, not fooled by bad attacks."""

from dataclasses import replace
from pathlib import Path

import exact
import numpy as np
import pytest
import torch
from conftest import Curved, make_images, make_linear
from test_attacks import SCALES
from test_classifier import Counting
from torch import nn

from robustcv import runs
from robustcv.attacks import ATTACKS
from robustcv.classifier import frozen, rows_in_play
from robustcv.data import ImageSet
from robustcv.evaluation.accuracy import predict
from robustcv.evaluation.job import Job, Planned
from robustcv.evaluation.plans import EFFORTS, plan_for
from robustcv.evaluation.replay import replayable
from robustcv.evaluation.robustness import measure, passes
from robustcv.evaluation.worst_case import WorstCase, merge, robust_metrics, worst_case

SWEEP = (0.004, 0.01, 0.03)
CPU = torch.device("cpu")


def image_set(model: nn.Module, n: int = 40, classes: int = 4, dtype=torch.float32) -> ImageSet:
    images = make_images(n, dtype=dtype)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:3] = (labels[:3] + 1) % classes  # wrong before any attack
    return ImageSet(images, labels, tuple("abcdefghij"[:classes]))


def job_for(model, images, *, norm="linf", batch_size=64, state=None, **more) -> Job:
    predictions = predict(model, images, batch_size=64, device=CPU)
    return Job(model, images, predictions, norm, 0, batch_size, CPU, state or runs.State(None), **more)


def planned(*attacks) -> list[Planned]:
    return [Planned(name, ATTACKS[name], {}) if isinstance(name, str) else Planned("own", name, {}) for name in attacks]


def run(model, images, *, attacks=("fgsm", "pgd"), eps=SWEEP[1], sweep=SWEEP, plan=None, **more) -> WorstCase:
    with frozen(model):
        return worst_case(job_for(model, images, **more), plan or planned(*attacks), eps=eps, sweep=sweep)


@pytest.fixture(scope="module")
def problem():
    model = make_linear(4, dtype=torch.float32)
    return model, image_set(model)


# -- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.015), ("l2", 0.2), ("l1", 1.5)])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_standard_plan_is_exact_on_linear_models(norm, eps, scale, classes) -> None:
    model = make_linear(classes, (3, 8, 8), seed=3, dtype=torch.float32)
    with torch.no_grad():
        model.weights *= scale
        model.bias *= scale
    pixels = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # many touch the box
    with torch.no_grad():
        images = ImageSet(pixels, model(pixels).argmax(1), tuple("abcdefghij"[:classes]))
    weights, bias = (part.detach().double().numpy() for part in (model.weights, model.bias))
    flat = pixels.double().flatten(1).numpy()
    stands = [exact.stands(weights, bias, flat[i], int(images.labels[i]), eps, norm) for i in range(50)]
    outcome = run(model, images, plan=plan_for("standard", norm), eps=eps, sweep=(), norm=norm)
    assert 0 < np.mean(stands) < 1
    assert outcome.robust(eps).tolist() == stands


def test_every_eps_of_a_sweep_is_exact(problem) -> None:
    model, images = problem
    outcome = run(model, images, plan=plan_for("standard", "linf"))
    weights, bias = (part.detach().double().numpy() for part in (model.weights, model.bias))
    for eps in SWEEP:
        for row in range(3, 40):
            image = images.images[row].double().flatten().numpy()
            assert outcome.robust(eps)[row] == exact.stands(weights, bias, image, int(images.labels[row]), eps, "linf")


# -- invariants -------------------------------------------------------------------------------------------------------


def test_accuracy_falls_with_eps_and_the_first_attack_alone_is_told(problem) -> None:
    outcome = run(*problem)
    last = 37
    for eps in SWEEP:
        assert int(outcome.robust(eps).sum()) <= last
        last = int(outcome.robust(eps).sum())
    by_name = {(m.eps, m.attack): m.count for m in robust_metrics(outcome)}
    assert set(by_name) == {*((eps, None) for eps in SWEEP), (SWEEP[1], "fgsm")}
    alone = run(*problem, attacks=("fgsm",), sweep=())
    assert by_name[SWEEP[1], "fgsm"] == int(alone.robust(SWEEP[1]).sum()) >= by_name[SWEEP[1], None]


def test_images_wrong_when_clean_are_never_attacked_and_never_robust(problem) -> None:
    outcome = run(*problem)
    assert next(each for each in outcome.results if each.eps == SWEEP[1]).attempted == 37
    assert not outcome.robust(SWEEP[0])[:3].any()
    assert outcome.breaker(0, SWEEP[-1]) is None


def test_all_images_wrong_is_a_stated_result(problem) -> None:
    model, images = problem
    wrong = replace(images, labels=(images.labels + 2) % 4).take(torch.arange(3, 40))
    outcome = run(model, wrong)
    assert not outcome.robust(SWEEP[0]).any()
    assert all(result.attempted == 0 for result in outcome.results)


def test_attacks_see_only_what_the_ones_before_them_left(problem) -> None:
    outcome = run(*problem, sweep=())
    fgsm, pgd = outcome.results
    assert pgd.attempted == fgsm.attempted - fgsm.broken


@pytest.mark.parametrize(
    ("effort", "batch_size"),
    [
        ("quick", 1),
        ("quick", 7),
        ("standard", 1),
        ("standard", 7),
        pytest.param("thorough", 7, marks=pytest.mark.every_case),
    ],
)
def test_verdicts_do_not_depend_on_the_batch_and_candidates_hardly(batch_size: int, effort: str) -> None:
    model = Curved()
    images = image_set(model, 20 if effort == "thorough" else 40)
    plan = plan_for(effort, "linf")
    sweep = () if effort == "thorough" else SWEEP
    whole, parts = (run(model, images, plan=plan, sweep=sweep, batch_size=size) for size in (64, batch_size))
    assert torch.equal(whole.broken_at, parts.broken_at) and torch.equal(whole.broken_by, parts.broken_by)
    for eps in whole.sweep:
        (rows, best), (rows_2, best_2) = whole.candidates[eps], parts.candidates[eps]
        assert torch.equal(rows, rows_2)
        assert torch.allclose(best, best_2, atol=1e-5)


def test_the_same_batch_size_repeats_bit_for_bit(problem) -> None:
    first, second = run(*problem), run(*problem)
    for key, (rows, best) in first.candidates.items():
        assert torch.equal(rows, second.candidates[key][0]) and torch.equal(best, second.candidates[key][1])


def test_more_effort_never_finds_more_robustness() -> None:
    model = Curved()
    images = image_set(model)
    counts = [int(run(model, images, plan=plan_for(effort, "linf"), sweep=()).robust(SWEEP[1]).sum()) for effort in
              ("quick", "standard", "thorough")]  # fmt: skip
    assert counts == sorted(counts, reverse=True)


# -- resuming ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_with_the_same_numbers_and_repeats_no_run(problem, tmp_path: Path) -> None:
    model, images = problem
    plan = [
        Planned("apgd-t", ATTACKS["apgd-t"], {"steps": 5, "classes": 3}),
        Planned("pgd", ATTACKS["pgd"], {"restarts": 2, "steps": 2}),
    ]
    straight = run(model, images, plan=plan, batch_size=4)
    asked = []

    def watched(name, stop_at=None):
        def attack(classifier, images, labels, **options):
            asked.append(name)
            if stop_at is not None and len(asked) == stop_at:
                raise KeyboardInterrupt
            return ATTACKS[name](classifier, images, labels, **options)

        attack.__signature__ = __import__("inspect").signature(ATTACKS[name])
        return attack

    def go(stop_at=None):
        mine = [replace(each, attack=watched(each.name, stop_at)) for each in plan]
        return run(model, images, plan=mine, batch_size=4, state=runs.State(tmp_path))

    with pytest.raises(KeyboardInterrupt):
        go(stop_at=25)
    asked.clear()
    resumed = go()
    again = len(asked)
    assert torch.equal(resumed.broken_at, straight.broken_at)
    for a, b in zip(resumed.results, straight.results, strict=True):
        assert (a.attempted, a.broken, a.forward, a.backward) == (b.attempted, b.broken, b.forward, b.backward)
    for eps in SWEEP:
        assert torch.equal(resumed.candidates[eps][1], straight.candidates[eps][1])
    asked.clear()
    assert torch.equal(go().broken_at, straight.broken_at)
    assert asked == [] and again > 0


# -- counting ---------------------------------------------------------------------------------------------------------


class Unbreakable(nn.Module):
    """Ten classes; the first wins by far, whatever the image, and every gradient is alive."""

    def forward(self, images):
        waves = torch.stack([torch.sin((k + 1) * images.flatten(1)).mean(1) for k in range(10)], 1)
        return waves + 10 * (torch.arange(10) == 0)


AUTOATTACK = {
    "linf": {"apgd": (102, 101), "apgd-t": (919, 909), "fab": (1828, 900), "square": (5003, 0)},
    # AutoAttack's own spends 516 forward passes on the first: it judges once, and not after each of five restarts
    "l1": {"apgd-l1": (520, 515), "apgd-t-l1": (521, 515), "fab": (1828, 900), "square": (5003, 0)},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm", [each if each == "linf" else pytest.param(each, marks=pytest.mark.every_case) for each in AUTOATTACK]
)
def test_the_autoattack_plan_spends_what_autoattack_spends_to_the_unit(norm) -> None:
    images = ImageSet(make_images(2, (1, 5, 5), dtype=torch.float32), torch.zeros(2).long(), tuple("abcdefghij"))
    outcome = run(Unbreakable(), images, norm=norm, plan=plan_for("autoattack", norm), sweep=())
    spent = {each.name: (each.forward / 2, each.backward / 2) for each in outcome.results}
    assert spent == AUTOATTACK[norm]
    assert [each.name for each in outcome.results] == list(AUTOATTACK[norm])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_all_passes_are_counted_probes_and_escalation_included(norm) -> None:
    model = Counting(Curved())
    images = image_set(model, 12)
    few = [Planned("apgd", ATTACKS["apgd"], {"steps": 5, "restarts": 2}), Planned("fab", ATTACKS["fab"], {"steps": 3})]
    with frozen(model):
        job = job_for(model, images, norm=norm)
        model.forwards = model.backwards = 0
        plan = plan_for("standard", norm)
        eps = 0.02 if norm == "linf" else 0.1
        outcome, flags = measure(job, plan, eps=eps, escalation=few, suspicious=True)
    assert any(each.reason == "escalation" and each.attempted for each in outcome.results)
    counted = passes(outcome, flags, 0)
    assert (counted.forward, counted.backward) == (model.forwards, model.backwards)


class CountingNearest(nn.Module):
    """Counts passes per image from outside, by the image that each query lies nearest to."""

    def __init__(self, inner, images) -> None:
        super().__init__()
        self.inner, self.images = inner, images.flatten(1).double()
        self.forwards = self.backwards = torch.zeros(len(images), dtype=torch.int64)

    def forward(self, images):
        own = torch.cdist(images.detach().flatten(1).double(), self.images).argmin(1)
        self.forwards = self.forwards + own.bincount(minlength=len(self.images))
        if images.requires_grad:
            images.register_hook(lambda _: self._seen(own))
        return self.inner(images)

    def _seen(self, own) -> None:
        self.backwards = self.backwards + own.bincount(minlength=len(self.images))


@pytest.mark.parametrize("effort", ["standard", "thorough"])
def test_the_passes_of_each_image_are_those_counted_from_outside(effort) -> None:
    plain, pixels = (
        make_linear(4, dtype=torch.float32),
        torch.rand(24, 3, 6, 5, generator=torch.Generator().manual_seed(0)),
    )  # far apart
    with torch.no_grad():
        images = ImageSet(pixels, plain(pixels).argmax(1), tuple("abcd"))
    model = CountingNearest(plain, pixels)
    more = {"square": {"queries": 40}, "fmn": {"steps": 10}}
    with frozen(model):
        job = job_for(model, images)
        model.forwards = model.backwards = torch.zeros(24, dtype=torch.int64)
        outcome = worst_case(job, plan_for(effort, "linf", more), eps=0.02, sweep=(0.01, 0.04))
        more_squares = [Planned("square", ATTACKS["square"], {"queries": 60})]
        again = worst_case(job, more_squares, eps=0.02, among=outcome.robust(0.02), reason="escalation")
    both = merge(outcome, again)
    assert 0 < int(outcome.robust(0.02).sum()) < 24
    assert torch.equal(both.forwards, model.forwards) and torch.equal(both.backwards, model.backwards)
    told = passes(both, [], 0)
    assert (told.forward, told.backward) == (int(model.forwards.sum()), int(model.backwards.sum()))
    attacked = model.forwards[model.forwards > 0]
    assert told.per_image.n == len(attacked) and told.per_image.most_forward == int(attacked.max())
    assert told.per_image.median_forward == attacked.double().quantile(0.5)


# -- success ----------------------------------------------------------------------------------------------------------


def test_an_attack_that_leaves_the_ball_or_the_box_counts_for_nothing(problem) -> None:
    def cheat(classifier, images, labels, *, eps, norm, seeds):
        rows = rows_in_play(classifier, images)
        classifier(1 - images[rows])
        return 1 - images

    def outside(classifier, images, labels, *, eps, norm, seeds):
        return images + 3

    for attack in (cheat, outside):
        outcome = run(*problem, attacks=(attack,), sweep=())
        assert int(outcome.robust(SWEEP[1]).sum()) == 37
        assert outcome.results[0].broken == 0


def test_an_adversarial_that_was_returned_but_never_queried_is_found() -> None:
    """FGSM never queries what it returns; the caller must, and asks twice about what it finds broken."""
    model = make_linear(2, dtype=torch.float32)
    images = image_set(model, 30, classes=2)
    outcome = run(model, images, attacks=("fgsm",), eps=0.2, sweep=())
    assert int(outcome.robust(0.2).sum()) == 0
    assert outcome.results[0].forward == 3 * outcome.results[0].attempted  # gradient, judging, second opinion
    assert outcome.results[0].backward == outcome.results[0].attempted


class Flickering(nn.Module):
    """Answers wrongly to three images at a time, and rightly otherwise."""

    def forward(self, images):
        logits = torch.zeros(len(images), 2) + 0 * images.flatten(1).sum(1, keepdim=True)
        return logits + torch.tensor([1.0, 0.0] if len(images) != 3 else [0.0, 1.0])


def test_a_success_that_the_second_opinion_does_not_share_is_no_success() -> None:
    images = ImageSet(make_images(4, dtype=torch.float32), torch.zeros(4).long(), ("a", "b"))
    calls = []

    def attack(classifier, images, labels, **options):
        calls.append(len(rows_in_play(classifier, images)))
        classifier.in_play[0] = False  # three rows in play: the classifier then answers wrongly
        classifier(images[rows_in_play(classifier, images)])
        return images

    attack.__signature__ = __import__("inspect").signature(ATTACKS["fgsm"])
    outcome = run(Flickering(), images, attacks=(attack,), eps=0.1, sweep=(), batch_size=4)
    assert calls == [4, 4]  # tried once more, with the doubtful rows back in play
    assert outcome.results[0].broken == 0


class NaNs(nn.Module):
    """Gives NaN to bright images."""

    def forward(self, images):
        logits = torch.stack([images.flatten(1).sum(1), -images.flatten(1).sum(1)], dim=1)
        return torch.where(images.flatten(1).mean(1, keepdim=True) > 0.51, torch.nan, logits)


def test_an_answer_that_is_not_a_number_counts_as_broken() -> None:
    images = ImageSet(torch.linspace(0.46, 0.5, 16).reshape(4, 1, 2, 2), torch.zeros(4).long(), ("a", "b"))
    outcome = run(NaNs(), images, attacks=("pgd",), eps=0.2, sweep=())
    assert len(outcome.candidates[0.2][0]) > 0
    assert (outcome.broken_at[outcome.candidates[0.2][0]] == 0.2).all()


def test_after_rounding_to_eight_bits_every_success_still_counts() -> None:
    model = make_linear(4, dtype=torch.float32)
    plain = image_set(model, 60)
    images = replace(plain, images=(plain.images * 255).round() / 255)
    eps = 3.5 / 255  # no multiple of 1/255: only changes by three steps fit
    outcome = run(model, images, plan=plan_for("standard", "linf"), eps=eps, sweep=(), eight_bit=True)
    rows, best = outcome.candidates[eps]
    assert len(rows) > 3
    assert torch.equal((best * 255).round() / 255, best)
    assert ((best - images.images[rows]).abs() <= 3 / 255 + 1e-6).all()
    assert (model(best).argmax(1) != images.labels[rows]).all()
    free = run(model, images, plan=plan_for("standard", "linf"), eps=eps, sweep=())
    exact_steps = run(model, images, plan=plan_for("standard", "linf"), eps=3 / 255, sweep=())
    robust = [int(each.robust(each.headline).sum()) for each in (free, outcome, exact_steps)]
    assert robust[0] <= robust[1] == robust[2]


def test_restarts_and_a_second_plan_only_break_more(problem) -> None:
    model, images = problem
    weak = [Planned("pgd", ATTACKS["pgd"], {"steps": 1, "step_size": 0.002})]
    first = run(model, images, plan=weak, sweep=())
    with frozen(model):
        then = worst_case(job_for(model, images), plan_for("standard", "linf"), eps=SWEEP[1],
                          among=first.robust(SWEEP[1]), reason="escalation")  # fmt: skip
    both = merge(first, then)
    whole = run(model, images, plan=plan_for("standard", "linf"), sweep=())
    assert torch.equal(both.robust(SWEEP[1]), first.robust(SWEEP[1]) & whole.robust(SWEEP[1]))
    assert both.names == ("pgd", *(each.name for each in plan_for("standard", "linf")))
    rows, best = both.candidates[SWEEP[1]]
    assert torch.equal(rows, (~both.robust(SWEEP[1]) & (both.broken_at > 0)).nonzero().squeeze(1))
    assert (model(best).argmax(1) != images.labels[rows]).all()
    for row in rows.tolist():
        assert both.breaker(row, SWEEP[1]) is not None


def test_what_an_escalation_breaks_counts_also_with_a_sweep(problem) -> None:
    model, images = problem
    weak = [Planned("pgd", ATTACKS["pgd"], {"steps": 1, "step_size": 0.002})]
    with frozen(model):
        job = job_for(model, images)
        first = worst_case(job, weak, eps=SWEEP[1], sweep=(*SWEEP, 0.3))
        assert (first.broken_at > SWEEP[1]).any() and first.broken_at[first.broken_at > SWEEP[1]].isfinite().any()
        then = worst_case(job, plan_for("standard", "linf"), eps=SWEEP[1], among=first.robust(SWEEP[1]), reason="probe")
    assert then.results[1].attempted > 0 and (then.broken_by >= 0).any()
    both = merge(first, then)
    assert torch.equal(both.robust(SWEEP[1]), first.robust(SWEEP[1]) & then.robust(SWEEP[1]))
    assert torch.equal(both.robust(0.3), first.robust(0.3) & both.robust(SWEEP[1]))


def test_what_a_second_plan_breaks_by_a_small_change_counts_at_smaller_eps_too(problem) -> None:
    """FAB's changes are far smaller than the headline eps: the curve must not say that such images stand."""
    model, images = problem
    weak = [Planned("pgd", ATTACKS["pgd"], {"steps": 1, "step_size": 1e-4})]
    with frozen(model):
        job = job_for(model, images)
        first = worst_case(job, weak, eps=SWEEP[2], sweep=SWEEP)
        then = worst_case(job, planned("fab"), eps=SWEEP[2], among=first.robust(SWEEP[2]), reason="escalation")
        both = merge(first, then)
        near = [int((then.distance <= eps).sum()) for eps in SWEEP]
        assert 0 < near[0] < near[2]
        for eps in SWEEP:
            assert torch.equal(both.robust(eps), first.robust(eps) & ~(then.distance <= eps))
            rows, best = both.candidates[eps]
            here = (both.broken_at[rows] <= eps) & (both.broken_by[rows] > 0)
            assert torch.equal(rows, rows.unique()) and int(here.sum()) == int((then.distance <= eps).sum())
            moved = (best[here] - images.images[rows[here]]).abs().amax((1, 2, 3))
            assert (moved <= eps * (1 + 1e-6)).all() and (
                model(best[here]).argmax(1) != images.labels[rows[here]]
            ).all()
        settled = replayable(job, both)
    assert settled.withdrawn == 0 and torch.equal(settled.outcome.broken_at, both.broken_at)


def test_smaller_eps_are_tried_on_the_images_that_fell_and_larger_ones_on_those_that_stand(problem) -> None:
    outcome = run(*problem, plan=plan_for("standard", "linf"))
    tried = {each.eps: each.attempted for each in outcome.results if each.name == "fgsm"}
    assert tried[SWEEP[1]] == 37
    assert tried[SWEEP[0]] == 37 - int(outcome.robust(SWEEP[1]).sum())
    assert tried[SWEEP[2]] == int(outcome.robust(SWEEP[1]).sum())


def test_a_change_that_fits_a_smaller_eps_counts_there() -> None:
    """An attack that works at one eps only, by a change that is much smaller than it."""

    def lucky(classifier, images, labels, *, eps, norm, seeds):
        rows = rows_in_play(classifier, images)
        nudged = images.clone()
        if eps > 0.25:
            nudged[rows] += 0.1 * (classifier.classifier.weights[1] - classifier.classifier.weights[0]).sign().reshape(
                images.shape[1:]
            )
        return nudged

    lucky.__signature__ = __import__("inspect").signature(ATTACKS["fgsm"])
    model = make_linear(2, dtype=torch.float32)
    pixels = make_images(30, dtype=torch.float32)
    with torch.no_grad():
        pixels = pixels[model(pixels).argmax(1) == 0]
    images = ImageSet(pixels, torch.zeros(len(pixels)).long(), ("a", "b"))
    outcome = run(model, images, attacks=(lucky,), eps=0.3, sweep=(0.05, 0.15))
    assert len(pixels) > 3 and not outcome.robust(0.3).any()
    assert not outcome.robust(0.15).any() and outcome.robust(0.05).all()
    rows, best = outcome.candidates[0.15]
    assert torch.equal(rows, torch.arange(len(pixels))) and (model(best).argmax(1) == 1).all()


class Autocast(nn.Module):
    """Logits in another precision than the images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images).to(torch.bfloat16)


@pytest.mark.parametrize("effort", ["standard", "thorough"])
def test_logits_of_another_precision_are_no_obstacle(effort) -> None:
    model = Autocast(make_linear(4, dtype=torch.float32))
    images = image_set(model, 12)
    outcome = run(model, images, plan=plan_for(effort, "linf", {"square": {"queries": 20}}), sweep=(), eps=0.05)
    assert not outcome.robust(0.05).any()


def test_a_doubtful_success_is_tried_again_on_the_plain_classifier() -> None:
    plain = make_linear(2, dtype=torch.float32)
    with torch.no_grad():
        fast = make_linear(2, dtype=torch.float32)
        fast.bias += torch.tensor([-0.05, 0.0])  # wrong a little too early
    pixels = make_images(20, dtype=torch.float32)
    with torch.no_grad():
        pixels = pixels[plain(pixels).argmax(1) == 0]
    images = ImageSet(pixels, torch.zeros(len(pixels)).long(), ("a", "b"))
    slow = [Planned("pgd", ATTACKS["pgd"], {"steps": 200, "step_size": 0.0005, "random_start": False})]
    with_fast = run(plain, images, plan=slow, eps=0.1, sweep=(), fast=fast)
    without = run(plain, images, plan=slow, eps=0.1, sweep=())
    assert torch.equal(with_fast.broken_at, without.broken_at) and not without.robust(0.1).any()


def test_every_effort_runs_the_cheapest_attack_first_and_then_those_for_the_nearest() -> None:
    for effort in ("quick", "standard"):
        plan = plan_for(effort, "linf")
        weights = [planned.weight for planned in plan if planned.reach == 0]
        assert weights == sorted(weights)
        assert [planned.reach for planned in plan] == sorted(planned.reach for planned in plan)
    assert set(EFFORTS) == {"quick", "standard", "thorough", "autoattack"}

"""Cheap checks for masked gradients, on a few images: a defence that hides its gradient looks robust and is not."""

import contextlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from robustcv import draws, runtime, stopping
from robustcv.attacks import ATTACKS, is_minimum_norm, norms_of
from robustcv.attacks.losses import margin
from robustcv.classifier import Counted
from robustcv.errors import UserError
from robustcv.evaluation import slopes
from robustcv.evaluation.job import Job, Planned
from robustcv.evaluation.plans import EFFORTS, plan_for
from robustcv.evaluation.slopes import FIX
from robustcv.evaluation.worst_case import WorstCase, merge, worst_case
from robustcv.records import Check

SHARE = 0.008  # of the plan's pass-units (a forward 1, a backward 2) that probes may spend where images are many
LEAST, MOST = 3, 64  # images a probe looks at
NOT_OURS = 16  # of those that stand against a plan of the user's own, which may have converged or not
QUERIES = 80  # of Square
DRAWS = 10  # of noise
NOISY = 24  # images that meet it, at least: where gradients are of small pieces, few fall to it, and nothing else tells
BY_CHANCE = (
    0.01  # largest share of random starts that may break what one step left: 0 on honest models, 2-15 % on k-WTA
)
STEPS = 10  # of PGD, and of the attacks that are run with a changed scale or twice the steps
UNFINISHED = 0.25  # largest part of the way that twice the steps may add


@dataclass(frozen=True)
class Probed:
    """What the probes found: flags, and the worst case with what they broke by the way."""

    flags: tuple[Check, ...]
    outcome: WorstCase


def probe(job: Job, outcome: WorstCase, plan: Sequence[Planned]) -> Probed:
    """Look for masked gradients after a plan has run at its headline eps.

    Gradients that vanish, or disagree between points a file cannot tell apart; a margin that jumps between them;
    images that a black-box attack, or plain noise, breaks and the plan did not; images that one step breaks and ten do
    not; verdicts that change with the scale of the logits; attacks that had not finished; images that stand even where
    every pixel may become grey. Thresholds come from the models in the tests and from the validation split of the
    benchmarks' models, never from images a figure is computed on.
    """
    job = replace(job, reduced=None)  # precision must raise no alarm
    units = SHARE * sum(result.forward + 2 * result.backward for result in outcome.results)
    right, ours = job.predictions.correct, _is_ours(plan, job.norm)
    sample = _some(job, right, units * 0.3 / slopes.UNITS, "gradients").nonzero().squeeze(1)
    flags: list[Check] = []
    if len(sample):
        flags += runtime.on_fewer(lambda n: slopes.slope_flags(job, sample[:n], outcome.headline), len(sample))
    else:
        names = ("zero gradient", "gradient agreement", "unstable predictions")
        flags += [_not_run(name, "no image is right") for name in names]
    stands = outcome.robust(outcome.headline)

    def note(flag: Check, tried: tuple[WorstCase, ...] = ()) -> None:
        nonlocal outcome
        flags.append(flag)
        for found in tried:  # what a probe breaks is broken
            outcome = merge(outcome, found)

    if job.norm in norms_of(ATTACKS["square"]):
        some = _some(job, stands, units * 0.3 / (QUERIES + 3), "square", least=1 if ours else NOT_OURS // 4)
        note(*_wins(job, outcome, some, "black box wins", "square", {"queries": QUERIES}))
    else:
        note(_not_run("black box wins", f"no black-box attack here for {job.norm}"))
    starts, by_chance = _by_starts(outcome)  # noise that the plan has paid for
    least = LEAST if starts >= NOISY else NOISY
    some = _some(job, outcome.robust(outcome.headline), units * 0.1 / (DRAWS + 3), "noise", least=least)
    noise, tried = _wins(job, outcome, some, "noise wins", "noise", {"queries": DRAWS})
    note(_with_starts(noise, starts, by_chance), tried)
    by_one = (outcome.broken_by == 0) & ~stands
    if outcome.names[0] == "fgsm":
        note(_one_step(job, outcome, _some(job, by_one, units * 0.1 / 12, "one step")))
    else:
        note(_not_run("one step wins", "the plan does not begin with one step"))
    note(*_rescaled(job, outcome, plan, _some(job, right, units * 0.1 / 12, "scale")))
    note(*_converged(job, outcome, stands, units * 0.1 / 90, ours=ours))
    note(_unbounded(job, _some(job, stands, units * 0.1 / 12, "unbounded")))
    return Probed(tuple(flags), outcome)


def _is_ours(plan: Sequence[Planned], norm: str) -> bool:
    """Tell whether a plan is that of an effort, which was measured on many models, and not one put together by hand."""
    named = [(each.name, dict(each.options)) for each in plan]
    for effort in EFFORTS:
        with contextlib.suppress(UserError):  # an effort that does not know the norm
            if named == [(each.name, dict(each.options)) for each in plan_for(effort, norm)]:
                return True
    return False


def _some(
    job: Job, among: Bool[Tensor, " n"], wanted: float, purpose: str, *, least: int = LEAST
) -> Bool[Tensor, " n"]:
    """Draw some of the images by (seed, pixels) alone."""
    rows = among.nonzero().squeeze(1).tolist()
    count = min(max(least, int(wanted)), MOST)
    mask = torch.zeros(len(among), dtype=torch.bool)
    mask[draws.drawn_rows(job.seed, job.images.hashes, purpose, count, rows)] = True
    return mask


def _not_run(name: str, why: str) -> Check:
    return Check(check=name, status="not run", figure=why)


def _wins(
    job: Job, outcome: WorstCase, sample: Bool[Tensor, " n"], name: str, attack: str, options: dict[str, Any]
) -> tuple[Check, tuple[WorstCase, ...]]:
    """Run an attack that needs no gradients on a few of the images that stand: it should break none."""
    n = int(sample.sum())
    if n == 0:
        return _not_run(name, "no image stands"), ()
    planned = Planned(attack, ATTACKS[attack], options)
    found = worst_case(job, [planned], eps=outcome.headline, among=sample, reason="probe", tag=f"-{attack}")
    stopping.at_boundary()  # a probe that did not run has found nothing
    broken = found.results[0].broken
    told = f"{attack.capitalize()} with {options['queries']} queries"
    figure = f"{told} breaks {broken} of {n} images that the plan left standing"
    source = "Croce and Hein 2020, checks; Carlini et al. 2019"
    return Check.of(name, broken == 0, figure, FIX, threshold="0", source=source), (found,)


def _by_starts(outcome: WorstCase) -> tuple[int, int]:
    """Count the random points at which the plan's attacks after the first began, and the images these alone broke."""
    first = outcome.names[0]
    after = [
        each
        for each in outcome.results
        if each.reason == "plan"
        and each.eps == outcome.headline
        and each.name.startswith("apgd")
        and each.name != first
    ]
    return sum(each.starts for each in after), sum(each.at_start for each in after)


def _with_starts(flag: Check, starts: int, broken: int) -> Check:
    """Add to what noise breaks what the random starts of the plan broke."""
    won = broken > BY_CHANCE * starts
    if starts == 0 or (flag.status == "not run" and not won):
        return flag
    figure = f"{flag.figure}; {broken} of {starts} random starts of the plan break what the attacks before had left"
    status, fix = ("raised", FIX) if won else (flag.status, flag.fix)
    return flag.model_copy(
        update={
            "figure": figure,
            "status": status,
            "fix": fix,
            "threshold": f"0; {100 * BY_CHANCE:.0f} % of the starts",
            "source": flag.source or "Carlini et al. 2019",
        }
    )


def _attack_some(
    job: Job, eps: float, sample: Bool[Tensor, " n"], tag: str, planned: Planned | None = None
) -> WorstCase:
    """Run ten plain PGD steps on the margin, or another attack; what they break is not counted."""
    options = {"steps": STEPS, "loss": "margin"}
    planned = planned or Planned("pgd", ATTACKS["pgd"], options)
    found = worst_case(job, [planned], eps=eps, among=sample, reason="probe", tag=tag)
    stopping.at_boundary()
    return found


def _one_step(job: Job, outcome: WorstCase, sample: Bool[Tensor, " n"]) -> Check:
    """Attack with many steps what one step broke; honest gradients lead there again."""
    name, n = "one step wins", int(sample.sum())
    if n == 0:
        return _not_run(name, "one step broke no image")
    result = _attack_some(job, outcome.headline, sample, "-one-step").results[0]
    missed = n - result.broken
    figure = f"PGD-10 misses {missed} of {n} images that one step broke"
    return Check.of(
        name,
        missed <= max(1, n / 4),
        figure,
        FIX,
        threshold="a quarter",
        source="Athalye et al. 2018",
        forward=result.forward,
        backward=result.backward,
    )


class _Rescaled(nn.Module):
    """The same classifier with smaller logits: every answer stays as it was."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor
        self.samples = int(getattr(inner, "samples", 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.inner(images)
        return logits


def _rescaled(
    job: Job, outcome: WorstCase, plan: Sequence[Planned], sample: Bool[Tensor, " n"]
) -> tuple[Check, tuple[WorstCase, ...]]:
    """Run the plan's first gradient attack on the logits as they are, and brought to a mean gap of 1."""
    name, n = "scale of the logits", int(sample.sum())
    gradient = [each for each in plan if "loss" in inspect.signature(each.attack).parameters]
    if n == 0 or not gradient:
        return _not_run(name, "no image is right" if n == 0 else "no attack of the plan takes gradients of a loss"), ()
    top = job.predictions.logits[sample].topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).mean())
    planned = replace(gradient[0], reach=0.0)
    known = inspect.signature(planned.attack).parameters
    if "steps" in known:
        steps = planned.options.get("steps", known["steps"].default)
        planned = replace(planned, options={**planned.options, "steps": min(STEPS, int(steps))})
    if is_minimum_norm(planned.attack):
        return _not_run(name, "the plan begins with a minimum-norm attack"), ()
    small = replace(job, fast=_Rescaled(job.asked, 1 / max(gap, 1e-12)).eval())
    tried = tuple(
        _attack_some(each, outcome.headline, sample, tag, planned)
        for each, tag in ((job, "-scale"), (small, "-scaled"))
    )
    plain, scaled = (found.results[0] for found in tried)
    off = abs(plain.broken - scaled.broken)
    told = f"{planned.name} breaks {plain.broken} of {n} images"
    figure = f"{told}, and {scaled.broken} with the logits divided by {gap:.3g}"
    flag = Check.of(
        name,
        off <= max(1, n / 10),
        figure,
        "the plan's loss saturates: use a scale-free one, such as --set apgd.loss=dlr, or --effort standard",
        threshold="a tenth",
        source="Carlini and Wagner 2017; AutoAttack #108",
    )
    return flag, tried


def _converged(
    job: Job, outcome: WorstCase, stands: Bool[Tensor, " n"], wanted: float, *, ours: bool
) -> tuple[Check, tuple[WorstCase, ...]]:
    """See whether the attacks had finished; one image says so for a plan of ours, where few can be paid for.

    An optimisation that stops too early does so on nearly every image, so that more are looked at only where the first
    moved on by half of what may be.
    """
    sample = _some(job, stands, wanted, "unfinished", least=LEAST if ours else NOT_OURS)
    first = _some(job, stands, 0.0, "unfinished", least=1)
    if not ours or wanted >= LEAST or int(sample.sum()) <= 1:
        flag, tried, _ = _unfinished(job, outcome, sample, "")
        return flag, tried
    flag, tried, added = _unfinished(job, outcome, first, "-first")
    if flag.status == "pass" and added <= UNFINISHED / 2:
        return flag, tried
    again, more, _ = _unfinished(job, outcome, sample & ~first, "-rest")
    spent = {"forward": flag.forward + again.forward, "backward": flag.backward + again.backward}
    return again.model_copy(update=spent), (*tried, *more)


def _unfinished(
    job: Job, outcome: WorstCase, sample: Bool[Tensor, " n"], tag: str
) -> tuple[Check, tuple[WorstCase, ...], float]:
    """Attack images that stand with twice the steps, and see how much nearer that comes: the flag, and how much."""
    name, n = "unfinished optimisation", int(sample.sum())
    if n == 0:
        return _not_run(name, "no image stands"), (), 0.0
    remember = replace(job, remember=sample)
    short, long = (
        _attack_some(
            remember,
            outcome.headline,
            sample,
            f"-steps-{steps}{tag}",
            Planned("apgd", ATTACKS["apgd"], {"steps": steps, "loss": "margin"}),
        )
        for steps in (STEPS, 2 * STEPS)
    )
    near, far = (_way(job, *found.candidates[outcome.headline]) for found in (short, long))
    added = float(((far - near) / far.clamp_min(1e-12)).clamp(0, 1).mean())
    broken, spent = long.results[0].broken, short.results[0]  # the long one is merged, and counted there
    flag = Check.of(
        name,
        added <= UNFINISHED and broken <= max(1, n / 8),
        f"{2 * STEPS} steps of APGD come {100 * added:.0f} % further than {STEPS} on {n} images that the plan left "
        f"standing, and break {broken}",
        "the attacks had not converged: use --effort thorough, or more steps",
        threshold=f"{100 * UNFINISHED:.0f} %; an eighth",
        source="Pintor et al. 2022, indicator 4; Carlini et al. 2019",
        forward=spent.forward + 4 * n * job.samples,  # and twice the clean and the best image, to measure
        backward=spent.backward,
    )
    return flag, (long,), added


def _way(job: Job, rows: Tensor, best: Tensor) -> Tensor:
    """Measure how far the margin has come down, as a share of the clean one."""
    labels = job.predictions.labels[rows]

    def gap(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits = Counted(job.classifier)(images.to(job.device)).double().cpu()  # in halves where memory is scarce
        return -margin(logits, labels, None)

    clean = gap(next(job.images.take(rows).batches(len(rows)))[0])
    return (clean - gap(best)) / clean.clamp_min(1e-12)


def _unbounded(job: Job, sample: Bool[Tensor, " n"]) -> Check:
    """Attack where any image can become grey: what stands there is not robust, the attack fails."""
    name, n = "unbounded attack fails", int(sample.sum())
    if n == 0:
        return _not_run(name, "no image stands")
    size = math.prod(job.images.shape)
    radius = {"linf": 0.5, "l2": 0.5 * math.sqrt(size), "l1": 0.5 * size, "l0": float(size)}
    result = _attack_some(job, radius[job.norm], sample, "-unbounded").results[0]
    missed = n - result.broken
    figure = f"{missed} of {n} images stand where every pixel may become grey"
    return Check.of(
        name,
        missed == 0,
        figure,
        FIX,
        threshold="0",
        source="Carlini et al. 2019; Pintor et al. 2022",
        forward=result.forward,
        backward=result.backward,
    )

"""Cheap checks for masked gradients, on a few images: a defence that hides its gradient looks robust and is not."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustcv import draws
from robustcv.attacks import ATTACKS, norms_of
from robustcv.attacks.climb import gradient_at
from robustcv.attacks.losses import Loss
from robustcv.evaluation.job import Job, Planned
from robustcv.evaluation.worst_case import WorstCase, merge, worst_case
from robustcv.records import AttackResult, Check

SHARE = 0.008  # of the plan's pass-units (a forward 1, a backward 2) that probes may spend where images are many
LEAST, MOST = 3, 64  # images a probe looks at
NOISE = 0.5 / 255  # two points nearer to each other than a file can tell apart
AGREEMENT = 0.3  # least mean cosine of their gradients
QUERIES = 80
LOOKED_AT: tuple[Loss, ...] = ("cross_entropy", "margin")
FIX = "gradient attacks miss too much here, so robust accuracy may be far too high: attack this defence by hand"


@dataclass(frozen=True)
class Probed:
    """What the probes found: flags, and the worst case with what they broke by the way."""

    flags: tuple[Check, ...]
    outcome: WorstCase


def probe(job: Job, outcome: WorstCase) -> Probed:
    """Look for masked gradients after a plan has run at its headline eps.

    Five checks: gradients that vanish, gradients that disagree between points a file cannot tell apart, images that
    a black-box attack breaks and the plan did not, images that one step breaks and ten do not, and images that stand
    even where every pixel may become grey. Thresholds come from the models in the tests and from the validation
    split of the benchmarks' models, never from images a figure is computed on.
    """
    units = SHARE * sum(result.forward + 2 * result.backward for result in outcome.results)
    right = job.predictions.correct
    flags = list(_gradients(job, _some(job, right, units * 0.4 / 12, "gradients")))
    stands = outcome.robust(outcome.headline)
    if job.norm in norms_of(ATTACKS["square"]):
        sample = _some(job, stands, units * 0.4 / (QUERIES + 3), "square", least=1)
        flag, found = _black_box(job, outcome, sample)
        flags.append(flag)
        outcome = merge(outcome, found) if found is not None else outcome
    else:
        flags.append(_not_run("black box wins", f"no black-box attack here for {job.norm}"))
    by_one = (outcome.broken_by == 0) & ~stands
    if outcome.names[0] == "fgsm":
        flags.append(_one_step(job, outcome, _some(job, by_one, units * 0.1 / 12, "one step")))
    else:
        flags.append(_not_run("one step wins", "the plan does not begin with one step"))
    flags.append(_unbounded(job, _some(job, stands, units * 0.1 / 12, "unbounded")))
    return Probed(tuple(flags), outcome)


def _some(
    job: Job, among: Bool[Tensor, " n"], wanted: float, purpose: str, *, least: int = LEAST
) -> Bool[Tensor, " n"]:
    """Draw some of the images by (seed, pixels) alone."""
    rows = among.nonzero().squeeze(1).tolist()
    count = min(max(least, int(wanted)), MOST, len(rows))
    rows.sort(key=lambda row: draws.image_seed(job.seed, job.images.hashes[row], purpose))
    mask = torch.zeros(len(among), dtype=torch.bool)
    mask[rows[:count]] = True
    return mask


def _not_run(name: str, why: str) -> Check:
    return Check(check=name, status="not run", figure=why)


def _flag(name: str, bad: bool, figure: str, threshold: str, source: str, forward: int, backward: int) -> Check:
    return Check(
        check=name,
        status="raised" if bad else "pass",
        figure=figure,
        fix=FIX if bad else None,
        threshold=threshold,
        source=source,
        forward=forward,
        backward=backward,
    )


def _gradients(job: Job, sample: Bool[Tensor, " n"]) -> tuple[Check, Check]:
    """Take gradients of two losses at the image, and of the margin at two points half an 8-bit step around it."""
    n = int(sample.sum())
    if n == 0:
        return _not_run("zero gradient", "no image is right"), _not_run("gradient agreement", "no image is right")
    chosen = job.images.take(sample.nonzero().squeeze(1))
    images, labels = next(chosen.batches(n))
    images, labels = images.to(job.device), labels.to(job.device)
    seeds = draws.image_seeds(job.seed, chosen.hashes, "agreement").to(job.device)

    def slope(points: Tensor, loss: Loss) -> Float[Tensor, "n d"]:
        return gradient_at(job.classifier, points, labels, None, loss)[0].flatten(1)

    def near(stream: int) -> Tensor:
        noise = draws.uniform(seeds, tuple(images.shape[1:]), stream).to(images)
        return (images + NOISE * (2 * noise - 1)).clamp(0, 1)

    dead = {loss: int((slope(images, loss).abs().amax(1) == 0).sum()) for loss in LOOKED_AT}
    agreement = float(torch.cosine_similarity(slope(near(0), "margin"), slope(near(1), "margin")).mean())
    figure = f"{dead['cross_entropy']} of {n} under cross-entropy, {dead['margin']} of {n} under the margin"
    return (
        _flag(
            "zero gradient",
            any(dead.values()),
            figure,
            "none",
            "Carlini et al. 2019; AutoAttack #108",
            2 * n * job.samples,
            2 * n * job.samples,
        ),
        _flag(
            "gradient agreement",
            agreement < AGREEMENT,
            f"mean cosine {agreement:.2f} over {n} images, at points within half an 8-bit step",
            f"{AGREEMENT}",
            "Andriushchenko and Flammarion 2020; Pintor et al. 2022, indicator 2",
            2 * n * job.samples,
            2 * n * job.samples,
        ),
    )


def _black_box(job: Job, outcome: WorstCase, sample: Bool[Tensor, " n"]) -> tuple[Check, WorstCase | None]:
    """Run a short Square on a few of the images that stand."""
    name, n = "black box wins", int(sample.sum())
    if n == 0:
        return _not_run(name, "no image stands"), None
    found = worst_case(
        job,
        [Planned("square", ATTACKS["square"], {"queries": QUERIES})],
        eps=outcome.headline,
        among=sample,
        reason="probe",
        tag="-square",
    )
    broken = found.results[0].broken
    figure = f"Square with {QUERIES} queries breaks {broken} of {n} images that the plan left standing"
    return _flag(name, broken > 0, figure, "0", "Croce and Hein 2020, checks; Carlini et al. 2019", 0, 0), found


def _attack_some(job: Job, eps: float, sample: Bool[Tensor, " n"], tag: str) -> AttackResult:
    """Run ten plain PGD steps on the margin; what they break is not counted."""
    options = {"steps": 10, "loss": "margin"}
    planned = Planned("pgd", ATTACKS["pgd"], options)
    return worst_case(job, [planned], eps=eps, among=sample, reason="probe", tag=tag).results[0]


def _one_step(job: Job, outcome: WorstCase, sample: Bool[Tensor, " n"]) -> Check:
    """Attack with many steps what one step broke; honest gradients lead there again."""
    name, n = "one step wins", int(sample.sum())
    if n == 0:
        return _not_run(name, "one step broke no image")
    result = _attack_some(job, outcome.headline, sample, "-one-step")
    missed = n - result.broken
    figure = f"PGD-10 misses {missed} of {n} images that one step broke"
    bad = missed > max(1, n / 4)
    return _flag(name, bad, figure, "a quarter", "Athalye et al. 2018", result.forward, result.backward)


def _unbounded(job: Job, sample: Bool[Tensor, " n"]) -> Check:
    """Attack where any image can become grey: what stands there is not robust, the attack fails."""
    name, n = "unbounded attack fails", int(sample.sum())
    if n == 0:
        return _not_run(name, "no image stands")
    size = math.prod(job.images.shape)
    radius = {"linf": 0.5, "l2": 0.5 * math.sqrt(size), "l1": 0.5 * size, "l0": float(size)}
    result = _attack_some(job, radius[job.norm], sample, "-unbounded")
    missed = n - result.broken
    figure = f"{missed} of {n} images stand where every pixel may become grey"
    return _flag(
        name, missed > 0, figure, "0", "Carlini et al. 2019; Pintor et al. 2022", result.forward, result.backward
    )

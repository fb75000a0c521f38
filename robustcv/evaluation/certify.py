"""What is proved beside what is attacked: certified accuracy, and where both belong together one two-sided interval."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcv import draws, processes, runs, stats
from robustcv.attacks.norms import NormName
from robustcv.certificates.bounds import bounds
from robustcv.certificates.graph import operations_of
from robustcv.certificates.smoothing import COPIES, largest_radius, outvoted, smoothed_pgd, smoothing
from robustcv.classifier import Counted, frozen
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.accuracy import share
from robustcv.evaluation.block import TOLERANCE
from robustcv.evaluation.job import Job
from robustcv.evaluation.worst_case import WorstCase
from robustcv.records import Certified, Check, Metric
from robustcv.runtime import Advance, in_chunks, on_fewer

BOUNDED = ("linf", "l2", "l1")
TOGETHER = 4  # images bounded at a time: a layer's values are carried back through all layers before it
SMOOTHED = 100  # images that are voted on, at most: each costs over a thousand passes
CONTROLS = 12  # proved images that are attacked all the same
GRID = (0.5, 1.0, 1.5, 2.0)  # radii to tell, in sigma


def require_boundable(classifier: nn.Module, norm: str, shape: tuple[int, int, int]) -> None:
    """Refuse a norm, or a model, that cannot be bounded.

    Raises
    ------
    UserError
        If that is so.
    """
    if norm not in BOUNDED:
        raise UserError(
            "RCV-E111",
            f"there are no bounds in {norm}",
            "linear relaxations need a ball that is convex",
            f"use --norm {BOUNDED[0]}, or leave bounds out of --certify",
        )
    with frozen(classifier):
        operations_of(classifier, shape)


def certify_bounds(
    job: Job, outcome: WorstCase, options: Mapping[str, Any], *, advance: Advance = lambda _: None
) -> tuple[Certified, ...]:
    """Prove for every image that is right, at every eps that was attacked, that nothing in the ball breaks it.

    The largest eps comes first; an image proved there is proved at every smaller one.

    Raises
    ------
    UserError
        If an operation of the model cannot be bounded.
    """
    norm: NormName = "linf" if outcome.norm == "linf" else "l2" if outcome.norm == "l2" else "l1"
    proved = torch.zeros(len(job.images), dtype=torch.bool)
    made = []
    for eps in reversed(outcome.sweep):
        wrong = ~outcome.robust(eps)
        # the cheap round is for all, so that a proof of a broken image would show; the dear one for those left, and for
        # some that are broken, of which it must prove none
        fallen = wrong & job.predictions.correct
        controls = fallen & (fallen.cumsum(0) <= CONTROLS)
        for given, open_ in (({"inner": 0}, job.predictions.correct), (options, ~wrong | controls)):
            rows = (open_ & ~proved).nonzero().squeeze(1)
            proved[rows[_proved(job, rows, eps, norm, given)]] = True
        advance(len(job.images))
        made.append(_row("bounds", norm, eps, proved, wrong, int((proved & wrong).sum()), dict(options)))
    return tuple(reversed(made))


def _proved(job: Job, rows: Tensor, eps: float, norm: NormName, options: Mapping[str, Any]) -> Bool[Tensor, " m"]:
    """Bound the images of some rows, or read what an interrupted run has found."""
    key = f"bounds-{norm}-{eps.hex()}-{len(options)}-{options.get('inner')}"
    if (saved := job.state.load_arrays(key)) is not None:
        return torch.from_numpy(saved["proved"].copy())

    whole = eps * (1 + TOLERANCE) + TOLERANCE  # as far as an attack may go

    def part(block: Tensor) -> Tensor:
        batch, labels = next(job.images.take(block).batches(len(block)))
        batch, labels = batch.to(job.device), labels.to(job.device)
        found = in_chunks(
            lambda some: bounds(job.classifier, batch[some], labels[some], eps=whole, norm=norm, **options).cpu(),
            len(block),
            TOGETHER,
        )
        return torch.cat(found)

    parts = processes.shared(rows.split(64), part) if len(rows) else []
    found = torch.cat([*parts, torch.empty(0).bool()])
    job.state.save_arrays(key, {"proved": found.numpy()})
    return found


def _row(
    method: Literal["bounds", "smoothing"],
    norm: str,
    eps: float,
    proved: Tensor,
    wrong: Tensor,
    contradictions: int,
    details: dict[str, Any],
) -> Certified:
    """Make the record of one eps: proved, wrong or broken, and the interval that both together give."""
    n, certified, fell = len(proved), int(proved.sum()), int(wrong.sum())
    return Certified(
        method=method,
        norm=norm,
        eps=eps,
        n=n,
        certified=certified,
        broken=fell,
        low=stats.wilson(certified, n).low,
        high=stats.wilson(n - fell, n).high,
        contradictions=contradictions,
        details=details,
    )


def certify_smoothing(
    job: Job, outcome: WorstCase, options: Mapping[str, Any], *, advance: Advance = lambda _: None
) -> tuple[Certified, ...]:
    """Certify the smoothed classifier in L2, and attack that same classifier at the same radii on the same images.

    Radii are those attacked by the audit where its norm is L2, and multiples of sigma; none above what unanimous votes
    certify.
    """
    known = inspect.signature(smoothing).parameters
    given = {name: known[name].default for name in ("sigma", "samples", "first", "alpha")} | dict(options)
    sigma, samples, alpha = given["sigma"], given["samples"], given["alpha"]
    rows = draws.drawn_rows(job.seed, job.images.hashes, "smoothing", SMOOTHED)
    chosen = job.images.take(torch.tensor(sorted(rows)))
    arrays = _voted(job, chosen, given, advance)
    spent = arrays["passes"].sum(0)
    labels = chosen.labels
    correct = torch.from_numpy(arrays["classes"].copy()) == labels
    radii = torch.from_numpy(arrays["radii"].copy())
    cap = largest_radius(sigma, samples, alpha)
    asked = {eps for eps in outcome.sweep if outcome.norm == "l2"} | {factor * sigma for factor in GRID}
    made = []
    for radius in sorted(each for each in asked if each <= cap):
        proved = correct & (radii >= radius)
        attacked = ~proved | (proved & (proved.cumsum(0) <= CONTROLS))  # and some of the proved, which must stand
        broken, passes = _outvoted(job, chosen, attacked, radius, given)
        details = {**given, "largest radius": cap, "abstained": int((arrays["classes"] < 0).sum())}
        row = _row("smoothing", "l2", radius, proved, broken, int((proved & broken).sum()), details)
        forward, backward = (passes + spent).tolist()
        made.append(row.model_copy(update={"forward": forward, "backward": backward}))
        spent = np.zeros_like(spent)  # the votes are the same for every radius, and count once
        advance(len(chosen))
    return tuple(made)


def _voted(job: Job, chosen: ImageSet, given: Mapping[str, Any], advance: Advance) -> runs.Arrays:
    """Vote on every image, or read the votes of an interrupted run; saved image by image of eight."""
    parts = []
    for number, rows in enumerate(torch.arange(len(chosen)).split(8)):
        key = f"smoothing-{number}"
        saved = job.state.load_arrays(key)
        if saved is None:
            some = chosen.take(rows)
            batch, _ = next(some.batches(len(rows)))
            seeds = draws.image_seeds(job.seed, some.hashes, "smoothing")
            counted = Counted(job.classifier)
            found = smoothing(counted, batch.to(job.device), seeds=seeds.to(job.device), **given)
            spent = np.array([[counted.forwards, counted.backwards]])
            saved = {"classes": found.classes.numpy(), "radii": found.radii.numpy(), "passes": spent}
            job.state.save_arrays(key, saved)
        parts.append(saved)
        advance(len(rows))
    return {name: np.concatenate([part[name] for part in parts]) for name in ("classes", "radii", "passes")}


def _outvoted(
    job: Job, chosen: ImageSet, open_: Tensor, radius: float, given: Mapping[str, Any]
) -> tuple[Bool[Tensor, " n"], NDArray[np.int64]]:
    """Attack some images; gives those that the smoothed classifier then surely gets wrong, and the passes.

    Where it already errs on the clean image, that image is kept as it is.
    """
    key = f"smoothed-attack-{float(radius).hex()}"
    if (saved := job.state.load_arrays(key)) is not None:
        return torch.from_numpy(saved["broken"].copy()), saved["passes"]
    counted = Counted(job.classifier)
    broken = torch.zeros(len(chosen), dtype=torch.bool)
    votes = {name: given[name] for name in ("sigma", "samples", "alpha")}
    every = open_.nonzero().squeeze(1)

    def attack(part: slice) -> None:
        rows = every[part]
        some = chosen.take(rows)
        batch, labels = next(some.batches(len(rows)))
        batch, labels = batch.to(job.device), labels.to(job.device)
        seeds = draws.image_seeds(job.seed, some.hashes, f"smoothed-attack-{radius:.6g}").to(job.device)
        clean = outvoted(counted, batch, labels, seeds=seeds, **votes)
        broken[rows] = clean
        if job.black_box:
            return
        pgd = partial(smoothed_pgd, counted, batch, labels, eps=radius, seeds=seeds, sigma=given["sigma"])
        attacked = on_fewer(lambda many: pgd(at_once=many), COPIES, "copies") if len(rows) == 1 else pgd()
        broken[rows] |= outvoted(counted, attacked, labels, seeds=seeds, **votes)

    in_chunks(attack, len(every), 16)
    passes = np.array([counted.forwards, counted.backwards])
    job.state.save_arrays(key, {"broken": broken.numpy(), "passes": passes})
    return broken, passes


def contradictions(rows: tuple[Certified, ...]) -> Check:
    """Check that no image is both proved to stand and broken."""
    both = sum(row.contradictions for row in rows)
    tried = sum(row.certified for row in rows)
    return Check.of(
        "proofs and attacks agree",
        both == 0,
        f"{both} of {tried} proofs, over all eps, are of an image that an attack broke there",
        "please report this: one of the two is wrong, and that is our mistake",
        threshold="0",
        source="image by image",
    )


def certified_metrics(rows: tuple[Certified, ...]) -> list[Metric]:
    """Give certified accuracy at each eps: lower bounds; of the smoothed classifier under a name of its own."""
    names = {"bounds": "certified_accuracy", "smoothing": "certified_accuracy_smoothed"}
    return [share(names[row.method], row.certified, row.n, norm=row.norm, eps=row.eps, bound="lower") for row in rows]

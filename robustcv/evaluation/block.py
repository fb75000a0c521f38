"""One attack on one block of images: packed into batches, judged, checked again by the plain classifier, saved."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustcv import draws, runs, runtime
from robustcv.attacks import is_minimum_norm
from robustcv.attacks.losses import margin, wrong_classes
from robustcv.attacks.norms import NORMS, Norm
from robustcv.classifier import Confirm, Judge, Tracked, right, to_eight_bit
from robustcv.evaluation.job import Job, Planned
from robustcv.records import GRADIENT_FREE

TOLERANCE = 1e-6  # absolute and relative: float32 rounding of image + change; measured distances are recorded
NARROW = 0.1  # of the margin that was lost: what is left of it where an image stood narrowly
_ARRAYS = ("rows", "broken", "at_start", "distance", "score", "forwards", "backwards", "kept", "best", "ranked")


@dataclass(frozen=True)
class Attacked:
    """What one run did to some rows: broken or not, distance and score of each one's best candidate, its passes.

    ``at_start`` are those broken by the first candidate asked about.
    """

    rows: Tensor
    broken: Tensor
    at_start: Tensor
    distance: Tensor
    score: Tensor
    forwards: Tensor
    backwards: Tensor
    kept: Tensor
    best: Tensor
    ranked: Tensor
    seconds: float

    @property
    def forward(self) -> int:
        """Forward passes of all rows."""
        return int(self.forwards.sum())

    @property
    def backward(self) -> int:
        """Backward passes of all rows."""
        return int(self.backwards.sum())


def load_saved(state: runs.State, key: str) -> Attacked | None:
    """Read what an interrupted run has saved under a key; None where it has not come that far."""
    if (arrays := state.load_arrays(key)) is None:
        return None
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    seconds = float(tensors.pop("seconds"))
    return Attacked(**tensors, seconds=seconds)


def save(state: runs.State, key: str, done: Attacked) -> None:
    """Write down what one run did, so that it need not be repeated."""
    arrays = {name: getattr(done, name).numpy() for name in _ARRAYS}
    state.save_arrays(key, {**arrays, "seconds": np.array(done.seconds)})


def attack_rows(
    job: Job,
    planned: Planned,
    eps: float,
    rows: Tensor,
    block: Tensor,
    ranked: Tensor | None,
    round_number: int,
    purpose: str,
    options: Mapping[str, Any],
) -> Attacked:
    """Pack the rows into batches and attack each."""
    started = time.monotonic()
    parts = []
    in_turn = "classes" in options  # towards one class a round
    ranks: list[Tensor] = []
    for batch in rows.split(job.batch_size) if len(rows) else ():
        targets = None
        extra = 0
        if in_turn and ranked is None:
            ranks.append(_rank(job, batch))
            targets, extra = ranks[-1][:, round_number], job.samples
        elif in_turn and ranked is not None:
            places = torch.searchsorted(block, batch)
            if round_number >= ranked.shape[1]:
                break  # there are not that many wrong classes
            targets = ranked[places, round_number]
        made = _fitting(job, planned, eps, batch, targets, purpose, options)
        parts += [replace(part, forwards=part.forwards + extra) for part in made]
    if not parts:
        whole, picture, real = torch.empty(0).long(), torch.empty(0, *job.images.shape), torch.empty(0).double()
        no_classes = torch.empty(0, 0).long()
        return Attacked(whole, real.bool(), real.bool(), real, real, whole, whole, whole, picture, no_classes, 0.0)
    table = torch.empty(0, 0).long()
    if ranks:
        table = torch.zeros(len(block), ranks[0].shape[1], dtype=torch.int64)
        table[torch.searchsorted(block, rows)] = torch.cat(ranks)
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in _ARRAYS if name != "ranked"}
    return Attacked(
        **joined,
        ranked=table,
        seconds=time.monotonic() - started,
    )


def _fitting(
    job: Job,
    planned: Planned,
    eps: float,
    rows: Tensor,
    targets: Tensor | None,
    purpose: str,
    options: Mapping[str, Any],
) -> list[Attacked]:
    """Attack one batch, in halves where memory does not suffice; an image's verdict does not depend on its batch."""
    try:
        return [_attack_batch(job, planned, eps, rows, targets, purpose, options)]
    except (RuntimeError, MemoryError) as error:
        if len(rows) == 1 or not runtime.out_of_memory(error):
            raise
    half = len(rows) // 2  # outside the except clause, which holds on to the memory of what failed
    runtime.note(f"memory did not suffice for {planned.name}; going on with {half} images at a time")
    parts = []
    for k in (slice(None, half), slice(half, None)):
        some = None if targets is None else targets[k]
        parts += _fitting(job, planned, eps, rows[k], some, purpose, options)
    return parts


def _rank(job: Job, rows: Tensor) -> Tensor:
    """Rank the wrong classes of some clean images, with a forward pass of their own."""
    clean, labels = next(job.images.take(rows).batches(len(rows)))
    with torch.no_grad():
        logits = runtime.in_chunks(lambda some: job.classifier(clean[some].to(job.device)).cpu(), len(rows), len(rows))
        return wrong_classes(torch.cat(logits), labels)


def _asked(job: Job, planned: Planned, labels: Tensor, eps: float) -> tuple[nn.Module, Confirm | None]:
    """Give what an attack asks, and what confirms its successes where that is only nearly the classifier."""
    by_library = planned.name.startswith("foolbox-")  # which asks unseen: what is denied could not be asked again
    if job.reduced is None or planned.name in GRADIENT_FREE or by_library:
        return job.asked, None
    if unseen_in_bfloat16(job.norm, eps, math.prod(job.images.shape)):
        runtime.note("bfloat16 cannot tell changes as small as the smallest eps from none; attacks there use float32")
        return job.asked, None
    return job.reduced, lambda candidates, rows: ~right(job.classifier(candidates), labels[rows])


def unseen_in_bfloat16(norm: str, eps: float, values: int) -> bool:
    """Tell whether a change of this size, over all values alike, is below the step of bfloat16 near 1, which is 2^-8.

    Gradients at rounded images are those of another image, and successes between two steps are not seen. An L1 change
    gathers on few values, an L0 change is large on each.
    """
    per_value = {"linf": eps, "l2": 2 * eps / math.sqrt(values), "l1": eps / 64}.get(norm, 1.0)
    return per_value < 2**-8


def _attack_batch(
    job: Job,
    planned: Planned,
    eps: float,
    rows: Tensor,
    targets: Tensor | None,
    purpose: str,
    options: Mapping[str, Any],
) -> Attacked:
    """Attack one batch and check what comes back."""
    chosen = job.images.take(rows)
    clean, labels = next(chosen.batches(len(rows)))
    clean, labels = clean.to(job.device), labels.to(job.device)
    ball = NORMS[job.norm]
    asked, confirm = _asked(job, planned, labels, eps)
    judge = make_judge(clean, labels, ball, eps)
    tracked = Tracked(asked, clean, judge, eight_bit=job.eight_bit, confirm=confirm)
    seeds = draws.image_seeds(job.seed, chosen.hashes, f"{purpose}-{job.norm}-{eps:.6g}").to(job.device)
    given: dict[str, Any] = {} if is_minimum_norm(planned.attack) else {"eps": eps}
    if targets is not None:
        given["towards"] = targets.to(job.device)
    checks, at_start = torch.zeros_like(tracked.forwards), torch.zeros_like(tracked.in_play)
    for attempt in range(2):
        if attempt == 1:  # once more, on the plain classifier, where it did not share a success or stood narrowly
            tracked.classifier, tracked.confirm = job.classifier, None
            tracked.judge = make_judge(clean, labels, ball, eps)
        settled = tracked.broken
        returned = planned.attack(tracked, clean, labels, norm=job.norm, seeds=seeds, **given, **options).detach()
        if attempt == 0:  # what an attack only returns has not been asked about yet
            at_start = tracked.broken & (tracked.forwards <= tracked.samples * (1 if confirm is None else 2))
        if job.eight_bit:
            returned = to_eight_bit(returned, clean)
        checked = _check(job.classifier, tracked, returned, ~(settled | tracked.aside))
        checks += checked.forwards
        narrow = _narrow(job, rows, tracked) if tracked.confirm is not None else torch.zeros_like(tracked.in_play)
        if not tracked.doubt(checked.confirmed, narrow):
            break
    broken, keep = tracked.broken.cpu(), (tracked.broken.cpu() | job.kept()[rows])
    distance = ball.distance(tracked.best, clean).cpu()
    return Attacked(
        rows=rows,
        broken=broken,
        at_start=broken & at_start.cpu(),
        distance=distance,
        score=tracked.best_score.cpu().double(),
        forwards=(tracked.forwards + checks).cpu(),
        backwards=tracked.backwards.cpu(),
        kept=rows[keep],
        best=tracked.best.cpu()[keep],
        ranked=torch.empty(0, 0).long(),
        seconds=0.0,
    )


def _narrow(job: Job, rows: Tensor, tracked: Tracked) -> Tensor:
    """Tell which images an attack in bfloat16 nearly broke: exact gradients may go the rest of the way."""
    clean = job.predictions.logits[rows], job.images.labels[rows]
    before, left = margin(*clean, None).neg().to(tracked.best_score), tracked.best_score
    return left <= NARROW * (before - left)


@dataclass(frozen=True)
class _Checked:
    confirmed: Tensor
    forwards: Tensor


def _check(classifier: nn.Module, tracked: Tracked, returned: Tensor, asked: Tensor) -> _Checked:
    """Ask the plain classifier again about every success, and for the first time about what an attack only returned.

    One forward pass an image asked about; one more for each image that only this pass found broken.
    """
    rows = asked.nonzero().squeeze(1)
    candidates = torch.where(_wide(asked & tracked.in_play), returned, tracked.best)
    confirmed, score = tracked.broken.clone(), tracked.best_score.clone()
    with torch.no_grad():
        confirmed[rows], found = tracked.judge(candidates[rows], classifier(candidates[rows]), rows)
        score[rows] = found.to(score)
        forwards = asked.long() * tracked.samples
        fresh = (confirmed & ~tracked.broken).nonzero().squeeze(1)
        if len(fresh):
            again, _ = tracked.judge(candidates[fresh], classifier(candidates[fresh]), fresh)
            confirmed[fresh] = again
            forwards[fresh] += tracked.samples
    closer = score < tracked.best_score
    tracked.best_score = torch.where(closer, score, tracked.best_score)
    tracked.in_play &= ~confirmed
    tracked.best = torch.where(_wide(~tracked.broken & ~closer), tracked.best, candidates)
    return _Checked(confirmed, forwards)


def _wide(mask: Tensor) -> Tensor:
    return mask[:, None, None, None]


def within(candidates: Float[Tensor, "n c h w"], clean: Float[Tensor, "n c h w"], ball: Norm, eps: float) -> Tensor:
    """Tell which candidates lie in the ball around their image, but for float32's rounding, and in [0, 1]."""
    near = ball.distance(candidates, clean) <= eps * (1 + TOLERANCE) + TOLERANCE
    return near & ((candidates >= 0) & (candidates <= 1)).flatten(1).all(1)


def make_judge(clean: Float[Tensor, "n c h w"], labels: Tensor, ball: Norm, eps: float) -> Judge:
    """Make the success rule: a wrong (or not finite) answer to a candidate in the ball and in [0, 1].

    A candidate is measured, in float64, when it would be an image's best so far: the others change nothing.
    """
    lowest = torch.full((len(clean),), torch.inf, dtype=torch.float64, device=clean.device)

    def judge(candidates: Tensor, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        wrong = ~right(logits, labels[rows])
        score = torch.where(logits.isfinite().all(1), -margin(logits, labels[rows], None), -torch.inf).double()
        matters = wrong | (score < lowest[rows])
        inside = matters.clone()
        which = matters.nonzero().squeeze(1)
        if len(which):
            asked, own = candidates[which], rows[which]
            inside[which] = within(asked, clean[own], ball, eps)
            lowest[own] = torch.where(inside[which], torch.minimum(score[which], lowest[own]), lowest[own])
        return wrong & inside, torch.where(inside, score, torch.inf)

    return judge

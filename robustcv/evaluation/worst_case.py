"""The worst case: a plan of attacks run over images and eps, survivors only, counted, checked again, and remembered."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustcv import draws, processes, runs
from robustcv.attacks import is_minimum_norm
from robustcv.attacks.losses import margin, wrong_classes
from robustcv.attacks.norms import NORMS, Norm
from robustcv.classifier import Judge, Tracked, to_eight_bit
from robustcv.data import ImageSet
from robustcv.evaluation.accuracy import Predictions, proportion, right, share
from robustcv.records import AttackResult, Metric
from robustcv.runtime import Advance

TOLERANCE = 1e-6  # absolute and relative: float32 rounding of image + change; measured distances are recorded
Reason = Literal["plan", "probe", "escalation"]
BATCHES_A_BLOCK = 8  # survivors of a block are packed into full batches; a block is what is saved for resuming


@dataclass(frozen=True)
class Planned:
    """An attack with the options it runs with.

    Parameters
    ----------
    reach
        Leave out images whose margin no attack before has brought down by this share of the clean one: 0 takes all.
    """

    name: str
    attack: Callable[..., Tensor]
    options: Mapping[str, Any]
    reach: float = 0.0

    @property
    def weight(self) -> int:
        """Estimate the passes an image costs, for the time left: steps or queries, times restarts or classes."""
        known = inspect.signature(self.attack).parameters
        values = {name: self.options.get(name, parameter.default) for name, parameter in known.items()}
        length = 3 * int(values.get("steps", 1) or 300) if "queries" not in values else int(values["queries"])
        return length * int(values.get("restarts", 1)) * int(values.get("classes", 1)) + 3


@dataclass(frozen=True)
class WorstCase:
    """What a plan of attacks did, per image.

    Parameters
    ----------
    norm, headline, sweep
        The threat models: a norm, its headline eps, and all eps tried, ascending.
    names
        The attacks of the plan, in order.
    broken_at
        The smallest eps of the sweep at which some attack broke each image; inf where none did, 0 where the image was
        wrong before any attack.
    broken_by
        Which attack did, as a place in ``names``; -1 where none did.
    distance
        The measured norm of the change that broke each image; NaN where nothing did.
    results
        One record per attack and eps.
    candidates
        For each eps the rows of the images broken there, or asked for, and each one's best candidate.
    """

    norm: str
    headline: float
    sweep: tuple[float, ...]
    names: tuple[str, ...]
    broken_at: Float[Tensor, " n"]
    broken_by: Int64[Tensor, " n"]
    distance: Float[Tensor, " n"]
    results: tuple[AttackResult, ...]
    candidates: Mapping[float, tuple[Tensor, Tensor]]

    def robust(self, eps: float) -> Bool[Tensor, " n"]:
        """Tell which images stand at eps."""
        return self.broken_at > eps * (1 + 1e-9)

    def breaker(self, row: int, eps: float) -> tuple[str, float] | None:
        """Name the attack, and the eps, that broke an image at or below eps; None where it stands."""
        at = float(self.broken_at[row])
        return (self.names[int(self.broken_by[row])], at) if 0 < at <= eps * (1 + 1e-9) else None

    def candidate(self, row: int, eps: float) -> Tensor | None:
        """Give an image's best candidate at eps; None where it was not attacked there."""
        rows, images = self.candidates[eps]
        place = (rows == row).nonzero()
        return images[int(place[0])] if len(place) else None


@dataclass(frozen=True)
class Job:
    """What every part of a worst case needs: the classifier (frozen, on ``device``), the images, and how to run.

    Parameters
    ----------
    fast
        The same function in fewer operations, for attacks to ask; what they find is judged by ``classifier``.
    remember
        Images whose best candidate is kept even where it did not succeed.
    eight_bit
        Count a candidate only after rounding it to 8 bits, as a file would hold it.
    advance
        Called with the number of images after each block and attack.
    """

    classifier: nn.Module
    images: ImageSet
    predictions: Predictions
    norm: str
    seed: int
    batch_size: int
    device: torch.device
    state: runs.State
    fast: nn.Module | None = None
    remember: Bool[Tensor, " n"] | None = None
    eight_bit: bool = False
    advance: Advance = field(default=lambda _: None)

    @property
    def samples(self) -> int:
        """Passes that one query costs: more than one for a classifier that averages over its randomness."""
        return int(getattr(self.classifier, "samples", 1))

    def kept(self) -> Bool[Tensor, " n"]:
        """Mark the images to remember."""
        none = torch.zeros(len(self.images), dtype=torch.bool)
        return none if self.remember is None else self.remember


@dataclass
class _Standing:
    """Where every image stands while attacks run.

    ``closest`` is the lowest margin that any candidate reached at the eps being run, as a share of the clean one.
    """

    broken_at: Tensor
    broken_by: Tensor
    distance: Tensor
    clean_margin: Tensor
    closest: Tensor


def worst_case(
    job: Job,
    plan: Sequence[Planned],
    *,
    eps: float,
    sweep: Sequence[float] = (),
    among: Bool[Tensor, " n"] | None = None,
    reason: Reason = "plan",
    tag: str = "",
) -> WorstCase:
    """Decide for every image that is right when clean whether any attack of a plan breaks it, at each eps.

    The headline eps comes first, then the larger ones for the images that still stand, then the smaller ones, largest
    first, for the images that fell: an image broken at an eps counts as broken at every larger one, one that stands
    counts as standing at every smaller one, and a change that is small enough counts without another attack. Within an
    eps each attack sees only what the attacks before it have left, and an image is left alone once it is broken.

    A success counts when the candidate lies in the ball and in [0, 1], and a second, separate forward pass of the
    plain classifier is fooled too. After each (block, attack, eps) the result is saved, and read instead of repeated.

    Parameters
    ----------
    eps
        The headline.
    sweep
        Further eps.
    among
        The images to attack; None takes all that are right when clean. The others count as broken at eps 0.
    reason
        Why these attacks run, for the record: ``plan``, ``escalation`` or ``probe``.
    tag
        Tells runs of the same attacks apart in the saved state.
    """
    standing = _fresh(job, job.predictions.correct if among is None else among)
    every = sorted({eps, *sweep})
    order = [eps, *(each for each in every if each > eps), *(each for each in reversed(every) if each < eps)]
    results: dict[float, list[AttackResult]] = {}
    candidates: dict[float, tuple[Tensor, Tensor]] = {}
    for each in order:
        wanted = torch.inf if each >= eps else min(other for other in every if other > each)
        rows = (standing.broken_at == wanted).nonzero().squeeze(1)
        fits = rows[standing.distance[rows] <= each]  # what broke them is small enough here too
        standing.broken_at[fits] = each
        standing.closest = torch.ones_like(standing.closest)
        rows = rows[standing.broken_at[rows] != each]
        results[each], found = _at_eps(job, plan, standing, each, rows, reason, tag)
        candidates[each] = _with(found, candidates.get(wanted), fits)
    return WorstCase(
        norm=job.norm,
        headline=eps,
        sweep=tuple(every),
        names=tuple(planned.name for planned in plan),
        broken_at=standing.broken_at,
        broken_by=standing.broken_by,
        distance=standing.distance,
        results=tuple(result for each in every for result in results[each]),
        candidates=candidates,
    )


def _with(found: tuple[Tensor, Tensor], larger: tuple[Tensor, Tensor] | None, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Add the candidates of some rows that were found at the next larger eps."""
    if larger is None or len(rows) == 0:
        return found
    take = torch.isin(larger[0], rows)
    every, pictures = torch.cat([found[0], larger[0][take]]), torch.cat([found[1], larger[1][take]])
    order = every.argsort()
    return every[order], pictures[order]


def _fresh(job: Job, among: Tensor) -> _Standing:
    n = len(job.images)
    return _Standing(
        broken_at=torch.where(among, torch.inf, 0.0).double(),  # double, so that an eps comes back as it went in
        broken_by=torch.full((n,), -1),
        distance=torch.full((n,), torch.nan),
        clean_margin=-margin(job.predictions.logits, job.predictions.labels, None).clamp_max(0),
        closest=torch.ones(n),
    )


def _at_eps(
    job: Job, plan: Sequence[Planned], standing: _Standing, eps: float, rows: Tensor, reason: Reason, tag: str
) -> tuple[list[AttackResult], tuple[Tensor, Tensor]]:
    """Run the plan at one eps; gives a record per attack, and the best candidates of broken and remembered images."""
    results = []
    pictures: dict[int, tuple[float, Tensor]] = {}
    open_rows = standing.broken_at > eps  # an image that fell at a larger eps is open again at this one
    blocks = rows.split(job.batch_size * BATCHES_A_BLOCK)
    for place, planned in enumerate(plan):
        total = _Total(planned, job.norm, eps, reason)
        where = _Where(place, eps, reason, tag)

        def attacked(number: int, planned: Planned = planned, where: "_Where" = where) -> list[_Attacked]:
            done = _on_block(job, planned, where, standing, number, blocks[number], open_rows)
            job.advance(len(blocks[number]) * planned.weight * processes.size())
            return done

        for rounds in processes.shared(range(len(blocks)), attacked):
            total.attempted += len(rounds[0].rows)
            for done in rounds:
                total.add(done)
                fell = _note(standing, place, eps, done)  # once more for own blocks, which changes nothing
                open_rows[fell] = False
                total.broken += len(fell)
                scores = dict(zip(done.rows.tolist(), done.score.tolist(), strict=True))
                for row, picture in zip(done.kept.tolist(), done.best, strict=True):
                    if row not in pictures or not open_rows[row] or scores[row] < pictures[row][0]:
                        pictures[row] = scores[row], picture
        job.advance((len(job.images) - len(rows)) * planned.weight)
        results.append(total.record())
    keep = sorted(row for row in pictures if not open_rows[row] or job.kept()[row])
    empty = torch.empty(0, *job.images.shape)
    return results, (torch.tensor(keep).long(), torch.stack([pictures[row][1] for row in keep]) if keep else empty)


@dataclass(frozen=True)
class _Where:
    """Which part of a worst case is being run; names the saved state and the random draws."""

    place: int
    eps: float
    reason: Reason
    tag: str


def _on_block(
    job: Job,
    planned: Planned,
    where: _Where,
    standing: _Standing,
    number: int,
    block: Tensor,
    open_rows: Tensor,
) -> list["_Attacked"]:
    """Run one attack on one block, restart by restart or class by class on what is left, or read what was saved."""
    every = []
    ranked: Tensor | None = None
    for round_number, purpose, options in _rounds(planned):
        todo = block[open_rows[block] & (1 - standing.closest[block] >= planned.reach)]
        run = f"{where.reason}{where.tag}-{planned.name}-{where.place}-{job.norm}-{where.eps.hex()}"
        key = f"{run}-{number}-{round_number}"
        done = _saved(job.state, key)
        if done is None:
            own = f"{where.reason}-{where.place}-{purpose}"  # the same attack again starts elsewhere
            done = _attack(job, planned, where.eps, todo, block, ranked, round_number, own, options)
            _save(job.state, key, done)
        ranked = done.ranked if ranked is None and len(done.ranked) else ranked
        open_rows[_note(standing, where.place, where.eps, done)] = False
        every.append(done)
    return every


def _rounds(planned: Planned) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Split an attack's restarts, or its target classes, into runs between which survivors are packed again."""
    options = dict(planned.options)
    known = inspect.signature(planned.attack).parameters
    name = next((each for each in ("restarts", "classes") if each in known), None)
    if name is None:
        yield 0, planned.name, options
        return
    for number in range(options.get(name, known[name].default)):
        yield number, f"{planned.name}-{number}", {**options, name: 1}


def _note(standing: _Standing, place: int, eps: float, done: "_Attacked") -> Int64[Tensor, " m"]:
    """Write down what a run did; gives the rows of the images that fell at this eps."""
    share = (done.score / standing.clean_margin[done.rows].double().clamp_min(1e-30)).float()
    standing.closest[done.rows] = torch.minimum(standing.closest[done.rows], share)
    fell = done.rows[done.broken]
    standing.broken_at[fell], standing.broken_by[fell] = eps, place
    standing.distance[fell] = done.distance[done.broken].float()
    return fell


@dataclass
class _Total:
    """Adds up what one attack did at one eps."""

    planned: Planned
    norm: str
    eps: float
    reason: Reason
    attempted: int = 0
    broken: int = 0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    max_distance: float | None = None

    def add(self, done: "_Attacked") -> None:
        """Add one run on one block."""
        self.forward += done.forward
        self.backward += done.backward
        self.seconds += done.seconds
        if len(done.distance):
            self.max_distance = max(self.max_distance or 0.0, float(done.distance.max()))

    def record(self) -> AttackResult:
        """Make the record."""
        return AttackResult(
            name=self.planned.name,
            options={**self.planned.options, **({"reach": self.planned.reach} if self.planned.reach else {})},
            norm=self.norm,
            eps=self.eps,
            attempted=self.attempted,
            broken=self.broken,
            forward=self.forward,
            backward=self.backward,
            seconds=self.seconds,
            max_distance=self.max_distance,
            reason=self.reason,
        )


_ARRAYS = ("rows", "broken", "distance", "score", "kept", "best", "ranked")


@dataclass(frozen=True)
class _Attacked:
    """What one run did to some rows: broken or not, distance and score of each one's best candidate."""

    rows: Tensor
    broken: Tensor
    distance: Tensor
    score: Tensor
    kept: Tensor
    best: Tensor
    ranked: Tensor
    forward: int
    backward: int
    seconds: float


def _saved(state: runs.State, key: str) -> _Attacked | None:
    if (saved := state.load_arrays(key)) is None:
        return None
    tensors = {name: torch.from_numpy(array.copy()) for name, array in saved.items()}
    counts, seconds = tensors.pop("counts").tolist(), float(tensors.pop("seconds"))
    return _Attacked(**tensors, forward=counts[0], backward=counts[1], seconds=seconds)


def _save(state: runs.State, key: str, done: _Attacked) -> None:
    arrays = {name: getattr(done, name).numpy() for name in _ARRAYS}
    counts = {"counts": np.array([done.forward, done.backward]), "seconds": np.array(done.seconds)}
    state.save_arrays(key, {**arrays, **counts})


def _attack(
    job: Job,
    planned: Planned,
    eps: float,
    rows: Tensor,
    block: Tensor,
    ranked: Tensor | None,
    round_number: int,
    purpose: str,
    options: Mapping[str, Any],
) -> _Attacked:
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
            targets, extra = ranks[-1][:, round_number], len(batch) * job.samples
        elif in_turn and ranked is not None:
            places = torch.searchsorted(block, batch)
            if round_number >= ranked.shape[1]:
                break  # there are not that many wrong classes
            targets = ranked[places, round_number]
        part = _attack_batch(job, planned, eps, batch, targets, purpose, options)
        parts.append(replace(part, forward=part.forward + extra))
    if not parts:
        no_rows, picture, none = torch.empty(0).long(), torch.empty(0, *job.images.shape), torch.empty(0).double()
        return _Attacked(no_rows, none.bool(), none, none, no_rows, picture, torch.empty(0, 0).long(), 0, 0, 0.0)
    table = torch.empty(0, 0).long()
    if ranks:
        table = torch.zeros(len(block), ranks[0].shape[1], dtype=torch.int64)
        table[torch.searchsorted(block, rows)] = torch.cat(ranks)
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in _ARRAYS if name != "ranked"}
    return _Attacked(
        **joined,
        ranked=table,
        forward=sum(part.forward for part in parts),
        backward=sum(part.backward for part in parts),
        seconds=time.monotonic() - started,
    )


def _rank(job: Job, rows: Tensor) -> Tensor:
    """Rank the wrong classes of some clean images, with a forward pass of their own."""
    clean, labels = next(job.images.take(rows).batches(len(rows)))
    with torch.no_grad():
        return wrong_classes(job.classifier(clean.to(job.device)), labels.to(job.device)).cpu()


def _attack_batch(
    job: Job,
    planned: Planned,
    eps: float,
    rows: Tensor,
    targets: Tensor | None,
    purpose: str,
    options: Mapping[str, Any],
) -> _Attacked:
    """Attack one batch and check what comes back."""
    chosen = job.images.take(rows)
    clean, labels = next(chosen.batches(len(rows)))
    clean, labels = clean.to(job.device), labels.to(job.device)
    ball = NORMS[job.norm]
    tracked = Tracked(job.fast or job.classifier, clean, make_judge(clean, labels, ball, eps), eight_bit=job.eight_bit)
    seeds = draws.image_seeds(job.seed, chosen.hashes, f"{purpose}-{job.norm}-{eps:.6g}").to(job.device)
    given: dict[str, Any] = {} if is_minimum_norm(planned.attack) else {"eps": eps}
    if targets is not None:
        given["towards"] = targets.to(job.device)
    checks = 0
    for attempt in range(2):
        if attempt == 1:  # once more, on the plain classifier, for those whose success it did not share
            tracked.classifier, tracked.judge = job.classifier, make_judge(clean, labels, ball, eps)
        returned = planned.attack(tracked, clean, labels, norm=job.norm, seeds=seeds, **given, **options).detach()
        if job.eight_bit:
            returned = to_eight_bit(returned, clean)
        checked = _check(job.classifier, tracked, returned)
        checks += checked.forward
        if not tracked.doubt(checked.confirmed):
            break
    broken, keep = tracked.broken.cpu(), (tracked.broken.cpu() | job.kept()[rows])
    distance = ball.distance(checked.candidates, clean).cpu()
    return _Attacked(
        rows=rows,
        broken=broken,
        distance=distance,
        score=tracked.best_score.cpu().double(),
        kept=rows[keep],
        best=checked.candidates.cpu()[keep],
        ranked=torch.empty(0, 0).long(),
        forward=int(tracked.forwards.sum()) + checks,
        backward=int(tracked.backwards.sum()),
        seconds=0.0,
    )


@dataclass(frozen=True)
class _Checked:
    candidates: Tensor
    confirmed: Tensor
    forward: int


def _check(classifier: nn.Module, tracked: Tracked, returned: Tensor) -> _Checked:
    """Ask the plain classifier again about every success, and for the first time about what an attack only returned.

    One forward pass an image; one more for each image that only this pass found broken.
    """
    everyone = torch.arange(len(returned), device=returned.device)
    candidates = torch.where(_wide(tracked.broken), tracked.best, returned)
    with torch.no_grad():
        confirmed, score = tracked.judge(candidates, classifier(candidates), everyone)
        forward = len(returned) * tracked.samples
        fresh = (confirmed & tracked.in_play).nonzero().squeeze(1)
        if len(fresh):
            again, _ = tracked.judge(candidates[fresh], classifier(candidates[fresh]), fresh)
            confirmed[fresh], forward = again, forward + len(fresh) * tracked.samples
    closer = score < tracked.best_score
    tracked.best_score = torch.where(closer, score.to(tracked.best_score), tracked.best_score)
    tracked.in_play &= ~confirmed
    best = torch.where(_wide(tracked.in_play & ~closer), tracked.best, candidates)
    return _Checked(best, confirmed, forward)


def _wide(mask: Tensor) -> Tensor:
    return mask[:, None, None, None]


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
            near = ball.distance(asked, clean[own]) <= eps * (1 + TOLERANCE) + TOLERANCE
            inside[which] = near & ((asked >= 0) & (asked <= 1)).flatten(1).all(1)
            lowest[own] = torch.where(inside[which], torch.minimum(score[which], lowest[own]), lowest[own])
        return wrong & inside, torch.where(inside, score, torch.inf)

    return judge


def robust_metrics(outcome: WorstCase) -> list[Metric]:
    """Give robust accuracy at each eps (upper bounds), and at the headline what the first attack alone would tell."""
    metrics = [
        proportion("robust_accuracy", outcome.robust(eps), norm=outcome.norm, eps=eps, bound="upper")
        for eps in outcome.sweep
    ]
    first = next((each for each in outcome.results if each.eps == outcome.headline), None)
    if first is not None and len(outcome.names) > 1:
        metrics.append(
            share(
                "robust_accuracy",
                first.attempted - first.broken,
                len(outcome.broken_at),
                norm=outcome.norm,
                eps=outcome.headline,
                bound="upper",
                attack=first.name,
            )
        )
    return metrics


def merge(first: WorstCase, then: WorstCase) -> WorstCase:
    """Join a second plan, run at the headline eps on what the first had left standing."""
    fell = (then.broken_by >= 0) & (then.broken_at < first.broken_at)
    rows, pictures = (
        torch.cat(pair) for pair in zip(first.candidates[first.headline], then.candidates[first.headline], strict=True)
    )
    places: dict[int, int] = {}
    for place, row in enumerate(rows.tolist()):
        if row not in places or fell[row]:  # the later candidate of an image counts only where it broke the image
            places[row] = place
    kept = torch.tensor([places[row] for row in sorted(places)]).long()
    return replace(
        first,
        names=(*first.names, *then.names),
        broken_at=torch.where(fell, then.broken_at, first.broken_at),
        broken_by=torch.where(fell, then.broken_by + len(first.names), first.broken_by),
        distance=torch.where(fell, then.distance, first.distance),
        results=(*first.results, *then.results),
        candidates={**first.candidates, first.headline: (rows[kept], pictures[kept])},
    )

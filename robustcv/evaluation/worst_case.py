"""The worst case: a plan of attacks run over images and eps, survivors only, counted, checked again, and remembered."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustcv import processes, stopping
from robustcv.attacks.losses import margin
from robustcv.evaluation.accuracy import proportion, share
from robustcv.evaluation.block import Attacked, attack_rows, load_saved, save
from robustcv.evaluation.job import Job, Planned, Reason
from robustcv.records import AttackResult, Metric

BATCHES_A_BLOCK = 8  # survivors of a block are packed into full batches; a block is what is saved for resuming


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
    forwards, backwards
        The passes that the attacks of ``results`` spent on each image.
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
    forwards: Int64[Tensor, " n"]
    backwards: Int64[Tensor, " n"]
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
    forwards: Tensor
    backwards: Tensor


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
        Why these attacks run, for the record: ``plan``, ``escalation``, ``probe``, ``seed`` or ``alone``.
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
        carried = standing.broken_by[fits].bincount(minlength=len(plan)).tolist()
        results[each] = [
            result.model_copy(update={"carried": count}) for result, count in zip(results[each], carried, strict=True)
        ]
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
        forwards=standing.forwards,
        backwards=standing.backwards,
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
        forwards=torch.zeros(n, dtype=torch.int64),
        backwards=torch.zeros(n, dtype=torch.int64),
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

        def attacked(number: int, planned: Planned = planned, where: "_Where" = where) -> list[Attacked]:
            done = _on_block(job, planned, where, standing, number, blocks[number], open_rows)
            if not done:  # asked to stop
                return done
            job.advance(len(blocks[number]) * planned.weight * processes.size())
            return done

        for rounds in processes.shared(range(len(blocks)), attacked):
            total.attempted += len(rounds[0].rows) if rounds else 0
            for done in rounds:
                total.add(done)
                standing.forwards[done.rows] += done.forwards
                standing.backwards[done.rows] += done.backwards
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
) -> list["Attacked"]:
    """Run one attack on one block, restart by restart or class by class on what is left, or read what was saved."""
    every = []
    ranked: Tensor | None = None
    for round_number, purpose, options in _rounds(planned):
        todo = block[open_rows[block] & (1 - standing.closest[block] >= planned.reach)]
        run = f"{where.reason}{where.tag}-{planned.name}-{where.place}-{job.norm}-{where.eps.hex()}"
        key = f"{run}-{number}-{round_number}"
        done = load_saved(job.state, key)
        if done is None and stopping.asked():
            break
        if done is None:
            own = f"{where.reason}-{where.place}-{purpose}"  # the same attack again starts elsewhere
            done = attack_rows(job, planned, where.eps, todo, block, ranked, round_number, own, options)
            save(job.state, key, done)
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


def _note(standing: _Standing, place: int, eps: float, done: "Attacked") -> Int64[Tensor, " m"]:
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
    starts: int = 0
    at_start: int = 0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    max_distance: float | None = None

    def add(self, done: "Attacked") -> None:
        """Add one run on one block."""
        self.starts += len(done.rows)
        self.at_start += int(done.at_start.sum())
        self.forward += done.forward
        self.backward += done.backward
        self.seconds += done.seconds
        if len(done.distance):
            self.max_distance = max(self.max_distance or 0.0, float(done.distance.max()))

    def record(self) -> AttackResult:
        """Make the record."""
        return AttackResult(
            name=self.planned.name,
            options=self.planned.recorded,
            norm=self.norm,
            eps=self.eps,
            attempted=self.attempted,
            broken=self.broken,
            starts=self.starts,
            at_start=self.at_start,
            forward=self.forward,
            backward=self.backward,
            seconds=self.seconds,
            max_distance=self.max_distance,
            reason=self.reason,
        )


def robust_metrics(outcome: WorstCase) -> list[Metric]:
    """Give robust accuracy at each eps (upper bounds), and at the headline what the first attack alone would tell."""
    metrics = [
        proportion("robust_accuracy", outcome.robust(eps), norm=outcome.norm, eps=eps, bound="upper")
        for eps in outcome.sweep
    ]
    first = next((each for each in outcome.results if each.eps == outcome.headline), None)
    if first is not None and len(outcome.names) > 1 and not stopping.asked():
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
    """Join a second plan, run at the headline eps on what the first had left standing.

    What it broke by a change that fits a smaller eps of the sweep counts there too.
    """
    fell = (then.broken_by >= 0) & (then.broken_at < first.broken_at)
    rows, pictures = (
        torch.cat(pair) for pair in zip(first.candidates[first.headline], then.candidates[first.headline], strict=True)
    )
    places: dict[int, int] = {}
    for place, row in enumerate(rows.tolist()):
        if row not in places or fell[row]:  # the later candidate of an image counts only where it broke the image
            places[row] = place
    kept = torch.tensor([places[row] for row in sorted(places)]).long()
    candidates = {**first.candidates, first.headline: (rows[kept], pictures[kept])}
    broken_at = torch.where(fell, then.broken_at, first.broken_at)
    distance = torch.where(fell, then.distance, first.distance)
    larger = first.headline
    for eps in sorted((each for each in first.sweep if each < first.headline), reverse=True):
        fits = (fell & (broken_at == larger) & (distance <= eps)).nonzero().squeeze(1)
        broken_at[fits] = eps
        others = ~torch.isin(candidates[eps][0], fits)
        known = candidates[eps][0][others], candidates[eps][1][others]
        candidates[eps] = _with(known, candidates[larger], fits)
        larger = eps
    return replace(
        first,
        names=(*first.names, *then.names),
        broken_at=broken_at,
        broken_by=torch.where(fell, then.broken_by + len(first.names), first.broken_by),
        distance=distance,
        results=(*first.results, *then.results),
        forwards=first.forwards + then.forwards,
        backwards=first.backwards + then.backwards,
        candidates=candidates,
    )

"""The worst case: attacks run over images and eps, counted, checked again on the plain classifier, and remembered."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robustcv import draws, runs
from robustcv.attacks.losses import margin
from robustcv.attacks.norms import NORMS, Norm
from robustcv.classifier import Judge, Tracked
from robustcv.data import ImageSet
from robustcv.evaluation.accuracy import proportion
from robustcv.records import AttackResult, Metric
from robustcv.runtime import Advance

TOLERANCE = 1e-6  # absolute and relative: float32 rounding of image + change; measured distances are recorded


@dataclass(frozen=True)
class Planned:
    """An attack with the options it runs with."""

    name: str
    attack: Callable[..., Tensor]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class WorstCase:
    """What the attacks did, per image.

    Parameters
    ----------
    norm, sweep
        The threat model's norm and the eps tried, ascending.
    broken_at
        For each attack, the smallest eps of the sweep at which it broke each image; inf where it never did, 0 where
        the image was wrong before any attack.
    distance
        For each attack, the measured norm of the change that broke each image; NaN where it broke none.
    results
        One record per attack and eps.
    candidates
        For each (attack, eps) the rows of the images broken there, or asked for, and each one's best candidate.
    """

    norm: str
    sweep: tuple[float, ...]
    broken_at: dict[str, Float[Tensor, " n"]]
    distance: dict[str, Float[Tensor, " n"]]
    results: tuple[AttackResult, ...]
    candidates: dict[tuple[str, float], tuple[Tensor, Tensor]]

    def robust(self, eps: float, attack: str | None = None) -> Bool[Tensor, " n"]:
        """Tell which images stand at eps: against one attack, or against all of them."""
        chosen = [self.broken_at[attack]] if attack else list(self.broken_at.values())
        return torch.stack(chosen).amin(0) > eps * (1 + 1e-9)

    def breaker(self, row: int, eps: float) -> tuple[str, float] | None:
        """Name the attack, and the eps, that broke an image first at or below eps; None where it stands."""
        found = [(float(at[row]), name) for name, at in self.broken_at.items() if 0 < at[row] <= eps * (1 + 1e-9)]
        return (min(found)[1], min(found)[0]) if found else None

    def candidate(self, row: int, attack: str, eps: float) -> Tensor | None:
        """Give an image's best candidate of an attack at eps; None where it was not attacked there."""
        rows, images = self.candidates[attack, eps]
        place = (rows == row).nonzero()
        return images[int(place[0])] if len(place) else None


def worst_case(
    classifier: nn.Module,
    images: ImageSet,
    correct: Bool[Tensor, " n"],
    plan: Sequence[Planned],
    *,
    norm: str,
    sweep: Sequence[float],
    seed: int,
    batch_size: int,
    device: torch.device,
    state: runs.State,
    remember: Bool[Tensor, " n"] | None = None,
    advance: Advance = lambda _: None,
) -> WorstCase:
    """Attack every image that is right when clean, at every eps of a sweep, with every attack of a plan.

    An image that an attack broke at a smaller eps counts as broken by it at a larger one and is not attacked again.
    A success counts when the candidate lies in the ball and in [0, 1] and a second, separate forward pass of the plain
    classifier is fooled too. After each (block, attack, eps) the result is saved, and read instead of repeated.

    Parameters
    ----------
    classifier
        Frozen, on ``device``.
    correct
        Which images are right when clean; the others count as broken at eps 0.
    remember
        Images whose best candidate is kept even where it did not succeed.
    advance
        Called with the number of images after each block.
    """
    sweep = tuple(sorted(sweep))
    blocks = list(torch.arange(len(images)).split(batch_size))
    start = torch.where(correct, torch.inf, 0.0).double()  # double, so that an eps comes back as it went in
    broken_at = {planned.name: start.clone() for planned in plan}
    distance = {planned.name: torch.full((len(images),), torch.nan) for planned in plan}
    remember = torch.zeros(len(images), dtype=torch.bool) if remember is None else remember
    results, candidates = [], {}
    for eps in sweep:
        for planned in plan:
            parts: list[_Attacked] = []
            for number, block in enumerate(blocks):
                rows = block[broken_at[planned.name][block] > eps]
                key = f"attack-{planned.name}-{norm}-{eps.hex()}-block-{number}"
                parts.append(
                    _attack_block(classifier, images, rows, remember, planned, norm, eps, seed, device, state, key)
                )
                advance(len(block))
            rows, broken, distances = (
                torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "broken", "distance")
            )
            broken_rows = rows[broken]
            broken_at[planned.name][broken_rows] = eps
            distance[planned.name][broken_rows] = distances[broken].float()
            kept = torch.cat([part.kept for part in parts]), torch.cat([part.best for part in parts])
            candidates[planned.name, eps] = kept
            results.append(
                AttackResult(
                    name=planned.name,
                    options=dict(planned.options),
                    norm=norm,
                    eps=eps,
                    attempted=len(rows),
                    broken=len(broken_rows),
                    forward=sum(part.forward for part in parts),
                    backward=sum(part.backward for part in parts),
                    seconds=sum(part.seconds for part in parts),
                    max_distance=float(distances.max()) if len(distances) else None,
                )
            )
    return WorstCase(norm, sweep, broken_at, distance, tuple(results), candidates)


_ARRAYS = ("rows", "broken", "distance", "kept", "best")


@dataclass(frozen=True)
class _Attacked:
    rows: Tensor
    broken: Tensor
    distance: Tensor
    kept: Tensor
    best: Tensor
    forward: int
    backward: int
    seconds: float


def _attack_block(
    classifier: nn.Module,
    images: ImageSet,
    rows: Tensor,
    remember: Tensor,
    planned: Planned,
    norm: str,
    eps: float,
    seed: int,
    device: torch.device,
    state: runs.State,
    key: str,
) -> _Attacked:
    """Attack one block and check what comes back, or read the result of an earlier, interrupted run."""
    if (saved := state.load_arrays(key)) is not None:
        tensors = {name: torch.from_numpy(array.copy()) for name, array in saved.items()}
        counts, seconds = tensors.pop("counts").tolist(), float(tensors.pop("seconds"))
        return _Attacked(**tensors, forward=counts[0], backward=counts[1], seconds=seconds)
    started = time.monotonic()
    if len(rows) == 0:
        none = torch.empty(0)
        return _Attacked(rows, none.bool(), none.double(), rows, torch.empty(0, *images.shape), 0, 0, 0.0)
    chosen = images.take(rows)
    clean, labels = next(chosen.batches(len(rows)))
    clean, labels = clean.to(device), labels.to(device)
    ball = NORMS[norm]
    tracked = Tracked(classifier, clean, make_judge(clean, labels, ball, eps))
    seeds = draws.image_seeds(seed, chosen.hashes, f"{planned.name}-{norm}-{eps:.6g}").to(device)
    everyone = torch.arange(len(rows), device=device)
    checks = 0
    for _ in range(2):  # once more for those whose success the second opinion did not share
        returned = planned.attack(tracked, clean, labels, eps=eps, norm=norm, seeds=seeds, **planned.options)
        open_rows = tracked.rows()
        with torch.no_grad():
            if len(open_rows):
                tracked(returned[open_rows])  # an attack may return what it never queried
            best = torch.where((tracked.best_score < torch.inf)[:, None, None, None], tracked.best, clean)
            fooled, _ = tracked.judge(best, classifier(best), everyone)
        checks += len(rows)
        if not tracked.doubt(fooled):
            break
    broken = tracked.broken.cpu()
    keep = broken | remember[rows]
    result = _Attacked(
        rows=rows,
        broken=broken,
        distance=ball.distance(best, clean).cpu(),
        kept=rows[keep],
        best=best.cpu()[keep],
        forward=int(tracked.forwards.sum()) + checks,
        backward=int(tracked.backwards.sum()),
        seconds=time.monotonic() - started,
    )
    state.save_arrays(
        key,
        {
            **{name: getattr(result, name).numpy() for name in _ARRAYS},
            "counts": np.array([result.forward, result.backward]),
            "seconds": np.array(result.seconds),
        },
    )
    return result


def make_judge(clean: Float[Tensor, "n c h w"], labels: Tensor, ball: Norm, eps: float) -> Judge:
    """Make the success rule: a wrong (or not finite) answer to a candidate in the ball and in [0, 1]."""

    def judge(candidates: Tensor, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        inside = ball.distance(candidates, clean[rows]) <= eps * (1 + TOLERANCE) + TOLERANCE
        inside &= ((candidates >= 0) & (candidates <= 1)).flatten(1).all(1)
        finite = logits.isfinite().all(1)
        wrong = (logits.argmax(1) != labels[rows]) | ~finite
        score = torch.where(finite, -margin(logits, labels[rows], None), -torch.inf)
        return wrong & inside, torch.where(inside, score, torch.inf)

    return judge


def robust_metrics(outcome: WorstCase) -> list[Metric]:
    """Give robust accuracy at each eps: of each attack alone, and of the worst case over all of them (upper bounds)."""
    metrics = []
    for eps in outcome.sweep:
        names = [None, *outcome.broken_at] if len(outcome.broken_at) > 1 else [None]
        for attack in names:
            metrics.append(
                proportion(
                    "robust_accuracy",
                    outcome.robust(eps, attack),
                    norm=outcome.norm,
                    eps=eps,
                    bound="upper",
                    attack=attack,
                )
            )
    return metrics

"""Making every counted failure one that can be replayed: alone, and where possible as an 8-bit image."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustcv import processes
from robustcv.attacks import ATTACKS
from robustcv.attacks.norms import NORMS
from robustcv.classifier import to_eight_bit
from robustcv.data.image_set import to_float
from robustcv.evaluation.accuracy import Predictions
from robustcv.evaluation.block import Attacked, attack_rows, within
from robustcv.evaluation.job import Job, Planned
from robustcv.evaluation.worst_case import WorstCase
from robustcv.runtime import Advance

BLOCK = 64


@dataclass(frozen=True)
class Replayable:
    """A worst case of which every failure can be replayed.

    Parameters
    ----------
    outcome
        With candidates on the 8-bit grid wherever one was found; failures that one image alone did not repeat are
        withdrawn.
    exact
        Which images' candidates are 8-bit.
    withdrawn
        How many failures were.
    forward, backward
        Passes that this took.
    classes, confidences
        What each attacked image is taken for, and how surely; -1 and NaN where no attack broke it.
    """

    outcome: WorstCase
    exact: Bool[Tensor, " n"]
    withdrawn: int
    forward: int
    backward: int
    classes: Int64[Tensor, " n"]
    confidences: Float[Tensor, " n"]


def replayable(job: Job, outcome: WorstCase, *, advance: Advance = lambda _: None) -> Replayable:
    """Bring every image that fell to one that still fools the model alone, as a file holds it, at its smallest eps.

    Rounding towards the image comes first; what that undoes is attacked once more on the 8-bit grid; what survives
    only between the steps of that grid stays as it is.
    """
    fell = (outcome.broken_by >= 0).nonzero().squeeze(1)
    exact = torch.zeros(len(job.images), dtype=torch.bool)
    stays = torch.zeros(len(job.images), dtype=torch.bool)
    candidates = {eps: (rows, images.clone()) for eps, (rows, images) in outcome.candidates.items()}
    distance = outcome.distance.clone()
    counts = torch.zeros(2, dtype=torch.int64)
    classes, sure = torch.full((len(job.images),), -1), torch.full((len(job.images),), torch.nan)
    lost = torch.empty(0, dtype=torch.int64)
    broken_at = outcome.broken_at.clone()
    for eps in outcome.sweep:
        known = outcome.candidates[eps][0]
        carried = lost[torch.isin(lost, known)]  # not repeated at a smaller eps; perhaps the change at this one is
        broken_at[carried] = eps
        rows = torch.cat([fell[outcome.broken_at[fell] == eps], carried]).sort().values
        blocks = rows.split(BLOCK) if len(rows) else ()

        def work(block: Tensor, eps: float = eps) -> dict[str, Tensor]:
            advance(len(block) * processes.size())
            return _secured(job, outcome, block, eps)

        for block, found in zip(blocks, processes.shared(blocks, work), strict=True):
            exact[block], stays[block] = found["exact"], found["stays"]
            counts += found["counts"]
            classes[block], sure[block] = found["classes"], found["confidences"]
            distance[block] = found["distance"]
            images = candidates[eps][1]
            images[torch.searchsorted(known, block)] = found["images"]
        lost = torch.cat([lost[~torch.isin(lost, carried)], rows[~stays[rows]]])
    broken_by = outcome.broken_by.clone()
    broken_at[lost], broken_by[lost], distance[lost] = torch.inf, -1, torch.nan
    settled = replace(outcome, broken_at=broken_at, broken_by=broken_by, distance=distance, candidates=candidates)
    classes[lost], sure[lost] = -1, torch.nan
    return Replayable(settled, exact, len(lost), int(counts[0]), int(counts[1]), classes, sure)


def _secured(job: Job, outcome: WorstCase, rows: Tensor, eps: float) -> dict[str, Tensor]:
    """Settle one block of images that fell at one eps, or read what an interrupted run has settled."""
    key = f"replay-{job.norm}-{eps.hex()}-{int(rows[0])}-{len(rows)}"
    if (saved := job.state.load_arrays(key)) is not None:
        return {name: torch.from_numpy(array.copy()) for name, array in saved.items()}
    chosen = job.images.take(rows)
    clean = to_float(chosen.images)
    known, images = outcome.candidates[eps]
    given = images[torch.searchsorted(known, rows)]
    exact = torch.zeros(len(rows), dtype=torch.bool)
    found = given.clone()
    spent = torch.zeros(2, dtype=torch.int64)

    classes, sure = torch.full((len(rows),), -1), torch.full((len(rows),), torch.nan)

    def fools(images: Tensor, some: Tensor) -> Tensor:
        spent[0] += len(some) * job.samples
        won, seen, confident = _fools_alone(job, images, clean[some], chosen.labels[some], eps)
        classes[some[won]], sure[some[won]] = seen[won], confident[won]
        return won

    everyone = torch.arange(len(rows))
    if chosen.images.dtype == torch.uint8:
        rounded = to_eight_bit(given, clean)
        exact = fools(rounded, everyone)
        found[exact] = rounded[exact]
        if len(open_ := everyone[~exact]):
            again = _on_the_grid(job, rows[open_], eps)
            spent += torch.tensor([again.forward, again.backward])
            won = fools(again.best, open_)
            found[open_[won]], exact[open_[won]] = again.best[won], True
    stays = exact.clone()
    left = everyone[~exact]
    stays[left] = fools(found[left], left)
    distance = NORMS[job.norm].distance(found, clean).float()
    settled = {
        "images": found,
        "exact": exact,
        "stays": stays,
        "distance": distance,
        "counts": spent,
        "classes": classes,
        "confidences": sure,
    }
    job.state.save_arrays(key, {name: tensor.numpy() for name, tensor in settled.items()})
    return settled


def _fools_alone(
    job: Job, candidates: Float[Tensor, "n c h w"], clean: Float[Tensor, "n c h w"], labels: Tensor, eps: float
) -> tuple[Bool[Tensor, " n"], Int64[Tensor, " n"], Float[Tensor, " n"]]:
    """Ask about each candidate alone: whether it is inside the ball and the box and wrong, its class, how surely."""
    wrong, classes = torch.zeros(len(labels), dtype=torch.bool), torch.zeros(len(labels), dtype=torch.int64)
    sure = torch.zeros(len(labels))
    with torch.no_grad():
        for k, (image, label) in enumerate(zip(candidates, labels, strict=True)):
            logits = job.classifier(image[None].to(job.device)).cpu()
            answer = Predictions(logits.float(), label[None])
            wrong[k], classes[k], sure[k] = ~answer.correct[0], answer.classes[0], answer.confidences[0]
    return within(candidates, clean, NORMS[job.norm], eps) & wrong, classes, sure


def _on_the_grid(job: Job, rows: Tensor, eps: float) -> Attacked:
    """Attack some images once more, every candidate rounded to 8 bits before it is asked about."""
    name, options = ("square", {"queries": 300}) if job.black_box else ("apgd", {"steps": 30, "loss": "margin"})
    if job.norm == "l0":
        name, options = "fmn", {"steps": 50}
    everyone = torch.ones(len(job.images), dtype=torch.bool)
    grid = replace(job, eight_bit=True, remember=everyone)
    return attack_rows(grid, Planned(name, ATTACKS[name], options), eps, rows, rows, None, 0, "replay", options)

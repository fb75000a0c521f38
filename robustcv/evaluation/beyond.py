"""Beyond norm balls: corruptions, rotations and shifts, patches; each a threat model of its own, never mixed."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustcv import draws, processes, runtime, stats
from robustcv.attacks.corruptions import COMMON, CORRUPTIONS
from robustcv.attacks.patch import apply_patch, train_patch
from robustcv.attacks.spatial import spatial
from robustcv.classifier import Counted, Tracked, right
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.accuracy import proportion
from robustcv.evaluation.job import Job
from robustcv.records import CorruptionRow, Metric, OtherThreat
from robustcv.runtime import Advance

SEVERITIES = (1, 2, 3, 4, 5)
PLACED = ("size", "shape", "degrees", "scale")  # what training a patch and putting it on have in common


def corruption_errors(
    job: Job, names: Sequence[str] = COMMON, *, advance: Advance = lambda _: None
) -> tuple[tuple[CorruptionRow, ...], tuple[Metric, ...], Float[Tensor, " n"]]:
    """Count right answers under each corruption at five severities: one forward pass an image and cell.

    The mean corruption error is the mean error over all cells (Hendrycks and Dietterich 2019, equation 1, without
    their baseline, as is usual on CIFAR-10-C); its interval is Wilson's for a sum of shares.

    Returns
    -------
    tuple
        The cells, the metrics, and of each image the share of its corrupted copies that is answered rightly.
    """
    rows, right = [], []
    for name in names:
        for severity in SEVERITIES:
            correct = _corrupted(job, name, CORRUPTIONS[name], severity)
            right.append(correct)
            rows.append(CorruptionRow(name=name, severity=severity, n=len(correct), correct=int(correct.sum())))
            advance(len(correct))
    shares = torch.stack(right).double().mean(0)
    errors = 1 - shares.numpy()
    low, high = stats.wilson(float(errors.sum()), len(errors))  # a bootstrap of three images that are right is a point
    metric = Metric(
        name="mean_corruption_error",
        n=len(errors),
        value=float(errors.mean()),
        low=low,
        high=high,
        method="Wilson, of a sum of shares",
    )
    share = metric.model_copy(
        update={"name": "corruption_accuracy", "value": 1 - float(errors.mean()), "low": 1 - high, "high": 1 - low}
    )
    return tuple(rows), (metric, share), shares


def corrupted_sample(job: Job, row: int, name: str, severity: int) -> Float[Tensor, "c h w"]:
    """Corrupt one image as it was corrupted when it was judged."""
    seeds = draws.image_seeds(job.seed, job.images.hashes[row : row + 1], _purpose(name, severity))
    image, _ = next(job.images.take(torch.tensor([row])).batches(1))
    return CORRUPTIONS[name](image.to(job.device), severity=severity, seeds=seeds.to(job.device))[0].cpu()


def _purpose(name: str, severity: int) -> str:
    return f"corruption-{name}-{severity}"


def _corrupted(job: Job, name: str, corrupt: Callable[..., Tensor], severity: int) -> Bool[Tensor, " n"]:
    """Answer one corrupted copy of all images, or read the answers of an interrupted run."""
    key = _purpose(name, severity)
    if (saved := job.state.load_arrays(key)) is not None:
        return torch.from_numpy(saved["correct"].copy())
    correct = _answers_after(job, functools.partial(corrupt, severity=severity), key) == job.images.labels
    job.state.save_arrays(key, {"correct": correct.numpy()})
    return correct


def _answers_after(job: Job, change: Callable[..., Tensor], purpose: str) -> Int64[Tensor, " n"]:
    """Answer every image after a change, ``change(images, seeds=...)``, drawn from its own seed.

    An answer with a logit that is not finite is -1: no class, and never right.
    """
    seeds = draws.image_seeds(job.seed, job.images.hashes, purpose)

    def answer(rows: Tensor) -> Tensor:
        batch, _ = next(job.images.take(rows).batches(len(rows)))

        def some_of_them(some: slice) -> Tensor:
            with torch.no_grad():
                logits = job.classifier(change(batch[some].to(job.device), seeds=seeds[rows[some]].to(job.device)))
            return torch.where(logits.isfinite().all(1), logits.argmax(1), -1).cpu()

        return torch.cat(runtime.in_chunks(some_of_them, len(rows), len(rows)))

    return torch.cat(processes.shared(torch.arange(len(job.images)).split(job.batch_size), answer))


def spatial_threat(
    job: Job, options: Mapping[str, Any], *, advance: Advance = lambda _: None
) -> tuple[OtherThreat, Metric]:
    """Search rotations and shifts for every image that is right when clean."""
    started = time.monotonic()
    correct = job.predictions.correct.clone()
    rows = correct.nonzero().squeeze(1)
    forward = backward = 0

    def attack(part: slice) -> None:
        nonlocal forward, backward
        batch = rows[part]
        chosen = job.images.take(batch)
        clean, labels = next(chosen.batches(len(batch)))
        clean, labels = clean.to(job.device), labels.to(job.device)

        def judge(candidates: Tensor, logits: Tensor, rows: Tensor, labels: Tensor = labels) -> tuple[Tensor, Tensor]:
            wrong = ~right(logits, labels[rows])
            return wrong, torch.where(wrong, -1.0, 1.0).to(candidates)

        tracked = Tracked(job.classifier, clean, judge)
        seeds = draws.image_seeds(job.seed, chosen.hashes, "spatial").to(job.device)
        spatial(tracked, clean, labels, seeds=seeds, **options)
        with torch.no_grad():  # the plain classifier is asked again about what fooled it
            confirmed, _ = judge(tracked.best, job.classifier(tracked.best), torch.arange(len(batch)).to(job.device))
        correct[batch] = ~(tracked.broken & confirmed).cpu()
        forward += int(tracked.forwards.sum()) + len(batch) * job.samples
        backward += int(tracked.backwards.sum())
        advance(len(batch))

    runtime.in_chunks(attack, len(rows), job.batch_size)
    metric = proportion("spatial_accuracy", correct, bound="upper", attack="spatial")
    threat = OtherThreat(
        name="spatial",
        options=dict(options),
        attempted=len(rows),
        broken=len(rows) - int(correct.sum()),
        forward=forward,
        backward=backward,
        seconds=time.monotonic() - started,
    )
    return threat, metric


def patch_threat(
    job: Job, train: ImageSet, options: Mapping[str, Any], *, advance: Advance = lambda _: None
) -> tuple[OtherThreat, tuple[Metric, ...], Float[Tensor, "c p p"]]:
    """Train one patch on training images and put it on every image judged; beside it a grey one, as a control.

    What the grey patch breaks it breaks by covering; the rest is the attack's. A patch with a target is also judged by
    how many images of other classes are taken for that target.
    """
    started = time.monotonic()
    target = options.get("target")
    if target is not None and not 0 <= target < len(train.class_names):
        raise UserError(
            "RCV-E008",
            f"patch.target={target} is no class",
            f"there are {len(train.class_names)}, counted from 0",
            "--set patch.target=0",
        )
    pixels, labels = next(train.batches(len(train)))
    seeds = draws.image_seeds(job.seed, train.hashes, "patch").to(job.device)
    counted = Counted(job.classifier)
    patch = train_patch(counted, pixels.to(job.device), labels.to(job.device), seeds=seeds, **options)
    placed = {name: options[name] for name in PLACED if name in options}
    under, control = (
        _answers_after(job, functools.partial(apply_patch, patch=sticker, **placed), "patch places")
        for sticker in (patch, torch.full_like(patch, 0.5))
    )
    advance(len(under))
    correct, labels = job.predictions.correct, job.images.labels
    metrics = [proportion("patch_accuracy", correct & (under == labels), bound="upper", attack="patch")]
    aimed: dict[str, int] = {}
    if target is not None:
        others = correct & (labels != target)
        aimed = {
            "target": target,
            "aimed": int(others.sum()),
            "reached": int((under[others] == target).sum()),
            "control_reached": int((control[others] == target).sum()),
        }
        if aimed["aimed"]:  # a lower bound, as another patch may reach it more often
            metrics.append(proportion("patch_target_rate", under[others] == target, bound="lower", attack="patch"))
    threat = OtherThreat(
        name="patch",
        options=dict(options),
        attempted=int(correct.sum()),
        broken=int((correct & (under != labels)).sum()),
        control_broken=int((correct & (control != labels)).sum()),
        control="the same places under a grey patch",
        forward=counted.forwards + 2 * len(under) * job.samples,  # of all processes, which share the judging
        backward=counted.backwards,
        seconds=time.monotonic() - started,
        file="evidence/patch.png",
        **aimed,
    )
    return threat, tuple(metrics), patch.cpu()

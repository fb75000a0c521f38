"""Threats beyond norm balls that an audit was asked for (--also), with the pictures that show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustcv import records
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.beyond import corrupted_sample, corruption_errors, patch_threat, spatial_threat
from robustcv.evaluation.job import Job
from robustcv.models import Loaded
from robustcv.runtime import Progress
from robustcv.verbs.cases import to_png, to_printable_png
from robustcv.verbs.prepare import take_images

ALSO = ("corruptions", "spatial", "patch", "maps")
SAMPLED = (1, 3, 5)  # the severities of which the page shows a picture
PATCH_IMAGES = 1000


@dataclass(frozen=True)
class Beyond:
    """What was measured beside norm balls; ``shares`` are, of each image, the corrupted copies answered rightly."""

    corruptions: tuple[records.CorruptionRow, ...] = ()
    shares: Tensor | None = None
    others: tuple[records.OtherThreat, ...] = ()
    metrics: tuple[records.Metric, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


def require_colours(channels: int, also: Sequence[str]) -> None:
    """Refuse images that could not be shown, or not be corrupted.

    Raises
    ------
    UserError
        If they have another number of channels.
    """
    if channels > 4:
        raise UserError(
            "RCV-E120", f"the images have {channels} channels", "no picture of them could be shown", "give 1, 3 or 4"
        )
    if "corruptions" in also and channels not in (1, 3):
        raise UserError(
            "RCV-E120",
            f"--also corruptions: the images have {channels} channels",
            "corruptions are defined for grey and for colour",
            "leave it out",
        )


def measure_beyond(
    job: Job,
    options: Mapping[str, Any],
    method_options: Mapping[str, Mapping[str, Any]],
    patch_images: ImageSet | None,
    progress: Progress,
) -> Beyond:
    """Measure the other threats asked for."""
    rows: tuple[records.CorruptionRow, ...] = ()
    shares: Tensor | None = None
    others: list[records.OtherThreat] = []
    metrics: list[records.Metric] = []
    files: dict[str, bytes] = {}
    n = len(job.images)
    for name in (each for each in options["also"] if each != "maps"):
        with progress.stage(name, n * (75 if name == "corruptions" else 1)) as advance:
            if name == "corruptions":
                rows, found, shares = corruption_errors(job, advance=advance)
                rows, pictures = _with_samples(job, rows)
                metrics += found
                files |= pictures
            elif name == "spatial":
                threat, metric = spatial_threat(job, method_options.get("spatial", {}), advance=advance)
                others.append(threat)
                metrics.append(metric)
            elif patch_images is not None:
                own = method_options.get("patch", {})
                threat, judged, patch = patch_threat(job, patch_images, own, advance=advance)
                others.append(threat)
                metrics += judged
                assert threat.file is not None
                files[threat.file] = to_printable_png(patch, own.get("shape", "square"))
    return Beyond(rows, shares, tuple(others), tuple(metrics), files)


def _with_samples(
    job: Job, rows: Sequence[records.CorruptionRow]
) -> tuple[tuple[records.CorruptionRow, ...], dict[str, bytes]]:
    """Add a picture of the first sampled image, if any, to the rows of some severities."""
    sampled = job.kept().nonzero().flatten().tolist()[:1]
    made, files = [], {}
    for each in rows:
        if sampled and each.severity in SAMPLED:
            name = f"evidence/corruptions/{each.name}-{each.severity}.png"
            files[name] = to_png(corrupted_sample(job, sampled[0], each.name, each.severity))
            made.append(each.model_copy(update={"file": name}))
        else:
            made.append(each)
    return tuple(made), files


def patch_training_images(
    images: Any, options: Mapping[str, Any], loaded: Loaded, device: torch.device, progress: Progress
) -> ImageSet | None:
    """Take the images a patch is trained on: of the training split, never those it is judged on; None for no patch."""
    if "patch" not in options["also"]:
        return None
    if not isinstance(images, str) or options["split"] == "train":
        raise UserError(
            "RCV-E086",
            "a patch needs training images of its own",
            "trained on the images it is judged on, it would look stronger than it is",
            "audit a data set by name or folder, with --split test; or call attacks.patch.train_patch",
        )
    chosen, _ = take_images(
        images,
        None,
        split="train",
        data_dir=options["data_dir"],
        resize=options["resize"],
        skip_bad=options["skip_bad"],
        n=PATCH_IMAGES,
        seed=options["seed"],
        loaded=loaded,
        device=device,
        progress=progress,
        at_most=True,
    )
    return chosen

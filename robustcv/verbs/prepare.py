"""What every verb does first and last: model, images and device in; the record's common parts out."""

import contextlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcv import records, runs, runtime
from robustcv.classifier import frozen
from robustcv.data import Images, ImageSet, ImageStream, as_images, resized, stratified
from robustcv.data import load as load_images
from robustcv.errors import UserError, first_line
from robustcv.evaluation.preflight import Overlap
from robustcv.models import FROM_PYTHON, Loaded, checkpoint
from robustcv.models.class_map import answering, read_class_map, rows_of
from robustcv.records import Record
from robustcv.runtime import Progress


@dataclass(frozen=True)
class Result:
    """What a verb gives: the record, the files that belong to it, and (where it made one) the classifier."""

    record: Record
    files: dict[str, bytes] = field(default_factory=dict)
    classifier: nn.Module | None = None


class Clock:
    """Remembers when a run began."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self._start = time.monotonic()

    def environment(self, device: torch.device) -> records.Environment:
        """Describe where the run was made and how long it took."""
        return records.Environment(
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.machine()}",
            device=runtime.describe_device(device),
            threads=torch.get_num_threads(),
            packages=runtime.versions(),
            started=self.started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._start,
            command=_command(),
            notes=runtime.notes(),
        )


@contextlib.contextmanager
def noting(state: runs.State) -> Iterator[None]:
    """Collect a run's notes in its state: a run that is resumed tells what it noted before."""
    known = state.load("notes.json")

    def keep(notes: Sequence[str]) -> None:
        state.save("notes.json", json.dumps(notes).encode())

    with runtime.noting(json.loads(known) if known else (), keep):
        yield


def _command() -> str:
    """Give the command as it can be pasted again; ``python`` where Python called a function."""
    program = Path(sys.argv[0])
    as_module = program.name in ("__main__.py", "cli.py") and program.parent.name == "robustcv"
    return shlex.join(["robustcv", *sys.argv[1:]]) if program.name == "robustcv" or as_module else "python"


def version() -> str:
    """Give robustcv's version."""
    return metadata.version("robustcv")


def device_of(loaded: Loaded, name: str) -> torch.device:
    """Choose the device: a module from Python stays where it is, anything we loaded goes to the best there is.

    Raises
    ------
    UserError
        If another device is asked for than the one a module from Python is on.
    """
    if loaded.source != FROM_PYTHON:
        device = runtime.pick_device(name)
        loaded.classifier.to(device).to(memory_format=torch.channels_last)
        return device
    parameter = next(loaded.classifier.parameters(), None)
    own = torch.device("cpu") if parameter is None else parameter.device
    if name != "auto" and (asked := runtime.pick_device(name)).type != own.type:
        raise UserError(
            "RCV-E031",
            f"the module is on {own}, but device {asked} was asked for",
            "a module from Python is left where it is",
            f"move it yourself: model.to({name!r}), or leave device out",
        )
    return own


@contextlib.contextmanager
def judged(classifier: nn.Module) -> Iterator[nn.Module]:
    """Hold a classifier frozen, in plain float32 and without autotuning, which could change results between runs."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, False, True
    try:
        with frozen(classifier):
            yield classifier
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = kept


def take_images(
    images: Any,
    labels: Any,
    *,
    split: str,
    data_dir: str | None,
    resize: int | None,
    n: int | None,
    seed: int,
    loaded: Loaded,
    device: torch.device,
    progress: Progress,
    skip_bad: bool = False,
    at_most: bool = False,
    mapped: bool = False,
) -> tuple[ImageSet, records.Data]:
    """Load images by spec or take them from Python, choose the subset, match the classes, and describe all of it.

    Where the classes are ``mapped``, they are not those of the model: see `asked_about`.

    Raises
    ------
    UserError
        If the model cannot take the images, or has other classes.
    """
    if isinstance(images, str):
        whole: Images = load_images(
            images, split=split, data_dir=data_dir, resize=resize, skip_bad=skip_bad, progress=progress
        )
    else:
        names = None if mapped else loaded.class_names  # then a set's own names, or numbers
        whole = resized(as_images(images, labels, names, split=split), resize)
    total = len(whole)
    n = min(n, total) if at_most and n is not None else n
    if n is None and isinstance(whole, ImageStream):
        raise UserError(
            "RCV-E018",
            f"{whole.name} has {total:,} images, more than fit in memory",
            "an audit keeps the images it judges, so that it can show and replay what it found",
            "choose a subset, drawn class by class: -n 1000",
        )
    chosen = (whole if n is None else whole.take(stratified(whole.labels, n, seed))).in_memory()
    selection = "all" if n is None or n == total else f"stratified by class, seed {seed}"
    if mapped:
        return chosen, describe_data(chosen, total, selection)
    classes = number_of_classes(loaded.classifier, chosen, device)
    if not isinstance(images, str) and classes > len(chosen.class_names) and chosen.class_names[0] == "0":
        chosen = replace(chosen, class_names=tuple(str(k) for k in range(classes)))  # a sample need not hold them all
    require_same_number(classes, len(chosen.class_names))
    return chosen, describe_data(chosen, total, selection)


def class_map_of(options: Mapping[str, Any]) -> dict[str, str] | None:
    """Read the class map where one was given."""
    return None if options["class_map"] is None else read_class_map(options["class_map"])


def asked_about(loaded: Loaded, class_map: Mapping[str, str] | None, images: ImageSet, device: torch.device) -> Loaded:
    """Ask a model about the classes of the data alone, where a class map says which they are.

    Raises
    ------
    UserError
        If the map does not fit the data or the model, or the model cannot take the images.
    """
    if class_map is None:
        return loaded
    classes = number_of_classes(loaded.classifier, images, device)
    return answering(loaded, rows_of(class_map, images.class_names, loaded.class_names or loaded.answers, classes))


AT_HAND = ("digits", "shapes", "cifar10", "cifar100", "mnist", "fashion-mnist")  # sets that come with both splits


DECODED_TO_COMPARE = 512 << 20  # bytes of a training split; more would take longer than the other checks together


def training_images_among(
    spec: Any, chosen: ImageSet, options: Mapping[str, Any], progress: Progress
) -> Overlap | None:
    """Count the images that are training images too: by their pixels, or where that takes too long by their files."""
    if not isinstance(spec, str) or chosen.split == "train":
        return None
    by_files = None if chosen.twins is None else Overlap(int(chosen.twins.sum()), by="bytes")
    if spec.partition(":")[0] not in AT_HAND and (by_files is None or by_files.found):
        return by_files
    archive = Path(spec.removeprefix("folder:")).expanduser()
    if archive.is_file() and archive.stat().st_size > DECODED_TO_COMPARE:
        return by_files
    try:
        training = load_images(
            spec,
            split="train",
            data_dir=options["data_dir"],
            resize=options["resize"],
            memory_limit=DECODED_TO_COMPARE,
            progress=progress,
        )
    except (UserError, OSError):  # of the training split, which this run does not judge
        return by_files
    if not isinstance(training, ImageSet):
        return by_files
    known = set(training.hashes)
    return Overlap(sum(each in known for each in chosen.hashes), by="pixels")


def identity(images: Images) -> str:
    """Hash a set: its pixels where they are in memory, else what is known without decoding."""
    if isinstance(images, ImageSet):
        return images.content_hash
    return runs.fingerprint(images.name, images.split, images.shape, images.labels.tolist())


def describe_data(images: Images, total: int, selection: str) -> records.Data:
    """Make the record of a set of images."""
    return records.Data(
        name=images.name,
        split=images.split,
        n=len(images),
        total=total,
        class_names=images.class_names,
        shape=images.shape,
        sha256=identity(images),
        selection=selection,
        skipped=images.skipped,
        eight_bit=not isinstance(images, ImageSet) or images.images.dtype == torch.uint8,
    )


def is_black_box(classifier: nn.Module) -> bool:
    """Tell whether a classifier says of itself that it gives no gradients."""
    return bool(getattr(classifier, "black_box", False))


def gives_gradients(classifier: nn.Module, images: Images, device: torch.device) -> bool:
    """Ask the classifier about one image, and whether its answer can be traced back to the pixels."""
    probe = next(iter(images.take(torch.arange(1)).batches(1)))[0].to(device).requires_grad_()
    with frozen(classifier):
        logits = classifier(probe + 0)  # not the leaf itself, which a model may change in place
    if not logits.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(logits.sum(), probe, allow_unused=True)
    return gradient is not None


def require_same_number(model: int, data: int) -> None:
    """Refuse a model and data of different numbers of classes.

    Raises
    ------
    UserError
        If they differ.
    """
    if model != data:
        raise UserError(
            "RCV-E070",
            f"the model gives {model} classes but the data has {data} classes",
            "the labels cannot be compared, so no accuracy can be computed",
            "use the model with the data it was trained on; audit, explain and doctor take --class-map FILE",
        )


def number_of_classes(classifier: nn.Module, images: Images, device: torch.device) -> int:
    """Ask the classifier about one image.

    Raises
    ------
    UserError
        If it cannot take the image, or gives no row of logits.
    """
    probe, _ = next(iter(images.take(torch.arange(1)).batches(1)))
    try:
        with frozen(classifier), torch.no_grad():
            logits = classifier(probe.repeat(2, 1, 1, 1).to(device))
    except Exception as error:  # a model may raise anything: torch._assert, its own checks of size
        c, h, w = images.shape
        raise UserError(
            "RCV-E072",
            f"the model cannot take images of {c} channels and {w}x{h} pixels",
            first_line(error, 160),
            "make them the size it was trained on (--resize), or resize inside: robustcv.Classifier(network, size=...)",
        ) from error
    fine = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == 2 and logits.is_floating_point()
    if not fine:
        what = f"a {type(logits).__name__}"
        if isinstance(logits, Tensor):
            what = f"outputs of shape {tuple(logits.shape)}, {str(logits.dtype).removeprefix('torch.')},"
        raise UserError(
            "RCV-E070",
            f"the model gives {what} for two images",
            "a classifier gives one row of logits for each image",
            "return logits n k, as floats",
        )
    return int(logits.shape[1])


def describe_model(loaded: Loaded) -> records.Model:
    """Make the record of a classifier."""
    module = loaded.whole or loaded.classifier
    size = getattr(module, "size", None)
    training = loaded.description.get("training")
    return records.Model(
        source=loaded.source,
        architecture=loaded.architecture,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        sha256=checkpoint.sha256_of(module),
        input_size=size,
        training=None if training is None else records.Training.model_validate(training),
        class_map=loaded.class_map,
    )

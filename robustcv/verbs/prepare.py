"""What every verb does first and last: model, images and device in; the record's common parts out."""

import contextlib
import inspect
import json
import math
import platform
import shlex
import sys
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from robustcv import records, runs, runtime
from robustcv.attacks.norms import NORMS
from robustcv.classifier import frozen
from robustcv.data import Images, ImageSet, ImageStream, as_images, resized, stratified
from robustcv.data import load as load_images
from robustcv.errors import UserError, first_line, unknown_name
from robustcv.evaluation.preflight import Overlap
from robustcv.explainers import ALIASES, ASK_ONLY, EXPLAINERS
from robustcv.models import FROM_PYTHON, Loaded, checkpoint
from robustcv.models.class_map import answering, read_class_map, rows_of
from robustcv.records import Record
from robustcv.runtime import Progress

_WITH_TENSORS = ConfigDict(arbitrary_types_allowed=True)


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


def parse_eps(value: Any) -> float:
    """Read an eps: a number, or text such as ``8/255``.

    Raises
    ------
    UserError
        If it is not a number.
    """
    try:
        found = _number(value) if isinstance(value, str) else float(value)
        if math.isnan(found):
            raise ValueError("not a number")
        return found
    except (ValueError, ArithmeticError, TypeError) as error:
        raise UserError(
            "RCV-E002", f"eps {value!r} is not a number", "eps is a radius in units of [0, 1]", "write 8/255 or 0.0314"
        ) from error


def parse_sweep(eps: Any, norm: str, *, sweep: bool) -> tuple[list[float], tuple[float, ...]]:
    """Give the eps asked for (the first is the headline) and all to try: with ``sweep`` 1/4 to 4 times the largest too.

    Raises
    ------
    UserError
        If the norm is unknown, or an eps lies outside what the norm allows.
    """
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    given = [parse_eps(each) for each in (eps if isinstance(eps, list | tuple) else [eps])]
    if not given:
        raise UserError("RCV-E002", "no eps was given", "robust accuracy is about changes of some size", "--eps 8/255")
    limit = 1.0 if norm == "linf" else float("inf")
    for value in given:
        if not 0 < value <= limit or value == math.inf or (norm == "l0" and not value.is_integer()):
            allowed = "(0, 1]" if norm == "linf" else "what L0 allows: 1, 2, ..." if norm == "l0" else "above 0"
            hint = f"did you mean {value:g}/255?" if value > 1 else "use a radius above 0, such as 8/255"
            raise UserError(
                "RCV-E003",
                f"eps {value:g} is outside {allowed}",
                "L0 counts changed values" if norm == "l0" else "pixels lie in [0, 1], so eps is in those units",
                "use a whole number, such as 10" if norm == "l0" else hint,
            )
    more = [factor * max(given) for factor in (0.25, 0.5, 1, 2, 4)] if sweep else []
    more = sorted({max(1.0, float(round(value))) for value in more}) if norm == "l0" else more
    every = {round(value, 12): value for value in sorted([*given, *(min(value, limit) for value in more)])}
    return given, tuple(every.values())


def parse_options(given: Any, names: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Read method options, ``["pgd.steps=50"]`` or ``{"pgd": {"steps": 50}}``, against the methods' signatures.

    Raises
    ------
    UserError
        If a method or an option is unknown.
    """
    if isinstance(given, Mapping):
        pairs = [(method, key, value) for method, options in given.items() for key, value in options.items()]
    else:
        pairs = []
        for text in given or ():
            path, equals, value = str(text).partition("=")
            method, dot, key = path.partition(".")
            if not (equals and dot):
                raise UserError(
                    "RCV-E004",
                    f"--set {text!r} cannot be read",
                    "the form is METHOD.OPTION=VALUE",
                    "--set pgd.steps=50",
                )
            pairs.append((method, key, _read(value)))
    found: dict[str, dict[str, Any]] = {}
    for method, key, value in pairs:
        if method not in names:
            raise unknown_name("method", method, names)
        found.setdefault(method, {})[key] = _checked(names[method], method, key, value)
    return found


def refuse_unused(given: Mapping[str, Any], here: Sequence[str], told: str, *, add: str) -> None:
    """Refuse options of methods that do not run.

    Parameters
    ----------
    told
        What runs, for the error.
    add
        How to make a method run, with ``{}`` for its name.

    Raises
    ------
    UserError
        For the first one.
    """
    for name in given:
        if name not in here:
            raise UserError(
                "RCV-E004",
                f"{name} does not run here, so its options would do nothing",
                told,
                f"{add.format(name)}, or leave --set {name}... out",
            )


def _read(text: str) -> Any:
    """Read a value from the command line: JSON, a fraction, Python's True and False, or else the text itself."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        pass
    try:
        return _number(text)
    except (ValueError, ArithmeticError):
        return text


def _number(text: str) -> float:
    """Read a decimal or a fraction; a fraction has no exponent, so that none can be as long as memory."""
    return float(Fraction(text)) if "/" in text else float(text)


def _checked(function: Any, method: str, key: str, value: Any) -> Any:
    """Hold a method's option against the function's signature: its name, its type, and counts at least 1."""
    reserved = ("eps", "norm", "targets", "towards", "seeds", "keep", "perturb", "pool")
    parameters = inspect.signature(function).parameters.values()
    accepted = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in reserved]
    if key not in accepted:
        raise unknown_name(f"option of {method}", key, accepted)
    annotation = typing.get_type_hints(function)[key]
    if typing.get_origin(annotation) is Literal and value not in typing.get_args(annotation):
        raise unknown_name(f"{key} of {method}", str(value), typing.get_args(annotation))
    try:
        checked = TypeAdapter(annotation, config=_WITH_TENSORS).validate_python(value)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise UserError(
            "RCV-E008", f"{method}.{key}={value} cannot be used", why, f"--set {method}.{key}=..."
        ) from error
    if (
        isinstance(checked, int | float)
        and not isinstance(checked, bool)
        and annotation is not float
        and checked <= 0
        and key not in ("target", "baseline", "baselines", "fill")
    ):
        why = "a method that takes no step, or none of any size, would count as one that failed"
        raise UserError("RCV-E008", f"{method}.{key}={value} is not above 0", why, f"--set {method}.{key}=1 or more")
    low, high = _RANGES.get(key, (-math.inf, math.inf))
    if isinstance(checked, float) and not (low < checked < high):
        allowed = f"between {low:g} and {high:g}" if key in _RANGES else "a finite number"
        told = f"{method}.{key}={value} is not {allowed}"
        raise UserError("RCV-E008", told, "nothing could be measured with it", f"--set {method}.{key}=...")
    return checked


_RANGES = {"sigma": (0.0, math.inf), "alpha": (0.0, 0.5)}


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


def methods_of(given: str | Sequence[str]) -> list[str]:
    """Read the names of explanation methods, short ones too.

    Raises
    ------
    UserError
        If one is unknown.
    """
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in EXPLAINERS and name not in ALIASES:
            raise unknown_name("explainer", name, {**EXPLAINERS, **ALIASES})
    return list(dict.fromkeys(ALIASES.get(name, name) for name in names))


def black_box_explainers(names: Sequence[str], default: Sequence[str]) -> list[str]:
    """Give the explainers for a model without gradients: those asked for, or one that only asks questions.

    Parameters
    ----------
    default
        What ``names`` is where the user asked for nothing.

    Raises
    ------
    UserError
        If one of those asked for needs gradients.
    """
    if list(names) == list(default):
        return ["shapley"]
    if needing := [name for name in names if name not in ASK_ONLY]:
        raise UserError(
            "RCV-E094", f"{needing[0]} needs gradients", "this model gives none", f"use one of {', '.join(ASK_ONLY)}"
        )
    return list(names)


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

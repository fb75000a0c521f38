"""What every verb does first and last: model, images and device in; the record's common parts out."""

import contextlib
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from importlib import metadata
from typing import Any

import torch
from torch import nn

from robustcv import records, runtime
from robustcv.attacks.norms import NORMS
from robustcv.classifier import frozen
from robustcv.data import Images, ImageSet, as_images, stratified
from robustcv.data import load as load_images
from robustcv.errors import UserError, unknown_name
from robustcv.models import Loaded, checkpoint
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
            command=" ".join(["robustcv", *sys.argv[1:]]) if sys.argv[0].endswith("robustcv") else "python",
        )


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
        return float(Fraction(value)) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError, TypeError) as error:
        raise UserError(
            "RCV-E002", f"eps {value!r} is not a number", "eps is a radius in units of [0, 1]", "write 8/255 or 0.0314"
        ) from error


def parse_sweep(eps: Any, norm: str, *, sweep: bool) -> tuple[float, tuple[float, ...]]:
    """Give the headline eps (the first) and all to try: those given and, with ``sweep``, 1/4 to 4 times the largest.

    Raises
    ------
    UserError
        If the norm is unknown, or an eps lies outside what the norm allows.
    """
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    given = [parse_eps(each) for each in (eps if isinstance(eps, list | tuple) else [eps])]
    for value in given:
        if value <= 0 or (norm == "linf" and value > 1) or value != value:
            hint = f"did you mean {value:g}/255?" if value > 1 else "use a radius above 0, such as 8/255"
            raise UserError(
                "RCV-E003", f"eps {value:g} is outside (0, 1]", "pixels lie in [0, 1], so eps is in those units", hint
            )
    more = [factor * max(given) for factor in (0.25, 0.5, 1, 2, 4)] if sweep else []
    limit = 1.0 if norm == "linf" else float("inf")
    every = {round(value, 12): value for value in sorted([*given, *(min(value, limit) for value in more)])}
    return given[0], tuple(every.values())


def parse_options(given: Any, names: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Read method options, ``["pgd.steps=50"]`` or ``{"pgd": {"steps": 50}}``, against the methods' signatures.

    Raises
    ------
    UserError
        If a method or an option is unknown.
    """
    import inspect
    import json

    if isinstance(given, dict):
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
            try:
                parsed = json.loads(value)
            except ValueError:
                parsed = parse_eps(value) if value.replace("/", "").isdigit() else value
            pairs.append((method, key, parsed))
    found: dict[str, dict[str, Any]] = {}
    for method, key, value in pairs:
        if method not in names:
            raise unknown_name("method", method, names)
        accepted = [
            name
            for name, parameter in inspect.signature(names[method]).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in ("eps", "norm", "targets", "seeds", "keep")
        ]
        if key not in accepted:
            raise unknown_name(f"option of {method}", key, accepted)
        found.setdefault(method, {})[key] = value
    return found


def device_of(loaded: Loaded, name: str) -> torch.device:
    """Choose the device: a module from Python stays where it is, anything we loaded goes to the best there is."""
    if loaded.source == "python object" and name == "auto":
        parameter = next(loaded.classifier.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device
    device = runtime.pick_device(name)
    if loaded.source != "python object":
        loaded.classifier.to(device).to(memory_format=torch.channels_last)
    return device


@contextlib.contextmanager
def judged(classifier: nn.Module) -> Iterator[nn.Module]:
    """Hold a classifier frozen, and without autotuning that could change results between runs."""
    with frozen(classifier):
        yield classifier


def take_images(
    images: Any,
    labels: Any,
    *,
    split: str,
    data_dir: str | None,
    resize: int | None,
    n: int | None,
    seed: int,
    class_names: tuple[str, ...] | None,
    progress: Progress,
) -> tuple[ImageSet, records.Data]:
    """Load images by spec or take them from Python, choose the subset, and describe both."""
    if isinstance(images, str):
        whole: Images = load_images(images, split=split, data_dir=data_dir, resize=resize, progress=progress)
    else:
        whole = as_images(images, labels, class_names)
    total = len(whole)
    chosen = (whole if n is None else whole.take(stratified(whole.labels, n, seed))).in_memory()
    selection = "all" if n is None or n == total else f"stratified by class, seed {seed}"
    data = records.Data(
        name=chosen.name,
        split=chosen.split,
        n=len(chosen),
        total=total,
        class_names=chosen.class_names,
        shape=chosen.shape,
        sha256=chosen.content_hash,
        selection=selection,
        eight_bit=chosen.images.dtype == torch.uint8,
    )
    return chosen, data


def describe_model(loaded: Loaded) -> records.Model:
    """Make the record of a classifier."""
    module = loaded.classifier
    size = getattr(module, "size", None)
    training = loaded.description.get("training")
    return records.Model(
        source=loaded.source,
        architecture=loaded.architecture,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        sha256=checkpoint.sha256_of(module),
        input_size=size,
        training=None if training is None else records.Training.model_validate(training),
    )

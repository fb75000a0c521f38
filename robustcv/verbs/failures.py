"""The failures that an audit counted, read back: one line of cases.jsonl each, and its clean and attacked image."""

import contextlib
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustcv import runs
from robustcv.data.files import TORN, open_image
from robustcv.data.places import LARGEST_FILE
from robustcv.verbs.evidence import ARCHIVE, FLOATS


class Failure(BaseModel):
    """One line of cases.jsonl."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    index: int
    image: str
    label: int = Field(ge=0)
    attack: str = "an attack"
    norm: str
    eps: float = Field(gt=0, allow_inf_nan=False)
    distance: float | None = None
    prediction: int | None = None
    form: str | None = None
    evidence: str


class Replay(NamedTuple):
    """A failure with its images ``c h w``, uint8, or float32 where no 8-bit image shows it; None for one that is lost.

    Both are as the audit wrote them.
    """

    failure: Failure
    clean: Tensor | None
    attacked: Tensor | None


def failures_of(files: Mapping[str, bytes]) -> list[Failure]:
    """Read every failure that is listed.

    Raises
    ------
    KeyError, ValueError
        If the list is lost, or was changed into something else.
    """
    return [Failure.model_validate_json(line) for line in files["cases.jsonl"].decode().splitlines()]


def replays(files: Mapping[str, bytes], failures: Sequence[Failure]) -> Iterator[Replay]:
    """Read the images of each failure."""
    archive, floats = None, {}
    with contextlib.suppress(*TORN):
        archive = zipfile.ZipFile(io.BytesIO(files[ARCHIVE]))
    with contextlib.suppress(Exception):  # safetensors raises its own kind
        floats = runs.unpack_arrays(files[FLOATS])
    for failure in failures:
        clean, attacked = (_read(archive, floats, f"{failure.evidence}-{kind}") for kind in ("clean", "adversarial"))
        yield Replay(failure, clean, attacked)


def _read(archive: zipfile.ZipFile | None, floats: runs.Arrays, name: str) -> Tensor | None:
    if name in floats:
        return torch.from_numpy(floats[name].copy())
    try:
        if archive is None or archive.getinfo(f"{name}.png").file_size > LARGEST_FILE:
            return None
        data = archive.read(f"{name}.png")
        with open_image(io.BytesIO(data)) as picture:
            pixels = np.array(picture)
    except (*TORN, SyntaxError):
        return None
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels).permute(2, 0, 1)

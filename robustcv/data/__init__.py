"""What goes in: images with labels, by name in `DATASETS`, from folders and archives, or from Python."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustcv.data.digits import digits
from robustcv.data.folder import folder
from robustcv.data.hub import hub
from robustcv.data.image_set import (
    MEMORY_LIMIT,
    Images,
    ImageSet,
    ImageStream,
    as_images,
    resized,
    split_rows,
    stratified,
)
from robustcv.data.published import cifar10, cifar100, fashion_mnist, mnist, svhn
from robustcv.data.shapes import shapes
from robustcv.data.shards import shards
from robustcv.data.table import table
from robustcv.errors import UserError, unknown_name
from robustcv.runtime import Progress

DATASETS: dict[str, Callable[..., Any]] = {
    "digits": digits,
    "shapes": shapes,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "svhn": svhn,
    "folder": folder,
    "csv": table,
    "shards": shards,
    "hf": hub,
}
FROM_FILES = ("folder", "csv", "shards", "hf")

__all__ = ["DATASETS", "ImageSet", "ImageStream", "Images", "as_images", "load", "resized", "split_rows", "stratified"]


def load(
    spec: str,
    *,
    split: str = "test",
    data_dir: str | None = None,
    resize: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> Images:
    """Load a data set by its spec: a name, ``shapes:64``, a path, or ``folder:``, ``csv:``, ``shards:``, ``hf:``.

    Parameters
    ----------
    skip_bad
        Leave out files that cannot be decoded, and count them; for data that come in files.
    memory_limit
        Decoded bytes; a larger set is streamed. For data that come in files.

    Raises
    ------
    UserError
        If the name is unknown, or the images cannot be read.
    """
    name, _, argument = spec.partition(":")
    if name not in DATASETS and Path(spec).expanduser().exists():
        name, argument = ("csv" if Path(spec).suffix.lower() == ".csv" else "folder"), spec
    if name in FROM_FILES:
        whole: Images = DATASETS[name](
            argument,
            split=split,
            resize=resize,
            seed=seed,
            skip_bad=skip_bad,
            memory_limit=memory_limit,
            progress=progress,
        )
        return whole
    if name not in DATASETS:
        raise unknown_name("data set", spec, [*DATASETS, "PATH"])
    if split not in ("train", "test"):
        raise UserError("RCV-E047", f"{name} has no split {split!r}", "it has: train, test", "use --split test")
    if name == "shapes":
        found: Images = resized(_shapes(argument, split), resize)
        return found
    keywords = {"data_dir": data_dir} if "data_dir" in inspect.signature(DATASETS[name]).parameters else {}
    found = resized(DATASETS[name](split=split, **keywords), resize)
    return found


def _shapes(argument: str, split: str) -> ImageSet:
    words = [word for word in argument.split(",") if word]
    if unknown := [word for word in words if word not in ("32", "64", "shortcut")]:
        raise unknown_name("option of shapes", unknown[0], ["32", "64", "shortcut"])
    sizes = [int(word) for word in words if word != "shortcut"]
    return shapes(split=split, size=sizes[0] if sizes else 32, shortcut="shortcut" in words)

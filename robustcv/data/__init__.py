"""What goes in: images with labels, by name in `DATASETS`, from folders and archives, or from Python."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustcv.data.digits import digits
from robustcv.data.folder import folder
from robustcv.data.image_set import Images, ImageSet, ImageStream, as_images, resized, split_rows, stratified
from robustcv.data.published import cifar10, cifar100, fashion_mnist, mnist
from robustcv.data.shapes import shapes
from robustcv.errors import UserError, unknown_name
from robustcv.runtime import Progress

DATASETS: dict[str, Callable[..., Any]] = {
    "digits": digits,
    "shapes": shapes,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "folder": folder,
}

__all__ = ["DATASETS", "ImageSet", "ImageStream", "Images", "as_images", "load", "resized", "split_rows", "stratified"]


def load(
    spec: str,
    *,
    split: str = "test",
    data_dir: str | None = None,
    resize: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Images:
    """Load a data set by its spec: a name, ``shapes:64``, ``shapes:32,shortcut``, ``folder:PATH``, or a path.

    Raises
    ------
    UserError
        If the name is unknown, or the images cannot be read.
    """
    name, _, argument = spec.partition(":")
    if name not in DATASETS and Path(spec).expanduser().exists():
        name, argument = "folder", spec
    if name == "folder":
        return folder(argument, split=split, resize=resize, seed=seed, progress=progress)
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

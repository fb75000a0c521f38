"""Lists of image files with classes and splits, wherever they lie, to sets of images: checked, decoded, cached."""

import contextlib
import hashlib
import io
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustcv.data import cache
from robustcv.data.image_set import MEMORY_LIMIT, ImageSet, ImageStream, split_rows
from robustcv.draws import image_seed
from robustcv.errors import UserError, first_line
from robustcv.runtime import Progress

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS = {"train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
TEST_SHARE = 0.2


@dataclass(frozen=True)
class ImageFile:
    """One file: where it stands, which split and class it belongs to, how many bytes it has and how to get them."""

    name: str
    split: str | None
    class_name: str
    read: Callable[[], bytes]
    size: int


def numbered(names: Collection[str]) -> list[str] | None:
    """Order classes that are called by numbers from 0 as numbers; None where some are not."""
    return sorted(names, key=int) if all(name.isdigit() for name in names) else None


def from_files(
    files: list[ImageFile],
    name: str,
    *,
    split: str,
    resize: int | None = None,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    key: str | None = None,
    skip_bad: bool = False,
    progress: Progress,
) -> ImageSet | ImageStream:
    """Make the set of one split: in memory, decoded once and cached, or streamed where it is too large.

    Parameters
    ----------
    files
        Every file of every split; without splits, a seeded fifth of each class is the test split.
    name
        What to call the set, and its files in errors.
    class_names
        The classes in order; None sorts the names that occur.
    key
        Of the cache; None hashes the files.
    skip_bad
        Leave out files that cannot be decoded, and count them; otherwise the first one is an error.

    Raises
    ------
    UserError
        For splits that differ in classes, a training split that shares a file with another, an image that cannot be
        decoded, or mixed sizes.
    """
    files = _with_splits(files, seed)
    classes = _check_layout(files, name, class_names)
    chosen, found = _choose_split(files, split, name)
    names = _twins(files, found)
    bad = 0
    if skip_bad:
        present = {file.class_name for file in chosen}
        chosen, bad = _without_bad(chosen, resize, progress)
        if emptied := sorted(present - {file.class_name for file in chosen}):
            raise UserError(
                "RCV-E042",
                f"no file of class {emptied[0]!r} can be decoded",
                "a class without images cannot be judged",
                "repair its files, or remove the class",
            )
    labels = torch.tensor([classes[file.class_name] for file in chosen])
    twins = None if names is None else torch.tensor([file.name in names for file in chosen])
    first = _decode(chosen[0], _fitted(resize))
    if isinstance(first, UserError):
        raise first
    c, h, w = first.shape
    shape = (int(c), int(h), int(w))
    dataset = _Decoded(chosen, labels.tolist(), resize, shape)
    if first.numel() * len(chosen) > memory_limit:
        workers = min(8, len(os.sched_getaffinity(0)))
        return ImageStream(
            dataset, labels, tuple(classes), shape, name=name, split=found, workers=workers, skipped=bad, twins=twins
        )
    key = key or _content_key(chosen, split, resize, list(classes))
    hit = cache.read(key)
    if hit is None:
        pixels = _decode_all(dataset, shape, progress)
        meta = {
            "labels": labels.tolist(),
            "class_names": list(classes),
            "split": found,
            "skipped": bad,
            "twins": None if twins is None else twins.tolist(),
        }
        hit = cache.write(key, pixels, meta)
    return replace(
        from_cache(hit, name), skipped=bad, twins=twins
    )  # the same good files may have been stored without a bad one


def from_cache(hit: cache.Entry, name: str) -> ImageSet:
    """Make the set that was stored."""
    meta = hit.meta
    names = tuple(meta["class_names"])
    labels = torch.tensor(meta["labels"])
    twins = meta.get("twins")
    left = {"skipped": meta.get("skipped", 0), "twins": None if twins is None else torch.tensor(twins)}
    return ImageSet(torch.from_numpy(hit.pixels), labels, names, name, meta["split"], **left)


def _check_layout(files: list[ImageFile], name: str, class_names: Sequence[str] | None) -> dict[str, int]:
    """Check that splits agree on their classes; give each class its number, in the order named or alphabetically."""
    if not files:
        raise UserError(
            "RCV-E044",
            f"{name} holds no images",
            "expected split/class/image or class/image",
            "check --data; the folder above the class folders is the one to name",
        )
    by_split: dict[str | None, set[str]] = {}
    for file in files:
        by_split.setdefault(file.split, set()).add(file.class_name)
    classes = set().union(*by_split.values())
    if garbled := [each for each in sorted(classes) if re.search("[\ud800-\udfff]", each)]:  # bytes that are no UTF-8
        raise UserError(
            "RCV-E041", f"{name}: the folder {garbled[0]!a} has a name that is no text", "it could be written nowhere",
            "rename it; names are read as UTF-8",
        )  # fmt: skip
    for split, present in by_split.items():
        if missing := sorted(classes - present):
            raise UserError(
                "RCV-E045",
                f"{name}: class {missing[0]!r} has no image in split {split or 'outside the split folders'!r}",
                "class numbers would differ between splits, or a class could not be judged",
                "give every split the same classes, each with an image (without split folders: each class two)",
            )
    return {each: number for number, each in enumerate(class_names or sorted(classes))}


# what reading or decoding a file may raise: members of archives that are torn, encrypted or missing
TORN = (
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    TypeError,
    LookupError,
    struct.error,
)


def _twins(files: list[ImageFile], split: str) -> set[str] | None:
    """Name the files of a split that are training files too, linked or copied; None where that is not known.

    Only files of equal size need to be read. Without a training split there is nothing to compare with.

    Raises
    ------
    UserError
        For the training split: what is learnt from it could not be judged.
    """
    splits_of_size: dict[int, set[str | None]] = {}
    if any(file.size < 0 for file in files):  # sizes unknown: reading all of a hub's set would take too long
        return None
    if not any(file.split == "train" for file in files):
        return None
    for file in files:
        splits_of_size.setdefault(file.size, set()).add(file.split)
    seen: dict[bytes, list[ImageFile]] = {}
    for file in files:
        if len(splits_of_size[file.size]) > 1 and file.size:  # an empty file is no image; decoding will tell
            try:
                content = file.read()
            except TORN:
                continue  # decoding it will tell
            seen.setdefault(hashlib.blake2b(content, digest_size=16).digest(), []).append(file)
    twins: set[str] = set()
    for same in seen.values():
        own = [file for file in same if file.split == split]
        other = next((file for file in same if file.split != split), None)
        if own and other is not None and split == "train":
            raise _shared(own[0], other)
        if any(file.split == "train" for file in same):
            twins |= {file.name for file in own}
    return twins


def _shared(file: ImageFile, other: ImageFile) -> UserError:
    return UserError(
        "RCV-E046",
        f"{file.name} is the same file as {other.name}",
        f"an image in both {other.split!r} and {file.split!r} makes every test figure too good",
        "remove it from one of the two splits",
    )


def _with_splits(files: list[ImageFile], seed: int) -> list[ImageFile]:
    """Give files that stand outside split folders their split: a seeded fifth of each class is the test split."""
    splits = {file.split for file in files}
    if None in splits and len(splits) > 1:
        lone = next(file for file in files if file.split is None)
        raise UserError(
            "RCV-E041",
            f"{lone.name} is in no split",
            "others are, so it would never be used",
            "give every image a split",
        )
    if splits != {None}:
        return files
    numbers = {name: number for number, name in enumerate(sorted({file.class_name for file in files}))}
    labels = torch.tensor([numbers[file.class_name] for file in files])
    _, test = split_rows(labels, TEST_SHARE, seed)
    chosen = set(test.tolist())
    return [replace(file, split="test" if row in chosen else "train") for row, file in enumerate(files)]


def _choose_split(files: list[ImageFile], split: str, name: str) -> tuple[list[ImageFile], str]:
    wanted = SPLITS.get(split)
    present = {file.split for file in files}
    if wanted == "test" and "test" not in present and "val" in present:
        wanted = "val"
    if wanted in present:
        return [file for file in files if file.split == wanted], str(wanted)
    have = sorted(str(each) for each in present if each)
    raise UserError(
        "RCV-E047", f"{name} has no split {split!r}", f"it has: {', '.join(have)}", f"use --split {have[0]}"
    )


def _without_bad(files: list[ImageFile], resize: int | None, progress: Progress) -> tuple[list[ImageFile], int]:
    """Decode every file once and leave out those that cannot be; gives the others and how many were left out."""
    good = []
    with progress.stage(f"look for files that cannot be decoded among {len(files):,}", len(files)) as advance:
        loader = DataLoader(
            _Tried(files, resize), 64, num_workers=_workers(len(files)), collate_fn=list, generator=torch.Generator()
        )  # its own, or it would draw a seed from the global one
        for part in loader:
            good += part
            advance(len(part))
    kept = [file for file, fine in zip(files, good, strict=True) if fine]
    if not kept:
        raise UserError(
            "RCV-E048", f"not one of {len(files)} files can be decoded", "there is nothing to judge", "check --data"
        )
    return kept, len(files) - len(kept)


class _Tried(Dataset[bool]):
    def __init__(self, files: list[ImageFile], resize: int | None) -> None:
        self.files, self.resize = files, resize

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> bool:
        return isinstance(_decode(self.files[row], _fitted(self.resize)), Tensor)


def _workers(n: int) -> int:
    return min(4, len(os.sched_getaffinity(0))) if n > 2000 else 0


@contextlib.contextmanager
def open_image(source: io.BytesIO | str) -> Iterator[Any]:
    """Open an image, to be decoded inside the block.

    Raises
    ------
    ValueError
        If it is no image, or it, or one within it, has so many pixels that it would fill the memory.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(first_line(error)) from error
    except UnidentifiedImageError as error:  # which would tell where in memory its bytes are
        raise ValueError("it is no image of a kind that Pillow reads") from error


Shaping = Callable[[Any], Any]  # of an RGB picture as Pillow decodes it


def _fitted(resize: int | None) -> Shaping:
    """Make pictures this many pixels square: the shorter side resized, the middle cropped; None leaves them."""
    from PIL import Image, ImageOps

    return lambda rgb: rgb if resize is None else ImageOps.fit(rgb, (resize, resize), Image.Resampling.BILINEAR)


def _decode(file: ImageFile, shaped: Shaping) -> Tensor | UserError:
    """Decode one file to uint8 RGB, or give the error that names it."""
    try:
        with open_image(io.BytesIO(file.read())) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"{image.mode} pixels (more than 8 bits) cannot be brought to 8 bits without loss")
            return torch.from_numpy(np.array(shaped(image.convert("RGB")))).permute(2, 0, 1)
    except UserError as error:
        return error
    except (*TORN, SyntaxError) as error:
        return UserError(
            "RCV-E048",
            f"{file.name} cannot be decoded",
            first_line(error),
            "replace or remove it; --skip-bad leaves such files out, and tells how many",
        )


class _Decoded(Dataset[tuple[Tensor | UserError, int]]):
    """Decodes on demand; an error is given back as a value, so that a worker can pass it on."""

    def __init__(
        self, files: list[ImageFile], labels: list[int], resize: int | None, shape: tuple[int, int, int]
    ) -> None:
        self.files, self.labels, self.resize, self.shape = files, labels, resize, shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor | UserError, int]:
        return _decode(self.files[row], lambda rgb: _fitted(self.resize)(self.sized(row, rgb))), self.labels[row]

    def sized(self, row: int, rgb: Any) -> Any:
        """Give a picture as it came, if it has the set's size or is to be resized.

        Raises
        ------
        UserError
            If it has another.
        """
        _, height, width = self.shape
        if self.resize is None and rgb.size != (width, height):
            raise UserError(
                "RCV-E049",
                f"{self.files[row].name} is {rgb.width}x{rgb.height} pixels, {self.files[0].name} is {width}x{height}",
                "images of one set must have one size",
                f"add --resize {min(height, width)} (shorter side resized, centre cropped)",
            )
        return rgb

    def cropped(self, seed: int) -> "_Cropped":
        """Give the same files with a random crop of each, which differs by seed and row."""
        return _Cropped(self, seed)


class _Cropped(Dataset[tuple[Tensor | UserError, int]]):
    """Decodes on demand, and cuts a random part from each picture, which is made as large as the set's images are."""

    def __init__(self, whole: _Decoded, seed: int) -> None:
        from torchvision.transforms import v2  # here, once, and not in every worker

        self.whole, self.seed, self.crop = whole, seed, v2.RandomResizedCrop(whole.shape[1:])

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, row: int) -> tuple[Tensor | UserError, int]:
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(image_seed(self.seed, str(row), "resized-crop"))
            whole = self.whole
            return _decode(whole.files[row], lambda rgb: self.crop(whole.sized(row, rgb))), whole.labels[row]


def _decode_all(dataset: _Decoded, shape: tuple[int, int, int], progress: Progress) -> NDArray[np.uint8]:
    """Decode every file in parallel workers into one array."""
    loader = DataLoader(
        dataset, 256, num_workers=_workers(len(dataset)), collate_fn=_gather, generator=torch.Generator()
    )  # its own, or it would draw a seed from the global one
    pixels = np.empty((len(dataset), *shape), np.uint8)
    done = 0
    with progress.stage(f"decode {len(dataset):,} images", len(dataset)) as advance:
        for images in loader:
            if isinstance(images, UserError):
                raise images
            pixels[done : done + len(images)] = images.numpy()
            done += len(images)
            advance(len(images))
    return pixels


def _gather(items: list[tuple[Tensor | UserError, int]]) -> Tensor | UserError:
    error = next((image for image, _ in items if isinstance(image, UserError)), None)
    return error or torch.stack([image for image, _ in items if isinstance(image, Tensor)])


def _content_key(files: list[ImageFile], split: str, resize: int | None, classes: list[str]) -> str:
    """Hash the names and bytes of the files of one split."""
    digest = hashlib.blake2b(f"folder 3:{split}:{resize}:{classes}".encode(), digest_size=16)
    for file in files:
        digest.update(f"{file.class_name}/{Path(file.name).name}".encode(errors="surrogateescape"))
        digest.update(hashlib.blake2b(file.read(), digest_size=16).digest())
    return digest.hexdigest()

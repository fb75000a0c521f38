"""Images in folders named after their classes, on disk or in a tar archive that is read without unpacking."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustcv.data import cache
from robustcv.data.image_set import MEMORY_LIMIT, ImageSet, ImageStream, split_rows
from robustcv.errors import UserError
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


def folder(
    path: str,
    *,
    split: str = "test",
    resize: int | None = None,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> ImageSet | ImageStream:
    """Load ``split/class/image`` or ``class/image``, from a folder or a (compressed) tar archive of that layout.

    Small sets are decoded once, in parallel, to one uint8 array that is cached by content; larger ones are streamed.
    Without split folders a fifth of each class, drawn by ``seed``, is the test split. Every file must be an image:
    nothing is dropped.

    Parameters
    ----------
    path
        Folder, or .tar, .tar.gz, .tar.xz, .tar.bz2.
    split
        ``train``, ``test`` or ``val``; ``test`` takes a validation folder where there is no test folder.
    resize
        Make images this many pixels square (shorter side resized, centre cropped); None demands equal sizes.
    memory_limit
        Largest decoded size, in bytes, that is kept in memory.

    Raises
    ------
    UserError
        For a corrupt image, an empty class, mixed sizes without ``resize``, or splits that share a file.
    """
    progress = progress or Progress(quiet=True)
    source = Path(path).expanduser()
    if not source.exists():
        raise UserError("RCV-E040", f"{path} does not exist", "there are no images to read", "check --data")
    archive_key = _archive_key(source, split, resize, seed) if source.is_file() else None
    if archive_key and (hit := cache.read(archive_key)) and hit.pixels.nbytes <= memory_limit:
        return _from_cache(hit, source)
    files = _scan_archive(source, progress) if archive_key else _scan_folder(source)
    files = _with_splits(files, seed)
    classes = _check_layout(files, source)
    _check_overlap(files)
    chosen, found = _choose_split(files, split, source)
    names = tuple(classes)
    labels = torch.tensor([classes[file.class_name] for file in chosen])
    first = _decode(chosen[0], resize)
    if isinstance(first, UserError):
        raise first
    c, h, w = first.shape
    shape = (int(c), int(h), int(w))
    dataset = _Decoded(chosen, labels.tolist(), resize, shape)
    if first.numel() * len(chosen) > memory_limit:
        workers = min(8, os.cpu_count() or 1)
        return ImageStream(dataset, labels, names, shape, name=source.name, split=found, workers=workers)
    key = archive_key or _content_key(chosen, split, resize)
    hit = None if archive_key else cache.read(key)
    if hit is None:
        pixels = _decode_all(dataset, shape, progress)
        hit = cache.write(key, pixels, {"labels": labels.tolist(), "class_names": names, "split": found})
    return _from_cache(hit, source)


def _from_cache(hit: cache.Entry, source: Path) -> ImageSet:
    meta = hit.meta
    names = tuple(meta["class_names"])
    return ImageSet(torch.from_numpy(hit.pixels), torch.tensor(meta["labels"]), names, source.name, meta["split"])


def _place(parts: tuple[str, ...]) -> tuple[str | None, str] | None:
    """Read split and class from the folders above a file."""
    if len(parts) == 3 and parts[0].lower() in SPLITS:
        return SPLITS[parts[0].lower()], parts[1]
    return (None, parts[0]) if len(parts) == 2 else None


def _misplaced(name: str, source: Path) -> UserError:
    return UserError(
        "RCV-E041",
        f"{source}: {name} is not an image in a class folder",
        "every file must stand as split/class/image or class/image; nothing is dropped silently",
        f"move or remove it; image files end in {', '.join(sorted(SUFFIXES))}",
    )


def _scan_folder(root: Path) -> list[ImageFile]:
    """List a folder's images, links followed; hidden files are passed over, anything else must be an image."""
    files = []
    for here, inside, names in os.walk(root, followlinks=True):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        visible = sorted(name for name in names if not name.startswith("."))
        if not inside and not visible:
            raise _empty(here)
        for name in visible:
            path = Path(here) / name
            place = _place(path.relative_to(root).parts)
            if place is None or path.suffix.lower() not in SUFFIXES:
                raise _misplaced(str(path.relative_to(root)), root)
            files.append(ImageFile(str(path), *place, path.read_bytes, path.stat().st_size))
    return sorted(files, key=lambda file: file.name)


def _empty(where: str) -> UserError:
    return UserError(
        "RCV-E042", f"{where} is empty", "a class without images cannot be judged", "add images or remove it"
    )


def _scan_archive(source: Path, progress: Progress) -> list[ImageFile]:
    """List an archive's images; a compressed one is read once from front to back and kept in memory as files."""
    files: list[ImageFile] = []
    folders: set[str] = set()
    try:
        with progress.stage(f"read {source.name}", 1), tarfile.open(source) as archive:
            plain = archive.fileobj is not None and archive.fileobj.__class__.__name__ == "BufferedReader"
            for member in archive:
                path = PurePosixPath(member.name)
                parts = tuple(part for part in path.parts if part != ".")
                if any(part.startswith(".") for part in parts):
                    continue
                if member.isdir():
                    folders |= {"/".join(parts)} if parts else set()
                    continue
                if not member.isfile():  # a link: what it names may lie outside the archive
                    raise _misplaced(member.name, source)
                place = _place(parts)
                if place is None or path.suffix.lower() not in SUFFIXES:
                    raise _misplaced(member.name, source)
                read: Callable[[], bytes]
                if plain:
                    read = _PartOfFile(source, member.offset_data, member.size)
                else:
                    content = archive.extractfile(member)
                    read = _Bytes(content.read() if content else b"")
                files.append(ImageFile(f"{source}:{member.name}", *place, read, member.size))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            "RCV-E043", f"{source} cannot be read as a tar archive", str(error), "make it again, or give a folder"
        ) from error
    filled = {str(PurePosixPath(file.name.removeprefix(f"{source}:")).parent).removeprefix("./") for file in files}
    empty = sorted(each for each in folders if not any(f == each or f.startswith(each + "/") for f in filled))
    if empty:
        raise _empty(f"{source}: {empty[0]}")
    return files


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    def __call__(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class _PartOfFile:
    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def _check_layout(files: list[ImageFile], source: Path) -> dict[str, int]:
    """Check that splits agree on their classes; give each class its number, in alphabetical order."""
    if not files:
        raise UserError(
            "RCV-E044",
            f"{source} holds no images",
            "expected split/class/image or class/image",
            "check --data; the folder above the class folders is the one to name",
        )
    by_split: dict[str | None, set[str]] = {}
    for file in files:
        by_split.setdefault(file.split, set()).add(file.class_name)
    classes = set().union(*by_split.values())
    for split, present in by_split.items():
        if missing := sorted(classes - present):
            raise UserError(
                "RCV-E045",
                f"{source}: class {missing[0]!r} has no image in split {split or 'outside the split folders'!r}",
                "class numbers would differ between splits, or a class could not be judged",
                "give every split the same classes, each with an image (without split folders: each class two)",
            )
    return {name: number for number, name in enumerate(sorted(classes))}


def _check_overlap(files: list[ImageFile]) -> None:
    """Refuse a file that stands in two splits, linked or copied; only files of equal size need to be read."""
    splits_of_size: dict[int, set[str | None]] = {}
    for file in files:
        splits_of_size.setdefault(file.size, set()).add(file.split)
    seen: dict[bytes, ImageFile] = {}
    for file in files:
        if len(splits_of_size[file.size]) > 1:
            other = seen.setdefault(hashlib.blake2b(file.read(), digest_size=16).digest(), file)
            if other.split != file.split:
                raise _shared(file, other)


def _shared(file: ImageFile, other: ImageFile) -> UserError:
    return UserError(
        "RCV-E046",
        f"{file.name} is the same file as {other.name}",
        f"an image in both {other.split!r} and {file.split!r} makes every test figure too good",
        "remove it from one of the two splits",
    )


def _with_splits(files: list[ImageFile], seed: int) -> list[ImageFile]:
    """Give files that stand outside split folders their split: a seeded fifth of each class is the test split."""
    if not files or {file.split for file in files} != {None}:
        return files
    numbers = {name: number for number, name in enumerate(sorted({file.class_name for file in files}))}
    labels = torch.tensor([numbers[file.class_name] for file in files])
    _, test = split_rows(labels, TEST_SHARE, seed)
    chosen = set(test.tolist())
    return [replace(file, split="test" if row in chosen else "train") for row, file in enumerate(files)]


def _choose_split(files: list[ImageFile], split: str, source: Path) -> tuple[list[ImageFile], str]:
    wanted = SPLITS.get(split)
    present = {file.split for file in files}
    if wanted == "test" and "test" not in present and "val" in present:
        wanted = "val"
    if wanted in present:
        return [file for file in files if file.split == wanted], str(wanted)
    have = sorted(str(each) for each in present if each)
    raise UserError(
        "RCV-E047", f"{source} has no split {split!r}", f"it has: {', '.join(have)}", f"use --split {have[0]}"
    )


def _decode(file: ImageFile, resize: int | None) -> Tensor | UserError:
    """Decode one file to uint8 RGB, or give the error that names it."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(file.read())) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"{image.mode} pixels (more than 8 bits) cannot be brought to 8 bits without loss")
            rgb = image.convert("RGB")
            if resize is not None:
                rgb = ImageOps.fit(rgb, (resize, resize), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return UserError(
            "RCV-E048",
            f"{file.name} cannot be decoded",
            str(error).splitlines()[0] or type(error).__name__,
            "replace or remove the file; it is not dropped silently",
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
        image = _decode(self.files[row], self.resize)
        if isinstance(image, Tensor) and tuple(image.shape) != self.shape:
            (_, h, w), (_, height, width) = image.shape, self.shape
            image = UserError(
                "RCV-E049",
                f"{self.files[row].name} is {w}x{h} pixels, {self.files[0].name} is {width}x{height}",
                "images of one set must have one size",
                f"add --resize {min(height, width)} (shorter side resized, centre cropped)",
            )
        return image, self.labels[row]


def _decode_all(dataset: _Decoded, shape: tuple[int, int, int], progress: Progress) -> NDArray[np.uint8]:
    """Decode every file in parallel workers into one array."""
    workers = min(4, os.cpu_count() or 1) if len(dataset) > 2000 else 0
    loader = DataLoader(dataset, 256, num_workers=workers, collate_fn=_gather)
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


def _archive_key(source: Path, split: str, resize: int | None, seed: int) -> str:
    """Hash an archive with what is asked of it: one read of the compressed bytes."""
    digest = hashlib.blake2b(f"archive 1:{split}:{resize}:{seed}".encode(), digest_size=16)
    with source.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _content_key(files: list[ImageFile], split: str, resize: int | None) -> str:
    """Hash the names and bytes of the files of one split."""
    digest = hashlib.blake2b(f"folder 1:{split}:{resize}".encode(), digest_size=16)
    for file in files:
        digest.update(f"{file.class_name}/{Path(file.name).name}".encode())
        digest.update(hashlib.blake2b(file.read(), digest_size=16).digest())
    return digest.hexdigest()

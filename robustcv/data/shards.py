"""Tar shards as WebDataset writes them: the files of a sample stand together under one key."""

import json
import re
import tarfile
from pathlib import Path

from robustcv.data.archives import PartOfFile
from robustcv.data.files import SPLITS, SUFFIXES, ImageFile, from_files, numbered
from robustcv.data.image_set import MEMORY_LIMIT, ImageSet, ImageStream
from robustcv.data.places import CarefulTarInfo, refuse_unsafe
from robustcv.errors import UserError, first_line
from robustcv.runtime import Progress

MOST_SHARDS, LONGEST_LABEL = 1_000_000, 1 << 20


def shards(
    pattern: str,
    *,
    split: str = "test",
    resize: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> ImageSet | ImageStream:
    """Load WebDataset shards: ``KEY.jpg`` with ``KEY.cls`` (a number or a name) or ``KEY.json`` ({"label": ...}).

    The shards are read once for the places of their images, which are then decoded when they are needed: each sample
    is seen once an epoch, in any order, and memory does not grow with the set.

    Parameters
    ----------
    pattern
        A folder of shards, or a pattern such as ``data/train-{000..012}.tar`` or ``data/*.tar``. A shard whose name
        begins with train, val or test belongs to that split. ``classes.txt`` beside the shards, one name a line, names
        the classes.
    split, resize, seed, skip_bad, memory_limit
        As in `folder`.

    Raises
    ------
    UserError
        If there is no shard, one is compressed or damaged, or a sample lacks its label.
    """
    progress = progress or Progress(quiet=True)
    paths = _paths(pattern)
    files: list[ImageFile] = []
    with progress.stage(f"read the places of images in {len(paths):,} shards", len(paths)) as advance:
        for path in paths:
            files += _scan(path)
            advance(1)
    listed = paths[0].parent / "classes.txt"
    names = [line for line in listed.read_text().splitlines() if line.strip()] if listed.is_file() else None
    files, names = _named(files, names, pattern)
    return from_files(
        files, Path(pattern).name, split=split, resize=resize, seed=seed, class_names=names, skip_bad=skip_bad,
        memory_limit=memory_limit,
        progress=progress,
    )  # fmt: skip


def _paths(pattern: str) -> list[Path]:
    """Find the shards that a folder or a pattern names, in order."""
    place = Path(pattern).expanduser()
    if place.is_dir():
        found = sorted(place.glob("*.tar"))
    else:
        wanted = [str(place)]
        while any((braces := re.search(r"\{(\d+)\.\.(\d+)\}", text)) for text in wanted):
            first, last = braces.groups()  # type: ignore[union-attr]  # found in the line above
            if int(last) - int(first) >= MOST_SHARDS:
                raise UserError(
                    "RCV-E044", f"{pattern} names too many shards", "there cannot be so many", "check --data"
                )
            numbers = [f"{k:0{len(first)}d}" for k in range(int(first), int(last) + 1)]
            wanted = [text.replace(braces.group(), k, 1) for text in wanted for k in numbers]  # type: ignore[union-attr]
        found = [path for text in wanted for path in _expand(Path(text))]
    for path in found:
        if not path.is_file():
            raise UserError(
                "RCV-E040", f"{path} does not exist", f"{pattern} names {len(found)} shards", "check --data"
            )
    if not found:
        raise UserError("RCV-E044", f"{pattern} names no shard", "a shard is a .tar file", "check --data")
    return found


def _expand(path: Path) -> list[Path]:
    return sorted(path.parent.glob(path.name)) if "*" in path.name else [path]


def _scan(path: Path) -> list[ImageFile]:
    """Read the headers of one shard: where its images lie, and what their labels are."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:", tarinfo=CarefulTarInfo) as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                key = f"{folder}/{key}"
                if not member.isfile() or name.startswith("."):
                    continue
                refuse_unsafe(member.name, member.size, 0, path)
                if f".{extension.lower()}" not in SUFFIXES and member.size > LONGEST_LABEL:
                    raise _wrong(path, f"{member.name} has {member.size:,} bytes", "no label is so long")
                if f".{extension.lower()}" in SUFFIXES:
                    if key in images:
                        raise _wrong(path, f"{member.name} and {images[key][0]} have one key", "one would be lost")
                    images[key] = (member.name, member.offset_data, member.size)
                elif extension in ("cls", "json") and (content := archive.extractfile(member)):
                    text = content.read().decode().strip()
                    if extension == "cls":
                        labels[key] = text
                    elif isinstance(told := json.loads(text), dict) and told.get("label") is not None:
                        labels.setdefault(key, str(told["label"]))
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(
            "RCV-E043",
            f"{path} cannot be read as a shard",
            first_line(error),
            "a shard is a tar file that is not compressed; make it again",
        ) from error
    for key, (name, _, _) in images.items():
        if not labels.get(key):
            raise _wrong(path, f"{name} has no label", "its key has neither .cls nor .json with a label")
    if without := sorted(labels.keys() - images.keys()):
        raise _wrong(path, f"{without[0].lstrip('/')} has a label and no image", "the sample would be lost")
    split = next((SPLITS[word] for word in SPLITS if path.name.lower().startswith(word)), None)
    return [
        ImageFile(f"{path}:{name}", split, labels[key], PartOfFile(path, offset, size), size)
        for key, (name, offset, size) in images.items()
    ]


def _wrong(path: Path, what: str, why: str) -> UserError:
    return UserError("RCV-E095", f"{path}: {what}", why, "correct the shard")


def _named(files: list[ImageFile], names: list[str] | None, pattern: str) -> tuple[list[ImageFile], list[str] | None]:
    """Turn class numbers into the names listed; numbers without names are ordered as numbers."""
    numbers = {file.class_name for file in files}
    if not all(re.fullmatch(r"-?[0-9]{1,9}", number) for number in numbers):
        if names is not None and (unknown := sorted(numbers - set(names))):
            raise UserError(
                "RCV-E012", f"{pattern}: no class {unknown[0]!r}", f"known: {', '.join(names)}", "complete classes.txt"
            )
        return files, names
    if below := [file for file in files if int(file.class_name) < 0]:
        raise UserError(
            "RCV-E012", f"{below[0].name}: label {below[0].class_name}", "labels begin at 0", "correct the label"
        )
    if names is None:
        return files, numbered(numbers)
    if outside := [file for file in files if int(file.class_name) >= len(names)]:
        raise UserError(
            "RCV-E012",
            f"{outside[0].name}: label {outside[0].class_name} is outside 0 to {len(names) - 1}",
            f"classes.txt beside {pattern} names {len(names)} classes",
            "correct the label, or complete classes.txt",
        )
    return [ImageFile(f.name, f.split, names[int(f.class_name)], f.read, f.size) for f in files], names

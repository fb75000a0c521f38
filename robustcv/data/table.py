"""Images listed in a CSV table: ``path,label`` and, where there is one, ``split``."""

import csv
import re
from pathlib import Path

from robustcv.data.files import SPLITS, ImageFile, from_files
from robustcv.data.image_set import MEMORY_LIMIT, ImageSet, ImageStream
from robustcv.errors import UserError, first_line
from robustcv.runtime import Progress


def table(
    path: str,
    *,
    split: str = "test",
    resize: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> ImageSet | ImageStream:
    """Load the images a CSV file names; paths are taken from the file's own folder.

    Labels are names, or numbers from 0: numbers keep their order, names are sorted. Without a ``split`` column a
    seeded fifth of each class is the test split.

    Parameters
    ----------
    path
        The CSV file, with a header.
    split, resize, seed, skip_bad, memory_limit
        As in `folder`.

    Raises
    ------
    UserError
        If the file lacks a column, names no image, or an image or a label is not what it should be.
    """
    source = Path(path).expanduser()
    if not source.is_file():
        raise UserError("RCV-E040", f"{path} does not exist", "there are no images to read", "check --data")
    try:
        columns, rows = _rows(source)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(
            "RCV-E095", f"{path} cannot be read as a table", first_line(error), "save it as CSV in UTF-8"
        ) from error
    if missing := [name for name in ("path", "label") if name not in columns]:
        raise UserError(
            "RCV-E095",
            f"{path} has no column {missing[0]!r}",
            f"it has: {', '.join(columns) or 'no header'}",
            "begin it with the line path,label or path,label,split",
        )
    if not rows:
        raise UserError("RCV-E044", f"{path} names no image", "there is nothing to judge", "check --data")
    files = [_file(source, number, row) for number, row in rows]
    names = _class_names(path, rows)
    return from_files(
        files, source.name, split=split, resize=resize, seed=seed, class_names=names, skip_bad=skip_bad,
        memory_limit=memory_limit,
        progress=progress or Progress(quiet=True),
    )  # fmt: skip


def _rows(source: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        return columns, [(reader.line_num, row) for row in reader]


def _file(source: Path, number: int, row: dict[str, str]) -> ImageFile:
    where = source.parent / (row["path"] or "")
    if not where.is_file():
        raise UserError(
            "RCV-E040",
            f"{source}, line {number}: {row['path']} does not exist",
            f"paths are taken from {source.parent}",
            "correct the path, or give it whole",
        )
    split = (row.get("split") or "").lower()
    if split and split not in SPLITS:
        raise UserError(
            "RCV-E095",
            f"{source}, line {number}: there is no split {split!r}",
            f"known: {', '.join(SPLITS)}",
            "correct the column split",
        )
    return ImageFile(
        str(where), SPLITS.get(split), (row["label"] or "").strip(), where.read_bytes, where.stat().st_size
    )


def _class_names(path: str, rows: list[tuple[int, dict[str, str]]]) -> list[str]:
    """Order the classes: numbers as numbers, from 0 and without a gap, else names as text."""
    labels = {(row["label"] or "").strip(): number for number, row in reversed(rows)}
    if "" in labels:
        raise UserError("RCV-E012", f"{path}, line {labels['']}: no label", "it cannot be judged", "fill it in")
    if not all(re.fullmatch(r"-?[0-9]+", label) for label in labels):
        return sorted(labels)
    for label, number in labels.items():
        if not 0 <= int(label) < len(labels) or str(int(label)) != label:
            raise UserError(
                "RCV-E012",
                f"{path}, line {number}: label {label} is outside 0 to {len(labels) - 1}",
                f"there are {len(labels)} different labels, and numbers must be theirs without a gap",
                "number the classes from 0, or write their names",
            )
    return sorted(labels, key=int)

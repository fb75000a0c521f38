"""Data sets of Hugging Face's `datasets` library (extra ``stream``), from the hub or from a folder it saved."""

from pathlib import Path
from typing import Any

from robustcv.data.files import SPLITS, ImageFile, from_files, numbered
from robustcv.data.image_set import MEMORY_LIMIT, ImageSet, ImageStream
from robustcv.errors import UserError, first_line, missing_extra
from robustcv.runtime import Progress


def hub(
    name: str,
    *,
    split: str = "test",
    resize: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> ImageSet | ImageStream:
    """Load a Hugging Face image data set; its files stay on disk and are decoded when they are needed.

    Parameters
    ----------
    name
        Name on the hub (``uoft-cs/cifar10``), or a folder made by ``save_to_disk``.
    split, resize, seed, skip_bad, memory_limit
        As in `folder`.

    Raises
    ------
    UserError
        If `datasets` is not installed, the set cannot be had, or it has no image or no label column.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "hf:NAME is read by it", "stream") from error
    datasets.disable_progress_bars()
    try:
        if Path(name).expanduser().is_dir():
            found = datasets.load_from_disk(str(Path(name).expanduser()))
        else:
            found = datasets.load_dataset(name)
    except Exception as error:  # the library raises what each of its parts raises
        why = first_line(error, 200)
        raise UserError("RCV-E016", f"hf:{name} could not be had", why, "check the name, or go online once") from error
    parts = found if isinstance(found, dict) else {"": found}
    files: list[ImageFile] = []
    names: list[str] | None = None
    for part, rows in parts.items():
        known = SPLITS.get(part.lower())
        if part and known is None:
            continue  # `unsupervised`, `extra` and the like
        names, more = _files(datasets, name, known, rows)
        files += more
    return from_files(
        files, f"hf:{name}", split=split, resize=resize, seed=seed, class_names=names, skip_bad=skip_bad,
        memory_limit=memory_limit,
        progress=progress or Progress(quiet=True),
    )  # fmt: skip


def _files(datasets: Any, name: str, split: str | None, rows: Any) -> tuple[list[str] | None, list[ImageFile]]:
    """List the rows of one split as files."""
    features = rows.features
    image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    label = next((key for key in ("label", "labels", "fine_label", "class") if key in features), None)
    if image is None or label is None:
        raise UserError(
            "RCV-E095",
            f"hf:{name} has no {'image' if image is None else 'label'} column",
            f"its columns are {', '.join(features)}",
            "choose an image classification set",
        )
    raw = rows.cast_column(image, datasets.Image(decode=False))
    names = list(features[label].names) if isinstance(features[label], datasets.ClassLabel) else None
    truth = rows[label]
    known, local = (len(names) if names else None), Path(name).expanduser().is_dir()
    files = []
    for row, value in enumerate(truth):
        if value is None or (isinstance(value, int) and not 0 <= value < (known or value + 1)):
            raise UserError(
                "RCV-E012",
                f"hf:{name} {split or ''}, row {row}: label {value}",
                "an image without a label cannot be judged",
                "choose a split whose images are labelled",
            )
        class_name = names[value] if names else str(value)
        read = _Row(raw, row, image, local=local)
        files.append(ImageFile(f"hf:{name} {split or ''} {row}", split, class_name, read, -1))
    return names or numbered({file.class_name for file in files}), files


class _Row:
    """Reads the encoded bytes of one row."""

    def __init__(self, rows: Any, row: int, column: str, *, local: bool) -> None:
        self.rows, self.row, self.column, self.local = rows, row, column, local

    def __call__(self) -> bytes:
        found = self.rows[self.row][self.column]
        if not found or (not found["bytes"] and self.local):
            raise OSError("the row holds no image")  # nor will a file that it names anywhere on this machine be read
        data: bytes = found["bytes"] or Path(found["path"]).read_bytes()
        return data

"""Images in folders named after their classes, on disk or in a tar or zip archive that is read without unpacking."""

import os
import zipfile
from pathlib import Path

from robustcv.data import cache
from robustcv.data.archives import archive_key, scan_tar, scan_zip
from robustcv.data.files import SUFFIXES, ImageFile, from_cache, from_files
from robustcv.data.image_set import MEMORY_LIMIT, ImageSet, ImageStream
from robustcv.data.places import empty, misplaced, place
from robustcv.errors import UserError
from robustcv.runtime import Progress


def folder(
    path: str,
    *,
    split: str = "test",
    resize: int | None = None,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> ImageSet | ImageStream:
    """Load ``split/class/image`` or ``class/image``, from a folder or a (compressed) tar or zip archive of that layout.

    Small sets are decoded once, in parallel, to one uint8 array that is cached by content; larger ones are streamed.
    Without split folders a fifth of each class, drawn by ``seed``, is the test split. Every file must be an image:
    nothing is dropped unless ``skip_bad`` asks for it.

    Parameters
    ----------
    path
        Folder, or .tar, .tar.gz, .tar.xz, .tar.bz2, .zip.
    split
        ``train``, ``test`` or ``val``; ``test`` takes a validation folder where there is no test folder.
    resize
        Make images this many pixels square (shorter side resized, centre cropped); None demands equal sizes.
    memory_limit
        Largest decoded size, in bytes, that is kept in memory.
    skip_bad
        Leave out files that cannot be decoded, and count them.

    Raises
    ------
    UserError
        For a corrupt image, an empty class, mixed sizes without ``resize``, or splits that share a file.
    """
    progress = progress or Progress(quiet=True)
    source = Path(path).expanduser()
    if not source.exists():
        raise UserError("RCV-E040", f"{path} does not exist", "there are no images to read", "check --data")
    key = archive_key(source, f"{split}:{skip_bad}" if skip_bad else split, resize, seed) if source.is_file() else None
    if key and (hit := cache.read(key)) and hit.pixels.nbytes <= memory_limit:
        return from_cache(hit, source.name)
    if key is None:
        files = _scan_folder(source)
    else:
        files = scan_zip(source) if zipfile.is_zipfile(source) else scan_tar(source, progress)
    return from_files(
        files, source.name, split=split, resize=resize, seed=seed, memory_limit=memory_limit, key=key,
        skip_bad=skip_bad, progress=progress,
    )  # fmt: skip


def _scan_folder(root: Path) -> list[ImageFile]:
    """List a folder's images, links followed; hidden files are passed over, anything else must be an image."""
    files = []
    for here, inside, names in os.walk(root, followlinks=True):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        visible = sorted(name for name in names if not name.startswith("."))
        if not inside and not visible:
            raise empty(here)
        for name in visible:
            path = Path(here) / name
            where = place(path.relative_to(root).parts)
            if where is None or path.suffix.lower() not in SUFFIXES:
                raise misplaced(str(path.relative_to(root)), root)
            files.append(ImageFile(str(path), *where, path.read_bytes, path.stat().st_size))
    return sorted(files, key=lambda file: file.name)

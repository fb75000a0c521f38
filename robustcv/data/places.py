"""Where an image stands says what it is: ``split/class/image`` or ``class/image``."""

import tarfile
from pathlib import Path
from typing import Any

from robustcv.data.files import SPLITS, SUFFIXES
from robustcv.errors import UserError


def place(parts: tuple[str, ...]) -> tuple[str | None, str] | None:
    """Read split and class from the folders above a file."""
    if len(parts) == 3 and parts[0].lower() in SPLITS:
        return SPLITS[parts[0].lower()], parts[1]
    return (None, parts[0]) if len(parts) == 2 else None


LARGEST_FILE = 256 << 20  # bytes of one encoded image; Pillow's own limit of pixels lies far below
LONGEST_HEADER = 1 << 16  # bytes: of a name, or of what else tar writes beside a member
LARGEST_UNPACKED = 16 << 30  # bytes of a compressed archive's images, which are kept in memory


class CarefulTarInfo(tarfile.TarInfo):
    """A member of a tar archive whose name, or other header, does not fill the memory before anybody sees it."""

    _READ_WHOLE = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                   tarfile.SOLARIS_XHDTYPE)  # fmt: skip

    def _proc_member(self, archive: tarfile.TarFile) -> Any:  # as tarfile calls it before it reads such a header
        if self.type in self._READ_WHOLE and self.size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def refuse_unsafe(name: str, size: int, unpacked: int, source: Path) -> None:
    """Refuse a member of an archive that names a place outside it, or one that would fill the memory.

    Parameters
    ----------
    size
        Of the member, unpacked, as the archive declares it.
    unpacked
        Bytes kept in memory before it.

    Raises
    ------
    UserError
        If it does.
    """
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith(("/", "\\")) or "\0" in name:
        raise UserError(
            "RCV-E115",
            f"{source}: {name} names a place outside the archive",
            "no honest tool makes such an archive; it is not read",
            "make it again from a folder of split/class/image",
        )
    if size > LARGEST_FILE or unpacked + size > LARGEST_UNPACKED:
        what = f"{name} unpacks to {size:,} bytes" if size > LARGEST_FILE else "its images would fill the memory"
        raise UserError(
            "RCV-E115",
            f"{source}: {what}",
            f"an image file has at most {LARGEST_FILE >> 20} MB, a compressed archive {LARGEST_UNPACKED >> 30} GB",
            "unpack it yourself where you trust it, and give the folder",
        )


def misplaced(name: str, source: Path) -> UserError:
    """Make the error for a file that stands elsewhere."""
    return UserError(
        "RCV-E041",
        f"{source}: {name} is not an image in a class folder",
        "every file must stand as split/class/image or class/image; nothing is dropped silently",
        f"move or remove it; image files end in {', '.join(sorted(SUFFIXES))}",
    )


def empty(where: str) -> UserError:
    """Make the error for a folder without images."""
    return UserError(
        "RCV-E042", f"{where} is empty", "a class without images cannot be judged", "add images or remove it"
    )

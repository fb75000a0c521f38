"""Images in tar and zip archives, read without unpacking."""

import hashlib
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from robustcv.data.files import SUFFIXES, TORN, ImageFile
from robustcv.data.places import CarefulTarInfo, empty, misplaced, place, refuse_unsafe
from robustcv.errors import UserError, first_line
from robustcv.runtime import Progress


def scan_zip(source: Path) -> list[ImageFile]:
    """List a zip archive's images; each is read when it is needed.

    Raises
    ------
    UserError
        If it is no zip archive, or holds something else than images in class folders.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except TORN as error:
        raise UserError(
            "RCV-E043",
            f"{source} cannot be read as a zip archive",
            first_line(error),
            "make it again, or give a folder",
        ) from error
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            "RCV-E043", f"{source} holds {twice} twice", "one of the two would be lost", "make the archive again"
        )
    files = []
    for member in members:
        refuse_unsafe(member.filename, member.file_size, 0, source)
        parts = tuple(part for part in PurePosixPath(member.filename).parts if part != ".")
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        where = place(parts)
        if where is None or PurePosixPath(member.filename).suffix.lower() not in SUFFIXES:
            raise misplaced(member.filename, source)
        read = _InZip(source, member.filename)
        files.append(ImageFile(f"{source}:{member.filename}", *where, read, member.file_size))
    return files


def scan_tar(source: Path, progress: Progress) -> list[ImageFile]:
    """List an archive's images; a compressed one is read once from front to back and kept in memory as files.

    Raises
    ------
    UserError
        If it is no tar archive, or holds something else than images in class folders.
    """
    files: list[ImageFile] = []
    folders: set[str] = set()
    try:
        with progress.stage(f"read {source.name}", 1), tarfile.open(source, tarinfo=CarefulTarInfo) as archive:
            plain = archive.fileobj is not None and archive.fileobj.__class__.__name__ == "BufferedReader"
            kept = 0
            for member in archive:
                refuse_unsafe(member.name, member.size, kept, source)
                kept += 0 if plain else member.size
                path = PurePosixPath(member.name)
                parts = tuple(part for part in path.parts if part != ".")
                if any(part.startswith(".") for part in parts):
                    continue
                if member.isdir():
                    folders |= {"/".join(parts)} if parts else set()
                    continue
                if not member.isfile():  # a link: what it names may lie outside the archive
                    raise misplaced(member.name, source)
                where = place(parts)
                if where is None or path.suffix.lower() not in SUFFIXES:
                    raise misplaced(member.name, source)
                read: Callable[[], bytes]
                if plain:
                    read = PartOfFile(source, member.offset_data, member.size)
                else:
                    content = archive.extractfile(member)
                    read = _Bytes(content.read() if content else b"")
                files.append(ImageFile(f"{source}:{member.name}", *where, read, member.size))
    except (tarfile.TarError, *TORN) as error:
        raise UserError(
            "RCV-E043",
            f"{source} cannot be read as a tar archive",
            first_line(error),
            "make it again, or give a folder",
        ) from error
    filled = {str(PurePosixPath(file.name.removeprefix(f"{source}:")).parent).removeprefix("./") for file in files}
    unfilled = sorted(each for each in folders if not any(f == each or f.startswith(each + "/") for f in filled))
    if unfilled:
        raise empty(f"{source}: {unfilled[0]}")
    return files


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    def __call__(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class PartOfFile:
    """Reads some of the bytes of a file."""

    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class _InZip:
    path: Path
    member: str

    def __call__(self) -> bytes:
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(self.member)


def archive_key(source: Path, split: str, resize: int | None, seed: int) -> str:
    """Hash an archive with what is asked of it: one read of the compressed bytes."""
    digest = hashlib.blake2b(f"archive 3:{split}:{resize}:{seed}".encode(), digest_size=16)
    with source.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()

"""The run folder: atomic writes, state for resuming, evidence with hashes, options with their origin."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from robustcv.errors import UserError, first_line
from robustcv.records import FORMAT, Record

Arrays = dict[str, NDArray[Any]]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a power cut, sees the old content or the new, never a half.

    Raises
    ------
    UserError
        If the disk is full, or the folder cannot be written; the old content is still there.
    """
    with _telling_of_disks(path):
        _replace(path, data)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL)


@contextlib.contextmanager
def _telling_of_disks(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, *_CLOSED):
            raise
        fix = "make room, then the same command with --resume goes on" if error.errno in _FULL else "choose another -o"
        why = f"{error.strerror}; nothing that was there is lost"
        raise UserError("RCV-E113", f"{path} could not be written", why, fix) from error


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


_held: dict[Path, IO[str]] = {}  # the locks of this process; the kernel lets go of them when it ends, however it does


def _hold(folder: Path) -> None:
    """Lock a run folder for this process, and write down whose it is.

    Raises
    ------
    UserError
        If another process works in it.
    """
    if folder.resolve() in _held:
        return
    path = folder / "state" / "owner"
    with _telling_of_disks(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            raise BlockingIOError("somebody else has just removed it")  # a lock on a file that is gone keeps nobody out
    except OSError as error:
        lock.seek(0)
        owner = lock.read().strip() or "another process"
        lock.close()
        raise UserError(
            "RCV-E114",
            f"{folder} is in use by {owner}",
            "two runs in one folder would overwrite each other",
            "wait for it, or name another folder with -o",
        ) from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}, since {datetime.now(UTC).isoformat(timespec='seconds')}\n")
    lock.flush()
    _held[folder.resolve()] = lock


# a run that stopped before it did any work leaves only these
_BEGINNINGS = ("fingerprint", "inputs", "notes.json", "owner")


def discard_if_unused(folder: Path | str) -> None:
    """Remove a run folder that this process holds, and in which no work was done yet."""
    if Path(folder).resolve() not in _held:
        return
    state = Path(folder) / "state"
    left = {path for path in Path(folder).rglob("*") if path != state} if state.is_dir() else set()
    if left and left <= {state / name for name in _BEGINNINGS}:
        for path in left:
            path.unlink()
        with contextlib.suppress(OSError):  # somebody has put something there just now
            state.rmdir()
            state.parent.rmdir()
            if state.parent.parent.name == "reports":
                state.parent.parent.rmdir()


def release(folder: Path | str) -> None:
    """Let go of a run folder; does nothing where it is not held."""
    lock = _held.pop(Path(folder).resolve(), None)
    if lock is not None:
        lock.truncate(0)
        lock.close()


def default_folder(verb: str, slug: str, root: Path | str = "reports") -> Path:
    """Name a new run folder, ``reports/<verb>-<time>-<slug>``; a number is added where it exists."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", slug).strip("-.")[:60] or "run"
    folder, number = Path(root) / f"{verb}-{stamp}-{safe}", 1
    while folder.exists():
        number += 1
        folder = Path(root) / f"{verb}-{stamp}-{safe}-{number}"
    return folder


def open_folder(folder: Path, *, resume: bool, fingerprint: str) -> "State":
    """Take a folder for a run: a new one, or with ``resume`` one that holds the state of the same run.

    Raises
    ------
    UserError
        If the folder holds another run, or the options differ from those the state was made with.
    """
    mark = folder / "state" / "fingerprint"
    beginnings = {folder / "state" / name for name in _BEGINNINGS}
    with _telling_of_disks(folder):
        used = folder.exists() and any(path not in beginnings for path in folder.rglob("*") if path.is_file())
    if used:
        if not resume:
            raise UserError(
                "RCV-E020",
                f"{folder} is not empty",
                "a run never overwrites another",
                "name another folder with -o, or add --resume to go on with the run that is in it",
            )
        if mark.exists() and mark.read_text() != fingerprint:
            raise _other_run(folder)
        _hold(folder)
    else:
        _hold(folder)
        for name in ("inputs", "notes.json"):
            (folder / "state" / name).unlink(missing_ok=True)
    for path in folder.rglob(".*"):  # what a write that was killed left half done
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()
    write_atomic(mark, fingerprint.encode())
    return State(folder / "state")


_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `_replace` names them


def _other_run(folder: Path | None) -> UserError:
    return UserError(
        "RCV-E021",
        f"{folder} was made with other options, another model or other images",
        "going on with it would mix two runs in one number",
        "repeat the command with the options of that run, or start a new folder",
    )


class State:
    """What a run needs to go on after an interruption: named blobs, each written atomically."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def require_same(self, key: str, value: str) -> None:
        """Remember a value, or check it against the one remembered by the run that is resumed.

        Raises
        ------
        UserError
            If they differ.
        """
        known = self.load(key)
        if known is not None and known != value.encode():
            raise _other_run(self.folder)
        self.save(key, value.encode())

    def clear(self) -> None:
        """Forget everything but the fingerprints; for a run that is finished."""
        for path in self.folder.glob("*.*") if self.folder else ():
            path.unlink()

    def load(self, key: str) -> bytes | None:
        """Read a blob; None where it was never saved."""
        path = None if self.folder is None else self.folder / key
        return path.read_bytes() if path is not None and path.exists() else None

    def save(self, key: str, data: bytes) -> None:
        """Replace a blob atomically; does nothing for a run that writes nothing."""
        if self.folder is not None:
            write_atomic(self.folder / key, data)

    def load_arrays(self, key: str) -> Arrays | None:
        """Read named arrays; None where they were never saved."""
        data = self.load(f"{key}.safetensors")
        return None if data is None else unpack_arrays(data)

    def save_arrays(self, key: str, arrays: Arrays) -> None:
        """Replace named arrays atomically."""
        if self.folder is not None:
            self.save(f"{key}.safetensors", pack_arrays(arrays))


def pack_arrays(arrays: Arrays) -> bytes:
    """Turn named arrays into a safetensors file."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def unpack_arrays(data: bytes) -> Arrays:
    """Read what `pack_arrays` made."""
    from safetensors.numpy import load

    return dict(load(data))


def fingerprint(*parts: object) -> str:
    """Hash anything with a JSON form, to tell whether two runs are the same."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def save(folder: Path, record: Record, files: Mapping[str, bytes]) -> None:
    """Write a run: evidence and other files first, their hashes, then report.json.

    report.json comes last, so that a folder which has one is whole.
    """
    for name, data in files.items():
        write_atomic(folder / name, data)
    sums = [
        f"{hashlib.sha256(data).hexdigest()}  {name.removeprefix('evidence/')}"
        for name, data in sorted(files.items())
        if name.startswith("evidence/")
    ]
    if sums:
        write_atomic(folder / "evidence" / "SHA256SUMS", ("\n".join(sums) + "\n").encode())
    write_atomic(folder / "report.json", to_json(record))


def to_json(record: Record) -> bytes:
    """Serialise a record; stable, so that equal records give equal bytes."""
    return (record.model_dump_json(indent=1) + "\n").encode()


STATE_FORMAT = 10  # of what an interrupted run leaves: another one cannot go on with it
VOLATILE = ("seconds", "started", "command", "runs", "p50", "p95")  # what differs between two runs that are the same


def comparable(raw: Any) -> Any:
    """Take out of a record's JSON, at any depth, what may differ between two runs that are the same."""
    if isinstance(raw, dict):
        return {key: comparable(value) for key, value in raw.items() if key not in VOLATILE}
    return [comparable(each) for each in raw] if isinstance(raw, list) else raw


def load(folder: Path | str) -> Record:
    """Read the record of a run folder.

    Raises
    ------
    UserError
        If there is no report.json, it cannot be read, or its format is unknown.
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        raise UserError(
            "RCV-E022",
            f"{folder} holds no report.json",
            "it is not the folder of a finished run",
            "give a folder that `robustcv audit` or another verb wrote; an interrupted run goes on with --resume",
        )
    try:
        raw = json.loads(path.read_bytes())
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:
            raise UserError(
                "RCV-E023",
                f"{path} has format {found!r}; this robustcv reads format {FORMAT}",
                "guessing at an unknown format could show wrong numbers",
                "use the robustcv version that wrote it, or run the verb again",
            )
        return Record.model_validate(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(
            "RCV-E024", f"{path} cannot be read", first_line(error), "restore the file, or run the verb again"
        ) from error


def load_files(folder: Path | str) -> Mapping[str, bytes]:
    """Give the files of a run folder by name, read when asked for."""
    return _Files(Path(folder))


class _Files(Mapping[str, bytes]):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> bytes:
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):  # a record may name anything
            raise KeyError(name)
        try:
            return path.read_bytes()
        except OSError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return (str(path.relative_to(self.folder)) for path in sorted(self.folder.rglob("*")) if path.is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)


_origins: ContextVar[Mapping[str, str] | None] = ContextVar("origins", default=None)


@contextlib.contextmanager
def telling_origins(origins: Mapping[str, str]) -> Iterator[None]:
    """Let the runs inside the block write where each option came from; without it they tell given from default."""
    token = _origins.set(origins)
    try:
        yield
    finally:
        _origins.reset(token)


def _as_words(options: Mapping[str, Any]) -> list[str]:
    """Write options of methods, or gates, as the command line does: ``pgd.steps=50``, ``clean_accuracy=0.9``."""
    words = []
    for name, value in options.items():
        inner = value.items() if isinstance(value, Mapping) else ()
        words += [f"{name}.{key}={json.dumps(each)}" for key, each in inner] or [f"{name}={json.dumps(value)}"]
    return words


def origins_of(names: Collection[str], given: Collection[str]) -> dict[str, str]:
    """Tell where each option came from: the command line, a config file, given in Python, or default.

    Parameters
    ----------
    given
        Names of the options that are not at their default.
    """
    told = {**dict.fromkeys(given, "given"), **(_origins.get() or {})}
    return {name: told.get(name, "default") for name in names}


def to_toml(options: Mapping[str, Any], origins: Mapping[str, str]) -> bytes:
    """Write options as TOML, each with the place it came from as a comment; None is left out."""
    lines = ["# What this run was made with; `robustcv VERB --config config.toml` repeats it."]
    for name, value in options.items():
        if value is None:
            lines.append(f"# {name}: not set")
        else:
            if isinstance(value, Mapping):
                value = _as_words(value)
            text = json.dumps(list(value) if isinstance(value, tuple | list) else value, ensure_ascii=False)
            lines.append(f"{name} = {text}  # {origins[name]}")
    return ("\n".join(lines) + "\n").encode()

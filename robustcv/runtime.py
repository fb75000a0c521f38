"""Where the work runs and what the user sees of it: device, threads, environment, progress."""

import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from typing import TypeVar

import torch

from robustcv import stopping
from robustcv.errors import UserError, first_line, printable

Advance = Callable[[int], None]
Result = TypeVar("Result")

AT_A_TIME = 64  # images a thread: what a layer makes of more falls out of the cache, and takes a fifth longer
VALUES_AT_A_TIME = 1 << 20  # of input pixels: 340 images of 32 pixels, 6 of 224; activations take some 30 times that

_PACKAGES = ("torch", "torchvision", "numpy", "captum", "shap")


def pick_device(name: str = "auto") -> torch.device:
    """Choose the device: a CUDA GPU where there is one, else the CPU.

    Raises
    ------
    UserError
        If the device is unknown, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            "RCV-E030",
            f"device {name!r} cannot be used",
            first_line(error),
            "use --device auto, cpu, cuda or cuda:N",
        ) from error
    return device


def describe_device(device: torch.device) -> str:
    """Name the device as a person would."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()})"


def versions() -> dict[str, str]:
    """Give the versions of the packages that can change a number."""
    return {name: metadata.version(name) for name in _PACKAGES}


class Progress:
    """Tells the stage and the time left on stderr: a bar on a terminal, a line as each stage begins elsewhere.

    Parameters
    ----------
    expected
        Where the stages to come are known: the share of the time that each takes. A stage is then shown as ``3/9``,
        with the time left in all, by the pace so far.
    quiet
        Say nothing.
    """

    def __init__(self, *, expected: Sequence[float] = (), quiet: bool = False) -> None:
        self.expected = tuple(expected)
        self.quiet = quiet
        self.stage_number = 0
        self._start = time.monotonic()

    def _label(self, name: str) -> str:
        """Number a stage, and estimate what is left from the time that the stages before it took."""
        name = printable(name)
        if not self.expected:
            return name
        label = f"[{self.stage_number}/{len(self.expected)}] {name}"
        done, left = sum(self.expected[: self.stage_number - 1]), sum(self.expected[self.stage_number - 1 :])
        if done == 0:
            return label
        return f"{label} (about {(time.monotonic() - self._start) / done * left:.0f} s left in all)"

    @contextmanager
    def stage(self, name: str, total: int, *, stops: bool = True) -> Iterator[Advance]:
        """Show one stage of ``total`` units; yields the function that advances it.

        Parameters
        ----------
        stops
            Advancing is where the stage stops when the user asks to; False: its work looks for that itself.
        """
        with self._shown(name, total) as show:

            def advance(units: int) -> None:
                show(units)
                if stops:
                    stopping.at_boundary()

            yield advance

    @contextmanager
    def _shown(self, name: str, total: int) -> Iterator[Advance]:
        self.stage_number += 1
        if self.quiet:
            yield lambda _: None
        elif sys.stderr.isatty():
            with _bar() as bar:
                task = bar.add_task(self._label(name), total=total)
                yield lambda units: bar.advance(task, units)
        else:
            print(self._label(name), file=sys.stderr, flush=True)
            yield lambda _: None

    def say(self, text: str) -> None:
        """Tell the user one line."""
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)


_shared: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def sharing(progress: Progress) -> Iterator[Progress]:
    """Let every run inside the block report to one progress, so that their stages are counted together."""
    token = _shared.set(progress)
    try:
        yield progress
    finally:
        _shared.reset(token)


def progress_for(*, quiet: bool) -> Progress:
    """Give the shared progress where there is one, else a new one."""
    return _shared.get() or Progress(quiet=quiet)


@contextmanager
def _bar():  # type: ignore[no-untyped-def]  # the type would import rich for every caller
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield bar


_notes: list[str] = []
_keep: Callable[[Sequence[str]], None] | None = None


def note(text: str) -> None:
    """Tell the user on stderr, once, and the record of this run, how the work differs from what was asked for."""
    if text not in _notes:
        _notes.append(text)
        print(text, file=sys.stderr, flush=True)
        if _keep is not None:
            _keep(_notes)


def notes() -> tuple[str, ...]:
    """Give the notes of this run."""
    return tuple(_notes)


def forget_notes() -> None:
    """Begin without notes."""
    _notes.clear()


@contextmanager
def noting(known: Sequence[str], keep: Callable[[Sequence[str]], None]) -> Iterator[None]:
    """Collect the notes of one run inside the block, from those of the run that is resumed on.

    Parameters
    ----------
    keep
        Called with all of them whenever there is a new one.
    """
    global _keep
    outer = list(_notes), _keep
    _notes[:], _keep = known, keep
    try:
        yield
    finally:
        _notes[:], _keep = outer


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that there was too little memory, on a GPU or the CPU."""
    told = ("allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or any(each in str(error) for each in told)


def chunk_size(images: torch.Tensor, rows: int | None) -> int:
    """Give the number of images to send through at a time: as asked, or what their size suggests."""
    return rows if rows is not None else max(1, min(at_a_time(images.device), VALUES_AT_A_TIME // images[0].numel()))


def at_a_time(device: torch.device) -> int:
    """Give the number of images beyond which a pass gains nothing, or on a processor loses."""
    return min(256, AT_A_TIME * torch.get_num_threads()) if device.type == "cpu" else 256


def on_fewer(check: Callable[[int], Result], rows: int, of: str = "images") -> Result:
    """Run a check of so many images (or copies of one), or of half as many as long as memory does not suffice.

    Raises
    ------
    RuntimeError
        If a single one does not fit.
    """
    while True:
        try:
            return check(rows)
        except (RuntimeError, MemoryError) as error:
            if rows == 1 or not out_of_memory(error):
                raise
        rows //= 2  # outside the except clause, which holds on to the memory of what failed
        note(f"memory did not suffice for a check; it takes {rows} {of}")


def in_chunks(run: Callable[[slice], Result], total: int, rows: int) -> list[Result]:
    """Run over slices of at most ``rows``, halving them where memory does not suffice.

    Raises
    ------
    RuntimeError
        If a single row does not fit.
    """
    results: list[Result] = []
    start = 0
    while start < total:
        try:
            results.append(run(slice(start, min(start + rows, total))))
        except (RuntimeError, MemoryError) as error:
            if rows == 1 or not out_of_memory(error):
                raise
            rows = max(1, min(rows, total - start) // 2)
            note(f"memory did not suffice; going on with {rows} images at a time")
            continue
        start += rows
    return results

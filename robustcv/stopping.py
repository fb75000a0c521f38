"""Ctrl-C: asked once, the work stops at its next boundary and what there is is written; asked twice, at once."""

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

_asked = threading.Event()


class Interrupted(KeyboardInterrupt):
    """The user asked to stop, and a boundary was reached: what is done is saved."""


def asked() -> bool:
    """Tell whether the user asked to stop."""
    return _asked.is_set()


def at_boundary() -> None:
    """Stop here where that was asked for; called when a batch is done.

    Raises
    ------
    Interrupted
        If it was.
    """
    if _asked.is_set():
        raise Interrupted


def unless_asked(work: Callable[[], Result], otherwise: Result) -> Result:
    """Do a piece of work that a run can be shown without; where the user asked to stop, give something else."""
    if _asked.is_set():
        return otherwise
    try:
        return work()
    except Interrupted:
        return otherwise


def listen() -> None:
    """Let the first Ctrl-C ask, and the second one interrupt."""
    _asked.clear()
    signal.signal(signal.SIGINT, _on_interrupt)


def _on_interrupt(signum: int, frame: Any) -> None:
    if _asked.is_set():
        raise KeyboardInterrupt
    _asked.set()
    print("\nstopping after this batch, then writing what there is; Ctrl-C again stops at once", file=sys.stderr)

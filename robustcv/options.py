"""What was asked for: options as a record keeps them, and counts that would make a run empty."""

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from robustcv.errors import UserError

_NOT_OPTIONS = ("classifier", "model", "images", "labels", "targets", "out", "resume", "quiet")


def options_of(arguments: dict[str, Any], keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """Take the options out of a verb's arguments: what the record keeps, with sequences as lists."""
    return {name: _plain(value) for name, value in arguments.items() if name not in _NOT_OPTIONS or name in keep}


def defaults_of(verb: Callable[..., Any]) -> dict[str, Any]:
    """Give the options of a verb as they are where nothing is given."""
    parameters = inspect.signature(verb).parameters.values()
    return options_of(
        {each.name: each.default for each in parameters if each.default is not each.empty}, keep=("model",)
    )


def _plain(value: Any) -> Any:
    """Give an option as the record keeps it: no paths, no tuples, and no numbers but Python's own."""
    if isinstance(value, Path):
        return str(value)
    return [_number(each) for each in value] if isinstance(value, tuple) else _number(value)


def _number(value: Any) -> Any:
    """Bring numpy's numbers to Python's, at any depth."""
    if isinstance(value, Mapping):
        return {key: _number(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_number(each) for each in value) if type(value) in (list, tuple) else value
    if isinstance(value, bool) or not isinstance(value, Integral | Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def require_text(name: str) -> None:
    """Refuse a name that could be written nowhere: bytes that are no UTF-8.

    Raises
    ------
    UserError
        If it is one.
    """
    if not name.isascii() and any("\ud800" <= each <= "\udfff" for each in name):
        raise UserError("RCV-E041", f"the name {name!a} is no text", "it could be written nowhere", "rename it")


def require_counts(options: Mapping[str, Any]) -> None:
    """Refuse counts that would make a run empty."""
    for name, least in (
        ("epochs", 1),
        ("batch_size", 1),
        ("n", 1),
        ("resize", 1),
        ("cases", 0),
        ("budget", 8),
        ("steps", 1),
        ("eot", 1),
        ("minutes", 1e-6),
        ("max_report_mb", 1e-6),
        ("seed", 0),
        ("patience", 1),
        ("trials", 1),
        ("seeds", 1),
        ("agreement", 0),
        ("frozen_epochs", 0),
    ):
        value, option = options.get(name), f"--{name.replace('_', '-')}"
        if value is None:
            continue
        most = MOST.get(name, 2**62)
        if not isinstance(least, float) and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise UserError("RCV-E006", f"{option} {value} is no whole number", "it counts something", f"{option} 1")
        if not value >= least:
            raise UserError("RCV-E006", f"{option} {value} is below {least}", "nothing would be done", "raise it")
        if not value <= most:
            raise UserError("RCV-E006", f"{option} {value} is above {most:,}", "no machine could do that", "lower it")


MOST = {"resize": 8192, "batch_size": 10**6}  # what a count may be where any larger one is a slip

"""The errors a user can cause: what happened, why it matters, how to fix it; and the exit codes."""

import difflib
import errno
from collections.abc import Iterable

DONE, BUG, BAD_INPUT, GATE_FAILED, INCONCLUSIVE, INTERRUPTED = 0, 1, 2, 3, 4, 130


class UserError(Exception):
    """A mistake or a missing thing that the user can put right.

    Parameters
    ----------
    code
        Stable identifier, ``RCV-E...``; the table is in CONTRIBUTING.md.
    what, why, fix
        One line each. ``what`` names the file or option, ``fix`` says what to type.
    """

    def __init__(self, code: str, what: str, why: str, fix: str) -> None:
        super().__init__(code, what, why, fix)  # all of them, so that an error survives the way from a worker
        self.code, self.what, self.why, self.fix = code, what, why, fix

    def __str__(self) -> str:
        lines = f"error {self.code}: {self.what}", f"  {self.why}", f"  fix: {self.fix}"
        return "\n".join(printable(line) for line in lines)


LONGEST = 400


def printable(text: str) -> str:
    """Make text from files, models and classes safe for one line of a terminal.

    Control characters, which could move the cursor or set colours, and marks that turn the reading direction are
    written as escapes; what is too long is cut in the middle.
    """
    safe = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return safe if len(safe) <= LONGEST else f"{safe[: LONGEST // 2]} ... {safe[-LONGEST // 2 :]}"


def first_line(error: BaseException, most: int = LONGEST) -> str:
    """Give the first line of what an exception says, cut to ``most`` characters; its kind where it says nothing."""
    said = (line.strip() for line in str(error).splitlines() if line.strip())
    return next(said, type(error).__name__).rstrip(":")[:most]


def missing_extra(package: str, why: str, extra: str) -> UserError:
    """Make the error for a package that only an extra installs."""
    return UserError("RCV-E068", f"{package} is not installed", why, f'pip install "robustcv[{extra}]"')


def of_a_path(error: BaseException) -> "UserError | None":
    """Tell of a path that no file could have: too long, with a NUL, below the home of nobody; None of other errors."""
    text = first_line(error)
    known = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    known |= isinstance(error, ValueError) and "null byte" in text
    known |= isinstance(error, RuntimeError) and "home directory" in text
    return UserError("RCV-E041", "a path cannot be used", text[:120], "name another file or folder") if known else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Make the error for a name that is in no registry, with the nearest match."""
    names = sorted(known)
    listed = kind if kind in ("attack", "explainer", "architecture", "objective") else None
    listed = "dataset" if kind == "data set" else listed
    see = f" (`robustcv list {listed}s`)" if listed else ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return UserError(
        "RCV-E001",
        f"there is no {kind} called {name!r}",
        f"known: {', '.join(names)}",
        f"did you mean {near[0]!r}?" if near else f"pick one of the names above{see}",
    )

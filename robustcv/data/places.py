"""Where an image stands says what it is: ``split/class/image`` or ``class/image``."""

from pathlib import Path

from robustcv.data.files import SPLITS, SUFFIXES
from robustcv.errors import UserError


def place(parts: tuple[str, ...]) -> tuple[str | None, str] | None:
    """Read split and class from the folders above a file."""
    if len(parts) == 3 and parts[0].lower() in SPLITS:
        return SPLITS[parts[0].lower()], parts[1]
    return (None, parts[0]) if len(parts) == 2 else None


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

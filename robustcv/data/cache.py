"""Decoded images on disk, keyed by content, so that a set is decoded once."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Entry(NamedTuple):
    """Pixels ``n c h w`` (mapped from disk, copied where written to) and what belongs to them."""

    pixels: NDArray[np.uint8]
    meta: dict[str, Any]


def cache_dir() -> Path:
    """Give the cache folder: ``ROBUSTCV_CACHE``, or ``~/.cache/robustcv``."""
    given = os.environ.get("ROBUSTCV_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "robustcv"


def read(key: str) -> Entry | None:
    """Give what is stored under a key, None where nothing (whole) is."""
    folder = cache_dir() / "images"
    try:
        meta = json.loads((folder / f"{key}.json").read_text())
        return Entry(np.load(folder / f"{key}.npy", mmap_mode="c"), meta)
    except (OSError, ValueError):
        return None


def write(key: str, pixels: NDArray[np.uint8], meta: dict[str, Any]) -> Entry:
    """Store pixels and their description; the description comes last, so that an entry that has one is whole.

    A cache that cannot be written (read-only home, full disk) costs time, not the run.
    """
    folder = cache_dir() / "images"
    temporary = folder / f".{key}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, pixels)
        temporary.replace(folder / f"{key}.npy")
        temporary.write_text(json.dumps(meta))
        temporary.replace(folder / f"{key}.json")
    except OSError:
        temporary.unlink(missing_ok=True)
    return Entry(pixels, meta)

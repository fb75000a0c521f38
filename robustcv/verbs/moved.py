"""compare: the images that one of two models loses to the attacks and the other keeps, a few of each to look at."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robustcv import draws, records, runs
from robustcv.verbs.failures import Failure, failures_of, replays
from robustcv.verbs.pairing import Saved

MOST = 6  # of each, so that neither buries the other


def moved(
    run_a: Saved, run_b: Saved, hashes: Sequence[str], won: NDArray[np.bool_], lost: NDArray[np.bool_]
) -> tuple[tuple[records.Moved, ...], runs.Arrays]:
    """Draw images won and lost by hash, with the failure that shows each.

    Parameters
    ----------
    hashes, won, lost
        Of the images in common: what each is, whether the attacks broke only a there, and whether they broke only b.
        An image that a model gets wrong without an attack was not broken.

    Returns
    -------
    tuple
        The images, and the pixels of each: ``NN-clean`` and ``NN-adversarial``, as the audit kept them.
    """
    found: list[records.Moved] = []
    pixels: runs.Arrays = {}
    sides: tuple[tuple[Literal["won", "lost"], Saved, NDArray[np.bool_]], ...]
    sides = ("won", run_a, won), ("lost", run_b, lost)
    for word, loser, mask in sides:
        chosen = draws.drawn_rows(0, hashes, "moved", MOST, np.flatnonzero(mask).tolist())
        wanted = {hashes[row] for row in chosen}
        for failure, clean, attacked in replays(loser.files, _listed(loser, wanted)):
            if (
                clean is None
                or attacked is None
                or clean.shape != attacked.shape
                or not bool(attacked.isfinite().all())
            ):
                continue  # lost, or changed since: `verify` tells
            key = f"{len(found):02d}"
            pixels |= {f"{key}-clean": clean.numpy(), f"{key}-adversarial": attacked.numpy()}
            found.append(
                records.Moved(
                    index=failure.index,
                    image=failure.image,
                    moved=word,
                    label=failure.label,
                    attack=failure.attack,
                    norm=failure.norm,
                    eps=failure.eps,
                    prediction=failure.prediction,
                )
            )
    return tuple(found), pixels


def _listed(run: Saved, wanted: set[str]) -> list[Failure]:
    """Read the failures of some images, each image once; none where the list was lost."""
    try:
        failures = failures_of(run.files)
    except (KeyError, ValueError):
        return []
    return list({failure.image: failure for failure in failures if failure.image in wanted}.values())

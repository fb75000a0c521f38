"""How a classifier is made: one loop, objectives by name in `OBJECTIVES`."""

import functools
from collections.abc import Callable
from typing import Any

from robustcv.training.fit import Fitted, fit
from robustcv.training.gradalign import gradalign
from robustcv.training.objectives import pgd_at, standard
from robustcv.training.recipe import Guard, Recipe
from robustcv.training.remembered import Pgi
from robustcv.training.schedules import SCHEDULES
from robustcv.training.trades import trades
from robustcv.training.validation import Diverged


def _by(told: str) -> Callable[..., Any]:
    """Give `pgd_at` once more, for another attack: the loss is the same, what differs is who perturbs."""
    again = functools.partial(pgd_at)
    again.__doc__ = told
    return again


_N_FGSM = _by(
    "Compute the cross-entropy after noise of up to 2 eps and a step of eps, unprojected (de Jorge et al. 2022)."
)
_FGSM_RS = _by("Compute the cross-entropy after one step of 1.25 eps from a random start (Wong et al. 2020).")

OBJECTIVES: dict[str, Callable[..., Any]] = {
    "standard": standard,
    "pgd-at": pgd_at,
    "trades": trades,
    "fast": _N_FGSM,
    "fgsm-rs": _FGSM_RS,
    "n-fgsm": _N_FGSM,
    "fgsm-pgi": Pgi,
    "gradalign": gradalign,
}

__all__ = ["OBJECTIVES", "SCHEDULES", "Diverged", "Fitted", "Guard", "Recipe", "fit"]

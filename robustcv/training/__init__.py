"""How a classifier is made: one loop, objectives by name in `OBJECTIVES`."""

from collections.abc import Callable
from typing import Any

from robustcv.training.fit import Diverged, Fitted, fit
from robustcv.training.objectives import fgsm_rs, n_fgsm, pgd_at, standard
from robustcv.training.recipe import Guard, Recipe
from robustcv.training.schedules import SCHEDULES
from robustcv.training.single_step import gradalign, nuat
from robustcv.training.trades import trades

OBJECTIVES: dict[str, Callable[..., Any]] = {
    "standard": standard,
    "pgd-at": pgd_at,
    "trades": trades,
    "fast": n_fgsm,
    "fgsm-rs": fgsm_rs,
    "n-fgsm": n_fgsm,
    "nuat": nuat,
    "gradalign": gradalign,
}

__all__ = ["OBJECTIVES", "SCHEDULES", "Diverged", "Fitted", "Guard", "Recipe", "fit"]

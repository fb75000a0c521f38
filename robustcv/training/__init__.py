"""How a classifier is made: one loop, objectives by name in `OBJECTIVES`."""

from robustcv.training.fit import Fitted, fit
from robustcv.training.objectives import OBJECTIVES
from robustcv.training.schedules import SCHEDULES

__all__ = ["OBJECTIVES", "SCHEDULES", "Fitted", "fit"]

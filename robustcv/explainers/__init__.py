"""What a classifier looks at: pure functions from images to heat maps, by name in `EXPLAINERS`."""

from collections.abc import Callable

from robustcv.explainers.explanation import Explanation
from robustcv.explainers.gradient_shap import gradient_shap
from robustcv.explainers.integrated_gradients import integrated_gradients
from robustcv.explainers.partition_shap import partition_shap

EXPLAINERS: dict[str, Callable[..., Explanation]] = {
    "integrated_gradients": integrated_gradients,
    "gradient_shap": gradient_shap,
    "partition_shap": partition_shap,
}

__all__ = ["EXPLAINERS", "Explanation"]

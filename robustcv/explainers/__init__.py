"""What a classifier looks at: pure functions from images to heat maps, by name in `EXPLAINERS`."""

from collections.abc import Callable

from robustcv.explainers.cam import grad_cam, grad_cam_pp, hires_cam, layer_cam
from robustcv.explainers.deep_lift import deep_lift, deep_shap
from robustcv.explainers.explanation import Explanation
from robustcv.explainers.gradient_shap import gradient_shap
from robustcv.explainers.integrated_gradients import integrated_gradients
from robustcv.explainers.kernel_shap import kernel_shap
from robustcv.explainers.library import captum_deep_lift, shap_deep_explainer
from robustcv.explainers.lime import lime
from robustcv.explainers.occlusion import occlusion
from robustcv.explainers.partition_shap import partition_shap
from robustcv.explainers.rise import rise
from robustcv.explainers.saliency import input_x_gradient, saliency
from robustcv.explainers.shapley import shapley
from robustcv.explainers.smooth_grad import smooth_grad, var_grad

EXPLAINERS: dict[str, Callable[..., Explanation]] = {
    "saliency": saliency,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
    "gradient_shap": gradient_shap,
    "smooth_grad": smooth_grad,
    "var_grad": var_grad,
    "deep_lift": deep_lift,
    "deep_shap": deep_shap,
    "captum_deep_lift": captum_deep_lift,
    "shap_deep_explainer": shap_deep_explainer,
    "grad_cam": grad_cam,
    "grad_cam_pp": grad_cam_pp,
    "hires_cam": hires_cam,
    "layer_cam": layer_cam,
    "occlusion": occlusion,
    "lime": lime,
    "rise": rise,
    "kernel_shap": kernel_shap,
    "shapley": shapley,
    "partition_shap": partition_shap,
}
ALIASES = {"ig": "integrated_gradients", "expected_gradients": "gradient_shap"}
ASK_ONLY = ("occlusion", "lime", "rise", "kernel_shap", "shapley", "partition_shap")  # need no gradients

__all__ = ["ALIASES", "ASK_ONLY", "EXPLAINERS", "Explanation"]

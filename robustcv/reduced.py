"""bfloat16 for the passes of attacks: half the bytes, and the matrix units of processors and GPUs that have them."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustcv import runtime
from robustcv.classifier import logits_and_slope

FAR, STEEP = 0.1, 0.5  # largest difference of logits and of input gradients, as shares


class Reduced(nn.Module):
    """Compute a classifier in bfloat16 (autocast), but for its last linear layer, so that losses do not move in steps.

    Its logits are off by about 1 %, so what it calls a success must be asked of the classifier itself.

    Parameters
    ----------
    classifier
        Frozen, in eval mode; left as it is.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(classifier)
        self.samples = int(getattr(classifier, "samples", 1))
        linear = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        if linear:
            linear[-1].forward = _full(linear[-1].forward)  # type: ignore[method-assign]  # of this copy alone
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Compute logits, in float32; differentiable in the images."""
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = self.network(images)
        return logits.float()


def _full(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Take a layer's forward pass out of autocast."""

    def full(features: Tensor) -> Any:
        with torch.autocast(features.device.type, enabled=False):
            return forward(features.float())

    return full


def reduced(classifier: nn.Module, images: Float[Tensor, "n c h w"]) -> Reduced | None:
    """Give a classifier in bfloat16; None, with a note, where it cannot be computed so, or becomes another one.

    Parameters
    ----------
    classifier
        Frozen, in eval mode.
    images
        A few, on which both must roughly agree: logits to 10 % and input gradients to half of their lengths.
    """
    with contextlib.suppress(Exception):  # what a forward pass may raise is the model's affair
        made = Reduced(classifier)
        (logits, slope), (own_logits, own_slope) = (logits_and_slope(each, images) for each in (classifier, made))
        near = (own_logits - logits).norm() <= FAR * logits.norm()
        if near and (own_slope - slope).norm() <= STEEP * slope.norm():
            return made
    runtime.note("this model cannot be computed in bfloat16; attacks run in float32")
    return None

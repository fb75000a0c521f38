"""Passes through a classifier in chunks that fit into memory: one logit of each input, and its gradient."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.errors import UserError
from robustcv.runtime import in_chunks


def target_logits(
    classifier: nn.Module, inputs: Float[Tensor, "m c h w"], targets: Int64[Tensor, " m"], rows: int
) -> Float[Tensor, " m"]:
    """Compute the target's logit of each input, without a graph."""

    def run(part: slice) -> Tensor:
        with torch.no_grad():
            logits: Tensor = classifier(inputs[part])
        return logits.gather(1, targets[part, None]).squeeze(1)

    return torch.cat(in_chunks(run, len(inputs), rows))


def reference_logits(
    classifier: nn.Module, starts: list[Float[Tensor, "_ c h w"]], targets: Int64[Tensor, " n"], rows: int
) -> Float[Tensor, "n b"]:
    """Compute each image's target logit at each of its references, which are one for all images or one for each."""
    inputs = torch.cat(starts)

    def run(part: slice) -> Tensor:
        with torch.no_grad():
            logits: Tensor = classifier(inputs[part])
        return logits

    parts = torch.cat(in_chunks(run, len(inputs), rows)).split([len(start) for start in starts])
    chosen = [part.expand(len(targets), -1).gather(1, targets[:, None]) for part in parts]
    return torch.cat(chosen, 1)


def target_gradients(
    classifier: nn.Module, make: Callable[[slice], Tensor], targets: Int64[Tensor, " m"], rows: int
) -> Float[Tensor, "m c h w"]:
    """Compute the gradient of the target's logit with respect to each input.

    Parameters
    ----------
    make
        Builds a slice of the inputs, so that a long path need not lie in memory.

    Raises
    ------
    UserError
        If the classifier gives no gradients.
    """

    def run(part: slice) -> Tensor:
        inputs = make(part).detach().requires_grad_()
        with torch.enable_grad():
            logits = classifier(inputs)
            if not logits.requires_grad:
                raise no_gradients()
            (gradient,) = torch.autograd.grad(logits.gather(1, targets[part, None]).sum(), inputs, allow_unused=True)
        return torch.zeros_like(inputs) if gradient is None else gradient

    return torch.cat(in_chunks(run, len(targets), rows))


def no_gradients() -> UserError:
    """Say that a model cannot be differentiated, and what to do."""
    return UserError(
        "RCV-E100",
        "the model gives no gradients",
        "its logits do not depend on its input in a way that can be differentiated",
        "explain it by a method that only asks: shapley, kernel_shap, lime, rise, occlusion, partition_shap",
    )

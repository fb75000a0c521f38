"""torch.compile for the passes of attacks: fused kernels, taken only where they give the same logits and slopes."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustcv import runtime
from robustcv.folding import agree


def compiled(
    classifier: nn.Module, images: Float[Tensor, "n c h w"], *, backend: str = "inductor", steps: float = 1.0
) -> nn.Module:
    """Compile a classifier once for all sizes of batches; attacks ask it, what they find is judged by the plain one.

    Parameters
    ----------
    classifier
        Frozen, in eval mode; left as it is.
    images
        A few, on which both must agree in batches of all of them, of one less and of one.
    backend
        That of `torch.compile`.
    steps
        Differences allowed, in units of those of `folding.agree`: more than 1 for a form in lower precision.

    Returns
    -------
    Module
        The compiled form; the classifier itself, with a note, where it cannot be compiled, or becomes another one.
    """
    why = "it does not give the same answers"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's, about itself
            made: nn.Module = torch.compile(classifier, dynamic=True, backend=backend)  # type: ignore[assignment]
            if all(agree(classifier, made, images[:n], steps) for n in {len(images), max(1, len(images) - 1), 1}):
                return made
    except Exception as error:  # what a compiler may raise is its affair
        why = type(error).__name__
    runtime.note(f"this model could not be compiled ({why}); attacks run it as it is")
    return classifier

"""torch.compile for the passes of attacks: fused kernels, taken only where they give the same logits and slopes."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from jaxtyping import Float
from torch import Tensor, nn

from robustcv import runtime
from robustcv.folding import AGREEMENT, SLOPES, agree


class Compiled(nn.Module):
    """A classifier compiled once for all sizes of batches; where the compiler fails, the classifier itself.

    Its graph may be walked back several times, as minimum-norm attacks do.

    Parameters
    ----------
    classifier
        Frozen, in eval mode; left as it is.
    backend
        That of `torch.compile`.
    """

    def __init__(self, classifier: nn.Module, backend: str | Callable[..., Any]) -> None:
        super().__init__()
        self.classifier = classifier
        self.samples = int(getattr(classifier, "samples", 1))
        self.why: str | None = None  # it is asked no more
        # of this process: buffers given away at the first walk back would be missing at the second
        torch._functorch.config.donated_buffer = False
        self._compiled = torch.compile(classifier, dynamic=True, backend=backend)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Compute logits; differentiable in the images."""
        if self.why is None:
            try:  # compiled at the first call, and again where that call was of another kind
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the compiler's, about itself
                    logits: Tensor = self._compiled(images)
                return logits
            except Exception as error:  # what a compiler may raise is its affair
                if runtime.out_of_memory(error):
                    raise
                self.why = type(error).__name__
                _note_uncompiled(self.why)
        logits = self.classifier(images)
        return logits


def compiled(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    *,
    backend: str | Callable[..., Any] = "inductor",
    logits: float = AGREEMENT,
    slopes: float = SLOPES,
) -> nn.Module:
    """Compile a classifier; attacks ask the compiled form, what they find is judged by the plain one.

    Parameters
    ----------
    classifier
        Frozen, in eval mode; left as it is.
    images
        A few, on which both must agree in batches of all of them, of one less and of one.
    backend
        That of `torch.compile`.
    logits, slopes
        Largest differences, as in `folding.agree`.

    Returns
    -------
    Module
        The compiled form; the classifier itself, with a note, where it cannot be compiled, or becomes another one.
    """
    made = Compiled(classifier, backend).eval()
    for n in sorted({len(images), max(1, len(images) - 1), 1}, reverse=True):
        same = agree(classifier, made, images[:n], logits=logits, slopes=slopes)
        if made.why is not None:
            return classifier
        if not same:
            _note_uncompiled("it does not give the same answers")
            return classifier
    return made


def _note_uncompiled(why: str) -> None:
    """Tell that attacks run the model as it is."""
    runtime.note(f"this model could not be compiled ({why}); attacks run it as it is")

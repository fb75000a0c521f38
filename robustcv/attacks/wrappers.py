"""Wrappers that let gradient attacks at defences they could not attack: randomised models, steps without a gradient."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Eot(nn.Module):
    """Average a random classifier's logits over several draws (Athalye et al. 2018, expectation over transformation).

    Parameters
    ----------
    classifier
        Answers differently each time.
    samples
        Draws each query is averaged over; a query costs that many passes, and is counted so.
    """

    def __init__(self, classifier: nn.Module, samples: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.samples = samples

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Compute mean logits; every sample draws its own randomness, also within the batch."""
        logits: Tensor = self.classifier(images.repeat_interleave(self.samples, 0))
        mean: Tensor = logits.unflatten(0, (len(images), self.samples)).mean(1)
        return mean


class Bpda(nn.Module):
    """Run a step that has no useful gradient forwards, and a stand-in backwards (Athalye et al. 2018, BPDA).

    Parameters
    ----------
    step
        Images to images: quantisation, JPEG, a purifier.
    classifier
        What sees the result.
    stand_in
        A differentiable function like ``step``; None: the identity, for steps that keep the size.
    """

    def __init__(
        self,
        step: Callable[[Tensor], Tensor],
        classifier: nn.Module,
        stand_in: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.step, self.classifier, self.stand_in = step, classifier, stand_in

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Compute logits of what ``step`` makes; the gradient is that of the stand-in."""
        with torch.no_grad():
            seen = self.step(images)
        smooth = images if self.stand_in is None else self.stand_in(images)
        logits: Tensor = self.classifier(seen + (smooth - smooth.detach()))
        return logits

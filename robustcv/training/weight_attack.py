"""Adversarial weight perturbation: take the step's gradient where small changes of the weights hurt most."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustcv.training.objectives import Perturb


@contextmanager
def adversarial_weights(classifier: nn.Module, loss: Tensor, gamma: float) -> Iterator[None]:
    """Move the weights up the loss for the length of a block, and put them back exactly (Wu, Xia and Wang 2020).

    Each matrix or kernel moves by ``gamma`` of its own norm along its gradient (equation 9); biases and normalisation
    stay. Compute the loss again and call ``backward()`` inside; take the optimiser's step outside.

    Parameters
    ----------
    loss
        Computed with the weights as they are; its graph is used up.
    gamma
        Relative size of the move; 0.005 in the paper.
    """
    weights = [weight for weight in classifier.parameters() if weight.requires_grad and weight.ndim > 1]
    slopes = torch.autograd.grad(loss, weights, allow_unused=True)
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                if slope is not None:
                    weight.add_(gamma * weight.norm() / slope.norm().clamp_min(1e-12) * slope)
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


@contextmanager
def buffers_kept(classifier: nn.Module) -> Iterator[None]:
    """Undo what a block does to the buffers, such as batch norm's running averages."""
    kept = [(buffer, buffer.detach().clone()) for buffer in classifier.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


class Replayed:
    """An attack whose answers of one step can be played again: the images do not change with the moved weights."""

    def __init__(self, perturb: Perturb) -> None:
        self.perturb, self.tape, self.place = perturb, list[Tensor](), 0

    def rewind(self) -> None:
        """Play from the beginning at the next call."""
        self.place = 0

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, *, seeds: Tensor | None = None) -> Tensor:
        """Attack, or repeat what was given at the same place before."""
        if self.place == len(self.tape):
            self.tape.append(self.perturb(classifier, images, labels, seeds=seeds))
        self.place += 1
        return self.tape[self.place - 1]

"""Defences that only look robust, each a few lines, with the exact worst case where there is one."""

import torch
from torch import Tensor, nn


class Scaled(nn.Module):
    """Defensive distillation: logits so large that cross-entropy has no gradient, or so small that it is tiny."""

    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.inner(images)


class Quantised(nn.Module):
    """Input rounded to a few levels: no gradient at all."""

    def __init__(self, inner: nn.Module, levels: int = 16) -> None:
        super().__init__()
        self.inner, self.steps = inner, levels - 1

    def forward(self, images: Tensor) -> Tensor:
        return self.inner((images * self.steps).round() / self.steps + 0 * images)


class Shattered(nn.Module):
    """A steep sinusoid on every logit: the gradient says nothing about the next point."""

    def __init__(self, inner: nn.Module, height: float = 0.3, pace: float = 3000.0) -> None:
        super().__init__()
        self.inner, self.height, self.pace = inner, height, pace

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        return logits + self.height * torch.sin(self.pace * logits)


class Noisy(nn.Module):
    """Noise at test time."""

    def __init__(self, inner: nn.Module, size: float = 0.02) -> None:
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images + self.size * torch.randn_like(images))


class Purifying(nn.Module):
    """Takes a gradient step of its own before it answers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            points = images if images.requires_grad else images.detach().requires_grad_()
            confidence = self.inner(points).logsumexp(1).sum()
            (step,) = torch.autograd.grad(confidence, points, create_graph=images.requires_grad)
        return self.inner(images + 1e-4 * step)


class Probabilities(nn.Module):
    """Gives probabilities where logits are asked for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images).softmax(1)


class Valley(nn.Module):
    """One full step leaps over the valley where the answer is wrong; smaller steps find it (FGSM-trained nets do this).

    Binary; the margin is ``|m - c| - width`` in a linear score m, so an image with ``m > c`` stands exactly when it
    cannot come within ``width`` of c.
    """

    def __init__(self, weights: Tensor, centre: float, width: float) -> None:
        super().__init__()
        self.weights, self.centre, self.width = nn.Parameter(weights), centre, width

    def score(self, images: Tensor) -> Tensor:
        return (images - 0.5).flatten(1) @ self.weights

    def forward(self, images: Tensor) -> Tensor:
        gap = (self.score(images) - self.centre).abs() - self.width
        return torch.stack([gap, 0 * gap], 1)


class Coupled(nn.Module):
    """Normalises over the batch, in eval mode too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(0.1 * self.norm(images) + 0.5)

"""Defences that only look robust, each a few lines, with the exact worst case where there is one."""

import io

import numpy as np
import torch
from PIL import Image
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


class Jpeg(nn.Module):
    """Input sent through JPEG: no gradient, and one that is not of the image seen where it is bypassed."""

    def __init__(self, inner: nn.Module, quality: int = 60) -> None:
        super().__init__()
        self.inner, self.quality = inner, quality

    def forward(self, images: Tensor) -> Tensor:
        whole = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        coded = torch.stack([torch.from_numpy(self._sent(image)) for image in whole]).permute(0, 3, 1, 2)
        return self.inner(coded.to(images.dtype) / 255 + 0 * images)

    def _sent(self, image: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=self.quality)
        return np.array(Image.open(buffer))


class WinnersTakeAll(nn.Module):
    """k-WTA (Xiao et al. 2020): of a wide layer only the largest few pass, so the gradient is of one small piece."""

    def __init__(self, widths: tuple[int, ...], share: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = zip(widths[1:], widths, strict=False)
        self.layers = nn.ParameterList(torch.randn(b, a, generator=generator) / a**0.5 for b, a in shapes)
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        hidden = (images - 0.5).flatten(1) @ self.layers[0].T
        for layer in list(self.layers)[1:]:
            least = hidden.topk(max(1, int(self.share * hidden.shape[1])), 1).values[:, -1:]
            hidden = torch.where(hidden >= least, hidden, 0) @ layer.T
        return hidden


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


class Thermometer(nn.Module):
    """Each value written as steps of a thermometer (Buckman et al. 2018): the code has no gradient."""

    def __init__(self, inner: nn.Module, levels: int = 16) -> None:
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(self, images: Tensor) -> Tensor:
        at = torch.arange(self.levels).to(images) / self.levels
        code = (images[..., None] > at).to(images)
        return self.inner(code.mean(-1) + 0 * images)


class Resized(nn.Module):
    """Random resizing and padding at test time (Xie et al. 2018)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-1]
        smaller = int(torch.randint(size - 2, size, ()))
        left, top = (int(torch.randint(size - smaller + 1, ())) for _ in range(2))
        small = nn.functional.interpolate(images, (smaller, smaller))
        around = (left, size - smaller - left, top, size - smaller - top)
        return self.inner(nn.functional.pad(small, around, value=0.5))


class Dropping(nn.Module):
    """Dropout that stays on (stochastic pruning, Dhillon et al. 2018)."""

    def __init__(self, inner: nn.Module, share: float = 0.2) -> None:
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(0.5 + nn.functional.dropout(images - 0.5, self.share, training=True))

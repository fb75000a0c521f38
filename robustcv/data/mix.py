"""Training on mixtures of two images and their classes, by name in `MIXES`."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def mixup(
    images: Float[Tensor, "n c h w"], targets: Float[Tensor, "n k"], generator: torch.Generator
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k"]]:
    """Blend each image, and its class probabilities, with another of the batch (Zhang et al. 2018).

    The share is uniform on [1/2, 1], one for each image: Beta(1, 1) with the larger part first, so that the likeliest
    class stays the image's own.
    """
    other = torch.randperm(len(images), generator=generator).to(images.device)
    share = (0.5 + 0.5 * torch.rand(len(images), generator=generator)).to(images)
    wide = share[:, None, None, None]
    return wide * images + (1 - wide) * images[other], share[:, None] * targets + (1 - share[:, None]) * targets[other]


def cutmix(
    images: Float[Tensor, "n c h w"], targets: Float[Tensor, "n k"], generator: torch.Generator
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k"]]:
    """Paste a box of another image of the batch into each, and share the classes by area (Yun et al. 2019).

    The box has the image's shape, a uniform area below one half and a uniform centre; what falls outside is cut off.
    """
    n, _, h, w = images.shape
    other = torch.randperm(n, generator=generator).to(images.device)
    area, x, y = torch.rand(3, n, generator=generator).to(images.device)
    half = (0.5 * area).sqrt() / 2
    rows = (torch.arange(h, device=images.device) + 0.5) / h
    columns = (torch.arange(w, device=images.device) + 0.5) / w
    inside = ((rows - y[:, None]).abs() < half[:, None])[:, :, None] & ((columns - x[:, None]).abs() < half[:, None])[
        :, None, :
    ]
    share = 1 - inside.float().mean((1, 2))[:, None].to(targets)
    mixed = torch.where(inside[:, None], images[other], images)
    return mixed, share * targets + (1 - share) * targets[other]


MIXES: dict[str, Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]] = {
    "mixup": mixup,
    "cutmix": cutmix,
}

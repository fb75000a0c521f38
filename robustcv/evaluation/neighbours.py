"""The training images nearest to an image in the model's feature space."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.data import Images


@contextmanager
def features_kept(classifier: nn.Module) -> Iterator[list[Tensor]]:
    """Keep what the last linear layer that runs is given, ``n d``; nothing where there is no such layer."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
        kept[:] = [given[0].detach().flatten(1)]  # the last one that is called stays

    layers = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def features_of(
    classifier: nn.Module, images: Images, *, batch_size: int, device: torch.device
) -> Float[Tensor, "n d"]:
    """Compute the features of a set, scaled to length 1; ``n 0`` for a model without a linear layer."""
    found = []
    with features_kept(classifier) as kept, torch.no_grad():
        for pixels, _ in images.batches(batch_size):
            classifier(pixels.to(device))
            found.append(torch.nn.functional.normalize(kept[-1], dim=1).cpu() if kept else torch.empty(len(pixels), 0))
            kept.clear()
    return torch.cat(found)


def nearest(
    features: Float[Tensor, "n d"], known: Float[Tensor, "m d"], count: int
) -> tuple[Int64[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Give the nearest known images and their distances, 1 - cosine, the nearest first."""
    similar, rows = (features @ known.T).topk(min(count, len(known)), dim=1)
    return rows, 1 - similar

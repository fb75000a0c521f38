"""An attack on the explanation: move the gradient map as far as it will go while the prediction stays."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from robustcv import draws
from robustcv.attacks.norms import NORMS


def map_pgd(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: float,
    norm: str = "linf",
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 20,
    sharpness: float = 20.0,
) -> Float[Tensor, "n c h w"]:
    """Move the magnitude of gradient x input away from where it lies, and keep the label (Ghorbani et al. 2019).

    PGD on the distance of the two maps, each scaled to sum 1. A ReLU network's gradient has no gradient of its own, so
    that ReLU becomes a softplus while the direction is sought (Dombrowski et al. 2019); candidates are judged on the
    network as it is, and of each image the one is kept that moves the map most with the prediction unchanged.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, labels
        Images in [0, 1], and the classes that are predicted and explained.
    eps, norm
        Radius of the ball in units of [0, 1], and its norm.
    seeds
        One per image; None uses the position in the batch.
    steps
        Steps of size eps / 5.
    sharpness
        Of the softplus.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1]; an image itself where nothing else kept its label.
    """
    ball = NORMS[norm]
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    clean = _magnitude(classifier, images, labels).detach()
    best, furthest = images.clone(), torch.zeros(len(images), device=images.device, dtype=images.dtype)
    current = ball.start(images, eps, seeds, 0)
    for _ in range(steps):
        with torch.enable_grad(), _Softened(sharpness):
            point = current.detach().requires_grad_()
            distance = (_magnitude(classifier, point, labels, graph=True) - clean).abs().flatten(1).sum(1)
            (direction,) = torch.autograd.grad(distance.sum(), point)
        current = ball.project(current + eps / 5 * ball.ascend(direction), images, eps)
        with torch.no_grad():
            held = classifier(current).argmax(1) == labels
        moved = (_magnitude(classifier, current, labels) - clean).abs().flatten(1).sum(1).detach()
        better = held & (moved > furthest)
        best[better], furthest[better] = current[better].detach(), moved[better]
    return best


def _magnitude(classifier: nn.Module, images: Tensor, labels: Tensor, *, graph: bool = False) -> Tensor:
    """Compute |gradient x input|, channels summed, each image's scaled to sum 1."""
    with torch.enable_grad():
        point = images if graph else images.detach().requires_grad_()
        logits = classifier(point).gather(1, labels[:, None])
        (gradient,) = torch.autograd.grad(logits.sum(), point, create_graph=graph)
    size = (gradient * point).sum(1).abs()
    scaled: Tensor = size / size.sum((1, 2), keepdim=True).clamp_min(1e-12)
    return scaled


class _Softened(TorchFunctionMode):
    """Within this context ReLU, however it is called, is a softplus."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name, in_place = getattr(func, "__name__", ""), (kwargs or {}).get("inplace", False)
        if name in ("relu", "relu_"):
            soft = functional.softplus(args[0], beta=self.sharpness)
            return args[0].copy_(soft) if name == "relu_" or in_place else soft
        return func(*args, **(kwargs or {}))

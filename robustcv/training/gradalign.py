"""Single-step training with a regulariser against catastrophic overfitting: GradAlign."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv import draws
from robustcv.training.objectives import Perturb, attacked, cross_entropy


def gradalign(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    perturb: Perturb | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    targets: Float[Tensor, "n k"] | None = None,
    eps: float,
    weight: float = 0.2,
) -> tuple[Tensor, Float[Tensor, "n k"]]:
    """Compute the attacked cross-entropy plus ``weight`` (1 - cos of two input gradients) (Andriushchenko 2020).

    The gradients are taken at the image and at a uniform point of the L-inf ball around it; where they agree the loss
    is near linear and one step is enough. Costs two backward passes through two more forward passes.

    Parameters
    ----------
    perturb, seeds, targets
        As in `pgd_at`.
    eps
        Radius of the L-inf ball, in units of [0, 1].
    weight
        Of the regulariser.
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    noise = (2 * draws.uniform(seeds, tuple(images.shape[1:]), stream=7).to(images) - 1) * eps
    slopes = [
        _slope(classifier, point, labels, differentiable=k == 1)  # the first is held fixed, as in the paper's code
        for k, point in enumerate((images, (images + noise).clamp(0, 1)))
    ]
    apart = 1 - functional.cosine_similarity(slopes[0].flatten(1), slopes[1].flatten(1), dim=1).mean()
    logits = classifier(attacked(classifier, images, labels, perturb, seeds))
    return cross_entropy(logits, labels, targets) + weight * apart, logits


def _slope(classifier: nn.Module, images: Tensor, labels: Tensor, *, differentiable: bool) -> Tensor:
    here = images.detach().requires_grad_()
    loss = functional.cross_entropy(classifier(here), labels, reduction="sum")
    (slope,) = torch.autograd.grad(loss, here, create_graph=differentiable)
    return slope

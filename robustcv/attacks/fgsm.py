"""FGSM: one step of full size along the sign of the gradient."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.attacks.losses import LOSSES, Loss
from robustcv.attacks.norms import NORMS
from robustcv.classifier import rows_in_play


def fgsm(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: float,
    norm: str = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    loss: Loss = "cross_entropy",
) -> Float[Tensor, "n c h w"]:
    """Take one step of length eps up the loss (Goodfellow, Shlens and Szegedy 2015, section 4).

    ``x' = clip(x + eps * sign(dL/dx))`` for L-inf; for L2 the gradient is scaled to length eps instead.

    Parameters
    ----------
    classifier
        Images `n c h w` in [0, 1] to logits `n k`.
    images, labels
        Clean images in [0, 1] and their true classes.
    eps
        Radius of the ball, in units of [0, 1].
    norm
        ``linf`` or ``l2``.
    targets
        Classes to reach; None moves away from the label.
    seeds
        Not used: the attack is deterministic.
    loss
        ``cross_entropy`` or ``margin``.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1].
    """
    ball = NORMS[norm]
    adversarial = images.clone()
    rows = rows_in_play(classifier, images)
    if len(rows) == 0:
        return adversarial
    start = images[rows].requires_grad_()
    wanted = None if targets is None else targets[rows]
    losses = LOSSES[loss](classifier(start), labels[rows], wanted)
    (gradient,) = torch.autograd.grad(losses.sum(), start)
    adversarial[rows] = ball.project(start.detach() + eps * ball.ascend(gradient), images[rows], eps)
    return adversarial

"""FGSM: one step of full size along the sign of the gradient."""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.climb import chosen, gradient_at
from robustcv.attacks.losses import Loss
from robustcv.attacks.norms import NORMS, NormName, Radius, wide
from robustcv.classifier import rows_in_play


def fgsm(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: Radius,
    norm: NormName = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    random_start: bool = False,
    step_size: float | None = None,
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
        Radius of the ball, one for all or one for each image, in units of [0, 1] (L0: values changed).
    norm
        ``linf``, ``l2``, ``l1`` or ``l0``.
    targets
        Classes to reach; None moves away from the label.
    seeds
        One per image, for the random start; None uses the position in the batch.
    random_start
        Begin at a random point of the ball (FGSM-RS; Wong, Rice and Kolter 2020, algorithm 3).
    step_size
        Length of the step in units of [0, 1]; None means eps, and 1.25 eps after a random start.
    loss
        ``cross_entropy``, ``margin`` or ``dlr``.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1].
    """
    ball = NORMS[norm]
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    start = ball.start(images, eps, seeds, 0) if random_start else images.clone()
    size = step_size if step_size is not None else (1.25 if random_start else 1.0) * eps
    rows = rows_in_play(classifier, images)
    if len(rows) == 0:
        return start
    here = start[rows]
    gradient, _, _ = gradient_at(classifier, here, labels[rows], chosen(targets, rows), loss)
    start[rows] = ball.project(
        here + wide(chosen(size, rows), here) * ball.ascend(gradient), images[rows], chosen(eps, rows)
    )
    return start

"""MI-FGSM: signed steps along a running sum of gradients."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.attacks.climb import Best, chosen, gradient_at
from robustcv.attacks.losses import Loss
from robustcv.attacks.norms import NORMS, NormName, Radius, wide
from robustcv.classifier import rows_in_play


def mi_fgsm(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: Radius,
    norm: NormName = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    loss: Loss = "cross_entropy",
) -> Float[Tensor, "n c h w"]:
    """Step along accumulated gradients, each scaled to unit L1 norm (Dong et al. 2018, algorithm 1).

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
        Not used: the attack is deterministic.
    steps
        Gradient steps.
    step_size
        In units of [0, 1]; None means ``eps / steps``.
    decay
        Factor of the running sum; 0 forgets it.
    loss
        ``cross_entropy``, ``margin`` or ``dlr``.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1].
    """
    ball = NORMS[norm]
    size = eps / steps if step_size is None else step_size
    current, momentum, best = images.clone(), torch.zeros_like(images), Best(images)
    for step in range(steps + 1):
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        candidates = current[rows]
        gradient, losses, logits = gradient_at(classifier, candidates, labels[rows], chosen(targets, rows), loss)
        best.offer(rows, candidates, losses, logits, labels, targets)
        if step < steps:
            mean = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
            momentum[rows] = decay * momentum[rows] + gradient / mean
            current[rows] = ball.project(
                candidates + wide(chosen(size, rows), candidates) * ball.ascend(momentum[rows]),
                images[rows],
                chosen(eps, rows),
            )
    return best.images

"""PGD: many small steps, each brought back to the ball."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.climb import Best, chosen, gradient_at
from robustcv.attacks.losses import LOSSES, Loss
from robustcv.attacks.norms import NORMS, NormName, Radius, wide
from robustcv.classifier import rows_in_play


def pgd(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: Radius,
    norm: NormName = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = "cross_entropy",
    keep: Literal["best", "last"] = "best",
) -> Float[Tensor, "n c h w"]:
    """Climb the loss by projected gradient steps (Madry et al. 2018, section 2.1).

    ``x_0`` uniform in the ball, ``x_(t+1) = project(x_t + step_size * ascend(dL/dx))``.

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
        One per image, for the random starts; None uses the position in the batch.
    steps
        Gradient steps of each restart.
    step_size
        In units of [0, 1]; None means ``2.5 * eps / steps``, which can cross the ball and settle.
    restarts
        Independent random starts.
    random_start
        False starts at the image itself; more than one restart is then pointless.
    loss
        ``cross_entropy``, ``margin`` or ``dlr``.
    keep
        ``best`` returns the iterate that fools the classifier with the highest loss, else the highest loss, the last
        iterate included (one more forward pass); ``last`` returns the last one, for training.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1].
    """
    ball = NORMS[norm]
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    size = 2.5 * eps / steps if step_size is None else step_size
    best = Best(images)
    for restart in range(restarts):
        current = ball.start(images, eps, seeds, restart) if random_start else images.clone()
        for step in range(steps + 1):
            if step == steps and keep == "last":
                return current
            rows = rows_in_play(classifier, images)
            if len(rows) == 0:
                return best.images if keep == "best" else current
            candidates, clean, wanted = chosen(current, rows), chosen(images, rows), chosen(targets, rows)
            if step < steps:
                gradient, losses, logits = gradient_at(classifier, candidates, chosen(labels, rows), wanted, loss)
            else:
                with torch.no_grad():
                    logits = classifier(candidates).to(candidates.dtype)
                    losses = LOSSES[loss](logits, chosen(labels, rows), wanted)
            if keep == "best":
                best.offer(rows, candidates, losses, logits, labels, targets)
            if step < steps:
                stepped = candidates + wide(chosen(size, rows), candidates) * ball.ascend(gradient)
                stepped = ball.project(stepped, clean, chosen(eps, rows))
                current = stepped if len(rows) == len(images) else current.index_copy(0, rows, stepped)
    return best.images

"""PGD: many small steps, each brought back to the ball."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.losses import LOSSES, Loss, margin
from robustcv.attacks.norms import NORMS
from robustcv.classifier import rows_in_play


def pgd(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: float,
    norm: str = "linf",
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
        Radius of the ball, in units of [0, 1].
    norm
        ``linf`` or ``l2``.
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
        ``cross_entropy`` or ``margin``.
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
    best = images.clone()
    best_loss = torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
    best_fools = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for restart in range(restarts):
        current = ball.start(images, eps, seeds, restart) if random_start else images.clone()
        for step in range(steps + 1):
            if step == steps and keep == "last":
                return current
            rows = rows_in_play(classifier, images)
            if len(rows) == 0:
                return best if keep == "best" else current
            wanted = None if targets is None else targets[rows]
            candidates = current[rows].requires_grad_(step < steps)
            logits = classifier(candidates)
            losses = LOSSES[loss](logits, labels[rows], wanted)
            if step < steps:
                (gradient,) = torch.autograd.grad(losses.sum(), candidates)
                stepped = candidates.detach() + size * ball.ascend(gradient)
                current[rows] = ball.project(stepped, images[rows], eps)
            if keep == "best":
                candidates, losses = candidates.detach(), losses.detach()
                fools = margin(logits.detach(), labels[rows], wanted) > 0
                better = (fools & ~best_fools[rows]) | ((fools == best_fools[rows]) & (losses > best_loss[rows]))
                chosen = rows[better]
                best[chosen], best_loss[chosen], best_fools[chosen] = candidates[better], losses[better], fools[better]
    return best

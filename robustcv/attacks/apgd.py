"""APGD: gradient steps with momentum whose size halves where an image makes no progress."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.climb import Best, chosen, gradient_at
from robustcv.attacks.directions import directed_start
from robustcv.attacks.losses import Loss
from robustcv.attacks.norms import NORMS, NormName, Radius, wide
from robustcv.classifier import rows_in_play

_WALKS = 1000  # draws of walks are other ones than those of the first thousand random starts


def apgd(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: Radius,
    norm: NormName = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 100,
    restarts: int = 1,
    directions: int = 0,
    loss: Loss = "cross_entropy",
) -> Float[Tensor, "n c h w"]:
    """Climb the loss with step sizes that adapt to each image (Croce and Hein 2020, algorithm 1).

    Steps begin at ``2 * eps``. At checkpoints (after 22 % of the steps, then ever more often) an image whose loss rose
    in fewer than three quarters of the steps since, or whose best loss did not move, goes back to its best point with
    half the step.

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
        Gradient steps of each restart; each run costs one forward and one backward pass more, at its start.
    restarts
        Independent random starts.
    directions
        Steps along a direction of its own among the logits that each restart begins with (`directed_start`); 0 begins
        at a random point of the ball.
    loss
        ``cross_entropy``, ``margin`` or ``dlr``.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1]: a candidate that fools the classifier, else that of the highest loss.
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    best = Best(images)
    for restart in range(restarts):
        start = NORMS[norm].start(images, eps, seeds, restart)
        start = directed_start(
            classifier,
            images,
            labels,
            targets,
            start,
            best,
            eps=eps,
            norm=norm,
            seeds=seeds,
            stream=restart + _WALKS,
            steps=directions,
        )
        _climb(classifier, images, labels, targets, start, best, eps, norm, steps, loss)
    return best.images


def _climb(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    start: Tensor,
    best: Best,
    eps: Radius,
    norm: NormName,
    steps: int,
    loss: Loss,
) -> None:
    """Run one restart; what it finds is offered to ``best``."""
    ball = NORMS[norm]
    current, previous, gradient = start.clone(), start.clone(), torch.zeros_like(start)
    top, top_gradient = start.clone(), torch.zeros_like(start)  # this restart's own best point
    zeros = torch.zeros(len(images), dtype=images.dtype, device=images.device)
    size, top_loss, last_loss = zeros + 2 * eps, zeros - torch.inf, zeros - torch.inf
    rises, halved, top_before = zeros.clone(), torch.ones_like(zeros, dtype=torch.bool), zeros - torch.inf
    checks = checkpoints(steps)
    for step in range(steps + 1):
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            return
        if step > 0:
            here, clean, reach = current[rows], images[rows], chosen(eps, rows)
            stepped = ball.project(here + wide(size[rows], here) * ball.ascend(gradient[rows]), clean, reach)
            keep = 1.0 if step == 1 else 0.75
            moved = ball.project(here + keep * (stepped - here) + (1 - keep) * (here - previous[rows]), clean, reach)
            previous[rows], current[rows] = here, moved
        candidates = current[rows]
        slope, losses, logits = gradient_at(classifier, candidates, labels[rows], chosen(targets, rows), loss)
        best.offer(rows, candidates, losses, logits, labels, targets)
        gradient[rows] = slope
        rises[rows] += losses > last_loss[rows]
        last_loss[rows] = losses
        higher = rows[losses > top_loss[rows]]
        top[higher], top_gradient[higher], top_loss[higher] = current[higher], gradient[higher], last_loss[higher]
        if step == 0:
            top_before, rises = top_loss.clone(), rises * 0
        elif step in checks:
            stuck = (rises <= 0.75 * checks[step]) | (~halved & (top_before >= top_loss))
            halved, top_before, rises = stuck, top_loss.clone(), rises * 0
            size = torch.where(stuck, size / 2, size)
            current[stuck], gradient[stuck] = top[stuck], top_gradient[stuck]


def checkpoints(steps: int) -> dict[int, int]:
    """Give the steps after which step sizes are judged, and how many steps each looks back on."""
    length, least, shrink = max(round(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    found, step = {}, 0
    while step + length <= steps:
        step += length
        found[step] = length
        length = max(length - shrink, least)
    return found

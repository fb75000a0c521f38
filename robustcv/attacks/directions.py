"""Where a climb may begin: a few full steps along a direction among the logits, another one for each image and run."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.climb import Best, chosen
from robustcv.attacks.losses import margin
from robustcv.attacks.norms import NORMS, NormName, Radius, wide
from robustcv.classifier import rows_in_play

_TOWARDS = 0.8  # weight of the class that is wanted; the label's is drawn from -1 to 0, the others' from -1 to 1


def directed_start(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    targets: Int64[Tensor, " n"] | None,
    start: Float[Tensor, "n c h w"],
    best: Best,
    *,
    eps: Radius,
    norm: NormName,
    seeds: Int64[Tensor, " n"],
    stream: int,
    steps: int,
) -> Float[Tensor, "n c h w"]:
    """Walk from a start along a random weighting of the logits (Tashiro et al. 2020, "output diversification").

    The label's weight is never above 0 and a target's is 0.8 (Liu et al. 2022, "adaptive auto attack"), so that the
    walk leaves the label and passes the classes in an order of its own. Steps have the length of the ball and their
    direction does not depend on the scale of the logits. What is met on the way is offered to ``best``.

    Returns
    -------
    Tensor
        Where each image's walk ended: in the ball and in [0, 1].
    """
    ball, current = NORMS[norm], start.clone()
    weights: Tensor | None = None
    for _ in range(steps):
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        points = current[rows].detach().requires_grad_()
        logits = classifier(points).to(points.dtype)
        if weights is None:
            weights = _weights(labels, targets, seeds, stream, logits.shape[1]).to(logits)
        (gradient,) = torch.autograd.grad((weights[rows] * logits).sum(), points)
        here, found = points.detach(), logits.detach()
        best.offer(rows, here, margin(found, labels[rows], chosen(targets, rows)), found, labels, targets)
        moved = here + wide(chosen(eps, rows), here) * ball.ascend(gradient.nan_to_num(0.0, 0.0, 0.0))
        current[rows] = ball.project(moved, images[rows], chosen(eps, rows))
    return current


def _weights(labels: Tensor, targets: Tensor | None, seeds: Tensor, stream: int, classes: int) -> Tensor:
    drawn = 2 * draws.uniform(seeds, (classes,), stream) - 1
    own = labels[:, None].to(drawn.device)
    drawn = drawn.scatter(1, own, -drawn.gather(1, own).abs())
    return drawn if targets is None else drawn.scatter(1, targets[:, None].to(drawn.device), _TOWARDS)

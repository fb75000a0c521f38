"""APGD in L1: steps along few values at a time, in balls that shrink to the one asked for."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.climb import Best, chosen, gradient_at
from robustcv.attacks.losses import Loss
from robustcv.attacks.norms import NORMS, Radius, wide
from robustcv.attacks.targeting import towards_each
from robustcv.classifier import rows_in_play

BALLS = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # times eps, and the share of the steps taken in each
_FEWER = 1.5  # by which the values that change, and the step, are divided


def apgd_l1(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: Radius,
    norm: Literal["l1"] = "l1",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 100,
    restarts: int = 1,
    loss: Loss = "cross_entropy",
) -> Float[Tensor, "n c h w"]:
    """Climb the loss by sparse steps in ever smaller balls (Croce and Hein 2021, "Mind the box", section 4).

    A step goes along the signs of the steepest values, two thirds as many as differ in the best point so far; its
    length begins at the radius of the ball, which is three times eps, then twice, then eps. With 50 steps and more it
    is about as strong as ``apgd`` in L1, with fewer it is weaker.

    Parameters
    ----------
    classifier, images, labels, eps, targets, seeds, restarts, loss
        As in `apgd`.
    norm
        ``l1``.
    steps
        Gradient steps of each restart, 3 in 10 of them in each of the larger balls; three passes more each.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1]: a candidate that fools the classifier, else that of the highest loss.
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    best = Best(images)
    for restart in range(restarts):
        noise = draws.normal(seeds, tuple(images.shape[1:]), restart).to(images)
        start = NORMS[norm].project(images + noise, images, BALLS[0][0] * eps)
        _climb(classifier, images, labels, targets, start, best, eps, steps, loss)
    return best.images


def apgd_t_l1(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: Radius,
    norm: Literal["l1"] = "l1",
    targets: Int64[Tensor, " n"] | None = None,
    towards: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 100,
    classes: int = 5,
    loss: Loss = "dlr",
) -> Float[Tensor, "n c h w"]:
    """Run `apgd_l1` towards the likeliest wrong classes, one after another (Croce and Hein 2021, section 5).

    Parameters
    ----------
    classifier, images, labels, eps, targets, towards, seeds, classes, loss
        As in `apgd_t`.
    norm, steps
        As in `apgd_l1`.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1].
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds

    def run(wanted: Tensor, rank: int) -> Tensor:
        own = seeds + rank
        return apgd_l1(classifier, images, labels, eps=eps, targets=wanted, seeds=own, steps=steps, loss=loss)

    return towards_each(classifier, images, labels, targets, towards, classes, run)


def _climb(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    start: Tensor,
    best: Best,
    eps: Radius,
    steps: int,
    loss: Loss,
) -> None:
    """Run one restart; candidates of the last ball, which is the one asked for, are offered to ``best``."""
    lengths = [math.ceil(share * steps) for _, share in BALLS[:-1]]
    lengths = [min(lengths[0], steps), min(lengths[1], max(steps - lengths[0], 0))]
    current = start
    for (times, _), length in zip(BALLS, [*lengths, steps - sum(lengths)], strict=True):
        inner = times == 1.0
        current = NORMS["l1"].project(current, images, times * eps)
        current = _in_one_ball(
            classifier, images, labels, targets, current, best if inner else None, times * eps, length, loss
        )


def _in_one_ball(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    start: Tensor,
    best: Best | None,
    eps: Radius,
    steps: int,
    loss: Loss,
) -> Tensor:
    """Climb inside one ball; gives each image's point of highest loss."""
    ball = NORMS["l1"]
    current, gradient = start.clone(), torch.zeros_like(start)
    top, top_gradient = start.clone(), torch.zeros_like(start)
    zeros = torch.zeros(len(images), dtype=images.dtype, device=images.device)
    size, top_loss = zeros + eps, zeros - torch.inf
    differ = _differing(start, images)
    count = differ / _FEWER
    every = max(1, int(0.04 * steps))
    for step in range(steps + 1):
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        if step > 0:
            direction = _steepest(gradient[rows], count[rows])
            moved = current[rows] + wide(size[rows], start) * direction
            current[rows] = ball.project(moved, images[rows], chosen(eps, rows))
        candidates = current[rows]
        slope, losses, logits = gradient_at(classifier, candidates, labels[rows], chosen(targets, rows), loss)
        if best is not None:
            best.offer(rows, candidates, losses, logits, labels, targets)
        gradient[rows] = slope
        higher = losses > top_loss[rows]
        better = rows[higher]
        top[better], top_gradient[better], top_loss[better] = candidates[higher], slope[higher], losses[higher]
        if step > 0 and step % every == 0:
            now = _differing(top, images)
            sparser = now < 0.95 * differ
            size = torch.where(sparser, zeros + eps, (size / _FEWER).maximum((zeros + eps) / 10))
            current[sparser], gradient[sparser] = top[sparser], top_gradient[sparser]
            count, differ = now / _FEWER, now
    return top


def _differing(candidates: Tensor, images: Tensor) -> Tensor:
    """Count the values that a candidate changes."""
    return (candidates != images).flatten(1).sum(1).to(images.dtype)


def _steepest(gradient: Tensor, count: Tensor) -> Tensor:
    """Give the signs of the ``count`` steepest values of each image, of length 1 together."""
    size = gradient.abs().flatten(1)
    place = (size.shape[1] - count.floor()).clamp(0, size.shape[1] - 1).long()
    least = size.sort(1).values.gather(1, place[:, None])
    signs = torch.where(wide(least.squeeze(1), gradient) <= gradient.abs(), gradient.sign(), 0.0)
    return signs / wide(signs.abs().flatten(1).sum(1).clamp_min(1), gradient)

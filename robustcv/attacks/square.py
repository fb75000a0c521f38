"""Square: random search with square-shaped changes; needs the logits, no gradient."""

import math
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.climb import Best, chosen
from robustcv.attacks.losses import margin
from robustcv.attacks.norms import Radius, l1_project, l2_ascend, l2_project, linf_project, wide
from robustcv.classifier import rows_in_play

_ORDERS = {"l2": 2, "l1": 1}
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries (the paper's section 5)


def square(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: Radius,
    norm: Literal["linf", "l2", "l1"] = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    queries: int = 5000,
    share: float = 0.8,
) -> Float[Tensor, "n c h w"]:
    """Change one square at a time and keep what lowers the margin (Andriushchenko et al. 2020, algorithms 1 to 3).

    In L1 it moves as in L2, with narrower bumps of unit L1 length (Croce and Hein 2021, section 5).

    Every image has squares of its own, so that its verdict does not depend on its batch. Images need not be square.

    Parameters
    ----------
    classifier
        Images `n c h w` in [0, 1] to logits `n k`; its gradient is not used.
    images, labels
        Clean images in [0, 1] and their true classes.
    eps
        Radius of the ball, one for all or one for each image, in units of [0, 1].
    norm
        ``linf``, ``l2`` or ``l1``.
    targets
        Classes to reach; None moves away from the label.
    seeds
        One per image; None uses the position in the batch.
    queries
        Forward passes after the two starting points (upright and level stripes; for L2 and L1 two patterns).
    share
        Share of the pixels that the first squares cover; it is halved on the paper's schedule.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1].
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    best = Best(images)
    with torch.no_grad():
        for query in range(-2, queries):
            rows = rows_in_play(classifier, images)
            if len(rows) == 0:
                break
            clean, reach, own = images[rows], chosen(eps, rows), seeds[rows]
            if query < 0 and norm == "linf":
                candidates = _stripes(clean, reach, own, level=query == -1)
            elif query < 0:
                candidates = _tiles(clean, reach, own, query + 2, norm)
            elif norm == "linf":
                candidates = _linf_move(
                    clean, best.images[rows], reach, own, query, _side(query, queries, share, clean)
                )
            else:
                side = _side(query, queries, share, clean)
                side = max(3, side + 1 - side % 2)
                candidates = _bump_move(clean, best.images[rows], reach, own, query, side, norm)
            logits = classifier(candidates)
            best.offer(rows, candidates, margin(logits, labels[rows], chosen(targets, rows)), logits, labels, targets)
    return best.images


def _side(query: int, queries: int, share: float, images: Tensor) -> int:
    """Give the side of the squares at a query, in pixels."""
    position = int(query / queries * 10_000)
    covered = share / 2 ** sum(position > halving for halving in _HALVINGS)
    h, w = images.shape[-2:]
    return max(1, min(round(math.sqrt(covered * h * w)), h, w))


def _signs(drawn: Tensor) -> Tensor:
    """Make -1 and 1 of uniform numbers."""
    return (drawn >= 0.5).to(drawn) * 2 - 1


def _stripes(images: Tensor, eps: Radius, seeds: Tensor, *, level: bool) -> Tensor:
    c, h, w = images.shape[1:]
    signs = _signs(draws.uniform(seeds, (c, h, 1) if level else (c, 1, w), int(level)).to(images))
    return linf_project(images + wide(eps, images) * signs, images, eps)


def _place(drawn: Float[Tensor, " n"], size: int, side: int) -> Int64[Tensor, " n"]:
    return (drawn * (size - side + 1)).long().clamp_max(size - side)


def _window(top: Tensor, left: Tensor, side: int, images: Tensor) -> Bool[Tensor, "n 1 h w"]:
    """Mark a square of each image."""
    h, w = images.shape[-2:]
    y, x = torch.arange(h, device=images.device), torch.arange(w, device=images.device)
    down = (y >= top[:, None]) & (y < top[:, None] + side)
    across = (x >= left[:, None]) & (x < left[:, None] + side)
    return (down[:, :, None] & across[:, None, :])[:, None]


def _linf_move(images: Tensor, best: Tensor, eps: Radius, seeds: Tensor, query: int, side: int) -> Tensor:
    """Set a square of the change to eps or -eps, channel by channel."""
    c, h, w = images.shape[1:]
    drawn = draws.uniform(seeds, (2 + c,), query + 2).to(images)
    inside = _window(_place(drawn[:, 0], h, side), _place(drawn[:, 1], w, side), side, images)
    signs = _signs(drawn[:, 2:])

    def proposal() -> Tensor:
        moved = images + wide(eps, images) * signs[:, :, None, None]
        return torch.where(inside, linf_project(moved, images, eps), best)

    proposed = proposal()
    same = (proposed == best).flatten(1).all(1)
    if bool(same.any()):  # a query about what is known already would be wasted
        signs[same, 0] *= -1
        proposed = proposal()
    return proposed


@cache
def _pattern(height: int, width: int, order: int) -> Tensor:
    """Give the paper's bump: nested rectangles around the middle, of unit length."""
    bump = torch.zeros(height, width)
    for k in range(max(height, width) // 2 + 1):
        y, x = height // 2 - k, width // 2 - k
        bump[max(y, 0) : y + 2 * k + 1, max(x, 0) : x + 2 * k + 1] += 1 / (k + 1) ** (2 if order == 2 else 4)
    unit: Tensor = bump / bump.norm(order)
    return unit


def _halves(side: int, upright: Bool[Tensor, " n"], like: Tensor, order: int) -> Float[Tensor, "n 1 s s"]:
    """Give a square of two opposite bumps, one above the other or side by side."""
    first = side // 2
    both = torch.cat([_pattern(first, side, order), -_pattern(side - first, side, order)])
    both = (both / both.norm(order)).to(like)
    return torch.where(upright[:, None, None], both, both.T)[:, None]


def _tiles(images: Tensor, eps: Radius, seeds: Tensor, stream: int, norm: str) -> Tensor:
    """Cover the image with tiles of two bumps, a fifth of its shorter side each."""
    n, c, h, w = images.shape
    side = max(2, min(h, w) // 5)
    down, across = -(-h // side), -(-w // side)
    drawn = draws.uniform(seeds, (1 + c, down, across), stream).to(images)
    tile = _halves(side, drawn[:, 0, 0, 0] >= 0.5, images, _ORDERS[norm])
    signs = _signs(drawn[:, 1:])
    change = (signs[..., None, None] * tile[:, :, None, None]).permute(0, 1, 2, 4, 3, 5).reshape(
        n, c, down * side, across * side
    )[..., :h, :w]  # fmt: skip
    return _of_length(change, images, eps, norm)


def _of_length(change: Tensor, images: Tensor, eps: Radius, norm: str) -> Tensor:
    """Make a change as long as eps and go to [0, 1]."""
    if norm == "l2":
        return l2_project(images + wide(eps, images) * l2_ascend(change), images, eps)
    length = change.abs().sum((1, 2, 3), keepdim=True).clamp_min(torch.finfo(change.dtype).tiny)
    longer = (wide(eps, images) / length).clamp(1, 1 / torch.finfo(change.dtype).eps)
    return l1_project(images + change * longer, images, eps)


def _bump_move(images: Tensor, best: Tensor, eps: Radius, seeds: Tensor, query: int, side: int, norm: str) -> Tensor:
    """Move the change's length from one square into another, where a new bump is added to what was there."""
    c, h, w = images.shape[1:]
    side, order = min(side, h, w), _ORDERS[norm]
    drawn = draws.uniform(seeds, (5 + c,), query + 2).to(images)
    change, reach = best - images, wide(eps, images)
    if norm == "l1":  # most windows hold next to nothing: rounding, other in each batch, must not become a direction
        change = torch.where(change.abs() <= 512 * torch.finfo(images.dtype).eps, 0.0, change)
    top, left = _place(drawn[:, 0], h, side), _place(drawn[:, 1], w, side)
    into = _window(top, left, side, images)
    outof = _window(_place(drawn[:, 2], h, side), _place(drawn[:, 3], w, side), side, images)
    over = (2, 3)
    y = (torch.arange(h, device=images.device) - top[:, None]).clamp(0, side - 1)[:, None, :, None]
    x = (torch.arange(w, device=images.device) - left[:, None]).clamp(0, side - 1)[:, None, None, :]
    bumps = _halves(side, drawn[:, 4] >= 0.5, images, order).flatten(2)
    placed = bumps.gather(2, (y * side + x).flatten(2)).reshape(-1, 1, h, w) * into
    signs = _signs(drawn[:, 5:])
    old = change * into
    tiny = torch.finfo(images.dtype).tiny
    fresh = placed * signs[:, :, None, None] + old / old.norm(order, dim=over, keepdim=True).clamp_min(tiny)
    spare = (reach**order - change.abs().pow(order).sum((1, 2, 3), keepdim=True)).clamp_min(0) / c
    length = (spare + (change * (into | outof)).abs().pow(order).sum(over, keepdim=True)) ** (1 / order)
    if norm == "l1":
        length = length * c  # more than there is to spend: the projection then keeps the tips of the bumps
    fresh = fresh / fresh.norm(order, dim=over, keepdim=True).clamp_min(tiny) * length
    moved = torch.where(into, fresh, torch.where(outof, 0.0, change))
    return _of_length(moved, images, eps, norm)

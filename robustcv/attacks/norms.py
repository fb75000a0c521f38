"""The balls an attack may move in: where to start, which way is up, how to come back, how far it went."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustcv import draws

Radius = float | Float[Tensor, " n"]  # one for all images, or one for each


@runtime_checkable
class _Start(Protocol):
    def __call__(self, images: Tensor, eps: Radius, seeds: Tensor, stream: int) -> Tensor: ...


@runtime_checkable
class _Step(Protocol):
    def __call__(self, gradient: Tensor) -> Tensor: ...


@runtime_checkable
class _Project(Protocol):
    def __call__(self, candidates: Tensor, images: Tensor, eps: Radius) -> Tensor: ...


@runtime_checkable
class _Distance(Protocol):
    def __call__(self, candidates: Tensor, images: Tensor) -> Tensor: ...


class Norm(NamedTuple):
    """A norm as four functions on batches of images.

    ``start`` draws a point of the ball, ``ascend`` gives the direction of a step of size 1, ``project`` gives the
    nearest point of the ball and of [0, 1] together, ``distance`` measures in float64. L0 counts changed values.
    """

    start: _Start
    ascend: _Step
    project: _Project
    distance: _Distance


def wide(values: Radius, like: Tensor) -> Tensor:
    """Shape one number for all images, or one for each, so that it broadcasts over ``like``."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 1))


def linf_start(
    images: Float[Tensor, "n c h w"], eps: Radius, seeds: Int64[Tensor, " n"], stream: int
) -> Float[Tensor, "n c h w"]:
    """Draw a point uniformly from the L-inf ball, then clip to [0, 1]."""
    noise = draws.uniform(seeds, tuple(images.shape[1:]), stream).to(images)
    return linf_project(images + wide(eps, images) * (2 * noise - 1), images, eps)


def linf_ascend(gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Give the sign of the gradient."""
    return gradient.sign()


def linf_project(
    candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"], eps: Radius
) -> Float[Tensor, "n c h w"]:
    """Clip to the intersection of the L-inf ball and [0, 1]; exact, both being boxes."""
    reach = wide(eps, images)
    return torch.minimum(torch.maximum(candidates, images - reach), images + reach).clamp(0, 1)


def linf_distance(candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Measure the largest change of one value."""
    distance: Tensor = (candidates.double() - images.double()).abs().flatten(1).amax(1)
    return distance


def l2_start(
    images: Float[Tensor, "n c h w"], eps: Radius, seeds: Int64[Tensor, " n"], stream: int
) -> Float[Tensor, "n c h w"]:
    """Draw a point uniformly from the L2 ball (a normal direction, radius u^(1/d)), then clip to [0, 1]."""
    shape = tuple(images.shape[1:])
    direction = l2_ascend(draws.normal(seeds, shape, 2 * stream).to(images))
    radius = draws.uniform(seeds, (1,), 4 * stream + 3).to(images).squeeze(1) ** (1 / math.prod(images.shape[1:]))
    return l2_project(images + wide(eps, images) * wide(radius, images) * direction, images, eps)


def l2_ascend(gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Give the gradient scaled to unit L2 norm; a zero gradient stays zero."""
    flat = gradient.flatten(1)
    # dividing by the largest value first keeps tiny gradients from vanishing when squared
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    length = flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    direction: Tensor = (flat / length).reshape_as(gradient)
    return direction


def l2_project(
    candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"], eps: Radius
) -> Float[Tensor, "n c h w"]:
    """Give the nearest point of the ball and of [0, 1] together: ``clip(x + t * change)`` with the right t.

    Scaling first and clipping afterwards would stop short of the ball wherever the box cuts it, and an attack that
    does so misses the exact worst case of a linear model.
    """
    change = (candidates - images).flatten(1)
    room, size, reach = _room(change, images), change.abs(), wide(eps, change)
    clipped = torch.minimum(size, room)
    scale = (reach / size.norm(dim=1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1)
    for _ in range(_ROUNDS):  # more and more values meet the box; the rest share what is left of eps
        full = scale * size >= room
        left = (reach**2 - (room * full).square().sum(1, keepdim=True)).clamp_min(0)
        further = (left / (size * ~full).square().sum(1, keepdim=True)).sqrt().nan_to_num(0.0, torch.inf)
        further = torch.where(clipped.norm(dim=1, keepdim=True) <= reach, torch.inf, further).clamp_max(1)
        if not bool((further > scale).any()):
            break
        scale = torch.maximum(scale, further)
    return _inside(change.sign() * torch.minimum(scale * size, room), images, eps, lambda flat: flat.norm(dim=1))


def l2_distance(candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Measure the Euclidean length of the change."""
    distance: Tensor = (candidates.double() - images.double()).flatten(1).norm(dim=1)
    return distance


def l1_start(
    images: Float[Tensor, "n c h w"], eps: Radius, seeds: Int64[Tensor, " n"], stream: int
) -> Float[Tensor, "n c h w"]:
    """Draw a point uniformly from the L1 ball (normalised exponentials with random signs), then go to [0, 1]."""
    d = math.prod(images.shape[1:])
    drawn = draws.uniform(seeds, (2 * d + 1,), stream).to(images)
    exponential = -torch.log1p(-drawn[:, : d + 1])
    change = wide(eps, drawn) * exponential[:, :d] / exponential.sum(1, keepdim=True) * (drawn[:, d + 1 :] - 0.5).sign()
    return l1_project(images + change.reshape_as(images), images, eps)


def l1_ascend(gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Scale the gradient so that its steepest value is 1; the projection then keeps the steepest values only."""
    largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / wide(largest, gradient)


def l1_project(
    candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"], eps: Radius
) -> Float[Tensor, "n c h w"]:
    """Give the nearest point of the L1 ball and of [0, 1] together (Croce and Hein 2021, "Mind the box", section 3).

    Every change shrinks by the same amount, after which the box cuts it; the amount is where a piecewise linear,
    decreasing function reaches eps, found by sorting its corners.
    """
    change = (candidates - images).flatten(1)
    room, size, reach = _room(change, images), change.abs(), wide(eps, change)
    corners, order = torch.cat([(size - room).clamp_min(0), size], 1).sort(1)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).to(size).cumsum(1)  # values that shrink after each corner
    length = torch.minimum(size, room).sum(1, keepdim=True)
    fall = slope[:, :-1] * corners.diff(dim=1)
    at_corner = length - torch.cat([torch.zeros_like(length), fall.cumsum(1)], 1)
    last = ((at_corner > reach).sum(1, keepdim=True) - 1).clamp_min(0)
    shrink = corners.gather(1, last) + (at_corner.gather(1, last) - reach) / slope.gather(1, last).clamp_min(1)
    shrink = torch.where(length > reach, shrink, 0.0)
    kept = change.sign() * torch.minimum((size - shrink).clamp_min(0), room)
    return _inside(kept, images, eps, lambda flat: flat.abs().sum(1))


def l1_distance(candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Measure the sum of absolute changes."""
    distance: Tensor = (candidates.double() - images.double()).flatten(1).abs().sum(1)
    return distance


def l0_start(
    images: Float[Tensor, "n c h w"], eps: Radius, seeds: Int64[Tensor, " n"], stream: int
) -> Float[Tensor, "n c h w"]:
    """Replace eps values, drawn at random, by uniform ones."""
    drawn = draws.uniform(seeds, (2, *images.shape[1:]), stream).to(images)
    chosen = _largest(drawn[:, 0].flatten(1), eps).reshape_as(images)
    return torch.where(chosen, drawn[:, 1], images)


def l0_project(
    candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"], eps: Radius
) -> Float[Tensor, "n c h w"]:
    """Clip to [0, 1], then keep the eps largest changes and undo the others."""
    clipped = candidates.clamp(0, 1)
    kept = _largest((clipped - images).flatten(1).abs(), eps).reshape_as(images)
    return torch.where(kept, clipped, images)


def l0_distance(candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Count the values changed (a colour pixel has three)."""
    distance: Tensor = (candidates != images).flatten(1).sum(1).double()
    return distance


_ROUNDS = 50  # a bound on the corners met one after another; a handful is usual


def _room(change: Float[Tensor, "n d"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """Tell how far each value can go in the direction of its change before it leaves [0, 1]."""
    flat = images.flatten(1)
    return torch.where(change > 0, 1 - flat, flat)


def _inside(
    change: Float[Tensor, "n d"], images: Float[Tensor, "n c h w"], eps: Radius, length: Callable[[Tensor], Tensor]
) -> Float[Tensor, "n c h w"]:
    """Add a change whose length is eps but for rounding, a hair shorter where rounding would carry it outside."""
    exact = length(change.double())[:, None]
    within = wide(eps, exact) * (1 - 4 * torch.finfo(images.dtype).eps)
    factor = torch.where(exact > within, within / exact, 1.0)  # 0/0 is taken by the other branch
    return (images + (change * factor).to(images.dtype).reshape_as(images)).clamp(0, 1)


def _largest(values: Float[Tensor, "n d"], k: Radius) -> Bool[Tensor, "n d"]:
    """Mark the k largest values of each row, k rounded down."""
    rank = torch.empty_like(values).scatter(
        1,
        values.argsort(dim=1, descending=True, stable=True),
        torch.arange(values.shape[1], dtype=values.dtype, device=values.device).expand_as(values),
    )
    return rank < wide(k, values).floor()


NormName = Literal["linf", "l2", "l1", "l0"]
NORMS = {
    "linf": Norm(linf_start, linf_ascend, linf_project, linf_distance),
    "l2": Norm(l2_start, l2_ascend, l2_project, l2_distance),
    "l1": Norm(l1_start, l1_ascend, l1_project, l1_distance),
    "l0": Norm(l0_start, l1_ascend, l0_project, l0_distance),
}

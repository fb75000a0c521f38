"""The balls an attack may move in: where to start, which way is up, how to come back, how far it went."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustcv import draws


@runtime_checkable
class _Start(Protocol):
    def __call__(self, images: Tensor, eps: float, seeds: Tensor, stream: int) -> Tensor: ...


@runtime_checkable
class _Step(Protocol):
    def __call__(self, gradient: Tensor) -> Tensor: ...


@runtime_checkable
class _Project(Protocol):
    def __call__(self, candidates: Tensor, images: Tensor, eps: float) -> Tensor: ...


@runtime_checkable
class _Distance(Protocol):
    def __call__(self, candidates: Tensor, images: Tensor) -> Tensor: ...


class Norm(NamedTuple):
    """A norm as four functions on batches of images.

    ``start`` draws a uniform point of the ball, ``ascend`` gives the steepest direction of unit norm, ``project``
    returns to the ball and to [0, 1], ``distance`` measures in float64.
    """

    start: _Start
    ascend: _Step
    project: _Project
    distance: _Distance


def _per_image(values: Float[Tensor, " n"], images: Float[Tensor, "n ..."]) -> Tensor:
    return values.reshape(-1, *[1] * (images.ndim - 1))


def linf_start(
    images: Float[Tensor, "n c h w"], eps: float, seeds: Int64[Tensor, " n"], stream: int
) -> Float[Tensor, "n c h w"]:
    """Draw a point uniformly from the L-inf ball, then clip to [0, 1]."""
    noise = draws.uniform(seeds, tuple(images.shape[1:]), stream).to(images)
    return linf_project(images + eps * (2 * noise - 1), images, eps)


def linf_ascend(gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Give the sign of the gradient."""
    return gradient.sign()


def linf_project(
    candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"], eps: float
) -> Float[Tensor, "n c h w"]:
    """Clip to the intersection of the L-inf ball and [0, 1]; exact, both being boxes."""
    return torch.minimum(torch.maximum(candidates, images - eps), images + eps).clamp(0, 1)


def linf_distance(candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Measure the largest change of one value."""
    distance: Tensor = (candidates.double() - images.double()).abs().flatten(1).amax(1)
    return distance


def l2_start(
    images: Float[Tensor, "n c h w"], eps: float, seeds: Int64[Tensor, " n"], stream: int
) -> Float[Tensor, "n c h w"]:
    """Draw a point uniformly from the L2 ball (a normal direction, radius u^(1/d)), then clip to [0, 1]."""
    shape = tuple(images.shape[1:])
    direction = l2_ascend(draws.normal(seeds, shape, 2 * stream).to(images))
    radius = draws.uniform(seeds, (1,), 4 * stream + 3).to(images).squeeze(1) ** (1 / images[0].numel())
    return l2_project(images + eps * _per_image(radius, images) * direction, images, eps)


def l2_ascend(gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Give the gradient scaled to unit L2 norm; a zero gradient stays zero."""
    flat = gradient.flatten(1)
    # dividing by the largest value first keeps tiny gradients from vanishing when squared
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    length = flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    direction: Tensor = (flat / length).reshape_as(gradient)
    return direction


def l2_project(
    candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"], eps: float
) -> Float[Tensor, "n c h w"]:
    """Scale the change to length eps where it is longer, then clip to [0, 1].

    Clipping cannot leave the ball again, because the image itself lies in [0, 1].
    """
    change = (candidates - images).double()  # in float32 the length of a large image is off by more than its ulp
    length = change.flatten(1).norm(dim=1)
    # a hair inside, so that rounding the sum to the images' precision cannot carry it outside
    inside = eps * (1 - 4 * torch.finfo(images.dtype).eps)
    factor = torch.where(length > eps, inside / length, torch.ones_like(length))  # 0/0 is taken by the other branch
    return (images + (change * _per_image(factor, images)).to(images.dtype)).clamp(0, 1)


def l2_distance(candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Measure the Euclidean length of the change."""
    distance: Tensor = (candidates.double() - images.double()).flatten(1).norm(dim=1)
    return distance


NORMS = {
    "linf": Norm(linf_start, linf_ascend, linf_project, linf_distance),
    "l2": Norm(l2_start, l2_ascend, l2_project, l2_distance),
}

"""The smallest change within the box that crosses a hyperplane, exactly, in each norm: one step of FAB and DeepFool."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustcv.attacks.losses import wrong_classes
from robustcv.attacks.norms import NORMS, NormName


def cross(
    images: Float[Tensor, "n c h w"],
    direction: Float[Tensor, "n c h w"],
    gap: Float[Tensor, " n"],
    norm: NormName,
) -> Float[Tensor, "n c h w"]:
    """Give the change of least norm with ``<direction, change> = gap`` that keeps an image in [0, 1].

    Where no change in the box reaches that far, all values go to the edge of the box. Closed forms: water filling for
    L-inf and L2, the steepest values first for L1 and L0 (Croce and Hein 2020, "Minimally distorted", section 3.1).

    Parameters
    ----------
    images
        Points in [0, 1].
    direction
        Normal of each hyperplane.
    gap
        How far ``<direction, change>`` must go; below 0 the other way.
    norm
        ``linf``, ``l2``, ``l1`` or ``l0``.
    """
    way = torch.where(gap[:, None] < 0, -direction.flatten(1), direction.flatten(1))
    flat = images.flatten(1)
    room = torch.where(way > 0, 1 - flat, flat)
    gain, wanted = way.abs(), gap.abs()[:, None]
    if norm in ("linf", "l2"):
        change = _fill_evenly(gain, torch.ones_like(gain) if norm == "linf" else gain, room, wanted)
    else:
        change = _fill_in_order(gain, room, wanted, gain if norm == "l1" else gain * room)
    return (way.sign() * change).reshape_as(images)


def _fill_evenly(
    gain: Float[Tensor, "n d"], pace: Float[Tensor, "n d"], room: Float[Tensor, "n d"], wanted: Float[Tensor, "n 1"]
) -> Float[Tensor, "n d"]:
    """Find t with ``sum(gain * min(t * pace, room)) = wanted``: values fill up one after another, the rest go on."""
    tiny = torch.finfo(gain.dtype).tiny
    full: Bool[Tensor, "n d"] = torch.zeros_like(gain, dtype=torch.bool)
    t = wanted / (gain * pace).sum(1, keepdim=True).clamp_min(tiny)
    for _ in range(gain.shape[1]):  # a handful of rounds is usual
        reached = t * pace >= room
        if not bool((reached & ~full).any()):
            break
        full |= reached
        left = (wanted - (gain * room * full).sum(1, keepdim=True)).clamp_min(0)
        t = torch.maximum(t, left / (gain * pace * ~full).sum(1, keepdim=True).clamp_min(tiny))
    return torch.where(full, room, torch.minimum(t * pace, room))


def _fill_in_order(
    gain: Float[Tensor, "n d"], room: Float[Tensor, "n d"], wanted: Float[Tensor, "n 1"], worth: Float[Tensor, "n d"]
) -> Float[Tensor, "n d"]:
    """Fill the worthiest values one after another until the gain suffices; the last one only as far as needed."""
    order = worth.argsort(dim=1, descending=True, stable=True)
    gains, rooms = gain.gather(1, order), room.gather(1, order)
    before = (gains * rooms).cumsum(1) - gains * rooms
    needed = ((wanted - before) / gains.clamp_min(torch.finfo(gain.dtype).tiny)).clamp_min(0)
    return torch.zeros_like(gain).scatter(1, order, torch.minimum(needed, rooms))


def nearest_crossing(
    here: Float[Tensor, "n c h w"],
    logits: Float[Tensor, "n k"],
    labels: Int64[Tensor, " n"],
    targets: Int64[Tensor, " n"] | None,
    nearest_of: int,
    norm: NormName,
) -> Float[Tensor, "n c h w"]:
    """Give the shortest change that crosses a linearised boundary to a target, or to one of the likeliest classes.

    Costs one backward pass for each class considered, through the graph that made ``logits`` from ``here``.
    """
    wanted = wrong_classes(logits.detach(), labels)[:, :nearest_of] if targets is None else targets[:, None]
    own = logits.gather(1, labels[:, None])
    best, shortest = torch.zeros_like(here), torch.full((len(here),), torch.inf, dtype=torch.float64).to(here.device)
    for k in range(wanted.shape[1]):
        behind = (own - logits.gather(1, wanted[:, k : k + 1])).squeeze(1)
        (gradient,) = torch.autograd.grad(behind.sum(), here, retain_graph=k + 1 < wanted.shape[1])
        way = -gradient.nan_to_num(0.0, 0.0, 0.0)
        step = cross(here.detach(), way, behind.detach(), norm)
        length = NORMS[norm].distance(step, torch.zeros_like(step))
        reaches = (way * step).flatten(1).sum(1) >= 0.999 * behind.detach()
        length = torch.where(reaches, length, 1e6 + length)  # a boundary outside the box is the last choice
        best = torch.where((length < shortest)[:, None, None, None], step, best)
        shortest = torch.minimum(length, shortest)
    return best

"""An adapter: any attack that takes an eps becomes one that looks for the nearest candidate."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.nearest import Nearest
from robustcv.attacks.norms import NormName
from robustcv.classifier import rows_in_play

BEGIN = {"linf": 1.0, "l2": 1.0, "l1": 4.0, "l0": 4.0}  # it doubles until an image breaks, or all may be changed


def doublings(norm: NormName, values: int) -> int:
    """Tell how often to double until the ball around an image of so many values holds every image."""
    widest = {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values), "l0": float(values)}[norm]
    return max(0, math.ceil(math.log2(widest / BEGIN[norm])))


def by_bisection(attack: Callable[..., Tensor], *, rounds: int = 12, **fixed: Any) -> Callable[..., Tensor]:
    """Make a minimum-norm attack of one that takes an eps, which each image then has its own of.

    Parameters
    ----------
    attack
        A fixed-budget attack, such as ``ATTACKS["apgd-t"]``.
    rounds
        Halvings; the distance is found to a share of ``2 ** -rounds`` of the first eps that sufficed.
    fixed
        Options of the attack, such as ``steps=20``.

    Returns
    -------
    Callable
        ``nearest(classifier, images, labels, *, norm, targets, seeds)``.
    """

    @functools.wraps(attack, assigned=("__name__", "__doc__"))
    def nearest(
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        norm: NormName = "linf",
        targets: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
        found = Nearest(images, norm)
        low = torch.zeros(len(images), dtype=images.dtype, device=images.device)
        high = torch.full_like(low, BEGIN[norm])
        widenings = doublings(norm, images[0].numel())
        for number in range(rounds + max(6, widenings)):  # more halvings where little was spent on widening
            known = found.distance.isfinite()
            eps = torch.where(known, (low + high) / 2, high)
            candidates = attack(classifier, images, labels, eps=eps, norm=norm, targets=targets, seeds=seeds, **fixed)
            rows = rows_in_play(classifier, images)
            if len(rows) == 0:
                break
            with torch.no_grad():
                fools = found.offer(rows, candidates[rows], classifier(candidates[rows]), labels, targets)
            high[rows] = torch.where(fools, found.distance[rows].to(high), high[rows])
            low[rows] = torch.where(fools, low[rows], eps[rows])
            unknown = found.distance.isinf()
            if number < widenings:
                high = torch.where(unknown, 2 * high, high)
        return found.images

    del nearest.__wrapped__  # its signature is its own
    return nearest

"""DeepFool: cross the nearest linearised boundary, again and again."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.attacks.climb import chosen
from robustcv.attacks.halfspace import nearest_crossing
from robustcv.attacks.nearest import Nearest
from robustcv.attacks.norms import NormName
from robustcv.classifier import rows_in_play

LAST = 8  # forward passes on the way back to the image


def deepfool(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    norm: NormName = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 30,
    nearest_of: int = 9,
    overshoot: float = 0.02,
) -> Float[Tensor, "n c h w"]:
    """Step to the nearest of the linearised boundaries until the answer changes (Moosavi-Dezfooli et al. 2016, alg. 2).

    Each boundary is crossed exactly within the box, so the answer on a linear model is the exact minimum.

    Parameters
    ----------
    classifier
        Images `n c h w` in [0, 1] to logits `n k`.
    images, labels
        Clean images in [0, 1] and their true classes.
    norm
        ``linf``, ``l2``, ``l1`` or ``l0``.
    targets
        Classes to reach; None goes to the nearest of the likeliest wrong ones.
    seeds
        Not used: the attack is deterministic.
    steps
        Most steps: one forward, and one backward pass for each class, each.
    nearest_of
        How many of the likeliest wrong classes are considered.
    overshoot
        How much further than the linearised boundary, as a share.

    Returns
    -------
    Tensor
        Images in [0, 1], near to the clean ones where they fool; the clean ones where nothing was found.
    """
    nearest = Nearest(images, norm)
    current, going = images.clone(), torch.ones(len(images), dtype=torch.bool, device=images.device)
    for _ in range(steps + 1):
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        here = current[rows].requires_grad_()
        logits = classifier(here)
        fools = nearest.offer(rows, here.detach(), logits, labels, targets)
        going[rows[fools]] = False
        if not bool(going[rows].any()):
            break
        step = nearest_crossing(here, logits, labels[rows], chosen(targets, rows), nearest_of, norm)
        moved = (here.detach() + (1 + overshoot) * step).clamp(0, 1)
        current[rows] = torch.where(going[rows][:, None, None, None], moved, current[rows])
    nearest.approach(classifier, labels, targets, LAST)
    return nearest.images

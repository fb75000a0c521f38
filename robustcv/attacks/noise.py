"""Random noise: what every attack that uses the model must beat."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.climb import Best, chosen
from robustcv.attacks.losses import margin
from robustcv.attacks.norms import NORMS, NormName, Radius, wide
from robustcv.classifier import rows_in_play


def noise(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: Radius,
    norm: NormName = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    queries: int = 20,
) -> Float[Tensor, "n c h w"]:
    """Try random points of the ball, on its rim and inside in turn (Carlini et al. 2019, section 4.1).

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
        One per image, for the draws; None uses the position in the batch.
    queries
        Points to try; one forward pass each.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1]: the one that fools the classifier, else the nearest to it.
    """
    ball = NORMS[norm]
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    best = Best(images)
    for query in range(queries):
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        clean, wanted, reach = chosen(images, rows), chosen(targets, rows), chosen(eps, rows)
        candidates = ball.start(clean, reach, seeds[rows], query)
        if query % 2 == 0 and norm != "l0":  # an L0 draw has used up its eps already
            rim = clean + wide(reach, clean) * ball.ascend(candidates - clean)
            candidates = ball.project(rim, clean, reach)
        with torch.no_grad():
            logits = classifier(candidates).to(candidates.dtype)
        best.offer(rows, candidates, margin(logits, chosen(labels, rows), wanted), logits, labels, targets)
    return best.images

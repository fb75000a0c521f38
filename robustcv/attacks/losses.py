"""What an attack climbs: losses of logits, one number per image, larger when the image is closer to being broken."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional


def cross_entropy(
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], targets: Int64[Tensor, " n"] | None
) -> Float[Tensor, " n"]:
    """Compute the cross-entropy of the label, or minus that of the target; its gradient vanishes on huge logits."""
    if targets is None:
        return functional.cross_entropy(logits, labels, reduction="none")
    return -functional.cross_entropy(logits, targets, reduction="none")


def margin(
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], targets: Int64[Tensor, " n"] | None
) -> Float[Tensor, " n"]:
    """Compute the best wrong logit minus the label's, or the target's minus the best other (Carlini and Wagner 2017).

    Positive exactly when the attack has succeeded; it does not saturate when logits are large.
    """
    wanted = labels if targets is None else targets
    own = logits.gather(1, wanted[:, None]).squeeze(1)
    others = logits.scatter(1, wanted[:, None], -torch.inf).amax(1)
    return others - own if targets is None else own - others


def dlr(
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], targets: Int64[Tensor, " n"] | None
) -> Float[Tensor, " n"]:
    """Compute the margin in units of the logits' own spread (Croce and Hein 2020, equations 6 and 7).

    The spread needs four classes; with fewer it is the plain margin.
    """
    gap = margin(logits, labels, targets)
    if logits.shape[1] < 4:
        return gap
    top = logits.topk(4, dim=1).values
    below = top[:, 2] if targets is None else (top[:, 2] + top[:, 3]) / 2
    return gap / (top[:, 0] - below).clamp_min(torch.finfo(logits.dtype).tiny)


Loss = Literal["cross_entropy", "margin", "dlr"]
LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def wrong_classes(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, "n k_1"]:
    """Rank the wrong classes of each image, the likeliest first."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]

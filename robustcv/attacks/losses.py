"""What an attack climbs: losses of logits, one number per image, larger when the image is closer to being broken."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional


def cross_entropy(
    logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], targets: Int64[Tensor, " n"] | None
) -> Float[Tensor, " n"]:
    """Compute the cross-entropy of the label, or minus that of the target."""
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


Loss = Literal["cross_entropy", "margin"]
LOSSES = {"cross_entropy": cross_entropy, "margin": margin}

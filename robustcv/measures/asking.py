"""Asking the classifier about many variants of images, in chunks; what measures share."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.runtime import in_chunks

References = str | float | Tensor


def answers(
    classifier: nn.Module,
    make: Callable[[Tensor], Tensor],
    which: Int64[Tensor, " m"],
    targets: Int64[Tensor, " m"],
    of: Literal["probability", "logit"],
    rows: int,
) -> Float[Tensor, " m"]:
    """Compute the target's probability or logit of each variant; ``make`` builds those of some numbers."""

    def run(part: slice) -> Tensor:
        with torch.no_grad():
            logits: Tensor = classifier(make(which[part]))
        values = logits.softmax(1) if of == "probability" else logits
        return values.gather(1, targets[part, None]).squeeze(1)

    return torch.cat(in_chunks(run, len(which), rows))


def filled(images: Float[Tensor, "n c h w"], fill: References) -> Float[Tensor, "n c h w"]:
    """Make what hidden pixels show: the image's mean colour, a grey level, or a given image for each."""
    if isinstance(fill, Tensor):
        return fill.to(images).expand_as(images)
    if fill == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    return torch.full_like(images, float(fill))

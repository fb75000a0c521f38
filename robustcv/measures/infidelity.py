"""Infidelity: does the map foretell what noise does to the logit?"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.measures.asking import answers
from robustcv.runtime import chunk_size


def infidelity(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    samples: int = 32,
    noise: float = 0.1,
    seeds: Int64[Tensor, " n"] | None = None,
    rows: int | None = None,
) -> Float[Tensor, " n"]:
    """Compute the share of the logit's change under noise that the map does not foretell (Yeh et al. 2019).

    The mean of (b I.phi - change)^2 over that of change^2, for noise I and the best factor b of each image (as captum's
    ``normalize``), so that maps of any unit can be compared: 0 foretells all, 1 nothing. It asks for slopes: a map of
    shares, slope times change, foretells less even where it is exact. A map without channels counts for all of them.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; only queried.
    images, targets, heatmaps
        What was explained, and the maps.
    samples
        Noisy copies of each image.
    noise
        Standard deviation, in units of [0, 1].
    seeds
        One per image; None uses the position in the batch.
    rows
        Images sent through the classifier at a time; None suits their size.

    Returns
    -------
    Tensor
        One share per image, 0 to 1; lower is better.
    """
    n = len(images)
    seeds = draws.fresh_seeds(n).to(images.device) if seeds is None else seeds

    def shift(part: Tensor) -> Tensor:
        return noise * draws.fill(
            seeds[part // samples] * 4096 + part % samples, tuple(images.shape[1:]), "normal", 6
        ).to(images)

    which, owners = torch.arange(n * samples, device=images.device), targets.repeat_interleave(samples)
    size = chunk_size(images, rows)
    after = answers(classifier, lambda part: images[part // samples] + shift(part), which, owners, "logit", size)
    before = answers(
        classifier, lambda part: images[part], torch.arange(n, device=images.device), targets, "logit", size
    )
    change = after.reshape(n, samples) - before[:, None]
    told = torch.cat([(shift(part) * heatmaps[part // samples]).sum((1, 2, 3)) for part in which.split(size)]).reshape(
        n, samples
    )
    factor = (told * change).sum(1) / (told**2).sum(1).clamp_min(1e-30)
    left = ((factor[:, None] * told - change) ** 2).sum(1) / (change**2).sum(1).clamp_min(1e-30)
    return left.where((change**2).sum(1) > 0, 0.0)

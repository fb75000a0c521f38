"""GradientSHAP: gradients at random points between random baselines and the image."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.explainers.explanation import Explanation, completeness_gap

LEVELS = 11


def gradient_shap(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    samples: int = 32,
    rows: int = 256,
) -> Explanation:
    """Average (x - b) * gradient over random baselines b and random points of the path (Erion et al. 2021, eq. 3).

    The baselines are constant grey images of 11 levels from black to white, drawn without replacement in turn; the
    point on the path is drawn from each of ``samples`` equal parts once, which is what makes few samples go far. Our
    own code, because captum's and shap's draw from global generators, so that an image's map would depend on its batch.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        One per image; None uses the position in the batch.
    samples
        Pairs of baseline and point, per image.
    rows
        Images sent through the classifier at a time.
    """
    n = len(images)
    seeds = draws.fresh_seeds(n).to(images.device) if seeds is None else seeds
    order = draws.uniform(seeds, (samples,), 0).argsort(dim=1)  # each image's own shuffle of the parts
    points = (order + draws.uniform(seeds, (samples,), 1)) / samples
    shuffled = draws.uniform(seeds, (-(-samples // LEVELS), LEVELS), 2).argsort(dim=2).reshape(n, -1)[:, :samples]
    levels = (shuffled / (LEVELS - 1)).to(images)
    heatmaps = torch.zeros_like(images)
    for columns in torch.arange(samples, device=images.device).split(max(1, rows // n)):
        k = len(columns)
        base = levels[:, columns].reshape(n * k, 1, 1, 1)
        t = points[:, columns].to(images).reshape(n * k, 1, 1, 1)
        ends = images.detach().repeat_interleave(k, dim=0)
        inputs = (base + t * (ends - base)).requires_grad_()
        logits = classifier(inputs).gather(1, targets.repeat_interleave(k)[:, None])
        (gradient,) = torch.autograd.grad(logits.sum(), inputs)
        heatmaps += (gradient * (ends - base)).reshape(n, k, *images.shape[1:]).sum(1) / samples
    with torch.no_grad():
        own = classifier(images).gather(1, targets[:, None]).squeeze(1)
        grey = torch.linspace(0, 1, LEVELS, device=images.device, dtype=images.dtype)
        flat = grey.reshape(-1, 1, 1, 1).expand(LEVELS, *images.shape[1:])
        at_levels = classifier(flat)[:, targets].T.gather(1, shuffled).mean(1)
    return Explanation(
        heatmaps=heatmaps.float(),
        error=completeness_gap(heatmaps.flatten(1).sum(1), own - at_levels).float(),
        forwards=torch.full((n,), 2 * samples + 1),
        details={"target": "logit", "baseline": f"{LEVELS} grey levels, black to white", "samples": samples},
    )

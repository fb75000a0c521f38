"""GradientSHAP: gradients at random points between random baselines and the image."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.explainers.explanation import Explanation, completeness_gap, half_error
from robustcv.explainers.passes import reference_logits, target_gradients, target_logits
from robustcv.explainers.references import GREYS, Reference, describe, references
from robustcv.runtime import chunk_size


def gradient_shap(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    samples: int = 32,
    baselines: Reference = GREYS,
    rows: int | None = None,
) -> Explanation:
    """Average (x - b) * gradient over random baselines b and random points of the path (Erion et al. 2021, eq. 3).

    The baselines, unless told otherwise constant grey images of 11 levels from black to white, are drawn without
    replacement in turn; the point on the path is drawn from each of ``samples`` equal parts once, which is what makes
    few samples go far. Our own code, because captum's and shap's draw from global generators, so that an image's map
    would depend on its batch.

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
    baselines
        Other images ``b c h w`` (expected gradients proper), or one or more of `references`.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    n, ends = len(images), images.detach()
    rows = chunk_size(images, rows)
    seeds = draws.fresh_seeds(n).to(images.device) if seeds is None else seeds
    others = references(images, baselines)
    order = draws.uniform(seeds, (samples,), 0).argsort(dim=1)  # each image's own shuffle of the parts
    points = (order + draws.uniform(seeds, (samples,), 1)) / samples
    turns = draws.uniform(seeds, (-(-samples // len(others)), len(others)), 2).argsort(dim=2)
    which = turns.reshape(n, -1)[:, :samples]
    halves = [torch.zeros_like(images), torch.zeros_like(images)]
    for column in torch.arange(samples, device=images.device).split(max(1, rows // n)):
        k = len(column)
        owner = torch.arange(n, device=images.device).repeat_interleave(k)
        base, t = which[:, column].flatten(), points[:, column].to(images).reshape(n * k, 1, 1, 1)

        def make(part: slice, owner: Tensor = owner, base: Tensor = base, t: Tensor = t) -> Tensor:
            start = _starts(others, base[part], owner[part], n)
            return start + t[part] * (ends[owner[part]] - start)

        gradient = target_gradients(classifier, make, targets[owner], rows)
        shares = (gradient * (ends[owner] - _starts(others, base, owner, n))).unflatten(0, (n, k))
        for half in (0, 1):
            halves[half] += shares[:, column % 2 == half].sum(1)
    counts = (samples + 1) // 2, max(1, samples // 2)
    heatmaps = (halves[0] + halves[1]) / samples
    uncertain = half_error(halves[0] / counts[0], halves[1] / counts[1]) if samples > 1 else torch.full((n,), torch.nan)
    before = reference_logits(classifier, others, targets, rows).gather(1, which).mean(1)
    change = target_logits(classifier, ends, targets, rows) - before
    return Explanation(
        heatmaps=heatmaps.float(),
        error=uncertain,
        forwards=torch.full((n,), 2 * samples + 1),
        details={
            "target": "logit",
            "baseline": describe(baselines),
            "samples": samples,
            "shared_forwards": sum(len(start) for start in others),
        },
        gap=completeness_gap(heatmaps.flatten(1).sum(1), change),
    )


def _starts(others: list[Tensor], which: Tensor, owner: Tensor, n: int) -> Tensor:
    """Give the reference image of each row: one for all images, or the row's own."""
    if all(len(start) == 1 for start in others):
        return torch.cat(others)[which]
    found = torch.empty(len(which), *others[0].shape[1:], dtype=others[0].dtype, device=others[0].device)
    for number, start in enumerate(others):
        rows = which == number
        found[rows] = start.expand(n, *start.shape[1:])[owner[rows]]
    return found

"""Partition SHAP: Owen values of rectangles of pixels, by shap; needs no gradients."""

import itertools
import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcv.explainers.explanation import Explanation, completeness_gap
from robustcv.explainers.references import Reference, describe, references
from robustcv.explainers.regions import Regions, painted, regions_of
from robustcv.runtime import chunk_size


def partition_shap(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    evaluations: int = 300,
    regions: Regions = "pixels",
    fill: Reference = "mean",
    rows: int | None = None,
) -> Explanation:
    """Share the target's logit among parts of the image by Owen values (Lundberg; shap's PartitionExplainer).

    The image is halved again and again along its longer side, down to single pixels, or superpixels are joined with
    their nearest. All channels of a pixel are one player. The order of evaluation goes where it matters most, so a map
    of few evaluations is coarse, but complete: its sum is the change of the logit from the filled image.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; only queried, never differentiated.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    evaluations
        Masked images per image.
    regions
        ``pixels``, or ``slic:50`` and the like; see `regions.regions_of`.
    fill
        What hidden pixels show: ``mean``, ``blur`` or a grey level; see `references`.
    rows
        Masked images sent through the classifier at a time; None suits their size.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing shap trips over newer matplotlib; nothing the user could decide
        from shap.explainers import PartitionExplainer

    h, w = images.shape[2:]
    where = None if isinstance(regions, str) and regions == "pixels" else regions_of(images, regions)
    (behind,) = references(images, fill)
    behind, batch = behind.expand_as(images), chunk_size(images, rows)
    maps, gaps, costs = [], [], []
    for number, (image, target) in enumerate(zip(images.detach(), targets.tolist(), strict=True)):
        places = torch.arange(h * w).reshape(h, w) if where is None else where[number].cpu()
        players = int(places.max()) + 1
        game = _Game(classifier, image, behind[number], places, target)
        tree = halving_tree(int(h), int(w)) if where is None else nearest_tree(places)
        row = PartitionExplainer(game, _Masker(tree, players)).explain_row(
            np.arange(players)[None],
            max_evals=evaluations,
            main_effects=False,
            error_bounds=False,
            outputs=None,
            silent=True,
            batch_size=batch,
        )
        heatmap = painted(torch.from_numpy(np.asarray(row["values"], np.float32)), places)
        maps.append(heatmap)
        everything = np.ones((1, players), dtype=bool)
        change = float(game(everything)[0] - game(~everything)[0])
        gaps.append(completeness_gap(heatmap.sum()[None], torch.tensor([change])))
        costs.append(game.forwards)
    return Explanation(
        heatmaps=torch.stack(maps).to(images.device),
        error=torch.full((len(images),), torch.nan, device=images.device),
        forwards=torch.tensor(costs),
        details={
            "target": "logit",
            "baseline": describe(fill),
            "regions": regions if isinstance(regions, str) else "given",
            "evaluations": evaluations,
        },
        gap=torch.cat(gaps).to(images.device),
    )


class _Game:
    """The function shap sees: rows of players that are shown, to the target's logit."""

    def __init__(self, classifier: nn.Module, image: Tensor, fill: Tensor, places: Tensor, target: int) -> None:
        self.classifier, self.image, self.fill, self.target = classifier, image, fill, target
        self.places = places.to(image.device)
        self.forwards = 0

    def __call__(self, shown: NDArray[np.bool_]) -> NDArray[np.float64]:
        mask = torch.from_numpy(np.asarray(shown, dtype=bool)).to(self.image.device)
        masked = torch.where(mask[:, self.places][:, None], self.image, self.fill)
        with torch.no_grad():
            logits = self.classifier(masked)[:, self.target]
        self.forwards += len(masked)
        return logits.double().cpu().numpy()  # type: ignore[no-any-return]


class _Masker:
    """Hands shap's masks through as they are; the game does the masking, in one batch on the device."""

    immutable_outputs = True

    def __init__(self, clustering: NDArray[np.float64], pixels: int) -> None:
        self.clustering = clustering
        self.shape = (1, pixels)

    def __call__(self, mask: NDArray[np.bool_], *args: Any) -> tuple[NDArray[np.bool_]]:
        return (np.asarray(mask, dtype=bool)[None],)


def halving_tree(height: int, width: int) -> NDArray[np.float64]:
    """Build the tree of rectangles, halved along the longer side, in scipy's linkage form (root last)."""
    joins: list[tuple[int, int, int]] = []
    numbers = itertools.count(height * width)

    def build(top: int, left: int, h: int, w: int) -> int:
        if h == w == 1:
            return top * width + left
        if h >= w:
            parts = build(top, left, h // 2, w), build(top + h // 2, left, h - h // 2, w)
        else:
            parts = build(top, left, h, w // 2), build(top, left + w // 2, h, w - w // 2)
        joins.append((*parts, h * w))
        return next(numbers)

    build(0, 0, height, width)
    return np.array([[a, b, size, size] for a, b, size in joins], dtype=float)


def nearest_tree(places: Int64[Tensor, "h w"]) -> NDArray[np.float64]:
    """Build the tree that joins the regions whose centres are nearest, in scipy's linkage form."""
    from scipy.cluster.hierarchy import linkage

    h, w = places.shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    sizes = torch.bincount(places.flatten())
    centres = [torch.bincount(places.flatten(), weights=each.flatten().double()) / sizes for each in (y, x)]
    if len(sizes) == 1:
        return np.zeros((0, 4))
    return np.asarray(linkage(torch.stack(centres, 1).numpy(), "average"), dtype=float)

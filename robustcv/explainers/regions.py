"""Regions of an image that are shown or hidden together: a grid, superpixels, or the caller's own."""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

Regions = str | Tensor


def regions_of(images: Float[Tensor, "n c h w"], regions: Regions) -> Int64[Tensor, "n h w"]:
    """Number the regions of each image from 0, without gaps.

    Parameters
    ----------
    images
        In [0, 1].
    regions
        ``grid:4`` or ``grid:3x4`` (rows x columns) rectangles; ``slic:25``, about so many superpixels (Achanta et al.
        2012, by scikit-image); or whole numbers of any values, ``h w`` or ``n h w``, equal where pixels are together.

    Returns
    -------
    Tensor
        Numbers that begin at 0 and leave none out: methods that count on it (lime does) skip a region otherwise.

    Raises
    ------
    ValueError
        If a description cannot be read, or a tensor is of another size than the images.
    """
    n, _, h, w = images.shape
    if isinstance(regions, Tensor):
        if regions.shape[-2:] != (h, w) or regions.ndim not in (2, 3) or (regions.ndim == 3 and len(regions) != n):
            raise ValueError(
                f"regions of shape {tuple(regions.shape)} do not fit {n} images of {h}x{w}: give h w or n h w"
            )
        return torch.stack([_numbered(one) for one in regions.long().expand(n, h, w)]).to(images.device)
    kind, _, size = regions.partition(":")
    try:
        if kind == "grid":
            rows, _, columns = size.partition("x")
            return grid(h, w, int(rows), int(columns or rows)).expand(n, h, w).to(images.device)
        if kind == "slic":
            return torch.stack([_slic(image, int(size)) for image in images]).to(images.device)
    except ValueError as error:
        raise ValueError(f"regions {regions!r} cannot be read ({error}): write grid:4, grid:3x4 or slic:25") from error
    raise ValueError(f"regions {regions!r} cannot be read: write grid:4, grid:3x4 or slic:25")


def grid(h: int, w: int, rows: int, columns: int) -> Int64[Tensor, "h w"]:
    """Cut a picture into rows x columns rectangles, as equal as whole pixels allow; never more than it has pixels."""
    if rows < 1 or columns < 1:
        raise ValueError("a grid has at least one row and one column")
    rows, columns = min(rows, h), min(columns, w)
    y, x = torch.arange(h) * rows // h, torch.arange(w) * columns // w
    return y[:, None] * columns + x


def _slic(image: Tensor, wanted: int) -> Tensor:
    from skimage.segmentation import slic

    if wanted < 1:
        raise ValueError("at least one superpixel is needed")
    pixels = image.detach().permute(1, 2, 0).cpu().numpy().astype(np.float64)
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    for compactness in (
        10,
        100,
        1000,
    ):  # a noisy picture falls into crumbs, which are merged into one; compact ones stay
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where a picture has fewer colours than superpixels
            found = slic(pixels, n_segments=wanted, compactness=compactness, start_label=0)
        if len(np.unique(found)) >= wanted / 2:
            break
    return _numbered(torch.from_numpy(found).long())


def _numbered(one: Tensor) -> Tensor:
    numbered: Tensor = one.unique(return_inverse=True)[1]
    return numbered


def counts(regions: Int64[Tensor, "n h w"]) -> list[int]:
    """Count the regions of each image."""
    return (regions.flatten(1).amax(1) + 1).tolist()


def painted(values: Float[Tensor, " m"], regions: Int64[Tensor, "h w"]) -> Float[Tensor, "1 h w"]:
    """Spread each region's value evenly over its pixels, so that the map's sum is the sum of the values."""
    sizes = torch.bincount(regions.flatten(), minlength=len(values)).to(values)
    return (values / sizes)[regions][None]


def neighbours(regions: Int64[Tensor, "h w"]) -> list[list[int]]:
    """Group regions that may act together: for each two that touch, those that touch both, and the two.

    Regions touch where two of their pixels do, by a side or a corner. On a grid the groups are its blocks of 2x3, 3x2
    and 2x2 rectangles.

    Parameters
    ----------
    regions
        Numbers from 0, without gaps.
    """
    steps = [
        (regions[:, 1:], regions[:, :-1]),
        (regions[1:], regions[:-1]),
        (regions[1:, 1:], regions[:-1, :-1]),
        (regions[1:, :-1], regions[:-1, 1:]),
    ]
    count = int(regions.max()) + 1
    codes = [torch.minimum(a, b) * count + torch.maximum(a, b) for a, b in steps]
    pairs = [divmod(code, count) for code in torch.cat([each.flatten() for each in codes]).unique().tolist()]
    touching = [{k} for k in range(count)]
    for a, b in pairs:
        touching[a].add(b)
        touching[b].add(a)
    groups = {tuple(sorted(touching[a] & touching[b])) for a, b in pairs if a != b}
    return [list(group) for group in sorted(groups)]

"""Integrated gradients: the midpoint rule, with as many points as a stated error needs."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.explainers.explanation import Explanation, completeness_gap, half_error
from robustcv.explainers.passes import reference_logits, target_gradients, target_logits
from robustcv.explainers.references import Reference, describe, references
from robustcv.runtime import chunk_size

FIRST, LEAST, MOST = 6, 12, 320  # points: below the least, the estimate of the error is not trusted
GRADIENTS_KEPT = 1 << 27  # values of one image's path: half a gigabyte
SAFE = 0.8  # half the difference of even and odd points is 1.2 to 3 times the error (benchmarks/RESULTS.md)


def integrated_gradients(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    error: float = 0.05,
    steps: int | None = None,
    baseline: Reference = 0.0,
    rows: int | None = None,
) -> Explanation:
    """Integrate the gradient of the target's logit from a baseline to the image (Sundararajan, Taly and Yan 2017).

    ``(x - b) * integral over t of dz(b + t (x - b))/dx``. Each part of the path is asked about at its middle; on ReLU
    networks, whose gradient is piecewise constant, that beats the Gauss-Legendre rule at equal cost. Without ``steps``
    the parts between which the gradient turns most are cut in three, which keeps the old middle, until the map's
    estimated error is below ``error``: so a path that is mostly straight costs little, and none is paid for twice.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    error
        Stop each image when the estimated relative error of its map is at most this; 320 points at most, fewer for
        pictures of megapixels. The estimate compares the maps of the even and the odd points; on the models we tried it
        is 1 to 2 times the true error.
    steps
        Exactly so many equal parts instead.
    baseline
        A grey level, or another of `references`; over several the maps are averaged.
    rows
        Images sent through the classifier at a time; None suits their size.
    """
    rows = chunk_size(images, rows)
    starts = references(images, baseline)
    own = target_logits(classifier, images.detach(), targets, rows)
    maps, errors, costs, change = (
        torch.zeros_like(images),
        torch.zeros_like(own),
        torch.ones(len(images), dtype=torch.int64),
        own,
    )
    for start in starts:
        path = _Path(classifier, images.detach(), start, targets, rows)
        found, uncertain, points = path.midpoint(steps) if steps else path.refined(error)
        maps += found / len(starts)
        errors += uncertain * found.flatten(1).norm(dim=1) / len(starts)
        costs += 2 * points + (len(start) == len(images))
    change = change - reference_logits(classifier, starts, targets, rows).mean(1)
    length = maps.flatten(1).norm(dim=1)  # of the mean map, which can be far shorter than each baseline's
    errors = torch.where(length > 0, errors / length.clamp_min(1e-30), errors)
    shared = sum(len(start) != len(images) for start in starts)
    return Explanation(
        heatmaps=maps.float(),
        error=errors.float(),
        forwards=costs,
        details={
            "target": "logit",
            "baseline": describe(baseline),
            "steps": steps or "as the error needs",
            "rule": "midpoint",
            "shared_forwards": shared,
        },
        gap=completeness_gap(maps.flatten(1).sum(1), change),
    )


class _Path:
    """The straight paths from a baseline to each image, and the gradient's share of the map at points of them."""

    def __init__(self, classifier: nn.Module, images: Tensor, start: Tensor, targets: Tensor, rows: int) -> None:
        self.classifier, self.images, self.targets, self.rows = classifier, images, targets, rows
        self.start = start.expand_as(images)

    def shares(self, points: Float[Tensor, "n k"], image: Tensor) -> Float[Tensor, "m k c h w"]:
        """Compute (x - b) * gradient at each point; ``image`` tells whose points the rows are."""
        k = points.shape[1]
        owner, t = image.repeat_interleave(k), points.reshape(-1, 1, 1, 1).to(self.images)

        def make(part: slice) -> Tensor:
            start = self.start[owner[part]]
            return start + t[part] * (self.images[owner[part]] - start)

        gradient = target_gradients(self.classifier, make, self.targets[owner], self.rows)
        ends = (self.images - self.start)[image]
        shares: Tensor = gradient.unflatten(0, (len(image), k)) * ends[:, None]
        return shares

    def midpoint(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Give maps, estimated errors and points of the rule with equal parts, a few images' paths at a time."""
        maps, errors = [], []
        points = (torch.arange(steps, device=self.images.device) + 0.5) / steps
        for image in torch.arange(len(self.images), device=self.images.device).split(max(1, self.rows // steps)):
            shares = self.shares(points.expand(len(image), -1), image)
            maps.append(shares.mean(1))
            errors.append(
                half_error(shares[:, ::2].mean(1), shares[:, 1::2].mean(1))
                if steps > 1
                else maps[-1].new_full((len(image),), torch.nan)
            )
        return torch.cat(maps), torch.cat(errors), torch.full((len(self.images),), steps)

    def refined(self, wanted: float) -> tuple[Tensor, Tensor, Tensor]:
        """Give maps, estimated errors and points where each image's path is cut until its error is small enough."""
        device = self.images.device
        maps, errors = torch.zeros_like(self.images), torch.zeros(len(self.images), device=device)
        points = torch.zeros(len(self.images), dtype=torch.int64)
        most = min(MOST, max(2 * LEAST, GRADIENTS_KEPT // self.images[0].numel()))
        for block in torch.arange(len(self.images), device=device).split(max(1, self.rows // 32)):
            going = block
            t = ((torch.arange(FIRST, device=device) + 0.5) / FIRST).expand(len(block), -1)
            width = torch.full_like(t, 1 / FIRST)
            shares = self.shares(t, going)
            while True:
                maps[going], errors[going] = _weighed(shares, width), SAFE * half_error(*_even_and_odd(shares, t))
                points[going.cpu()] = t.shape[1]
                left = (errors[going] > wanted) | (t.shape[1] < LEAST)
                if not bool(left.any()) or t.shape[1] * 5 // 4 > most:
                    break
                going, t, width, shares = going[left], t[left], width[left], shares[left]
                t, width, new = _cut(t, width, shares)
                shares = torch.cat([shares, self.shares(new, going)], 1)
                order = t.argsort(1)
                t, width = t.gather(1, order), width.gather(1, order)
                shares = shares.gather(1, order[:, :, None, None, None].expand_as(shares))
        return maps, errors, points


def _weighed(shares: Tensor, width: Tensor) -> Tensor:
    return torch.einsum("nk,nkchw->nchw", width.to(shares), shares)


def _even_and_odd(shares: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Integrate with every other point alone: each stands for the path up to halfway to its neighbours."""
    maps = []
    for half in (slice(0, None, 2), slice(1, None, 2)):
        between = (t[:, half][:, 1:] + t[:, half][:, :-1]) / 2
        edges = torch.cat([torch.zeros_like(t[:, :1]), between, torch.ones_like(t[:, :1])], 1)
        maps.append(_weighed(shares[:, half], edges.diff(dim=1)))
    return maps[0], maps[1]


def _cut(t: Tensor, width: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut in three the parts that matter most: width squared times the steeper turn to a neighbour."""
    slope = shares.diff(dim=1).flatten(2).norm(dim=2) / t.diff(dim=1)
    slope = torch.cat([slope[:, :1], slope, slope[:, -1:]], 1)
    weight = torch.maximum(slope[:, 1:], slope[:, :-1]) * width**2
    chosen = weight.topk(t.shape[1] // (2 if t.shape[1] < LEAST else 8), dim=1).indices
    middle, third = t.gather(1, chosen), width.gather(1, chosen) / 3
    new = torch.cat([middle - third, middle + third], 1)
    return torch.cat([t, new], 1), torch.cat([width.scatter(1, chosen, third), third, third], 1), new

"""Integrated gradients: the midpoint rule, with as many points as a stated error needs."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.explainers.explanation import Explanation, completeness_gap
from robustcv.explainers.passes import reference_logits, target_gradients, target_logits
from robustcv.explainers.references import Reference, describe, references
from robustcv.runtime import chunk_size

FIRST, MOST = 12, 320  # points: with fewer than the first, the estimate of the error is not trusted
MORE = 6  # a sixth as many are added at a time
GRADIENTS_KEPT = 1 << 27  # values of one image's path: half a gigabyte
SAFE = 1.3  # so that the expected error is that of all but a few images at most (benchmarks/RESULTS.md)


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
    points are added where the gradient turns most, until the map's estimated error is below ``error``: so a path that
    is mostly straight costs little, and none is paid for twice.

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
        pictures of megapixels. The estimate is what a random walk between the points would miss; on the models we tried
        it is 1 to 1.5 times the true error.
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
            t = points.expand(len(image), -1)
            shares = self.shares(t, image)
            maps.append(shares.mean(1))
            errors.append(
                _relative(_unsure(shares, t), maps[-1]) if steps > 1 else maps[-1].new_full(t[:, 0].shape, torch.nan)
            )
        return torch.cat(maps), torch.cat(errors), torch.full((len(self.images),), steps)

    def refined(self, wanted: float) -> tuple[Tensor, Tensor, Tensor]:
        """Give maps, estimated errors and points where each image's path is cut until its error is small enough."""
        device = self.images.device
        maps, errors = torch.zeros_like(self.images), torch.zeros(len(self.images), device=device)
        points = torch.zeros(len(self.images), dtype=torch.int64)
        most = min(MOST, max(2 * FIRST, GRADIENTS_KEPT // self.images[0].numel()))
        for going in torch.arange(len(self.images), device=device).split(max(1, self.rows // 32)):
            t = ((torch.arange(FIRST, device=device) + 0.5) / FIRST).expand(len(going), -1)
            shares = self.shares(t, going)
            while True:
                unsure = _unsure(shares, t)
                maps[going] = torch.einsum("nk,nkchw->nchw", _edges(t).diff(dim=1).to(shares), shares)
                errors[going] = _relative(unsure, maps[going])
                points[going.cpu()] = t.shape[1]
                left = errors[going] > wanted
                if not bool(left.any()) or t.shape[1] + t.shape[1] // MORE > most:
                    break
                going, t, shares = going[left], t[left], shares[left]
                new = _cuts(t, unsure[left])
                t, shares = torch.cat([t, new], 1), torch.cat([shares, self.shares(new, going)], 1)
                order = t.argsort(1)
                t, shares = t.gather(1, order), shares.gather(1, order[:, :, None, None, None].expand_as(shares))
        return maps, errors, points


def _edges(t: Float[Tensor, "n k"]) -> Float[Tensor, "n k+1"]:
    """Give the ends of the parts that the points stand for: halfway to their neighbours, as by the trapezoid rule."""
    return torch.cat([torch.zeros_like(t[:, :1]), (t[:, 1:] + t[:, :-1]) / 2, torch.ones_like(t[:, :1])], 1)


def _unsure(shares: Float[Tensor, "n k c h w"], t: Float[Tensor, "n k"]) -> Float[Tensor, "n k+1"]:
    """Give the expected squared error of each gap between points, and of the two ends.

    Through many kinks a gradient goes like a random walk, whose integral over a gap of width h misses the trapezoid
    rule by a variance of s h^3 / 12, and over an end by s h^3 / 3; s h is the squared difference of the gap's points.
    """
    gap = t.diff(dim=1)
    turn = shares.diff(dim=1).flatten(2).square().sum(2) / gap
    ends = turn[:, :1] * t[:, :1] ** 3 / 3, turn[:, -1:] * (1 - t[:, -1:]) ** 3 / 3
    return torch.cat([ends[0], turn * gap**3 / 12, ends[1]], 1)


def _relative(unsure: Float[Tensor, "n k"], maps: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Estimate the relative error of maps; zero maps have error 0."""
    length = maps.flatten(1).norm(dim=1)
    return torch.where(length > 0, SAFE * unsure.sum(1).sqrt() / length.clamp_min(1e-30), 0.0).float()


def _cuts(t: Float[Tensor, "n k"], unsure: Float[Tensor, "n k+1"]) -> Float[Tensor, "n m"]:
    """Give the middles of the gaps that are most unsure; of an end, the point that leaves a gap twice as wide."""
    chosen = unsure.topk(t.shape[1] // MORE, dim=1).indices
    middles = torch.cat([t[:, :1] / 3, (t[:, 1:] + t[:, :-1]) / 2, 1 - (1 - t[:, -1:]) / 3], 1)
    return middles.gather(1, chosen)

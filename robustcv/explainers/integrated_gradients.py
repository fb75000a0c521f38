"""Integrated gradients: the midpoint rule, with as many points as a stated error needs."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.explainers.explanation import Explanation, completeness_gap
from robustcv.explainers.passes import reference_logits, target_gradients, target_logits
from robustcv.explainers.references import Reference, describe, references
from robustcv.runtime import chunk_size

FIRST, MOST = 12, 320  # points: with fewer than the first, the estimate of the error is not trusted
AIM = 0.97  # of the error that is wanted, so that what is planned suffices
GRADIENTS_KEPT = 1 << 27  # values on the paths of images refined together: half a gigabyte, thrice that for a moment
NARROW = 1e-6  # of the path: nearer points could not be told apart in float32
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
    a few points tell where the gradient turns most; there it is cut, again and again, into as many parts as bring the
    map's estimated error below ``error``: so a path that is mostly straight costs little, and none is paid for twice.

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
        colour pictures of more than 373 pixels a side. The estimate is what a random walk between the points would
        miss; on the models we tried it is 1.2 to 1.5 times the true error. It is NaN where a map is zero but need not
        be.
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
        errors += uncertain / len(starts)
        costs += 2 * points + (len(start) == len(images))
    change = change - reference_logits(classifier, starts, targets, rows).mean(1)
    length = maps.double().flatten(1).norm(dim=1)  # of the mean map, which can be far shorter than each baseline's
    errors = torch.where(length > 0, errors / length, torch.where(errors == 0, 0.0, torch.nan))
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
        self.start, self.ends = start.expand_as(images), images - start

    def shares(self, points: Float[Tensor, " m"], owner: Int64[Tensor, " m"]) -> Float[Tensor, "m c h w"]:
        """Compute (x - b) * gradient at points of the paths; ``owner`` tells whose each is."""
        t, owner = points.reshape(-1, 1, 1, 1).to(self.images), owner.to(self.images.device)

        def make(part: slice) -> Tensor:
            return torch.addcmul(self.start[owner[part]], t[part], self.ends[owner[part]])

        return target_gradients(self.classifier, make, self.targets[owner], self.rows).mul_(self.ends[owner])

    def midpoint(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Give maps, lengths of their estimated errors, and points of the rule with equal parts."""
        maps, missed = torch.zeros_like(self.images), torch.full((len(self.images),), torch.nan)
        t = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        for some in torch.arange(len(self.images)).split(max(1, self.rows // steps)):
            for image, shares in zip(some.tolist(), self._parts(t, some), strict=True):
                maps[image] = shares.mean(0)
                if steps > 1:
                    missed[image] = _missed(_unsure(shares, t))
        return maps, missed.to(maps.device), torch.full((len(self.images),), steps)

    def refined(self, wanted: float) -> tuple[Tensor, Tensor, Tensor]:
        """Give maps, lengths of their estimated errors, and points, where paths are cut until errors are small enough.

        Points and plans are kept on the processor: they are few, and the same on every device.
        """
        maps, missed = torch.zeros_like(self.images), torch.zeros(len(self.images))
        points = torch.zeros(len(self.images), dtype=torch.int64)
        size = self.images[0].numel()
        most = min(MOST, max(2 * FIRST, GRADIENTS_KEPT // size))
        first = (torch.arange(FIRST, dtype=torch.float64) + 0.5) / FIRST
        for some in torch.arange(len(self.images)).split(
            max(1, min(self.rows // FIRST, GRADIENTS_KEPT // (most * size)))
        ):
            known = [(first, shares) for shares in self._parts(first, some)]
            while True:
                new = []
                for image, (t, shares) in zip(some.tolist(), known, strict=True):
                    unsure = _unsure(shares, t)
                    maps[image], missed[image], points[image] = _integral(shares, t), _missed(unsure), len(t)
                    goal = wanted * float(maps[image].double().norm())  # squares of small gradients are 0 in float32
                    enough = float(missed[image]) <= goal or len(t) >= most
                    new.append(t[:0] if enough else _cuts(t, _plan(t, unsure, (AIM / SAFE * goal) ** 2, most - len(t))))
                counts = [len(each) for each in new]
                if not any(counts):
                    break
                found = self.shares(torch.cat(new), some.repeat_interleave(torch.tensor(counts)))
                pairs = zip(known, new, found.split(counts), strict=True)
                known = [_sorted(torch.cat([t, more]), torch.cat([own, its])) for (t, own), more, its in pairs]
        return maps, missed.to(maps.device), points

    def _parts(self, t: Float[Tensor, " k"], some: Int64[Tensor, " n"]) -> list[Float[Tensor, "k c h w"]]:
        """Compute the shares at the same points of some images' paths."""
        return list(self.shares(t.repeat(len(some)), some.repeat_interleave(len(t))).split(len(t)))


def _sorted(t: Float[Tensor, " k"], shares: Float[Tensor, "k c h w"]) -> tuple[Tensor, Tensor]:
    order = t.argsort()
    return t[order], shares[order.to(shares.device)]


def _integral(shares: Float[Tensor, "k c h w"], t: Float[Tensor, " k"]) -> Float[Tensor, "c h w"]:
    """Integrate by the trapezoid rule: each point stands for what is nearer to it than to its neighbours."""
    halves = (t[1:] + t[:-1]) / 2
    weights = torch.cat([halves, t.new_ones(1)]) - torch.cat([t.new_zeros(1), halves])
    return torch.einsum("k,kchw->chw", weights.to(shares), shares)


def _unsure(shares: Float[Tensor, "k c h w"], t: Float[Tensor, " k"]) -> Float[Tensor, " k+1"]:
    """Give the expected squared error of each gap between points, and of the two ends.

    Through many kinks a gradient goes like a random walk, whose integral over a gap of width h misses the trapezoid
    rule by a variance of s h^3 / 12, and over an end by s h^3 / 3; s h is the squared difference of the gap's points.
    """
    gap = t.diff()
    turn = torch.linalg.vector_norm(shares.diff(dim=0).flatten(1), dim=1, dtype=torch.float64).square().cpu() / gap
    ends = turn[:1] * t[:1] ** 3 / 3, turn[-1:] * (1 - t[-1:]) ** 3 / 3
    return torch.cat([ends[0], turn * gap**3 / 12, ends[1]])


def _missed(unsure: Float[Tensor, " p"]) -> Float[Tensor, ""]:
    """Estimate the length (L2) of what a map misses."""
    return SAFE * unsure.sum().sqrt()


def _plan(t: Float[Tensor, " k"], unsure: Float[Tensor, " k+1"], allowed: float, most: int) -> Int64[Tensor, " k+1"]:
    """Count, for each gap and end, the points that bring the expected squared error to what is allowed: the fewest.

    In a gap m points in equal distances leave 1 / (m + 1)^2 of it; in an end, which is best left half a distance wide,
    1 / (2 m + 1)^2. The next point goes where it takes most away, which is best as what is left is convex in m.
    """
    own = unsure.where(_corners(t).diff() > NARROW, 0.0)  # what cannot be cut is left as it is
    left = own[:, None] / (1 + _rise(len(own))[:, None] * torch.arange(most + 1)) ** 2
    gains, order = (left[:, :-1] - left[:, 1:]).flatten().sort(descending=True, stable=True)
    remaining = own.sum() - torch.cat([t.new_zeros(1), gains.cumsum(0)])
    enough = int((remaining > allowed).sum())
    return (order[: min(enough, most)] // most).bincount(minlength=len(own))


def _corners(t: Float[Tensor, " k"]) -> Float[Tensor, " k+2"]:
    return torch.cat([t.new_zeros(1), t, t.new_ones(1)])


def _rise(places: int) -> Float[Tensor, " p"]:
    """Give by how many of its parts a place is cut smaller with each point: one, and two at the ends."""
    rise = torch.ones(places, dtype=torch.float64)
    rise[[0, -1]] = 2
    return rise


def _cuts(t: Float[Tensor, " k"], counts: Int64[Tensor, " k+1"]) -> Float[Tensor, " m"]:
    """Give of the points that are planned in each gap and end the middle one: the next plan knows what lies beside it.

    So what turns in one place is found, and what turns everywhere gets the equal parts that were planned.
    """
    corners = _corners(t)
    number = ((counts + 1) // 2).double()
    number[0] -= 0.5  # the free half of the first end lies before its points
    return (corners[:-1] + number / (counts + 1 / _rise(len(counts))) * corners.diff())[counts > 0]

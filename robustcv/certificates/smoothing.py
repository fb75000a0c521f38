"""Randomised smoothing: what the classifier says of most noisy copies of an image, and how far that is sure to hold."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws, stats
from robustcv.attacks.losses import margin
from robustcv.attacks.norms import l2_ascend, l2_project

ABSTAINS = -1
COPIES = 16  # noisy ones that an attack averages over


@dataclass(frozen=True)
class Smoothed:
    """Answers of a smoothed classifier, image by image.

    Parameters
    ----------
    classes
        The class that is surely the commonest under noise; -1 where the classifier abstains.
    radii
        L2 radius within which that class stays the answer; 0 where the classifier abstains.
    counts
        How many noisy copies got that class.
    """

    classes: Int64[Tensor, " n"]
    radii: Float[Tensor, " n"]
    counts: Int64[Tensor, " n"]


def smoothing(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    *,
    seeds: Int64[Tensor, " n"],
    sigma: float = 0.25,
    samples: int = 1000,
    first: int = 100,
    alpha: float = 0.001,
    rows: int = 512,
) -> Smoothed:
    """Certify L2 radii by voting under Gaussian noise (Cohen, Rosenfeld and Kolter 2019, algorithm CERTIFY).

    The class is chosen on ``first`` noisy copies; on ``samples`` others its share is bounded from below by Clopper and
    Pearson; the radius is ``sigma`` times the normal quantile of that bound; below one half the classifier abstains.

    Parameters
    ----------
    classifier
        Frozen; sees ``image + sigma * noise``, not clipped to [0, 1].
    seeds
        One per image, for the noise.
    alpha
        Chance that a radius is too large, per image.
    rows
        Noisy copies sent through at a time.
    """
    classes, radii, counts = [], [], []
    for image, seed in zip(images, seeds, strict=True):
        votes = _votes(classifier, image, seed, sigma, first, 0, rows)
        k = int(votes.argmax())
        count = int(_votes(classifier, image, seed, sigma, samples, 1, rows)[k])
        radius = radius_of(count, samples, sigma, alpha)
        classes.append(k if radius > 0 else ABSTAINS)
        radii.append(radius)
        counts.append(count)
    return Smoothed(torch.tensor(classes), torch.tensor(radii, dtype=torch.float64), torch.tensor(counts))


def radius_of(count: int, samples: int, sigma: float, alpha: float) -> float:
    """Give the L2 radius that votes certify (Cohen et al. 2019, theorem 1); 0 where less than half is sure."""
    from scipy.special import ndtri

    bound = stats.lower_bound(count, samples, alpha)
    return sigma * float(ndtri(bound)) if bound > 0.5 else 0.0


def _votes(
    classifier: nn.Module, image: Tensor, seed: Tensor, sigma: float, samples: int, stream: int, rows: int
) -> Int64[Tensor, " k"]:
    """Count the classes of noisy copies of one image; logits that are not finite vote for nothing."""
    votes = torch.zeros(1, dtype=torch.int64)
    for start in range(0, samples, rows):
        many = min(rows, samples - start)
        shape = (many, *image.shape)
        noise = draws.fill(seed[None], shape, "normal", 1_000_000 * stream + start)[0].to(image)
        with torch.no_grad():
            logits = classifier(image + sigma * noise)
        right = logits.isfinite().all(1)
        votes = votes.to(logits.device) + logits[right].argmax(1).bincount(minlength=logits.shape[1])
    return votes.cpu()


def smoothed_pgd(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: float,
    seeds: Int64[Tensor, " n"],
    sigma: float = 0.25,
    steps: int = 20,
    copies: int = COPIES,
    at_once: int = COPIES,
) -> Float[Tensor, "n c h w"]:
    """Attack the smoothed classifier: L2 PGD on the mean probability under noise (Salman et al. 2019, SmoothAdv).

    Parameters
    ----------
    at_once
        Noisy copies of an image that fit into memory; fewer than ``copies`` cost a forward pass more for each.

    Returns
    -------
    Tensor
        Images in the L2 ball and in [0, 1]; the last iterate.
    """
    current = images.clone()
    for step in range(steps):
        noise = draws.fill(seeds, (copies, *images.shape[1:]), "normal", 7_000_000 + step).to(images)
        gradient = _smoothed_slope(classifier, current, sigma * noise, labels, at_once)
        stepped = current + 2.5 * eps / steps * l2_ascend(gradient)
        current = l2_project(stepped, images, eps)
    return current


def _smoothed_slope(
    classifier: nn.Module, images: Float[Tensor, "n c h w"], noise: Tensor, labels: Tensor, at_once: int
) -> Float[Tensor, "n c h w"]:
    """Differentiate the margin of the mean probability over noisy copies, so many copies of each image at a time.

    Where one go does not hold them all, the mean is found first: the margin's slope in it weighs each copy's own.
    """

    def summed(points: Tensor, some: Tensor) -> Tensor:
        logits: Tensor = classifier((points[:, None] + some).flatten(0, 1))
        return logits.softmax(1).view(len(points), some.shape[1], -1).sum(1)

    copies, points = noise.shape[1], images.detach().requires_grad_()
    if copies <= at_once:
        mean = summed(points, noise) / copies
        return torch.autograd.grad(_log_margin(mean, labels), points)[0]
    parts = noise.split(at_once, 1)
    with torch.no_grad():
        totals = torch.stack([summed(images, some) for some in parts]).sum(0)
    mean = (totals / copies).requires_grad_()
    (weights,) = torch.autograd.grad(_log_margin(mean, labels), mean)
    slopes = [torch.autograd.grad(summed(points, some), points, weights / copies)[0] for some in parts]
    return torch.stack(slopes).sum(0)


def _log_margin(probabilities: Tensor, labels: Tensor) -> Tensor:
    return margin(probabilities.clamp_min(1e-12).log(), labels, None).sum()


def outvoted(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"],
    sigma: float,
    samples: int,
    alpha: float,
    rows: int = 512,
) -> Tensor:
    """Tell which images the smoothed classifier surely gets wrong: another class has more votes, by a binomial test.

    The rival is chosen on other noise than the votes are counted on.
    """
    from scipy.stats import binomtest

    wrong = []
    for image, label, seed in zip(images, labels.tolist(), seeds, strict=True):
        first = _votes(classifier, image, seed, sigma, max(100, samples // 10), 2, rows)
        first[label] = -1
        rival = int(first.argmax())
        votes = _votes(classifier, image, seed, sigma, samples, 3, rows)
        own, other = int(votes[label]), int(votes[rival])
        sure = other > own and binomtest(other, other + own, 0.5, alternative="greater").pvalue < alpha
        wrong.append(bool(sure))
    return torch.tensor(wrong, dtype=torch.bool)


def largest_radius(sigma: float, samples: int, alpha: float) -> float:
    """Give the radius that unanimous votes certify; no image can have a larger one."""
    return radius_of(samples, samples, sigma, alpha)

"""Do the maps stay when the image is attacked: with the prediction held, with it flipped, beside noise of that norm."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustcv import draws, runtime, stats
from robustcv.attacks.map_pgd import map_pgd
from robustcv.attacks.norms import NORMS
from robustcv.attacks.pgd import pgd
from robustcv.measures.shifts import SHIFTS
from robustcv.records import StabilityRow
from robustcv.runtime import Advance

Maps = Callable[[nn.Module, Tensor, Tensor], Tensor]
NormName = Literal["linf", "l2", "l1", "l0"]
Change = Literal["noise", "attack, prediction held", "attack, prediction flipped", "attack on the map"]
HALVINGS = 7


def stability(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    hashes: Sequence[str],
    *,
    predictions: Int64[Tensor, " n"],
    explain: Mapping[str, Maps],
    eps: Sequence[float],
    norm: NormName,
    seed: int,
    rows: int = 64,
    advance: Advance = lambda _: None,
) -> tuple[StabilityRow, ...]:
    """Compare each method's maps of changed images with those of the images, for the same class.

    Four kinds of change, at each eps: noise of exactly that norm; the image as far towards PGD's worst case as the
    prediction stays; PGD's worst case where the prediction flips; and an attack on the map itself that keeps the
    prediction. The maps explain the class of ``targets`` throughout, so that they can be compared.

    Parameters
    ----------
    targets
        The classes whose logits are explained, throughout.
    predictions
        The predictions for the images as they are, which attacks turn or hold.
    rows
        Images attacked at a time.
    explain
        Of each method, ``(classifier, images, targets) -> maps``.
    """
    clean = {name: method(classifier, images, targets) for name, method in explain.items()}
    found: list[StabilityRow] = []

    def changed(radius: float, part: Tensor, some: slice) -> dict[Change, tuple[Tensor, Tensor]]:
        own = part[some]
        told = [hashes[k] for k in own.tolist()]
        return _changes(classifier, images[own], predictions[own], told, radius, norm, seed)

    for radius in eps:
        parts = [
            found_there
            for part in torch.arange(len(images)).split(rows)
            for found_there in runtime.in_chunks(functools.partial(changed, radius, part), len(part), rows)
        ]
        for change in parts[0]:
            candidates, which = (torch.cat([part[change][side] for part in parts]) for side in (0, 1))
            if bool(which.any()):
                for name, method in explain.items():
                    moved = method(classifier, candidates, targets)[which]
                    found += _rows(name, change, norm, radius, clean[name][which], moved, seed)
            advance(1)
    return tuple(found)


def _changes(
    classifier: nn.Module, images: Tensor, targets: Tensor, hashes: Sequence[str], eps: float, norm: NormName, seed: int
) -> dict[Change, tuple[Tensor, Bool[Tensor, " n"]]]:
    """Make the changed images of each kind, and tell of which images the kind could be had."""
    ball = NORMS[norm]
    seeds = draws.image_seeds(seed, list(hashes), f"stability {eps:.6g}").to(images.device)
    noise = draws.normal(seeds, tuple(images.shape[1:]), 8).to(images)
    every = torch.ones(len(images), dtype=torch.bool, device=images.device)
    worst = pgd(classifier, images, targets, eps=eps, norm=norm, seeds=seeds, loss="margin", steps=20)
    flipped = _predictions(classifier, worst) != targets
    held = furthest_held(classifier, images, worst, targets)
    return {
        "noise": (ball.project(images + 4 * eps * ball.ascend(noise), images, eps), every),
        "attack, prediction held": (held, every),
        "attack, prediction flipped": (worst, flipped),
        "attack on the map": (map_pgd(classifier, images, targets, eps=eps, norm=norm, seeds=seeds), every),
    }


def furthest_held(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    worst: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
) -> Float[Tensor, "n c h w"]:
    """Go from each image towards its worst case as far as the prediction stays, found by bisection."""
    low = torch.zeros(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    stays = (_predictions(classifier, worst) == targets)[:, None, None, None]
    low, high = low.where(~stays, 1.0), torch.ones_like(low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        same = (_predictions(classifier, images + middle * (worst - images)) == targets)[:, None, None, None]
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return images + low * (worst - images)


def _predictions(classifier: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        predicted: Tensor = classifier(images).argmax(1)
    return predicted


def _rows(
    method: str, change: Change, norm: NormName, eps: float, before: Tensor, after: Tensor, seed: int
) -> list[StabilityRow]:
    found = []
    for quantity, shift in SHIFTS.items():
        values = shift(before, after).cpu().double().numpy()
        low, high = stats.mean_interval(values, seed=seed)
        mean, n = float(values.mean()), len(values)
        row = StabilityRow(
            method=method, change=change, norm=norm, eps=eps, n=n, quantity=quantity, mean=mean, low=low, high=high
        )
        found.append(row)
    return found

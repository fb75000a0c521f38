"""Towards each wrong class in turn: how targeted runs make an untargeted attack."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.attacks.losses import margin, wrong_classes
from robustcv.classifier import rows_in_play


def towards_each(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    targets: Int64[Tensor, " n"] | None,
    towards: Int64[Tensor, " n"] | None,
    classes: int,
    run: Callable[[Int64[Tensor, " n"], int], Float[Tensor, "n c h w"]],
) -> Float[Tensor, "n c h w"]:
    """Run a targeted attack towards the given targets, or towards the likeliest wrong classes until one fools.

    Costs one forward pass for the ranking where no targets are given, and one after each run, to judge it.

    Parameters
    ----------
    targets
        Classes to reach.
    towards
        Classes to go towards in one run, while any wrong answer is a success.
    classes
        How many wrong classes, at most all of them.
    run
        ``run(targets, rank)`` gives candidates.
    """
    if targets is not None or towards is not None:
        return run(targets if targets is not None else towards, 0)  # type: ignore[arg-type]
    ranked = _ranked(classifier, images, labels)
    found, fools = images.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for rank in range(min(classes, ranked.shape[1])):
        candidates = run(ranked[:, rank], rank)
        rows = rows_in_play(classifier, images)
        if len(rows) == 0:
            break
        with torch.no_grad():
            fooled = margin(classifier(candidates[rows]), labels[rows], None) > 0
        fresh = rows[(fooled | (rank == 0)) & ~fools[rows]]
        found[fresh] = candidates[fresh]
        fools[rows[fooled]] = True
    return found


def _ranked(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    rows = rows_in_play(classifier, images)
    if len(rows) == 0:
        return labels[:, None]
    with torch.no_grad():
        best = wrong_classes(classifier(images[rows]), labels[rows])
    ranked = torch.zeros(len(images), best.shape[1], dtype=torch.int64, device=images.device)
    ranked[rows] = best
    return ranked

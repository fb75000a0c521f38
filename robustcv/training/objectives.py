"""What training minimises: pure functions that give a scalar loss and the logits it came from."""

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv.classifier import frozen, has_batch_norm
from robustcv.folding import refolded

Precision = Literal["float32", "bf16"]


@runtime_checkable
class Perturb(Protocol):
    """An attack with its options bound: images in, attacked images out."""

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, *, seeds: Tensor | None = None
    ) -> Tensor: ...


@runtime_checkable
class Remembering(Protocol):
    """An objective that keeps something of each training image from one epoch to the next."""

    def at(self, rows: Tensor, of: int, strength: float) -> Callable[..., tuple[Tensor, Tensor]]:
        """Give the objective of the images in these rows of all ``of``, at a share of its eps."""

    def share(self, device: torch.device) -> None:
        """Let every process know what the others keep; at the end of an epoch."""

    def state_dict(self) -> dict[str, Tensor]:
        """Give what is kept, for a run that is to be resumed."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""


def standard(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    perturb: Perturb | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    targets: Float[Tensor, "n k"] | None = None,
) -> tuple[Tensor, Float[Tensor, "n k"]]:
    """Compute the cross-entropy on clean images.

    Parameters
    ----------
    perturb, seeds
        Not used.
    targets
        Class probabilities to learn in place of the labels (Mixup, CutMix, label smoothing).
    """
    logits = classifier(images)
    return cross_entropy(logits, labels, targets), logits


def pgd_at(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    perturb: Perturb | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    targets: Float[Tensor, "n k"] | None = None,
) -> tuple[Tensor, Float[Tensor, "n k"]]:
    """Compute the cross-entropy on images attacked by PGD (Madry et al. 2018, equation 2.1).

    Parameters
    ----------
    perturb
        Attacks a batch under the current weights.
    seeds
        One per image, for the attack's random start.
    targets
        Class probabilities to learn in place of the labels; the attack moves away from the labels.
    """
    logits = classifier(attacked(classifier, images, labels, perturb, seeds))
    return cross_entropy(logits, labels, targets), logits


def attacked(
    classifier: nn.Module, images: Tensor, labels: Tensor, perturb: Perturb | None, seeds: Tensor | None
) -> Tensor:
    """Attack a batch in eval mode: no weight gradients are computed, and batch norm's averages stay untouched."""
    if perturb is None:
        raise ValueError("an attack is needed (perturb=...)")
    with frozen(classifier):
        return perturb(without_batch_norm(classifier, images), images, labels, seeds=seeds).detach()


def without_batch_norm(classifier: nn.Module, images: Tensor) -> nn.Module:
    """Fold the batch norm of a frozen classifier for the length of an attack: the same function in fewer operations."""
    return refolded(classifier, images[:4]) if has_batch_norm(classifier) else classifier


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Compute the cross-entropy with the labels or, where there are any, with soft targets."""
    return functional.cross_entropy(logits, labels if targets is None else targets)

"""What training minimises: pure functions that give a scalar loss and the logits it came from."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv.classifier import frozen


@runtime_checkable
class Perturb(Protocol):
    """An attack with its options bound: images in, attacked images out."""

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, *, seeds: Tensor | None = None
    ) -> Tensor: ...


def standard(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    perturb: Perturb | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
) -> tuple[Tensor, Float[Tensor, "n k"]]:
    """Compute the cross-entropy on clean images.

    Parameters
    ----------
    perturb, seeds
        Not used.
    """
    logits = classifier(images)
    return functional.cross_entropy(logits, labels), logits


def pgd_at(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    perturb: Perturb | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
) -> tuple[Tensor, Float[Tensor, "n k"]]:
    """Compute the cross-entropy on attacked images (Madry et al. 2018, equation 2.1).

    Parameters
    ----------
    perturb
        Attacks a batch under the current weights.
    seeds
        One per image, for the attack's random start.
    """
    if perturb is None:
        raise ValueError("pgd_at: an attack is needed (perturb=...)")
    with frozen(classifier):  # no weight gradients in the attack passes, and batch norm's averages stay untouched
        attacked = perturb(classifier, images, labels, seeds=seeds)
    logits = classifier(attacked)
    return functional.cross_entropy(logits, labels), logits


OBJECTIVES = {"standard": standard, "pgd-at": pgd_at}

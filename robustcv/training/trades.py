"""TRADES: right on clean images, and unchanged around them."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv.classifier import frozen
from robustcv.training.objectives import Perturb, cross_entropy, without_batch_norm


class Agreement(nn.Module):
    """How far a classifier's answers are from given ones, as logits of two classes: agree, differ.

    The first logit is ``sum_k p_k log q_k``, so whatever raises the cross-entropy with class 0 raises KL(p || q). Any
    attack can climb it, and the clean probabilities ``p`` are computed once, not at every step.
    """

    def __init__(self, classifier: nn.Module, probabilities: Float[Tensor, "n k"]) -> None:
        super().__init__()
        self.classifier, self.probabilities = classifier, probabilities

    def rows_of(self, rows: Int64[Tensor, " m"]) -> "Agreement":
        """Give the same for some of the rows."""
        return Agreement(self.classifier, self.probabilities[rows])

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2"]:
        """Compare the answers to these images with the given ones, row by row."""
        agreement = (self.probabilities * self.classifier(images).log_softmax(1)).sum(1)
        return torch.stack([agreement, torch.zeros_like(agreement)], 1)


def trades(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    perturb: Perturb | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    targets: Float[Tensor, "n k"] | None = None,
    beta: float = 6.0,
) -> tuple[Tensor, Float[Tensor, "n k"]]:
    """Compute ``CE(f(x), y) + beta KL(f(x) || f(x'))``, x' attacked away from f(x) (Zhang et al. 2019, equation 5).

    Parameters
    ----------
    perturb, seeds, targets
        As in `pgd_at`; the attack must start at random, as the clean image is where the divergence is flat.
    beta
        Weight of the second term: 1 for accuracy, 6 for robustness.

    Returns
    -------
    tuple
        The loss, and the logits of the attacked images.
    """
    if perturb is None:
        raise ValueError("an attack is needed (perturb=...)")
    with frozen(classifier):
        with torch.no_grad():
            probabilities = classifier(images).softmax(1)
        agreement = Agreement(without_batch_norm(classifier, images), probabilities)
        away = perturb(agreement, images, torch.zeros_like(labels), seeds=seeds).detach()
    both = classifier(torch.cat([images, away]))  # one pass: batch norm sees clean and attacked images together
    clean, shifted = both.chunk(2)
    divergence = functional.kl_div(shifted.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
    return cross_entropy(clean, labels, targets) + beta * divergence, shifted

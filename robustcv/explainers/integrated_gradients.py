"""Integrated gradients, by captum, with the midpoint rule."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.explainers.explanation import Explanation, completeness_gap


def integrated_gradients(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 32,
    baseline: float = 0.0,
    rows: int = 256,
) -> Explanation:
    """Integrate the gradient of the target's logit from a baseline to the image (Sundararajan, Taly and Yan 2017).

    ``(x - b) * mean over t of dz(b + t (x - b))/dx``, with t at the middle of ``steps`` equal parts: on ReLU networks
    the integrand is piecewise constant, and the midpoint rule then beats the Gauss-Legendre rule at equal cost.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    steps
        Points on the path.
    baseline
        Grey level of the baseline image, in [0, 1]; 0 is black.
    rows
        Images sent through the classifier at a time.
    """
    from captum.attr import IntegratedGradients

    inputs = images.detach().clone().requires_grad_()
    maps, gap = IntegratedGradients(classifier).attribute(
        inputs,
        baselines=torch.full_like(images, baseline),
        target=targets,
        n_steps=steps,
        method="riemann_middle",
        internal_batch_size=max(rows, len(images)),  # captum takes one step of all images at least
        return_convergence_delta=True,
    )
    maps = maps.detach()
    total = maps.flatten(1).sum(1)
    return Explanation(
        heatmaps=maps.float(),
        error=completeness_gap(total, total - gap.detach().to(total)).float(),
        forwards=torch.full((len(images),), 2 * steps + 2),
        details={"target": "logit", "baseline": f"constant {baseline:g}", "steps": steps, "rule": "midpoint"},
    )

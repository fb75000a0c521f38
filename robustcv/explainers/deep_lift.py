"""DeepLIFT and DeepSHAP: the change of the logit, handed back from layer to layer to the pixels, with nothing lost."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.errors import UserError
from robustcv.explainers.explanation import Explanation, completeness_gap
from robustcv.explainers.multipliers import Rules
from robustcv.explainers.passes import no_gradients
from robustcv.explainers.references import GREYS, Reference, describe, references
from robustcv.runtime import chunk_size, in_chunks


def deep_lift(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    baseline: Reference = 0.0,
    rows: int | None = None,
) -> Explanation:
    """Share the change of the target's logit among the pixels by DeepLIFT's rescale rule (Shrikumar et al. 2017).

    Complete on residual, gated and normalised networks too, or refused with the name of the function that has no rule:
    captum's and shap's own are silently wrong on most of them. The rules are in `multipliers`; products (gates,
    attention) hand to each factor the mean of the other.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits, in eval mode.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    baseline
        A grey level, or another of `references`; over several the maps are averaged.
    rows
        Images sent through the classifier at a time; None suits their size.

    Raises
    ------
    UserError
        If a function without a rule depends on the image, or the map is not complete all the same.
    """
    return _averaged(classifier, images, targets, references(images, baseline), describe(baseline), rows)


def deep_shap(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    baselines: Reference = GREYS,
    rows: int | None = None,
) -> Explanation:
    """Average DeepLIFT's maps over many baselines (Lundberg and Lee 2017).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits, in eval mode.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: every baseline is used once.
    baselines
        Other images ``b c h w``, or one or more of `references`; the default is 11 grey levels from black to white.
    rows
        Images sent through the classifier at a time; None suits their size.

    Raises
    ------
    UserError
        If a function without a rule depends on the image, or the map is not complete all the same.
    """
    return _averaged(classifier, images, targets, references(images, baselines), describe(baselines), rows)


def _averaged(
    classifier: nn.Module, images: Tensor, targets: Tensor, starts: list[Tensor], words: str, rows: int | None
) -> Explanation:
    rows = chunk_size(images, rows)
    maps, after, before = (
        torch.zeros_like(images),
        *torch.zeros(2, len(images), dtype=images.dtype, device=images.device),
    )
    for start in starts:
        shared = len(start) != len(images)
        tape = _record(classifier, start) if shared else None

        def run(part: slice, start: Tensor = start, tape: "_Recorded | None" = tape) -> tuple[Tensor, Tensor, Tensor]:
            base = start if tape is not None else start[part]
            return _explain(classifier, images[part].detach(), base, targets[part], tape or _record(classifier, base))

        parts = zip(*in_chunks(run, len(images), rows), strict=True)
        for sums, part in zip((maps, after, before), parts, strict=True):
            sums += torch.cat(part) / len(starts)
    total, change = maps.flatten(1).sum(1), after - before
    _require_complete(total, change, maps, torch.maximum(after.abs(), before.abs()))
    each = sum(3 if len(start) == len(images) else 2 for start in starts)
    return Explanation(
        heatmaps=maps.float(),
        error=torch.zeros(len(images), device=images.device),
        forwards=torch.full((len(images),), each),
        details={
            "target": "logit",
            "baseline": words,
            "rule": "rescale, at function level",
            "shared_forwards": sum(len(start) != len(images) for start in starts),
        },
        gap=completeness_gap(total, change),
    )


_Recorded = tuple[list[tuple[str, Tensor]], Tensor]


def _record(classifier: nn.Module, start: Tensor) -> _Recorded:
    """Run the reference images, and keep the inputs of all nonlinear functions."""
    with torch.enable_grad(), Rules() as rules:
        logits = classifier(
            start.detach().clone().requires_grad_() * 1
        )  # not a leaf, so that it may be changed in place
    return rules.tape, logits.detach()


def _explain(
    classifier: nn.Module, images: Tensor, start: Tensor, targets: Tensor, recorded: _Recorded
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the maps of one chunk, and its logits after and before the change."""
    tape, before = recorded
    inputs = images.clone().requires_grad_()
    with torch.enable_grad(), Rules(tape):
        logits = classifier(inputs * 1)
    if not logits.requires_grad:
        raise no_gradients()
    chosen = logits.gather(1, targets[:, None])
    (gradient,) = torch.autograd.grad(chosen.sum(), inputs, allow_unused=True)
    heatmaps = torch.zeros_like(images) if gradient is None else gradient * (images - start)
    return heatmaps, chosen.detach().squeeze(1), before.expand_as(logits).gather(1, targets[:, None]).squeeze(1)


def _require_complete(total: Tensor, change: Tensor, maps: Tensor, logits: Tensor) -> None:
    """Refuse maps whose sums are not the changes of the logits: something was computed where no rule could see it."""
    share = 1e-9 if maps.dtype == torch.float64 else 1e-3
    rounding = 100 * torch.finfo(maps.dtype).eps * logits
    if bool(((total - change).abs() > share * change.abs() + rounding).any()):
        worst = float(completeness_gap(total, change).max())
        raise UserError(
            "RCV-E101",
            f"deep_lift's map misses {100 * worst:.2g} % of the change of the logit",
            "something is computed outside PyTorch's Python functions (compiled, scripted), or rounding has added up",
            "try the model and the images in float64, or integrated_gradients, which needs no rules",
        )

"""captum's and shap's own DeepLIFT, where they are exact; refused where they are not."""

import copy
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.errors import UserError, first_line
from robustcv.explainers.explanation import Explanation, completeness_gap
from robustcv.explainers.passes import target_logits
from robustcv.explainers.references import Reference, describe, references
from robustcv.runtime import chunk_size, in_chunks

ALLOWED_GAP = 1e-3


def captum_deep_lift(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    baseline: Reference = 0.0,
    rows: int | None = None,
) -> Explanation:
    """Run captum's DeepLift, and refuse its maps unless they are complete; for cross-checks, see `deep_lift`.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; activations as modules, each used once.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    baseline
        A grey level or another of `references`, one.
    rows
        Images sent through the classifier at a time; None suits their size.

    Raises
    ------
    UserError
        If captum raises, or a map's sum is off by more than 0.1 % of the change of the logit.
    """

    def attribute(model: nn.Module, inputs: Tensor, start: Tensor, wanted: Tensor) -> Tensor:
        from captum.attr import DeepLift

        return DeepLift(model).attribute(inputs.requires_grad_(), baselines=start, target=wanted)  # type: ignore[no-any-return]

    return _checked("captum's DeepLift", attribute, classifier, images, targets, baseline, rows)


def shap_deep_explainer(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None = None,
    baseline: Reference = 0.0,
    rows: int | None = None,
) -> Explanation:
    """Run shap's DeepExplainer, and refuse its maps unless they are complete; for cross-checks, see `deep_lift`.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; activations as modules, each used once.
    images, targets
        Images in [0, 1], and for each the class whose logit is explained.
    seeds
        Not used: the method is deterministic.
    baseline
        A grey level or another of `references`, one and the same for all images.
    rows
        Images sent through the classifier at a time; None suits their size.

    Raises
    ------
    UserError
        If shap raises, or a map's sum is off by more than 0.1 % of the change of the logit.
    """

    def attribute(model: nn.Module, inputs: Tensor, start: Tensor, wanted: Tensor) -> Tensor:
        from shap import DeepExplainer

        explainer = DeepExplainer(model, start[:1])
        values = torch.as_tensor(explainer.shap_values(inputs, check_additivity=False))
        return values[torch.arange(len(inputs)), ..., wanted.cpu()].to(inputs)

    return _checked("shap's DeepExplainer", attribute, classifier, images, targets, baseline, rows)


def _checked(
    name: str,
    attribute: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor],
    classifier: nn.Module,
    images: Tensor,
    targets: Tensor,
    baseline: Reference,
    rows: int | None,
) -> Explanation:
    """Run a library's method on a copy of the model, and hold the maps' sums against the logits."""
    rows = chunk_size(images, rows)
    (start,) = references(images, baseline)
    start = start.expand_as(images)
    model = copy.deepcopy(classifier)  # shap registers parameters on activations and does not take all of them off
    seen = [0]
    model.register_forward_pre_hook(lambda module, given: seen.__setitem__(0, seen[0] + len(given[0])))

    def run(part: slice) -> Tensor:
        return attribute(model, images[part].detach().clone(), start[part], targets[part])

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum tells that it sets hooks
            maps = torch.cat(in_chunks(run, len(images), rows)).detach()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise _refusal(name, first_line(error, 120)) from error
    change = target_logits(classifier, images.detach(), targets, rows) - target_logits(classifier, start, targets, rows)
    gap = completeness_gap(maps.flatten(1).sum(1), change)
    if bool((gap > ALLOWED_GAP).any()):
        raise _refusal(name, f"its map misses {100 * float(gap.max()):.2g} % of the change of the logit")
    return Explanation(
        heatmaps=maps.float(),
        error=torch.zeros(len(images), device=images.device),
        forwards=torch.full((len(images),), 2 + 2 * seen[0] // len(images)),  # each row it asks about also goes back
        details={"target": "logit", "baseline": describe(baseline), "by": name},
        gap=gap,
    )


def _refusal(name: str, why: str) -> UserError:
    return UserError(
        "RCV-E103", f"{name} is not exact on this model", why, "use deep_lift, which has rules for functions"
    )

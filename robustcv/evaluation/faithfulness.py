"""How good the maps are: every measure over every method and control, with intervals and against edges."""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustcv import draws, stats
from robustcv.errors import UserError
from robustcv.measures import CONTROLS, MEASURES
from robustcv.records import MeasureResult
from robustcv.runtime import Advance

Maps = Callable[[nn.Module, Tensor, Tensor], Tensor]
LEAST = 6  # images below which no interval is worth its name

BUDGETED: dict[str, Callable[[int], dict[str, Any]]] = {  # options that spend about so many forward-equivalents a map
    "integrated_gradients": lambda budget: {"steps": max(1, (budget - 1) // 2)},
    "gradient_shap": lambda budget: {"samples": max(1, (budget - 1) // 2)},
    "smooth_grad": lambda budget: {"samples": max(4, budget // 4 * 2)},
    "var_grad": lambda budget: {"samples": max(4, budget // 4 * 2)},
    "deep_shap": lambda budget: {"baselines": _greys(max(1, budget // 2))},
    "occlusion": lambda budget: {"regions": f"grid:{max(2, int((budget - 1) ** 0.5) + 1)}", "window": 2},
    "lime": lambda budget: {"samples": budget},
    "kernel_shap": lambda budget: {"samples": budget},
    "shapley": lambda budget: {"samples": budget},
    "rise": lambda budget: {"samples": budget},
    "partition_shap": lambda budget: {"evaluations": budget},
}


def at_budget(name: str, budget: int) -> dict[str, Any]:
    """Give options with which a method spends about ``budget`` forward-equivalents a map; {} where it has no choice."""
    return BUDGETED[name](budget) if name in BUDGETED else {}


def _greys(count: int) -> str:
    return ",".join(f"{(k + 0.5) / count:.6g}" for k in range(count))


def judge_maps(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    hashes: Sequence[str],
    *,
    maps: Mapping[str, Float[Tensor, "n m h w"]],
    explain: Mapping[str, Maps],
    measures: Sequence[str],
    forwards: Mapping[str, int],
    gaps: Mapping[str, Float[Tensor, " n"]],
    masks: Bool[Tensor, "n h w"] | None,
    seed: int,
    rows: int | None = None,
    advance: Advance = lambda _: None,
) -> tuple[MeasureResult, ...]:
    """Measure maps and controls on the same images; a measure that cannot be had for a method is left out.

    Parameters
    ----------
    maps
        Of each method, ``n m h w``.
    explain
        Of each method, ``(classifier, images, targets) -> maps``, for measures that explain again.
    measures
        Names in `MEASURES`; those that need masks are left out where there are none.
    forwards
        What a map of each method took.
    gaps
        The completeness gaps that methods found themselves, against their own references; the others promise no sum.
    masks
        Where the deciding pixels are, where that is known.
    """
    seeds = draws.image_seeds(seed, list(hashes), "measures").to(images.device)
    controls = {name: control(None, images, targets, seeds=seeds) for name, control in CONTROLS.items()}
    every = {**{name: each.to(images.device) for name, each in maps.items()}, **controls}
    again: dict[str, Maps] = {**explain, **{name: _blind(control, seeds) for name, control in CONTROLS.items()}}
    results = []
    for measure in measures:
        found: dict[str, Tensor] = {}
        for name, heatmaps in every.items():
            options = _needed(measure, name, again, masks)
            if measure == "completeness":
                if name in gaps:
                    found[name] = gaps[name].double()
            elif options is not None:
                function = MEASURES[measure].function
                given = {"seeds": seeds, "seed": seed, "rows": rows}
                known = {key: value for key, value in given.items() if key in _keywords(function)}
                with contextlib.suppress(UserError):  # a method refused on other weights or noisy images: not run
                    found[name] = function(classifier, images, targets, heatmaps, **options, **known).cpu().double()
            advance(1)
        results += [
            _result(name, measure, values, found.get("sobel"), forwards.get(name, 0), seed)
            for name, values in found.items()
        ]
    return tuple(results)


def _blind(control: Callable[..., Tensor], seeds: Tensor) -> Maps:
    return lambda classifier, images, targets: control(classifier, images, targets, seeds=seeds)


def _keywords(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def _needed(measure: str, name: str, explain: Mapping[str, Maps], masks: Tensor | None) -> dict[str, Any] | None:
    """Give what a measure needs beside the maps; None where that is not to be had."""
    needs = MEASURES[measure].needs
    if needs == "explain":
        return {"explain": explain[name]}
    if needs == "masks":
        return None if masks is None else {"masks": masks}
    return {}


def _result(name: str, measure: str, values: Tensor, edges: Tensor | None, forwards: int, seed: int) -> MeasureResult:
    better = MEASURES[measure].better
    difference = torch.empty(0) if edges is None else (values - edges)[(values - edges).isfinite()]
    values = values[values.isfinite()]
    own = stats.mean_interval(values.numpy(), seed=seed)
    fields: dict[str, Any] = {}
    if len(difference) and name not in CONTROLS:
        low, high = stats.mean_interval(difference.numpy(), seed=seed)
        fields = {
            "difference": float(difference.mean()),
            "difference_low": low,
            "difference_high": high,
            "beats": None if len(difference) < LEAST else low > 0 if better == "higher" else high < 0,
        }
    return MeasureResult(
        method=name,
        measure=measure,
        better=better,
        n=len(values),
        mean=float(values.mean()),
        low=own.low,
        high=own.high,
        forwards=forwards,
        control=name in CONTROLS,
        **fields,
    )

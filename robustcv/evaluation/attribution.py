"""Explanations run over images: in batches, seeded per image, masked passes shared, timed, their error collected."""

import inspect
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws, processes, runs, stats, stopping
from robustcv.errors import UserError, first_line
from robustcv.evaluation.saved_maps import Made, keep, kept
from robustcv.explainers import Explanation
from robustcv.explainers.pool import Pool
from robustcv.records import ExplainerResult
from robustcv.runtime import Advance, chunk_size

Method = Callable[..., Explanation]

SAME_DRAWS = {"lime": "coalitions", "kernel_shap": "coalitions"}  # so that their masks agree


def explain_images(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    hashes: list[str],
    *,
    methods: Mapping[str, Method],
    options: Mapping[str, Mapping[str, Any]],
    seed: int,
    batch_size: int,
    device: torch.device,
    advance: Advance = lambda _: None,
    state: runs.State | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, tuple[Explanation, ExplainerResult]]:
    """Explain a (frozen) classifier's target logits by several methods, and say what each cost and how far it is off.

    Parameters
    ----------
    state
        Keeps the batches that every method has explained; those that it holds are not explained again.
    stopped
        Asked before each method of each batch. Once it is true, what was done by then is given: the first images, by
        every method; or the first batch, by fewer.

    Raises
    ------
    UserError
        If a method cannot explain this model, or gives numbers that are not finite.
    Interrupted
        If it was stopped before there was a map.
    """
    state = state or runs.State(None)

    def explained(rows: Tensor) -> dict[str, Made]:
        key = f"maps-{int(rows[0])}"
        if (known := kept(state, key)) is not None:
            advance(len(rows) * len(known))
            return known
        batch, wanted = images[rows].to(device), targets[rows].to(device)
        suits = chunk_size(batch, None)
        rows_at_once = suits if batch_size >= 64 else min(batch_size, suits)
        pool = Pool(classifier, batch, rows=rows_at_once)
        made: dict[str, Made] = {}
        for name, method in methods.items():
            if stopped():
                return made
            seeds = draws.image_seeds(seed, [hashes[row] for row in rows.tolist()], SAME_DRAWS.get(name, name))
            own, accepted = dict(options.get(name, {})), inspect.signature(method).parameters
            if isinstance(own.get("regions"), Tensor) and own["regions"].ndim == 3:
                own["regions"] = own["regions"][rows]
            if "rows" in accepted:  # a method of the user's may do without
                own.setdefault("rows", rows_at_once)
            if "pool" in accepted and own.get("rows") == rows_at_once:
                own["pool"] = pool
            before, started = pool.forwards, time.monotonic()
            found = _one(name, method, classifier, batch, wanted, seeds=seeds.to(device), **own)
            asked = pool.forwards - before if "pool" in own else int(found.forwards.sum())
            made[name] = Made(found, time.monotonic() - started, asked)
            advance(len(rows))
        keep(state, key, made)
        return made

    parts = _done(processes.shared(torch.arange(len(images)).split(batch_size), explained), len(methods))
    return {name: _joined(name, [part[name] for part in parts], options.get(name, {})) for name in parts[0]}


def _done(parts: Sequence[dict[str, Made]], methods: int) -> Sequence[dict[str, Made]]:
    """Choose what to show of a run that was stopped: images that all methods have explained, else the first few."""
    whole = list(itertools.takewhile(lambda part: len(part) == methods, parts))
    found = whole or [part for part in parts[:1] if part]
    if not found:
        raise stopping.Interrupted
    return found


def _one(
    name: str, method: Method, classifier: nn.Module, images: Tensor, targets: Tensor, **options: Any
) -> Explanation:
    """Explain one batch; results on the CPU."""
    try:
        made = method(classifier, images, targets, **options)
    except ValueError as error:  # an option that cannot be read
        raise UserError(
            "RCV-E008", f"{name} cannot be run as asked", first_line(error), f"--set {name}....=..."
        ) from error
    if not bool(made.heatmaps.isfinite().all()):
        raise UserError(
            "RCV-E104",
            f"{name} gives values that are not finite",
            "the model's logits or their gradients are NaN or infinite on these images",
            "find the layer that overflows, or explain other images",
        )
    maps = [None if each is None else each.detach().cpu() for each in (made.gap, made.margin)]
    return Explanation(
        made.heatmaps.detach().cpu(), made.error.detach().cpu(), made.forwards.cpu(), made.details, *maps
    )


def _joined(name: str, parts: list[Made], options: Mapping[str, Any]) -> tuple[Explanation, ExplainerResult]:
    """Put the batches of one method together."""
    made = [part.found for part in parts]
    gaps, margins = ([getattr(part, field) for part in made] for field in ("gap", "margin"))
    whole = Explanation(
        heatmaps=torch.cat([part.heatmaps for part in made]),
        error=torch.cat([part.error for part in made]),
        forwards=torch.cat([part.forwards for part in made]),
        details=made[0].details,
        gap=None if gaps[0] is None else torch.cat(gaps),
        margin=None if margins[0] is None else torch.cat(margins),
    )
    shared = sum(int(part.details.get("shared_forwards", 0)) for part in made)
    stated = int(whole.forwards.sum())
    median_error, worst_error = _middle_and_worst(whole.error)
    median_gap, worst_gap = _middle_and_worst(whole.gap)
    return whole, ExplainerResult(
        method=name,
        options={key: value if isinstance(value, str | int | float) else "given" for key, value in options.items()},
        images=len(whole.heatmaps),
        forwards=stated + shared,
        reused=stated - sum(part.asked for part in parts),
        seconds=sum(part.seconds for part in parts),
        error_name="relative error",
        median_error=median_error,
        worst_error=worst_error,
        median_gap=median_gap,
        worst_gap=worst_gap,
        error_interval=stats.median_interval(whole.error[whole.error.isfinite()].numpy()),
        details=whole.details,
    )


def _middle_and_worst(values: Tensor | None) -> tuple[float | None, float | None]:
    known = torch.empty(0) if values is None else values[values.isfinite()]
    return (float(known.median()), float(known.max())) if len(known) else (None, None)

"""Explanations run over images: in batches, seeded per image, timed, their error collected."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws, processes
from robustcv.explainers import Explanation
from robustcv.records import ExplainerResult
from robustcv.runtime import Advance


def explain_images(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    hashes: list[str],
    *,
    name: str,
    explain: Callable[..., Explanation],
    options: Mapping[str, Any],
    seed: int,
    batch_size: int,
    device: torch.device,
    advance: Advance = lambda _: None,
) -> tuple[Explanation, ExplainerResult]:
    """Explain a (frozen) classifier's target logits, and say what it cost and how complete the maps are."""
    started = time.monotonic()
    if "rows" not in options and batch_size < 64:
        options = {**options, "rows": batch_size}  # a small batch size is asked for where memory is short

    def explained(rows: Tensor) -> Explanation:
        seeds = draws.image_seeds(seed, [hashes[row] for row in rows.tolist()], name)
        made = explain(classifier, images[rows].to(device), targets[rows].to(device), seeds=seeds.to(device), **options)
        advance(len(rows))
        return Explanation(made.heatmaps.detach().cpu(), made.error.detach().cpu(), made.forwards.cpu(), made.details)

    parts = processes.shared(torch.arange(len(images)).split(batch_size), explained)
    whole = Explanation(
        heatmaps=torch.cat([part.heatmaps for part in parts]),
        error=torch.cat([part.error for part in parts]),
        forwards=torch.cat([part.forwards for part in parts]),
        details=parts[0].details,
    )
    known = whole.error[whole.error.isfinite()]
    return whole, ExplainerResult(
        method=name,
        options=dict(options),
        images=len(images),
        forwards=int(whole.forwards.sum()),
        seconds=time.monotonic() - started,
        error_name="completeness gap",
        median_error=float(known.median()) if len(known) else None,
        worst_error=float(known.max()) if len(known) else None,
        details=whole.details,
    )

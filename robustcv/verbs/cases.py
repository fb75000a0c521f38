"""The cases: which images the page shows, what was done to each, their heat maps, and their evidence files."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robustcv import draws, records, runs
from robustcv.attacks.norms import NORMS
from robustcv.classifier import right
from robustcv.data import ImageSet
from robustcv.evaluation.accuracy import Predictions
from robustcv.evaluation.attribution import explain_images
from robustcv.evaluation.block import within
from robustcv.evaluation.worst_case import WorstCase
from robustcv.explainers import EXPLAINERS, Explanation
from robustcv.runtime import Progress


class Drawn:
    """Cases before their heat maps: the records so far, clean and attacked pixels, and what to explain."""

    def __init__(self) -> None:
        self.cases: list[records.Case] = []
        self.clean: list[Tensor] = []
        self.attacked: list[Tensor | None] = []


def draw_sample(images: ImageSet, k: int, seed: int) -> Tensor:
    """Mark k images drawn by (seed, pixels) alone, before any attack has run: the same for every model."""
    mask = torch.zeros(len(images), dtype=torch.bool)
    mask[draws.drawn_rows(seed, images.hashes, "sample", k)] = True
    return mask


def draw_cases(
    classifier: nn.Module,
    images: ImageSet,
    predictions: Predictions,
    outcome: WorstCase,
    sample: Tensor,
    headline: float,
    wanted: int,
    device: torch.device,
) -> Drawn:
    """Choose the sample and the images broken at the smallest eps, and measure what was done to each."""
    worst = outcome.broken_at.clone()
    worst[sample | (worst <= 0) | (worst > headline * (1 + 1e-9))] = torch.inf
    order = worst.argsort(stable=True)[: max(0, wanted - int(sample.sum()))]
    weakest = [row for row in order.tolist() if worst[row].isfinite()]
    drawn = Drawn()
    rows = [(row, "sample") for row in sample.nonzero().squeeze(1).tolist()]
    for row, selection in rows + [(row, "broken at the smallest eps") for row in weakest]:
        one = images.take(torch.tensor([row]))
        clean, _ = next(one.batches(1))
        broken_by = outcome.breaker(row, headline)
        tried = broken_by or ("every attack", headline)
        attacked = outcome.candidate(row, tried[1]) if predictions.correct[row] else None
        fields: dict[str, Any] = {}
        if attacked is not None:
            ball = outcome.norm, tried[1]
            fields = _measure(classifier, clean, attacked[None], int(images.labels[row]), device, *ball)
            fields |= {"attack": tried[0], "norm": outcome.norm, "eps": tried[1]}
        state: Literal["broken", "survived", "wrong when clean"]
        state = "broken" if broken_by else "survived" if attacked is not None else "wrong when clean"
        drawn.cases.append(
            records.Case(
                index=int(images.indices[row]),
                image=images.hashes[row],
                selection=selection,
                outcome=state,
                label=int(images.labels[row]),
                prediction=int(predictions.classes[row]),
                confidence=float(predictions.confidences[row]),
                **fields,
            )
        )
        drawn.clean.append(clean[0])
        drawn.attacked.append(attacked)
    return drawn


def _measure(
    classifier: nn.Module, clean: Tensor, attacked: Tensor, label: int, device: torch.device, norm: str, eps: float
) -> dict[str, Any]:
    """Predict an attacked image again, alone, and the PNG that shows it; measure the change."""
    rounded = (attacked * 255).round() / 255
    with torch.no_grad():
        logits, of_png = (classifier(each.to(device)).double().cpu() for each in (attacked, rounded))
    answer = Predictions(logits, torch.tensor([label]))
    fools = not bool(right(of_png, torch.tensor([label]))[0])
    return {
        "adversarial_prediction": int(answer.classes[0]),
        "adversarial_confidence": float(answer.confidences[0]),
        "linf": float(NORMS["linf"].distance(attacked, clean)[0]),
        "l2": float(NORMS["l2"].distance(attacked, clean)[0]),
        "l0": int(NORMS["l0"].distance(attacked, clean)[0]),
        "exact_8bit": fools and bool(within(rounded, clean, NORMS[norm], eps)[0]),
    }


def explain_cases(
    classifier: nn.Module,
    drawn: Drawn,
    methods: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    progress: Progress,
) -> tuple[tuple[records.Case, ...], tuple[records.ExplainerResult, ...], dict[str, bytes]]:
    """Explain the predicted class of each clean and attacked image; gives cases, costs and files."""
    jobs = [job for job in jobs_of(drawn) if _answered(drawn.cases[job.case], job.kind)]
    if not jobs or not methods:
        bare, files = finished(drawn, jobs, {})
        return bare, (), files
    with progress.stage("explain", len(jobs) * len(methods)) as advance:
        made = explain_images(
            classifier,
            torch.stack([job.pixels for job in jobs]),
            torch.tensor([job.target for job in jobs]),
            [f"{drawn.cases[job.case].image}-{job.kind}" for job in jobs],
            methods={name: EXPLAINERS[name] for name in methods},
            options=options,
            seed=seed,
            batch_size=batch_size,
            device=device,
            advance=advance,
        )
    cases, files = finished(drawn, jobs, {name: maps for name, (maps, _) in made.items()})
    return cases, tuple(result for _, result in made.values()), files


class Job(NamedTuple):
    """One image to explain, and the case it belongs to."""

    case: int
    kind: Literal["clean", "adversarial"]
    pixels: Tensor
    target: int


def jobs_of(drawn: Drawn, targets: Sequence[int] | None = None) -> list[Job]:
    """List what to explain: the prediction of each clean and each attacked image, or the given targets."""
    jobs = []
    for k, (case, clean, attacked) in enumerate(zip(drawn.cases, drawn.clean, drawn.attacked, strict=True)):
        jobs.append(Job(k, "clean", clean, case.prediction if targets is None else targets[k]))
        if attacked is not None and case.adversarial_prediction is not None:
            jobs.append(Job(k, "adversarial", attacked, case.adversarial_prediction))
    return jobs


def _answered(case: records.Case, kind: str) -> bool:
    """Tell whether the model answered with a number: else there is nothing to explain."""
    sure = case.confidence if kind == "clean" else case.adversarial_confidence
    return sure is not None and sure > 0


def finished(
    drawn: Drawn, jobs: Sequence[Job], maps: Mapping[str, Explanation]
) -> tuple[tuple[records.Case, ...], dict[str, bytes]]:
    """Give the finished cases and all evidence files; row i of each method's maps belongs to job i."""
    refs: dict[int, list[records.HeatmapRef]] = {}
    arrays: runs.Arrays = {}
    for method, made in maps.items():
        for row, job in enumerate(jobs):
            key = f"{job.case:03d}-{job.kind}-{method}"
            arrays[key] = made.heatmaps[row].numpy()
            refs.setdefault(job.case, []).append(_ref(method, job, made, row, key))
    cases, files = _evidence(drawn, refs)
    if arrays:
        files["evidence/heatmaps.safetensors"] = runs.pack_arrays(arrays)
    return cases, files


def _ref(method: str, job: Job, made: Explanation, row: int, key: str) -> records.HeatmapRef:
    error, largest = float(made.error[row]), float(made.heatmaps[row].abs().max())
    margin = None
    if made.margin is not None and largest > 0:
        margin = float(made.margin[row].median()) / largest
    return records.HeatmapRef(
        method=method,
        image=job.kind,
        target=job.target,
        error=error if np.isfinite(error) else None,
        gap=None if made.gap is None else float(made.gap[row]),
        zero=largest == 0,
        margin=margin,
        forwards=int(made.forwards[row]),
        details=made.details,
        file=key,
    )


def _evidence(
    drawn: Drawn, refs: Mapping[int, list[records.HeatmapRef]]
) -> tuple[tuple[records.Case, ...], dict[str, bytes]]:
    """Give the finished cases, and their images as 8-bit PNG and as exact floats."""
    files: dict[str, bytes] = {}
    exact: runs.Arrays = {}
    cases = []
    for k, (case, clean, attacked) in enumerate(zip(drawn.cases, drawn.clean, drawn.attacked, strict=True)):
        names = {}
        for kind, pixels in (("clean", clean), ("adversarial", attacked)):
            if pixels is not None:
                names[kind] = f"evidence/{k:03d}-{kind}.png"
                files[names[kind]] = to_png(pixels)
                exact[f"{k:03d}-{kind}"] = pixels.numpy()
        cases.append(case.model_copy(update={"files": names, "heatmaps": tuple(refs.get(k, ()))}))
    if exact:
        files["evidence/cases.safetensors"] = runs.pack_arrays(exact)
    return tuple(cases), files


def to_png(image: Tensor, *, optimize: bool = True) -> bytes:
    """Write an image ``c h w`` in [0, 1] as an 8-bit PNG."""
    from PIL import Image

    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=optimize)
    return buffer.getvalue()


def to_printable_png(patch: Tensor, shape: str) -> bytes:
    """Write a patch ``c p p`` large enough to print: at least 900 pixels, round ones with a transparent rim."""
    from PIL import Image

    times = -(-900 // patch.shape[-1])
    large = patch.repeat_interleave(times, 1).repeat_interleave(times, 2)
    if shape == "square":
        return to_png(large)
    line = torch.linspace(-1, 1, large.shape[-1])
    inside = ((line[:, None] ** 2 + line**2 <= 1) * 255).byte()
    colour = large.expand(3, *large.shape[1:]) if large.shape[0] == 1 else large
    pixels = torch.cat([(colour * 255).round().byte(), inside[None]]).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

"""audit: how often is it right, how easily is it broken, and what does it look at when it is?"""

import io
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from robustcv import draws, records, runs
from robustcv.attacks import ATTACKS
from robustcv.attacks.norms import NORMS
from robustcv.data import ImageSet
from robustcv.errors import DONE, GATE_FAILED, INCONCLUSIVE, UserError, unknown_name
from robustcv.evaluation.accuracy import Predictions, calibration, predict, proportion
from robustcv.evaluation.attribution import explain_images
from robustcv.evaluation.preflight import preflight, require_matching_classes, require_some_right
from robustcv.evaluation.worst_case import Planned, WorstCase, robust_metrics, worst_case
from robustcv.explainers import EXPLAINERS
from robustcv.models import load as load_classifier
from robustcv.runtime import Progress
from robustcv.verbs.prepare import (
    Clock,
    Result,
    describe_model,
    device_of,
    judged,
    parse_options,
    parse_sweep,
    take_images,
    version,
)


def audit(
    model: Any,
    images: Any,
    labels: Any,
    *,
    options: Mapping[str, Any],
    state: runs.State,
    progress: Progress,
) -> Result:
    """Audit a classifier; ``options`` are the keyword arguments of `robustcv.audit`, all of them."""
    clock = Clock()
    headline, sweep = parse_sweep(options["eps"], options["norm"], sweep=options["sweep"])
    chosen_options = parse_options(options["set"], {**ATTACKS, **EXPLAINERS})
    plan = [_planned(name, chosen_options) for name in options["attacks"]]
    for name in options["explain"]:
        if name not in EXPLAINERS:
            raise unknown_name("explainer", name, EXPLAINERS)
    gates = parse_gates(options["fail_under"])
    loaded = load_classifier(model, options["weights"])
    device = device_of(loaded, options["device"])
    seed, batch_size = options["seed"], options["batch_size"]
    chosen, data = take_images(
        images,
        labels,
        **{name: options[name] for name in ("split", "data_dir", "resize", "n", "seed")},
        class_names=loaded.class_names,
        progress=progress,
    )
    state.require_same("inputs", runs.fingerprint(describe_model(loaded).sha256, data.sha256))
    was_training = loaded.classifier.training and not loaded.description
    with judged(loaded.classifier) as classifier:
        probe, _ = next(chosen.take(torch.arange(1)).batches(1))
        with torch.no_grad():
            require_matching_classes(classifier(probe.to(device)), chosen.class_names)
        with progress.stage("clean accuracy", len(chosen)) as advance:
            predictions = predict(classifier, chosen, batch_size=batch_size, device=device, advance=advance)
        require_some_right(predictions)
        checks = preflight(classifier, chosen, predictions, was_training=was_training, device=device)
        sample = _sample(chosen, options["cases"] // 2, seed)
        with progress.stage("attacks", len(chosen) * len(plan) * len(sweep)) as advance:
            outcome = worst_case(
                classifier,
                chosen,
                predictions.correct,
                plan,
                norm=options["norm"],
                sweep=sweep,
                seed=seed,
                batch_size=batch_size,
                device=device,
                state=state,
                remember=sample,
                advance=advance,
            )
        drawn = _draw_cases(classifier, chosen, predictions, outcome, sample, headline, options["cases"], device)
        explained, files = explain_cases(
            classifier,
            drawn,
            options["explain"],
            chosen_options,
            seed=seed,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    ece, bins = calibration(predictions, seed=seed)
    metrics = (proportion("clean_accuracy", predictions.correct), ece, *robust_metrics(outcome))
    verdict, exit_code, judged_gates = judge_gates(gates, metrics, headline, checks)
    files["evidence/verdicts.safetensors"] = _verdicts(chosen, predictions, outcome)
    files["cases.jsonl"] = _successes(chosen, outcome)
    record = records.Record(
        verb="audit",
        version=version(),
        verdict=verdict,
        exit_code=exit_code,
        gates=judged_gates,
        model=describe_model(loaded),
        data=data,
        metrics=metrics,
        attacks=outcome.results,
        passes=records.Passes(
            forward=sum(result.forward for result in outcome.results) + len(chosen),
            backward=sum(result.backward for result in outcome.results),
        ),
        preflight=checks,
        classes=_classes(chosen, predictions, outcome.robust(headline)),
        calibration=bins,
        explanations=explained[1],
        cases=explained[0],
        training=describe_model(loaded).training,
        environment=clock.environment(device),
        options=dict(options),
        headline_eps=headline,
    )
    return Result(record, files)


def _planned(name: str, options: Mapping[str, Mapping[str, Any]]) -> Planned:
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    return Planned(name, ATTACKS[name], options.get(name, {}))


# -- gates ----------------------------------------------------------------------------------------------------------


def parse_gates(given: Any) -> dict[str, float]:
    """Read ``["robust_accuracy=0.4"]`` or a mapping.

    Raises
    ------
    UserError
        If a metric is unknown, or a threshold is not a share.
    """
    known = ("clean_accuracy", "robust_accuracy")
    pairs = given.items() if isinstance(given, Mapping) else (str(text).split("=", 1) for text in given or ())
    gates = {}
    for pair in pairs:
        name, value = (*pair, "")[:2]
        if name not in known:
            raise unknown_name("metric", name, known)
        try:
            gates[name] = float(value)
        except ValueError:
            gates[name] = float("nan")
        if not 0 <= gates[name] <= 1:
            raise UserError(
                "RCV-E005",
                f"--fail-under {name}={value} is not a share",
                "a gate is compared with an accuracy between 0 and 1",
                f"--fail-under {name}=0.4",
            )
    return gates


def judge_gates(
    gates: Mapping[str, float], metrics: tuple[records.Metric, ...], headline: float, checks: tuple[records.Check, ...]
) -> tuple[records.Verdict, int, tuple[records.Gate, ...]]:
    """Hold each gate against its metric's interval: above passes, below fails, across is inconclusive.

    A raised check makes the verdict inconclusive unless a gate has failed anyway.
    """
    raised = any(check.status == "raised" for check in checks)
    judged_gates = []
    for name, threshold in gates.items():
        match: dict[str, Any] = {"eps": headline, "attack": None} if name == "robust_accuracy" else {}
        metric = records.find_metric(metrics, name, **match)
        low, high = (metric.low or 0.0, metric.high or 0.0) if metric else (0.0, 1.0)
        outcome: Literal["passed", "failed", "across"] = (
            "passed" if low >= threshold else "failed" if high < threshold else "across"
        )
        judged_gates.append(records.Gate(name=name, threshold=threshold, outcome=outcome))
    outcomes = {gate.outcome for gate in judged_gates}
    if "failed" in outcomes:
        return "FAIL", GATE_FAILED, tuple(judged_gates)
    if "across" in outcomes or raised:
        return "INCONCLUSIVE", INCONCLUSIVE if gates else DONE, tuple(judged_gates)
    return ("PASS" if gates else "NO GATE"), DONE, tuple(judged_gates)


# -- cases: the images shown, chosen by a stated rule ------------------------------------------------------------------


def _sample(images: ImageSet, k: int, seed: int) -> Tensor:
    """Mark k images drawn by (seed, pixels) alone, before any attack has run: the same for every model."""
    order = sorted(range(len(images)), key=lambda row: draws.image_seed(seed, images.hashes[row], "sample"))
    mask = torch.zeros(len(images), dtype=torch.bool)
    mask[order[:k]] = True
    return mask


class Drawn:
    """Cases before their heat maps: the records so far, clean and attacked pixels, and what to explain."""

    def __init__(self) -> None:
        self.cases: list[records.Case] = []
        self.clean: list[Tensor] = []
        self.attacked: list[Tensor | None] = []


def _draw_cases(
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
    worst = torch.stack([*outcome.broken_at.values()]).amin(0)
    worst[sample | (worst <= 0) | (worst > headline * (1 + 1e-9))] = torch.inf
    order = worst.argsort(stable=True)[: max(0, wanted - int(sample.sum()))]
    weakest = [row for row in order.tolist() if worst[row].isfinite()]
    drawn = Drawn()
    rows = [(row, "sample") for row in sample.nonzero().squeeze(1).tolist()]
    for row, selection in rows + [(row, "broken at the smallest eps") for row in weakest]:
        one = images.take(torch.tensor([row]))
        clean, _ = next(one.batches(1))
        broken_by = outcome.breaker(row, headline)
        tried = broken_by or (next(reversed(outcome.broken_at)), headline)
        attacked = outcome.candidate(row, *tried) if predictions.correct[row] else None
        fields: dict[str, Any] = {}
        if attacked is not None:
            fields = _measure(classifier, clean, attacked[None], int(images.labels[row]), device)
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
    classifier: nn.Module, clean: Tensor, attacked: Tensor, label: int, device: torch.device
) -> dict[str, Any]:
    """Predict an attacked image again, alone, and its 8-bit version; measure both norms of the change."""
    rounded = (attacked * 255).round() / 255
    with torch.no_grad():
        logits = classifier(torch.cat([attacked, rounded]).to(device)).double().cpu()
    return {
        "adversarial_prediction": int(logits[0].argmax()),
        "adversarial_confidence": float(logits[0].softmax(0).amax()),
        "linf": float(NORMS["linf"].distance(attacked, clean)[0]),
        "l2": float(NORMS["l2"].distance(attacked, clean)[0]),
        "exact_8bit": bool(logits[1].argmax() != label),
    }


def explain_cases(
    classifier: nn.Module,
    drawn: Drawn,
    methods: tuple[str, ...] | list[str],
    options: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    progress: Progress,
) -> tuple[tuple[tuple[records.Case, ...], tuple[records.ExplainerResult, ...]], dict[str, bytes]]:
    """Explain the predicted class of each case's clean and attacked image; gather cases and evidence files."""
    pixels: list[Tensor] = []
    targets: list[int] = []
    owners: list[tuple[int, str]] = []
    for k, (case, clean, attacked) in enumerate(zip(drawn.cases, drawn.clean, drawn.attacked, strict=True)):
        pixels.append(clean)
        targets.append(case.prediction)
        owners.append((k, "clean"))
        if attacked is not None and case.adversarial_prediction is not None:
            pixels.append(attacked)
            targets.append(case.adversarial_prediction)
            owners.append((k, "adversarial"))
    refs: dict[int, list[records.HeatmapRef]] = {}
    heatmaps: dict[str, Any] = {}
    results = []
    if pixels:
        stacked, wanted = torch.stack(pixels), torch.tensor(targets)
        names = [f"{drawn.cases[k].image}-{kind}" for k, kind in owners]
        for method in methods:
            with progress.stage(f"explain by {method}", len(pixels)) as advance:
                maps, result = explain_images(
                    classifier,
                    stacked,
                    wanted,
                    names,
                    name=method,
                    explain=EXPLAINERS[method],
                    options=options.get(method, {}),
                    seed=seed,
                    batch_size=batch_size,
                    device=device,
                    advance=advance,
                )
            results.append(result)
            for position, (k, kind) in enumerate(owners):
                key = f"{k:03d}-{kind}-{method}"
                heatmaps[key] = maps.heatmaps[position].numpy()
                error = float(maps.error[position])
                refs.setdefault(k, []).append(
                    records.HeatmapRef(
                        method=method,
                        image="clean" if kind == "clean" else "adversarial",
                        target=targets[position],
                        error=error if np.isfinite(error) else None,
                        forwards=int(maps.forwards[position]),
                        details=maps.details,
                        file=key,
                    )
                )
    files: dict[str, bytes] = {}
    cases = []
    exact: dict[str, Any] = {}
    for k, (case, clean, attacked) in enumerate(zip(drawn.cases, drawn.clean, drawn.attacked, strict=True)):
        names_of = {"clean": f"evidence/{k:03d}-clean.png"}
        files[names_of["clean"]] = to_png(clean)
        exact[f"{k:03d}-clean"] = clean.numpy()
        if attacked is not None:
            names_of["adversarial"] = f"evidence/{k:03d}-adversarial.png"
            files[names_of["adversarial"]] = to_png(attacked)
            exact[f"{k:03d}-adversarial"] = attacked.numpy()
        cases.append(case.model_copy(update={"files": names_of, "heatmaps": tuple(refs.get(k, ()))}))
    if exact:
        files["evidence/cases.safetensors"] = runs.pack_arrays(exact)
    if heatmaps:
        files["evidence/heatmaps.safetensors"] = runs.pack_arrays(heatmaps)
    return (tuple(cases), tuple(results)), files


def to_png(image: Tensor) -> bytes:
    """Write an image ``c h w`` in [0, 1] as an 8-bit PNG."""
    from PIL import Image

    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# -- what other runs and scripts read --------------------------------------------------------------------------------


def _classes(images: ImageSet, predictions: Predictions, robust: Tensor) -> tuple[records.ClassRow, ...]:
    rows = []
    for label, name in enumerate(images.class_names):
        mine = images.labels == label
        clean, stands = predictions.correct[mine], robust[mine]
        rows.append(records.ClassRow(name=name, n=int(mine.sum()), clean=int(clean.sum()), robust=int(stands.sum())))
    return tuple(rows)


def _verdicts(images: ImageSet, predictions: Predictions, outcome: WorstCase) -> bytes:
    """Pack every image's verdict, by hash: what `compare` pairs."""
    hashes = np.frombuffer(bytes.fromhex("".join(images.hashes)), np.uint8).reshape(len(images), -1)
    arrays = {
        "hash": hashes,
        "index": images.indices.numpy(),
        "label": images.labels.numpy(),
        "prediction": predictions.classes.numpy(),
        "confidence": predictions.confidences.numpy(),
        "correct": predictions.correct.numpy(),
    }
    arrays |= {f"broken_at/{outcome.norm}/{name}": at.numpy() for name, at in outcome.broken_at.items()}
    return runs.pack_arrays(arrays)


def _successes(images: ImageSet, outcome: WorstCase) -> bytes:
    """Write one line for each successful attack."""
    lines = []
    for name, broken_at in outcome.broken_at.items():
        for row in (broken_at.isfinite() & (broken_at > 0)).nonzero().squeeze(1).tolist():
            line = {
                "index": int(images.indices[row]),
                "image": images.hashes[row],
                "label": int(images.labels[row]),
                "attack": name,
                "norm": outcome.norm,
                "eps": float(broken_at[row]),
                "distance": float(outcome.distance[name][row]),
            }
            lines.append(json.dumps(line))
    return ("\n".join(lines) + "\n").encode() if lines else b""

"""audit: how often is it right, how easily is it broken, and what does it look at when it is?"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcv import records, runs
from robustcv.attacks import ATTACKS
from robustcv.data import ImageSet
from robustcv.errors import UserError, unknown_name
from robustcv.evaluation.accuracy import Predictions, calibration, predict, proportion
from robustcv.evaluation.preflight import preflight, require_some_right
from robustcv.evaluation.worst_case import Planned, WorstCase, robust_metrics, worst_case
from robustcv.explainers import EXPLAINERS
from robustcv.models import load as load_classifier
from robustcv.runtime import Progress
from robustcv.verbs.cases import draw_cases, draw_sample, explain_cases
from robustcv.verbs.gates import judge_gates, parse_gates
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
    method_options = parse_options(options["set"], {**ATTACKS, **EXPLAINERS})
    plan = [_planned(name, method_options) for name in dict.fromkeys(options["attacks"])]
    if not plan:
        raise UserError(
            "RCV-E009", "no attack was named", "robust accuracy is measured by attacks", "--attacks fgsm,pgd"
        )
    for name in options["explain"]:
        if name not in EXPLAINERS:
            raise unknown_name("explainer", name, EXPLAINERS)
    gates = parse_gates(options["fail_under"])
    loaded = load_classifier(model, options["weights"])
    device = device_of(loaded, options["device"])
    chosen, data = take_images(
        images,
        labels,
        **{name: options[name] for name in ("split", "data_dir", "resize", "n", "seed")},
        loaded=loaded,
        device=device,
        progress=progress,
    )
    described = describe_model(loaded)
    state.require_same("inputs", runs.fingerprint(described.sha256, data.sha256))
    run = {"seed": options["seed"], "batch_size": options["batch_size"], "device": device}
    was_training = loaded.classifier.training
    with judged(loaded.classifier) as classifier:
        predictions = _predict(classifier, chosen, device, options["batch_size"], progress)
        checks = preflight(
            classifier,
            chosen,
            predictions,
            was_training=was_training,
            trained_on=loaded.class_names,
            device=device,
        )
        sample = draw_sample(chosen, options["cases"] // 2, options["seed"])
        with progress.stage("attacks", len(chosen) * len(plan) * len(sweep)) as advance:
            outcome = worst_case(
                classifier,
                chosen,
                predictions.correct,
                plan,
                norm=options["norm"],
                sweep=sweep,
                state=state,
                remember=sample,
                advance=advance,
                **run,
            )
        drawn = draw_cases(classifier, chosen, predictions, outcome, sample, headline, options["cases"], device)
        cases, explanations, files = explain_cases(
            classifier, drawn, options["explain"], method_options, progress=progress, **run
        )
    error, bins = calibration(predictions, seed=options["seed"])
    metrics = (proportion("clean_accuracy", predictions.correct), error, *robust_metrics(outcome))
    verdict, exit_code, judged_gates = judge_gates(gates, metrics, headline, checks)
    files["evidence/verdicts.safetensors"] = _verdicts(chosen, predictions, outcome)
    files["cases.jsonl"] = _successes(chosen, outcome)
    record = records.Record(
        verb="audit",
        version=version(),
        verdict=verdict,
        exit_code=exit_code,
        gates=judged_gates,
        model=described,
        data=data,
        metrics=metrics,
        attacks=outcome.results,
        passes=_passes(outcome, len(chosen)),
        preflight=checks,
        classes=_classes(chosen, predictions, outcome.robust(headline)),
        calibration=bins,
        explanations=explanations,
        cases=cases,
        training=described.training,
        environment=clock.environment(device),
        options=dict(options),
        headline_eps=headline,
    )
    return Result(record, files)


def _predict(
    classifier: nn.Module, images: ImageSet, device: torch.device, batch_size: int, progress: Progress
) -> Predictions:
    """Predict every clean image; stops where no number could be computed from the answers."""
    with progress.stage("clean accuracy", len(images)) as advance:
        predictions = predict(classifier, images, batch_size=batch_size, device=device, advance=advance)
    require_some_right(predictions)
    return predictions


def _passes(outcome: WorstCase, clean: int) -> records.Passes:
    return records.Passes(
        forward=sum(result.forward for result in outcome.results) + clean,
        backward=sum(result.backward for result in outcome.results),
    )


def _planned(name: str, options: Mapping[str, Mapping[str, Any]]) -> Planned:
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    return Planned(name, ATTACKS[name], options.get(name, {}))


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

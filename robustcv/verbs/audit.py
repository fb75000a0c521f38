"""audit: how often is it right, how easily is it broken, and what does it look at when it is?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcv import processes, records, runs, stats, stopping
from robustcv.attacks import ATTACKS
from robustcv.attacks.patch import train_patch
from robustcv.attacks.spatial import spatial
from robustcv.attacks.wrappers import Eot
from robustcv.certificates import CERTIFICATES
from robustcv.compiled import compiled
from robustcv.data import ImageSet
from robustcv.errors import UserError, unknown_name
from robustcv.evaluation.accuracy import Predictions, calibration, predict, proportion
from robustcv.evaluation.agreement import Agreed, agreement
from robustcv.evaluation.certify import (
    certified_metrics,
    certify_bounds,
    certify_smoothing,
    contradictions,
    require_boundable,
)
from robustcv.evaluation.cost import cost
from robustcv.evaluation.job import Job, Planned
from robustcv.evaluation.plans import EFFORTS, plan_for, plan_of
from robustcv.evaluation.preflight import indispensable, preflight, require_some_right
from robustcv.evaluation.replay import Replayable, replayable
from robustcv.evaluation.robustness import measure, over_seeds, passes
from robustcv.evaluation.worst_case import WorstCase, robust_metrics
from robustcv.explainers import EXPLAINERS
from robustcv.folding import folded
from robustcv.models import load as load_classifier
from robustcv.reduced import FAR, STEEP, reduced
from robustcv.runtime import Progress
from robustcv.verbs.beyond import ALSO, Beyond, measure_beyond, patch_training_images, require_colours
from robustcv.verbs.cases import draw_cases, draw_sample, explain_cases
from robustcv.verbs.evidence import evidence_of, flows_of
from robustcv.verbs.explained import require_masks
from robustcv.verbs.followed import Followed, follow, measures_of, require_maps
from robustcv.verbs.gates import conclude, judge_drops, judge_floors, parse_gates, require_alike, require_baseline
from robustcv.verbs.pairing import Saved, attacked_alike, escalated, hashes_and_labels, pairs_with, require_same_images
from robustcv.verbs.parse import black_box_explainers, methods_of, parse_options, parse_sweep, refuse_unused
from robustcv.verbs.prepare import (
    Clock,
    Result,
    asked_about,
    class_map_of,
    describe_model,
    device_of,
    gives_gradients,
    is_black_box,
    judged,
    take_images,
    training_images_among,
    version,
)

PRECISIONS = ("float32", "bf16")


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
    given, sweep = parse_sweep(options["eps"], options["norm"], sweep=options["sweep"])
    headline = given[0]
    for name in options["also"]:
        if name not in ALSO:
            raise unknown_name("threat", name, ALSO)
    if options["precision"] not in PRECISIONS:
        raise unknown_name("precision", options["precision"], PRECISIONS)
    for name in options["certify"]:
        if name not in CERTIFICATES:
            raise unknown_name("certificate", name, CERTIFICATES)
    methods_known = {**ATTACKS, **EXPLAINERS, **CERTIFICATES, "spatial": spatial, "patch": train_patch}
    method_options = parse_options(options["set"], methods_known)
    methods, measures = methods_of(options["explain"]), measures_of(options["measures"])
    require_maps(methods, measures, options["also"])
    gating: dict[str, Any] = {"norm": options["norm"], "asked": given, "tried": sweep, "also": options["also"]}
    bars = parse_gates(options["fail_under"], **gating) + parse_gates(options["max_drop"], kind="drop", **gating)
    baseline = None if options["baseline"] is None else Saved.read(Path(options["baseline"]))
    require_baseline(bars, baseline, options["norm"])
    if not str(model).startswith("onnx:"):
        _plans(options, method_options, black_box=False)  # a mistake in the options is told before anything is loaded
    class_map = class_map_of(options)
    loaded = load_classifier(model, options["weights"], say=progress.say)
    black_box = is_black_box(loaded.classifier)
    plan, escalation = _plans(options, method_options, black_box=black_box)
    explain = black_box_explainers(methods, ["integrated_gradients"]) if black_box else methods
    device = device_of(loaded, options["device"])
    chosen, data = take_images(
        images,
        labels,
        **{name: options[name] for name in ("split", "data_dir", "resize", "skip_bad", "n", "seed")},
        loaded=loaded,
        device=device,
        progress=progress,
        mapped=class_map is not None,
    )
    loaded = asked_about(loaded, class_map, chosen, device)
    if not black_box and not gives_gradients(loaded.classifier, chosen, device):
        black_box = True  # the checks raise it; what can be measured without gradients is
        plan, escalation = _plans(options, method_options, black_box=True)
        explain = black_box_explainers(methods, ["integrated_gradients"])
    if "bounds" in options["certify"] and options["eot"] > 1:
        raise UserError(
            "RCV-E084",
            "--certify bounds and --eot do not go together",
            "a mean of random answers has no bounds",
            "leave one of them out; --certify smoothing is about random answers",
        )
    if "bounds" in options["certify"]:  # told now, not after the attacks
        require_boundable(loaded.classifier, options["norm"], chosen.shape)
    if options["eight_bit"] and not data.eight_bit:
        raise UserError(
            "RCV-E087",
            "these images are no multiples of 1/255",
            "rounded to 8 bits even a clean one would change, so no success could be told from rounding",
            "leave --eight-bit out, or give 8-bit images",
        )
    alike = baseline is not None and attacked_alike(baseline.record, options, plan, headline)
    if baseline is not None:
        require_same_images(baseline, hashes_and_labels(chosen))
        require_alike(bars, baseline, alike=alike)
    require_masks(measures, chosen)
    require_colours(chosen.shape[0], options["also"])
    patch_images = patch_training_images(images, options, loaded, device, progress)
    described = describe_model(loaded)
    state.require_same("inputs", runs.fingerprint(described.sha256, described.class_map, data.sha256))
    run = {"seed": options["seed"], "batch_size": options["batch_size"], "device": device}
    was_training = loaded.classifier.training
    with judged(loaded.classifier) as plain:
        classifier = plain if options["eot"] == 1 else Eot(plain, options["eot"]).eval()
        predictions = _predict(classifier, chosen, device, options["batch_size"], progress)
        checks: tuple[records.Check, ...] = ()
        if options["skip_preflight"] and not stopping.asked():
            checks = indispensable(classifier, chosen, device)
        elif not stopping.asked():
            overlap = training_images_among(images, chosen, options, progress)
            with progress.stage("preflight", 1):
                checks = preflight(
                    classifier,
                    chosen,
                    predictions,
                    was_training=was_training,
                    trained_on=loaded.class_names,
                    whole=loaded.whole,
                    device=device,
                    norm=options["norm"],
                    eps=headline,
                    overlap=overlap,
                    black_box=black_box,
                )
        sample = draw_sample(chosen, options["cases"] // 2, options["seed"])
        work = sum(planned.weight for planned in plan) * len(chosen) * len(sweep)
        fast, half = (classifier, None) if black_box else _fast(classifier, chosen, device, options)
        with progress.stage("attacks", work, stops=False) as advance:
            job = Job(
                classifier,
                chosen,
                predictions,
                norm=options["norm"],
                state=state,
                fast=fast,
                reduced=half,
                remember=sample,
                eight_bit=options["eight_bit"],
                advance=advance,
                black_box=black_box,
                **run,
            )
            outcome, flags = measure(job, plan, eps=headline, sweep=sweep, escalation=escalation, black_box=black_box)
            outcome, spread = over_seeds(job, plan, outcome, options["seeds"])
            met = outcome
            outcome, agreed = stopping.unless_asked(
                lambda: agreement(job, plan, met, options["agreement"]), Agreed(met, None)
            )
        settled = stopping.unless_asked(lambda: _settled(job, outcome, progress), None)
        outcome = outcome if settled is None else settled.outcome
        certified: tuple[records.Certified, ...] = ()
        certified = stopping.unless_asked(
            lambda: _certified(job, outcome, options["certify"], method_options, progress), certified
        )
        flags = (*flags, contradictions(certified)) if certified else flags
        beyond = stopping.unless_asked(
            lambda: measure_beyond(job, options, method_options, patch_images, progress), Beyond()
        )
        drawn = draw_cases(classifier, chosen, predictions, outcome, sample, headline, options["cases"], device)
        explained = stopping.unless_asked(
            lambda: explain_cases(classifier, drawn, explain, method_options, progress=progress, **run), None
        )
        cases, explanations, files = explained or explain_cases(classifier, drawn, (), {}, progress=progress, **run)
        radii = [each for each in sweep if each <= headline * (1 + 1e-9)] if "maps" in options["also"] else []
        followed = stopping.unless_asked(
            lambda: follow(job, predictions, explain, method_options, measures, radii, progress), Followed()
        )
        first = next(chosen.take(torch.arange(1)).batches(1))[0][0].to(device)
        spent = processes.by_first(  # alone, so that it is not slowed
            lambda: stopping.unless_asked(lambda: cost(plain, first, black_box=black_box), None)
        )
    error, bins = calibration(predictions.confidences, predictions.correct, seed=options["seed"])
    misled, bins_attacked = _calibration_attacked(predictions, settled, headline, options)
    metrics = (
        proportion("clean_accuracy", predictions.correct),
        error,
        *misled,
        *robust_metrics(outcome),
        *beyond.metrics,
        *certified_metrics(certified),
    )
    files |= beyond.files
    verdicts = _verdicts(chosen, predictions, outcome)
    gates = judge_floors(bars, metrics, on=options["gate_on"])
    pairs: tuple[records.PairedMetric, ...] = ()
    if baseline is not None:
        more = escalated(outcome.results)
        gates += judge_drops(bars, verdicts, baseline, options["norm"], on=options["gate_on"], escalated_now=more)
        eps = headline if alike and more == escalated(baseline.record.attacks) else None
        pairs = () if stopping.asked() else pairs_with(baseline, verdicts, options["norm"], eps)
    if stopping.asked():  # images that no attack has met stand for nothing
        gates = [gate.model_copy(update={"outcome": "across"}) for gate in gates]
    verdict, exit_code = conclude(gates, checks, flags)
    files["evidence/verdicts.safetensors"] = runs.pack_arrays(verdicts)
    kept, evidence = (None, {}) if settled is None else evidence_of(chosen, settled)
    files |= evidence
    answered = len(chosen) * (1 + len(beyond.corruptions)) * options["eot"]
    counted: list[Any] = [*checks, *flags, *beyond.others, *certified, *([] if settled is None else [settled])]
    record = records.Record(
        verb="audit",
        version=version(),
        verdict=verdict,
        exit_code=exit_code,
        gates=tuple(gates),
        paired=pairs,
        baseline=None if baseline is None else baseline.title,
        model=described,
        data=data,
        metrics=metrics,
        attacks=outcome.results,
        seeds=spread,
        agreement=agreed,
        passes=passes(outcome, counted, answered),
        preflight=checks,
        flags=flags,
        corruptions=beyond.corruptions,
        others=beyond.others,
        certified=certified,
        evidence=kept,
        flows=() if settled is None else flows_of(chosen, settled, headline),
        classes=_classes(chosen, predictions, outcome, beyond.shares),
        calibration=bins,
        calibration_attacked=bins_attacked,
        explanations=explanations,
        measures=followed.measures,
        stability=followed.stability,
        cases=cases,
        training=described.training,
        cost=spent,
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


def _plans(
    options: Mapping[str, Any], method_options: Mapping[str, Mapping[str, Any]], *, black_box: bool
) -> tuple[list[Planned], list[Planned]]:
    """Give the attacks to run, named or by effort, and those for the images left standing where a flag is raised."""
    named = options["attacks"] is not None
    if options["effort"] not in EFFORTS:
        raise unknown_name("effort", options["effort"], EFFORTS)
    plan = (
        plan_of(options["attacks"], options["norm"], method_options)
        if named
        else plan_for(options["effort"], options["norm"], method_options, black_box=black_box)
    )
    explain = ["partition_shap"] if black_box else options["explain"]
    runs_here = [*(planned.name for planned in plan), *options["also"], *options["certify"], *explain]
    without = next((each.name for each in plan if black_box and each.name not in records.GRADIENT_FREE), None)
    without = "patch" if black_box and "patch" in options["also"] else without
    without = "bounds" if black_box and "bounds" in options["certify"] else without
    without = "maps" if black_box and "maps" in options["also"] else without
    without = "--compile" if black_box and options["compile"] else without
    without = "--precision bf16" if black_box and options["precision"] == "bf16" else without
    if without is not None:
        fix = "leave it out" if without.startswith("--") else f"use {', '.join(records.GRADIENT_FREE)}"
        raise UserError("RCV-E094", f"{without} needs gradients", "this model gives none", fix)
    told = f"this audit runs {', '.join(runs_here)}"
    refuse_unused(method_options, runs_here, told, add="add it to --attacks, --also, --certify or --explain")
    if named or black_box:
        return plan, []
    escalates = options["effort"] in ("standard", "thorough") and options["norm"] != "l0"
    return plan, plan_for("autoattack", options["norm"]) if escalates else []


def _fast(
    classifier: nn.Module, images: ImageSet, device: torch.device, options: Mapping[str, Any]
) -> tuple[nn.Module, nn.Module | None]:
    """Fold what can be folded, and compile it where asked; the same in bfloat16 beside it; held to a few images."""
    few = next(images.take(torch.arange(min(32, len(images)))).batches(32))[0].to(device)
    fast = folded(classifier, few)
    half = reduced(fast, few[:4]) if options["precision"] == "bf16" else None
    if not options["compile"]:
        return fast, half
    return compiled(fast, few), None if half is None else compiled(half, few[:4], logits=FAR, slopes=STEEP)


def _settled(job: Job, outcome: WorstCase, progress: Progress) -> Replayable:
    with progress.stage("evidence", int((outcome.broken_by >= 0).sum())) as advance:
        return replayable(job, outcome, advance=advance)


def _certified(
    job: Job,
    outcome: WorstCase,
    names: Sequence[str],
    method_options: Mapping[str, Mapping[str, Any]],
    progress: Progress,
) -> tuple[records.Certified, ...]:
    """Prove what can be proved, by each certificate asked for."""
    certify = {"bounds": certify_bounds, "smoothing": certify_smoothing}
    rows: list[records.Certified] = []
    for name in names:
        with progress.stage(f"certify: {name}", len(job.images) * len(outcome.sweep)) as advance:
            rows += certify[name](job, outcome, method_options.get(name, {}), advance=advance)
    return tuple(rows)


def _calibration_attacked(
    predictions: Predictions, settled: Replayable | None, eps: float, options: Mapping[str, Any]
) -> tuple[list[records.Metric], tuple[records.CalibrationBin, ...]]:
    """Compute the calibration error of the images as the attacks left them: broken ones attacked, the others clean."""
    if settled is None:
        return [], ()
    fell = predictions.correct & ~settled.outcome.robust(eps)
    sure = torch.where(fell, settled.confidences, predictions.confidences)
    named = {"name": "calibration_error_attacked", "norm": settled.outcome.norm, "eps": eps}
    metric, bins = calibration(sure, predictions.correct & ~fell, seed=options["seed"], **named)
    return [metric], bins


def _classes(
    images: ImageSet, predictions: Predictions, outcome: WorstCase, corrupted: Tensor | None
) -> tuple[records.ClassRow, ...]:
    """Count by true class, at the headline eps; ``corrupted`` is each image's share of right answers."""
    robust = outcome.robust(outcome.headline)
    k = len(images.class_names)

    def count(mask: Tensor) -> list[int]:
        return images.labels[mask].bincount(minlength=k).tolist()

    totals, right, stands = count(torch.ones_like(robust)), count(predictions.correct), count(robust)
    p_values = stats.against_rest(stands, totals)
    fell: dict[str, list[int]] = {}
    for place, name in enumerate(outcome.names):  # the same name may come twice
        own = count(~robust & (outcome.broken_by == place))
        fell[name] = [a + b for a, b in zip(own, fell.get(name, [0] * k), strict=True)]
    shares = None if corrupted is None else images.labels.bincount(corrupted.double(), minlength=k).tolist()
    return tuple(
        records.ClassRow(
            name=name,
            n=totals[each],
            clean=right[each],
            robust=stands[each],
            p_value=p_values[each],
            fell={attack: counts[each] for attack, counts in fell.items() if any(counts)},
            corrupted=None if shares is None or not totals[each] else min(1.0, shares[each] / totals[each]),
        )
        for each, name in enumerate(images.class_names)
    )


def _verdicts(images: ImageSet, predictions: Predictions, outcome: WorstCase) -> runs.Arrays:
    """Give every image's verdict, by hash: what `compare` pairs; and the passes that attacks spent on it."""
    arrays = {
        **hashes_and_labels(images),
        "index": images.indices.numpy(),
        "prediction": predictions.classes.numpy(),
        "confidence": predictions.confidences.numpy(),
        "correct": predictions.correct.numpy(),
        "forwards": outcome.forwards.numpy(),
        "backwards": outcome.backwards.numpy(),
    }
    arrays[f"broken_at/{outcome.norm}"] = outcome.broken_at.numpy()
    return arrays

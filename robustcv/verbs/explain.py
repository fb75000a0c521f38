"""explain: what does it look at, by several methods, each with its completeness gap?"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustcv import records, runs
from robustcv.data import ImageSet
from robustcv.errors import UserError, unknown_name
from robustcv.evaluation.accuracy import Predictions, predict, proportion
from robustcv.explainers import EXPLAINERS
from robustcv.models import load as load_classifier
from robustcv.runtime import Progress
from robustcv.verbs.cases import Drawn, explain_cases
from robustcv.verbs.prepare import (
    Clock,
    Result,
    black_box_explainers,
    describe_model,
    device_of,
    is_black_box,
    judged,
    parse_options,
    take_images,
    version,
)

EXPLAINERS_SHOWN = ("integrated_gradients", "gradient_shap", "partition_shap")


def explain(
    classifier: Any, images: Any, targets: Any, *, options: Mapping[str, Any], state: runs.State, progress: Progress
) -> Result:
    """Explain a classifier's predictions; ``options`` are the keyword arguments of `robustcv.explain`, all of them."""
    del state  # short work: nothing to resume
    clock = Clock()
    methods = [options["method"]] if isinstance(options["method"], str) else list(options["method"])
    method_options = parse_options(options["set"], dict(EXPLAINERS))
    for name in methods:
        if name not in EXPLAINERS:
            raise unknown_name("explainer", name, EXPLAINERS)
    loaded = load_classifier(classifier, options["weights"])
    if is_black_box(loaded.classifier):
        methods = black_box_explainers(methods, list(EXPLAINERS_SHOWN))
    device = device_of(loaded, options["device"])
    labels = options["labels"]
    labelled = labels is not None or not isinstance(images, Tensor)
    chosen, data = take_images(
        images,
        labels if labelled else torch.zeros(len(images), dtype=torch.int64),
        **{name: options[name] for name in ("split", "data_dir", "resize", "skip_bad", "n", "seed")},
        at_most=True,
        loaded=loaded,
        device=device,
        progress=progress,
    )
    run = {"seed": options["seed"], "batch_size": options["batch_size"], "device": device}
    with judged(loaded.classifier) as frozen_classifier:
        predictions = predict(frozen_classifier, chosen, batch_size=options["batch_size"], device=device)
        known = predictions.logits.shape[1]
        if targets is not None and not bool(((given := torch.as_tensor(targets)) >= 0).all() and (given < known).all()):
            raise UserError(
                "RCV-E012", f"targets {targets} are not all classes", f"the model has {known}", f"use 0 to {known - 1}"
            )
        wanted = predictions.classes if targets is None else _targets(targets, data.total)[chosen.indices]
        drawn = _drawn(chosen, predictions, data.selection, labelled=labelled)
        cases, results, files = explain_cases(
            frozen_classifier, drawn, methods, method_options, targets=wanted.tolist(), progress=progress, **run
        )
    record = records.Record(
        verb="explain",
        version=version(),
        model=describe_model(loaded),
        data=data,
        metrics=(proportion("clean_accuracy", predictions.correct),) if labelled else (),
        explanations=results,
        cases=cases,
        environment=clock.environment(device),
        options={name: value for name, value in options.items() if name != "labels"},
    )
    return Result(record, files)


def _targets(targets: Any, total: int) -> Tensor:
    """Read the classes to explain: one for all images, or one each."""
    wanted = torch.as_tensor(targets).long()
    if wanted.ndim == 0:
        return wanted.expand(total)
    if len(wanted) != total:
        raise UserError(
            "RCV-E019", f"{len(wanted)} targets for {total} images", "each map explains one class", "pass one each"
        )
    return wanted


def _drawn(images: ImageSet, predictions: Predictions, selection: str, *, labelled: bool) -> Drawn:
    drawn = Drawn()
    for row in range(len(images)):
        pixels, _ = next(images.take(torch.tensor([row])).batches(1))
        drawn.clean.append(pixels[0])
        drawn.attacked.append(None)
        drawn.cases.append(
            records.Case(
                index=int(images.indices[row]),
                image=images.hashes[row],
                selection=selection,
                outcome="not attacked",
                label=int(images.labels[row]) if labelled else None,
                prediction=int(predictions.classes[row]),
                confidence=float(predictions.confidences[row]),
            )
        )
    return drawn

"""explain: what does it look at, by several methods, each with its completeness gap?"""

from collections.abc import Mapping
from typing import Any

import torch

from robustcv import records, runs
from robustcv.errors import unknown_name
from robustcv.evaluation.accuracy import predict, proportion
from robustcv.evaluation.preflight import require_matching_classes
from robustcv.explainers import EXPLAINERS
from robustcv.models import load as load_classifier
from robustcv.runtime import Progress
from robustcv.verbs.cases import Drawn, explain_cases
from robustcv.verbs.prepare import (
    Clock,
    Result,
    describe_model,
    device_of,
    judged,
    parse_options,
    take_images,
    version,
)


def explain(
    model: Any, images: Any, labels: Any, *, options: Mapping[str, Any], state: runs.State, progress: Progress
) -> Result:
    """Explain a classifier's predictions; ``options`` are the keyword arguments of `robustcv.explain`, all of them."""
    del state  # short work: nothing to resume
    clock = Clock()
    method_options = parse_options(options["set"], dict(EXPLAINERS))
    for name in options["methods"]:
        if name not in EXPLAINERS:
            raise unknown_name("explainer", name, EXPLAINERS)
    loaded = load_classifier(model, options["weights"])
    device = device_of(loaded, options["device"])
    chosen, data = take_images(
        images,
        labels,
        **{name: options[name] for name in ("split", "data_dir", "resize", "n", "seed")},
        class_names=loaded.class_names,
        progress=progress,
    )
    with judged(loaded.classifier) as classifier:
        predictions = predict(classifier, chosen, batch_size=options["batch_size"], device=device)
        require_matching_classes(predictions.logits, chosen.class_names)
        drawn = Drawn()
        for row in range(len(chosen)):
            image, _ = next(chosen.take(torch.tensor([row])).batches(1))
            drawn.clean.append(image[0])
            drawn.attacked.append(None)
            drawn.cases.append(
                records.Case(
                    index=int(chosen.indices[row]),
                    image=chosen.hashes[row],
                    selection=data.selection,
                    outcome="not attacked",
                    label=int(chosen.labels[row]),
                    prediction=int(predictions.classes[row]),
                    confidence=float(predictions.confidences[row]),
                )
            )
        cases, results, files = explain_cases(
            classifier,
            drawn,
            options["methods"],
            method_options,
            seed=options["seed"],
            batch_size=options["batch_size"],
            device=device,
            progress=progress,
        )
    record = records.Record(
        verb="explain",
        version=version(),
        model=describe_model(loaded),
        data=data,
        metrics=(proportion("clean_accuracy", predictions.correct),),
        explanations=results,
        cases=cases,
        environment=clock.environment(device),
        options=dict(options),
    )
    return Result(record, files)

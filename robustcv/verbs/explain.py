"""explain: what does it look at, how wrong is each map, how good is each method, and do the maps stand an attack?"""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustcv import draws, records, runs, stopping
from robustcv.classifier import Classifier
from robustcv.data import ImageSet
from robustcv.data.loose import loose_images
from robustcv.errors import UserError
from robustcv.evaluation.accuracy import Predictions, predict, proportion
from robustcv.evaluation.faithfulness import at_budget
from robustcv.evaluation.focus import class_focus
from robustcv.evaluation.neighbours import features_of, nearest
from robustcv.explainers import EXPLAINERS
from robustcv.models import Loaded
from robustcv.models import load as load_classifier
from robustcv.runtime import Progress
from robustcv.verbs.cases import Drawn, finished, jobs_of, to_png
from robustcv.verbs.explained import Explained, none_of
from robustcv.verbs.followed import measures_of
from robustcv.verbs.parse import black_box_explainers, methods_of, parse_options, parse_sweep, refuse_unused
from robustcv.verbs.prepare import (
    Clock,
    Result,
    asked_about,
    class_map_of,
    describe_model,
    device_of,
    is_black_box,
    judged,
    take_images,
    version,
)

EXPLAINERS_SHOWN = ("integrated_gradients", "gradient_shap", "shapley")
NEIGHBOURS = 3


def explain(
    classifier: Any, images: Any, targets: Any, *, options: Mapping[str, Any], state: runs.State, progress: Progress
) -> Result:
    """Explain a classifier's predictions; ``options`` are the keyword arguments of `robustcv.explain`, all of them."""
    clock = Clock()
    methods = methods_of(options["method"])
    measures = measures_of(options["measures"])
    _, radii = parse_sweep(options["eps"], options["norm"], sweep=False) if options["eps"] else ([], ())
    method_options = parse_options(options["set"], dict(EXPLAINERS))
    class_map = class_map_of(options)
    loaded = load_classifier(classifier, options["weights"], say=progress.say)
    if is_black_box(loaded.classifier):
        methods = black_box_explainers(methods, EXPLAINERS_SHOWN)
        if radii:
            raise UserError("RCV-E094", "--eps attacks by gradients", "this model gives none", "leave --eps out")
    refuse_unused(method_options, methods, f"the methods are {', '.join(methods)}", add="add {} to --methods")
    device = device_of(loaded, options["device"])
    chosen, data, labelled = _images(images, options, loaded, class_map is not None, device, progress)
    loaded = asked_about(loaded, class_map, chosen, device)
    described = describe_model(loaded)
    if options["budget"]:
        method_options = {
            name: {**at_budget(name, options["budget"]), **method_options.get(name, {})} for name in methods
        }
    method_options = {name: _with_images(own, chosen, options["seed"]) for name, own in method_options.items()}
    with judged(loaded.classifier) as plain:
        predictions = predict(plain, chosen, batch_size=options["batch_size"], device=device)
        wanted = predictions.classes if targets is None else _targets(targets, data.total, predictions)[chosen.indices]
        state.require_same("inputs", runs.fingerprint(described.sha256, data.sha256, wanted.tolist()))
        found = Explained(
            plain,
            chosen,
            predictions.classes,
            wanted,
            methods,
            method_options,
            options["seed"],
            options["batch_size"],
            device,
        )
        done = found.run(progress, state)
        shown = min(options["cases"], done)
        drawn = _drawn(chosen, predictions, data.selection, wanted, shown, labelled=labelled)
        judgements: tuple[records.MeasureResult, ...] = ()
        stable: tuple[records.StabilityRow, ...] = ()
        neighbours, near_files = _none_near(shown)
        with contextlib.suppress(stopping.Interrupted):  # the maps stand; what is asked about all of them is left out
            stopping.at_boundary()
            judgements = found.judge(measures, progress) if measures else ()
            if measures and not judgements:
                raise none_of(measures)
            stable = found.attack(radii, options["norm"], progress) if radii else ()
            neighbours, near_files = _neighbours(plain, chosen, loaded, shown, options, device, progress)
    drawn.cases = [
        case.model_copy(update={"neighbours": near}) for case, near in zip(drawn.cases, neighbours, strict=True)
    ]
    cases, files = finished(drawn, jobs_of(drawn, wanted.tolist()[: len(drawn.cases)]), found.maps)
    heatmaps = {name: made.heatmaps for name, made in found.maps.items()}
    masks = None if chosen.masks is None else chosen.masks[:done]
    focus, pictures = class_focus(heatmaps, wanted[:done], data.class_names, masks)
    if pictures:
        files["evidence/focus.safetensors"] = runs.pack_arrays({key: each.numpy() for key, each in pictures.items()})
    record = records.Record(
        verb="explain",
        version=version(),
        model=described,
        data=data,
        metrics=(proportion("clean_accuracy", predictions.correct),) if labelled else (),
        explanations=tuple(found.results),
        measures=judgements,
        stability=stable,
        focus=focus,
        cases=cases,
        environment=clock.environment(device),
        options={name: value for name, value in options.items() if name != "labels"},
    )
    return Result(record, {**files, **near_files})


def _images(
    images: Any,
    options: Mapping[str, Any],
    loaded: Loaded,
    mapped: bool,
    device: torch.device,
    progress: Progress,
) -> tuple[ImageSet, records.Data, bool]:
    """Take single files, a tensor or a data set; tells whether the true classes are known."""
    labels = options["labels"]
    if options["files"]:
        if images is not None:
            raise UserError(
                "RCV-E107",
                "--images and --data were both given",
                "either files or a data set is explained",
                "leave one out",
            )
        channels = loaded.classifier.mean.shape[1] if isinstance(loaded.classifier, Classifier) else None
        images = loose_images(options["files"], options["resize"], channels)
    if images is None:
        raise UserError(
            "RCV-E107", "there is nothing to explain", "neither --data nor --images was given", "--images FILE"
        )
    labelled = labels is not None or not isinstance(images, Tensor)
    n = None if options["files"] else options["n"]
    chosen, data = take_images(
        images,
        labels if labelled else torch.zeros(len(images), dtype=torch.int64),
        **{name: options[name] for name in ("split", "data_dir", "resize", "skip_bad", "seed")},
        n=n,
        at_most=True,
        loaded=loaded,
        device=device,
        progress=progress,
        mapped=mapped,
    )
    return chosen, data, labelled


def _targets(targets: Any, total: int, predictions: Predictions) -> Tensor:
    """Read the classes to explain: one for all images, or one each."""
    known = predictions.logits.shape[1]
    try:
        wanted = torch.as_tensor(targets).cpu()
    except (TypeError, ValueError, RuntimeError):
        wanted = torch.tensor(-1)
    if wanted.ndim > 1 or wanted.is_floating_point() or not bool(((wanted >= 0) & (wanted < known)).all()):
        raise UserError(
            "RCV-E012", f"targets {targets} are not all classes", f"the model has {known}", f"use 0 to {known - 1}"
        )
    wanted = wanted.long()
    if wanted.ndim == 0:
        return wanted.expand(total)
    if len(wanted) != total:
        raise UserError(
            "RCV-E019", f"{len(wanted)} targets for {total} images", "each map explains one class", "pass one each"
        )
    return wanted


def _with_images(own: Mapping[str, Any], images: ImageSet, seed: int) -> dict[str, Any]:
    """Put images of the set in the place of ``images:K`` in a fill or a baseline."""
    done = dict(own)
    for key, value in own.items():
        if key in ("fill", "baseline", "baselines") and isinstance(value, str) and value.startswith("images:"):
            count = value.partition(":")[2]
            if not count.isdigit() or not 0 < int(count) < len(images):
                why = f"the form is images:K, with K below the {len(images)} images that are explained"
                raise UserError("RCV-E008", f"{key}={value} cannot be used", why, f"{key}=images:4, and -n 20")
            rows = draws.drawn_rows(seed, images.hashes, "fill", int(count))
            done[key] = next(images.take(torch.tensor(rows)).batches(int(count)))[0]
    return done


def _drawn(
    images: ImageSet, predictions: Predictions, selection: str, wanted: Tensor, most: int, *, labelled: bool
) -> Drawn:
    drawn = Drawn()
    for row in range(min(most, len(images))):
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
                logit=float(predictions.logits[row, wanted[row]]),
            )
        )
    return drawn


Near = tuple[list[tuple[records.Neighbour, ...]], dict[str, bytes]]


def _none_near(shown: int) -> Near:
    return [()] * shown, {}


def _neighbours(
    classifier: nn.Module,
    images: ImageSet,
    loaded: Loaded,
    shown: int,
    options: Mapping[str, Any],
    device: torch.device,
    progress: Progress,
) -> Near:
    """Find, for each image shown, the nearest of a set (its training split) in feature space."""
    if options["neighbours"] is None:
        return _none_near(shown)
    known, _ = take_images(
        options["neighbours"], None, split="train", data_dir=options["data_dir"], resize=options["resize"], n=None,
        seed=options["seed"], loaded=loaded, device=device, progress=progress,
    )  # fmt: skip
    with progress.stage("nearest training images", 1) as advance:
        common = {"batch_size": options["batch_size"], "device": device}
        theirs = features_of(classifier, known, **common)
        own = features_of(classifier, images.take(torch.arange(shown)), **common)
        advance(1)
    if own.shape[1] == 0:
        raise UserError(
            "RCV-E108", "the model has no linear layer", "its input is the space that neighbours are sought in",
            "leave --neighbours out",
        )  # fmt: skip
    rows, distances = nearest(own, theirs, NEIGHBOURS)
    files: dict[str, bytes] = {}
    found = []
    for case, (places, far) in enumerate(zip(rows.tolist(), distances.tolist(), strict=True)):
        near = []
        for rank, (row, distance) in enumerate(zip(places, far, strict=True)):
            name = f"evidence/{case:03d}-neighbour-{rank}.png"
            files[name] = to_png(next(known.take(torch.tensor([row])).batches(1))[0][0])
            label = known.class_names[int(known.labels[row])]
            near.append(records.Neighbour(index=int(known.indices[row]), label=label, distance=distance, file=name))
        found.append(tuple(near))
    return found, files

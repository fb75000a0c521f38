"""train: make a classifier, and say how it was made."""

import functools
import hashlib
import inspect
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import nn

from robustcv import processes, records, runs, stopping
from robustcv.classifier import Classifier, has_batch_norm
from robustcv.data import Images, ImageSet, ImageStream
from robustcv.data.augment import AUGMENTATIONS
from robustcv.data.mix import MIXES
from robustcv.errors import UserError, unknown_name
from robustcv.evaluation.accuracy import calibration, predict, proportion
from robustcv.models import Loaded, build, checkpoint, onnx_file
from robustcv.models.class_map import rows_of
from robustcv.models.published import Source
from robustcv.models.sources import head_of
from robustcv.models.transfer import begin_with, source_weights
from robustcv.runtime import Advance, Progress, pick_device
from robustcv.training import OBJECTIVES, SCHEDULES, Diverged, Fitted, Recipe, fit
from robustcv.training.averaging import Average
from robustcv.training.layers import layers_of
from robustcv.training.objectives import Precision, Remembering
from robustcv.verbs.parse import parse_options, refuse_unused
from robustcv.verbs.prepare import Clock, Result, class_map_of, describe_data, describe_model, identity, judged, version
from robustcv.verbs.threats import Training, parse_threats, training_threats
from robustcv.verbs.training_sets import TrainingSets


def train(images: Any, labels: Any, *, options: Mapping[str, Any], state: runs.State, progress: Progress) -> Result:
    """Train a new classifier; ``options`` are the keyword arguments of `robustcv.train`, all of them."""
    clock = Clock()
    if options["class_map"] is not None and options["init"] is None:
        raise UserError(
            "RCV-E122", "--class-map says whose rows to take over", "without --init there are none", "add --init"
        )
    source = None if options["init"] is None else source_weights(options["init"], options["model"])
    split_seed = options["seed"]
    if source is not None and source.data.get("spec") == images and images is not None:
        split_seed = source.data.get("split_seed", split_seed)  # what was held out then has never been learned from
    sets = TrainingSets(images, labels, options, progress, split_seed=split_seed)
    device = pick_device(options["device"])
    loaded = untrained(options, sets.train, progress, source)
    begun = options["init"] is not None
    return run_training("train", loaded, sets, options, device, state, progress, clock, begun=begun)


def untrained(options: Mapping[str, Any], images: Images, progress: Progress, source: Source | None = None) -> Loaded:
    """Build the classifier, with the weights to begin with where there are some."""
    channels, size, _ = images.shape
    architecture, init, classes = options["model"], options["init"], len(images.class_names)
    shape: dict[str, Any] = {"classes": classes, "size": size, "channels": channels}
    more: dict[str, Any] = {}
    if source is not None:
        shape["input_size"] = source.input_size
        fits = source.mean is not None and len(source.mean) == channels
        more = {"mean": source.mean, "std": source.std} if fits else {}
    torch_seed = torch.get_rng_state()
    torch.manual_seed(options["seed"])  # architectures draw their first weights from the global generator
    try:
        classifier = build(architecture, **shape, **more)
    finally:
        torch.set_rng_state(torch_seed)
    if source is not None:
        names, rows = source.class_names, None
        if (class_map := class_map_of(options)) is not None:
            mapped = [name for name in images.class_names if name in class_map]
            found = rows_of(class_map, mapped, names, sys.maxsize) if mapped else {}
            rows = {k: found[name] for k, name in enumerate(images.class_names) if name in found}
        copied = begin_with(
            classifier, source.weights, init, classes_there=names, classes_here=images.class_names, rows=rows
        )
        progress.say(f"begun with {init}; {copied} of {classes} classes of the head taken over")
    described = checkpoint.describe(
        architecture=architecture,
        options={key: value for key, value in shape.items() if value is not None},
        class_names=images.class_names,
        mean=classifier.mean.flatten().tolist(),
        std=classifier.std.flatten().tolist(),
    )
    name = architecture if init is None else f"{architecture}, begun with {init}"
    return Loaded(classifier, name, architecture, described, images.class_names)


def run_training(
    verb: Any,
    loaded: Loaded,
    sets: TrainingSets,
    options: Mapping[str, Any],
    device: torch.device,
    state: runs.State,
    progress: Progress,
    clock: Clock,
    *,
    begun: bool,
) -> Result:
    """Fit, select by validation, read the test split once, and describe everything."""
    classifier = loaded.classifier
    classifier.to(device).to(memory_format=torch.channels_last)
    threats = training_threats(options)
    names = default_augment(sets.train, options["augment"])
    begun_with = checkpoint.sha256_of(classifier)
    parts = (identity(part) for part in (sets.train, sets.validation))
    state.require_same("inputs", runs.fingerprint(*parts, begun_with))
    progress.say(
        f"{options['objective']} on {len(sets.train):,} images, {len(sets.validation):,} held out for validation"
    )
    fitted = _fit(classifier, sets, options, threats, state, progress, device, begun=begun)
    training = records.Training(
        objective=options["objective"],
        options={
            **{name: options[name] for name in (*TRAINING_OPTIONS, "set")},
            **{name: options[name] for name in LAYER_OPTIONS if name in options},
            **({name: options[name] for name in ATTACK_OPTIONS} if threats.validate_with else {}),
            "augment": list(names),
            "data": sets.train.name,
        },
        epochs=tuple(records.Epoch(**vars(epoch)) for epoch in fitted.epochs),
        selected_epoch=fitted.selected_epoch,
        selected_by=f"{'robust ' if threats.validate_with else ''}accuracy on the validation split",
        attack=threats.described if threats.validate_with else None,
        stopped=fitted.stopped,
        begun_with=begun_with,
    )
    weights = checkpoint.to_bytes(classifier)
    described = {
        **loaded.description,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "data": {
            "spec": sets.spec,
            "data_dir": options["data_dir"],
            "resize": options["resize"],
            "split_seed": sets.split_seed,
            "train_sha256": identity(sets.train),
        },
        "training": training.model_dump(mode="json"),
    }
    finished = Loaded(classifier, loaded.source, loaded.architecture, described, loaded.class_names)
    metrics, data = _test_once(classifier, sets, options, device, progress)
    files = {"model.safetensors": weights, "model.json": json.dumps(described, indent=1).encode()}
    export = () if stopping.asked() else options.get("export", ())
    checks = _exported(classifier, sets, export, files, progress)
    record = records.Record(
        verb=verb,
        version=version(),
        model=describe_model(finished),
        data=data,
        metrics=metrics,
        preflight=checks,
        training=training,
        environment=clock.environment(device),
        options=dict(options),
    )
    return Result(record, files, classifier)


def _exported(
    classifier: nn.Module, sets: TrainingSets, forms: Sequence[str], files: dict[str, bytes], progress: Progress
) -> tuple[records.Check, ...]:
    """Write the classifier in other forms, and hold each against it."""
    checks = []
    for form in forms:
        with progress.stage(f"export {form}", 1) as advance:
            images, _ = next(iter(sets.validation.batches(8)))
            files[f"model.{form}"], gap = EXPORTS[form](classifier, images)
            advance(1)
        figure = f"logits differ by {gap:.2g} of the largest at most, on {len(images)} images"
        checks.append(records.Check(check=f"{form} export", status="pass", figure=figure, threshold="1e-4"))
    return tuple(checks)


EXPORTS = {"onnx": onnx_file.export}
TRAINING_OPTIONS = (
    "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "schedule", "mix", "label_smoothing",
    "average", "precision", "minutes", "patience", "seed",
)  # fmt: skip
LAYER_OPTIONS = ("init", "backbone_rate", "frozen_epochs", "gradual")
ATTACK_OPTIONS = ("eps", "norm", "steps", "against", "eps_warmup", "awp")


def recipe_of(options: Mapping[str, Any], augment: tuple[str, ...], classifier: nn.Module, *, begun: bool) -> Recipe:
    """Make the loop's options from the verb's."""
    layered = options.get("backbone_rate", 1.0) != 1.0 or options.get("frozen_epochs", 0) or options.get("gradual")
    if layered and not begun:
        raise UserError(
            "RCV-E074",
            "nothing is known to the backbone yet",
            "slow, frozen or gradually thawed layers keep what they have learned, and these weights are random",
            "name weights to begin with: --init published, FILE or RUN",
        )
    layers = None
    if layered:
        how = {name: options[name] for name in ("backbone_rate", "frozen_epochs", "gradual")}
        layers = layers_of(classifier, head_of(classifier), **how)
    return Recipe(
        **{name: options[name] for name in TRAINING_OPTIONS if name != "mix"},
        **{name: options[name] for name in ("eps_warmup", "awp")},
        augment=tuple(AUGMENTATIONS[name] for name in augment),
        mix=None if options["mix"] == "none" else MIXES[options["mix"]],
        layers=layers,
    )


def _fit(
    classifier: nn.Module,
    sets: TrainingSets,
    options: Mapping[str, Any],
    threats: Training,
    state: runs.State,
    progress: Progress,
    device: torch.device,
    *,
    begun: bool,
) -> Fitted:
    """Run the loop, from where an interrupted one stopped."""
    saved, done = state.load("training.pt"), None
    total = f"{options['epochs']} epochs" if options["minutes"] is None else f"{options['minutes']:g} minutes"
    with progress.stage(f"train {total}", len(sets.train) * options["epochs"]) as advance:
        if saved is not None:
            done = torch.load(io.BytesIO(saved), map_location=device, weights_only=True)
            advance(len(sets.train) * sum(epoch["n"] > 0 for epoch in done["history"]))

        def save(content: dict[str, Any]) -> None:
            if processes.is_first():
                state.save("training.pt", _to_bytes(content))

        try:
            return fit_once(classifier, sets, options, save, threats=threats, begun=begun, state=done, advance=advance)
        except ValueError as error:
            if "more than 1 " not in str(error):
                raise
            raise UserError(
                "RCV-E098",
                "normalisation has one value to work on, and so no variance",
                str(error)[:160],
                "use --batch-size 2 or more, or larger images (--resize)",
            ) from error
        except Diverged as error:
            raise UserError(
                "RCV-E075",
                str(error),
                "the weights grew without bound, and no epoch was finished that could be kept",
                f"lower --learning-rate (it was {options['learning_rate']:g}), or take --schedule one-cycle",
            ) from error


def fit_once(
    classifier: nn.Module,
    sets: TrainingSets,
    options: Mapping[str, Any],
    save_state: Callable[[dict[str, Any]], None],
    *,
    threats: Training | None = None,
    begun: bool = False,
    state: dict[str, Any] | None = None,
    advance: Advance = lambda _: None,
) -> Fitted:
    """Call the loop with the verb's options.

    Raises
    ------
    Diverged
        If the loss is no number in the first epoch.
    """
    name = options["objective"]
    couples = has_batch_norm(classifier)
    if options["batch_size"] < (2 if couples else 1) * processes.size():
        raise UserError(
            "RCV-E098",
            f"a batch of {options['batch_size']} is too small for this network and {processes.size()} processes",
            "batch norm needs two images to have a variance" if couples else "every process needs an image",
            f"use --batch-size {2 * processes.size()} or more",
        )
    threats = threats or training_threats(options)
    given = parse_options(options["set"], OBJECTIVES)
    refuse_unused(given, [name], f"this run trains with {name}", add="add --objective {}")
    made, extra = OBJECTIVES[name], given.get(name, {})
    if "eps" in inspect.signature(made).parameters:
        extra["eps"] = parse_threats(options)[0].size
    objective = made(**extra) if isinstance(made, type) else functools.partial(made, **extra)
    if isinstance(objective, Remembering) and not isinstance(sets.train, ImageSet):
        raise UserError(
            "RCV-E091",
            f"{name} keeps a perturbation of every training image",
            f"{len(sets.train):,} images of {sets.train.name} do not fit in memory, and those would take as much again",
            "use --objective fast, which keeps nothing",
        )
    augment, redraw = drawn_anew(sets.train, default_augment(sets.train, options["augment"]))
    device = next(classifier.parameters()).device
    train, validation = (
        each.near(device) if isinstance(each, ImageSet) else each for each in (sets.train, sets.validation)
    )
    return fit(
        classifier,
        train,
        validation,
        objective=objective,
        recipe=recipe_of(options, augment, classifier, begun=begun),
        redraw=redraw,
        attack_at=threats.attack_at,
        validate_with=threats.validate_with,
        guard=threats.guard,
        begun=begun,
        state=state,
        save_state=save_state,
        advance=advance,
    )


def _to_bytes(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def default_augment(images: Images, given: Any) -> tuple[str, ...]:
    """Choose the augmentation: as given, or small shifts, and mirror images where they keep the class.

    Raises
    ------
    UserError
        If an augmentation is unknown.
    """
    names = given if given is not None else (("crop", "flip") if images.flippable else ("crop",))
    names = tuple(name for name in names if name != "none")
    for name in names:
        if name not in AUGMENTATIONS:
            raise unknown_name("augmentation", name, [*AUGMENTATIONS, "none"])
    return names


def drawn_anew(images: Images, augment: tuple[str, ...]) -> tuple[tuple[str, ...], Callable[[int], ImageStream] | None]:
    """Give what is left to change on the device, and how a stream is drawn anew: files by crops of all their pixels."""
    if not isinstance(images, ImageStream):
        return augment, None
    if "resized-crop" in augment and images.croppable:
        return tuple(name for name in augment if name != "resized-crop"), images.cropped
    return augment, images.redrawn


def check_training_options(options: Mapping[str, Any]) -> None:
    """Refuse unknown objectives, schedules and optimisers before any work is done."""
    for kind, name, known in (
        ("objective", options["objective"], list(OBJECTIVES)),
        ("schedule", options["schedule"], list(SCHEDULES)),
        ("optimizer", options["optimizer"], ["adam", "sgd"]),
        ("mix", options["mix"], ["none", *MIXES]),
        ("average", options["average"], list(get_args(Average))),
        ("precision", options["precision"], list(get_args(Precision))),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)
    for form in options.get("export", ()):
        if form not in EXPORTS:
            raise unknown_name("form of export", form, EXPORTS)
        onnx_file.require()
    for name, low, high in (("label_smoothing", 0, 0.99), ("eps_warmup", 0, 1), ("awp", 0, 1), ("backbone_rate", 0, 1)):
        if not low <= options.get(name, low) <= high:
            raise UserError(
                "RCV-E006",
                f"--{name.replace('_', '-')} {options[name]} is outside [{low}, {high}]",
                "it is a share",
                f"use a number from {low} to {high}",
            )
    for name in ("learning_rate", "weight_decay"):
        if not (0 <= options[name] < float("inf")):
            raise UserError(
                "RCV-E006", f"--{name.replace('_', '-')} {options[name]} is no rate", "it is 0 or more", "raise it"
            )
    if isinstance(options["eps"], list | tuple) and len(options["eps"]) > 1:
        raise UserError(
            "RCV-E003", f"{len(options['eps'])} eps were given", "training is against one", "--eps 8/255, or --against"
        )
    training_threats(options)


def _test_once(
    classifier: nn.Module | Classifier,
    sets: TrainingSets,
    options: Mapping[str, Any],
    device: torch.device,
    progress: Progress,
) -> tuple[tuple[records.Metric, ...], records.Data | None]:
    """Read the test split, for the first and only time; without one nothing is claimed."""
    if sets.test is None or stopping.asked():
        return (), None
    test = sets.test
    with judged(classifier), progress.stage("test accuracy", len(test)) as advance:
        predictions = predict(classifier, test, batch_size=options["batch_size"], device=device, advance=advance)
    metrics = (
        proportion("clean_accuracy", predictions.correct),
        calibration(predictions.confidences, predictions.correct, seed=options["seed"])[0],
    )
    return metrics, describe_data(test, len(test), "all")

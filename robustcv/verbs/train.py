"""train: make a classifier, and say how it was made."""

import functools
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from robustcv import records, runs
from robustcv.attacks import ATTACKS
from robustcv.classifier import Classifier
from robustcv.data import Images, as_images, resized, split_rows
from robustcv.data import load as load_images
from robustcv.data.augment import AUGMENTATIONS
from robustcv.errors import UserError, unknown_name
from robustcv.evaluation.accuracy import calibration, predict, proportion
from robustcv.models import Loaded, build, checkpoint
from robustcv.runtime import Progress, pick_device
from robustcv.training import OBJECTIVES, SCHEDULES, fit
from robustcv.training.objectives import Perturb
from robustcv.verbs.prepare import (
    Clock,
    Result,
    describe_data,
    describe_model,
    identity,
    judged,
    parse_sweep,
    version,
)

VALIDATION_SHARE = 0.1


def train(images: Any, labels: Any, *, options: Mapping[str, Any], state: runs.State, progress: Progress) -> Result:
    """Train a new classifier; ``options`` are the keyword arguments of `robustcv.train`, all of them."""
    clock = Clock()
    sets = TrainingSets(images, labels, options, progress, split_seed=options["seed"])
    device = pick_device(options["device"])
    channels, height, _ = sets.train.shape
    torch_seed = torch.get_rng_state()
    torch.manual_seed(options["seed"])  # architectures draw their first weights from the global generator
    classifier = build(options["model"], classes=len(sets.train.class_names), size=height, channels=channels)
    torch.set_rng_state(torch_seed)
    described = checkpoint.describe(
        architecture=options["model"],
        options={"classes": len(sets.train.class_names), "size": height, "channels": channels},
        class_names=sets.train.class_names,
        mean=classifier.mean.flatten().tolist(),
        std=classifier.std.flatten().tolist(),
    )
    loaded = Loaded(classifier, options["model"], options["model"], described, sets.train.class_names)
    return run_training("train", loaded, sets, options, device, state, progress, clock)


class TrainingSets:
    """Training, validation and test images; validation is cut from training where the data has no such split."""

    def __init__(
        self, images: Any, labels: Any, options: Mapping[str, Any], progress: Progress, *, split_seed: int
    ) -> None:
        self.spec = images if isinstance(images, str) else None
        self.split_seed = split_seed
        self.test: Images | None = None
        own: Images | None = None
        if isinstance(images, str):
            place = {"data_dir": options["data_dir"], "resize": options["resize"], "progress": progress}
            whole = load_images(images, split="train", **place)
            own = _split_or_none(images, "val", place)
            test = _split_or_none(images, "test", place)
            self.test = None if test is None or test.split != "test" else test  # `val` must not serve twice
        else:
            whole = resized(as_images(images, labels, split="train"), options["resize"])
        if own is not None:
            self.train, self.validation = whole, own
        else:
            rows, held_out = split_rows(whole.labels, VALIDATION_SHARE, split_seed)
            self.train, self.validation = whole.take(rows), whole.take(held_out)
        _, height, width = self.train.shape
        if height != width:
            raise UserError(
                "RCV-E067",
                f"the training images are {width}x{height} pixels",
                "the architectures here take square images",
                f"add --resize {min(height, width)}",
            )


def _split_or_none(spec: str, split: str, place: Mapping[str, Any]) -> Images | None:
    try:
        return load_images(spec, split=split, **place)
    except UserError as error:
        if error.code == "RCV-E047":  # there is no such split
            return None
        raise


def run_training(
    verb: Any,
    loaded: Loaded,
    sets: TrainingSets,
    options: Mapping[str, Any],
    device: torch.device,
    state: runs.State,
    progress: Progress,
    clock: Clock,
) -> Result:
    """Fit, select by validation, read the test split once, and describe everything."""
    classifier = loaded.classifier
    classifier.to(device).to(memory_format=torch.channels_last)
    perturb = training_attack(options)
    names = default_augment(sets.train, options["augment"])
    state.require_same("inputs", runs.fingerprint(*(identity(part) for part in (sets.train, sets.validation))))
    saved = state.load("training.pt")
    progress.say(
        f"{options['objective']} on {len(sets.train):,} images, {len(sets.validation):,} held out for validation"
    )
    with progress.stage(f"train {options['epochs']} epochs", len(sets.train) * options["epochs"]) as advance:
        if saved is not None:
            done = torch.load(io.BytesIO(saved), map_location=device, weights_only=True)
            advance(len(sets.train) * len(done["history"]))
        fitted = fit(
            classifier,
            sets.train,
            sets.validation,
            objective=OBJECTIVES[options["objective"]],
            perturb=perturb,
            validate_with=perturb,
            epochs=options["epochs"],
            batch_size=options["batch_size"],
            optimizer=options["optimizer"],
            learning_rate=options["learning_rate"],
            weight_decay=options["weight_decay"],
            schedule=options["schedule"],
            augment=tuple(AUGMENTATIONS[name] for name in names),
            seed=options["seed"],
            state=None if saved is None else done,
            save_state=lambda content: state.save("training.pt", _to_bytes(content)),
            advance=advance,
        )
    training = records.Training(
        objective=options["objective"],
        options={
            **{name: options[name] for name in TRAINING_OPTIONS},
            **({name: options[name] for name in ATTACK_OPTIONS} if perturb else {}),
            "augment": list(names),
            "data": sets.train.name,
        },
        epochs=tuple(records.Epoch(**vars(epoch)) for epoch in fitted.epochs),
        selected_epoch=fitted.selected_epoch,
        selected_by="robust accuracy on the validation split" if perturb else "accuracy on the validation split",
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
    record = records.Record(
        verb=verb,
        version=version(),
        model=describe_model(finished),
        data=data,
        metrics=metrics,
        training=training,
        environment=clock.environment(device),
        options=dict(options),
    )
    files = {"model.safetensors": weights, "model.json": json.dumps(described, indent=1).encode()}
    return Result(record, files, classifier)


TRAINING_OPTIONS = ("epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "schedule", "seed")
ATTACK_OPTIONS = ("eps", "norm", "steps")


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


def training_attack(options: Mapping[str, Any]) -> Perturb | None:
    """Bind the attack that the objective trains against; None where it needs none."""
    if options["objective"] == "standard":
        return None
    eps, _ = parse_sweep(options["eps"], options["norm"], sweep=False)
    return functools.partial(ATTACKS["pgd"], eps=eps, norm=options["norm"], steps=options["steps"], keep="last")


def check_training_options(options: Mapping[str, Any]) -> None:
    """Refuse unknown objectives, schedules and optimisers before any work is done."""
    for kind, name, known in (
        ("objective", options["objective"], list(OBJECTIVES)),
        ("schedule", options["schedule"], list(SCHEDULES)),
        ("optimizer", options["optimizer"], ["adam", "sgd"]),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)


def _test_once(
    classifier: nn.Module | Classifier,
    sets: TrainingSets,
    options: Mapping[str, Any],
    device: torch.device,
    progress: Progress,
) -> tuple[tuple[records.Metric, ...], records.Data | None]:
    """Read the test split, for the first and only time; without one nothing is claimed."""
    if sets.test is None:
        return (), None
    test = sets.test
    with judged(classifier), progress.stage("test accuracy", len(test)) as advance:
        predictions = predict(classifier, test, batch_size=options["batch_size"], device=device, advance=advance)
    metrics = (proportion("clean_accuracy", predictions.correct), calibration(predictions, seed=options["seed"])[0])
    return metrics, describe_data(test, len(test), "all")

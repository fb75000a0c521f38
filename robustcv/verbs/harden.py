"""harden: fine-tune a trained classifier on attacked images, and say what that changed."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from robustcv import processes, runs, stopping
from robustcv.attacks.norms import NORMS
from robustcv.classifier import Classifier
from robustcv.data import Images
from robustcv.errors import UserError
from robustcv.models import FROM_PYTHON, Loaded, checkpoint
from robustcv.models import load as load_classifier
from robustcv.runtime import Progress
from robustcv.verbs.audit import audit
from robustcv.verbs.compare import compare
from robustcv.verbs.pairing import Saved
from robustcv.verbs.prepare import (
    Clock,
    Result,
    device_of,
    is_black_box,
    noting,
    number_of_classes,
    require_same_number,
)
from robustcv.verbs.threats import parse_threats
from robustcv.verbs.train import run_training
from robustcv.verbs.training_sets import TrainingSets

SHOWN = 12  # images of each audit on the page


def harden(
    model: Any,
    images: Any,
    labels: Any,
    *,
    options: Mapping[str, Any],
    state: runs.State,
    progress: Progress,
    audit_defaults: Mapping[str, Any],
    out: Path | str | None = None,
) -> Result:
    """Harden a classifier; ``options`` are the keyword arguments of `robustcv.harden`, all of them.

    Parameters
    ----------
    audit_defaults
        The options of `robustcv.audit` as they are where nothing is given.
    out
        Folder of the run; the audits before and after are written into it.
    """
    clock = Clock()
    loaded = load_classifier(model, options["weights"], say=progress.say)
    if is_black_box(loaded.classifier):
        raise UserError(
            "RCV-E094", f"{loaded.source} gives no gradients", "hardening moves its weights", "harden the PyTorch model"
        )
    made_with = loaded.description.get("data", {})
    if images is None and (images := made_with.get("spec")) is None:
        raise UserError(
            "RCV-E063",
            f"{loaded.source} does not say which images it was trained on",
            "robustcv did not train it, or it was trained from Python, on images that have no name",
            "name them: --data ...",
        )
    options = {**options, **{name: options[name] or made_with.get(name) for name in ("data_dir", "resize")}}
    split_seed = made_with.get("split_seed", options["seed"])  # the images held out then must be held out again
    sets = TrainingSets(images, labels, options, progress, split_seed=split_seed, any_shape=not loaded.class_names)
    device = device_of(loaded, options["device"])
    loaded = _described(loaded, sets.train)
    require_same_number(number_of_classes(loaded.classifier, sets.train, device), len(sets.train.class_names))
    _require_something_to_learn(loaded.classifier)
    own = loaded.source == FROM_PYTHON  # a module from Python is left as it was found
    hardened = replace(loaded, classifier=copy.deepcopy(loaded.classifier)) if own else loaded
    if own:
        hardened.classifier.requires_grad_(True)
    audits = options["audits"] and sets.test is not None
    if options["audits"] and not audits:
        progress.say("these images have no test split, so nothing is audited before and after")
    before = _audited("before", loaded.classifier, sets, options, audit_defaults, out, progress) if audits else None
    result = run_training("harden", hardened, sets, options, device, state, progress, clock, begun=True)
    if before is None or result.classifier is None or stopping.asked():
        return result
    try:
        after = _audited("after", result.classifier, sets, options, audit_defaults, out, progress)
    except stopping.Interrupted:
        return result
    compared = compare(before, after, names=("before", "after"), force=True)
    record = result.record.model_copy(
        update={
            "comparison": compared.record.comparison,
            "headline_eps": compared.record.headline_eps,
            "verdict": compared.record.verdict,
            "data": compared.record.data,
        }
    )
    return Result(record, {**result.files, **compared.files}, result.classifier)


def _require_something_to_learn(classifier: nn.Module) -> None:
    if next(classifier.parameters(), None) is None:
        raise UserError(
            "RCV-E074", "the model has no parameters", "hardening moves its weights", "harden a model with weights"
        )


def _described(loaded: Loaded, images: Images) -> Loaded:
    """Hold the classes of the model against those of the images; describe a model that robustcv did not make."""
    names = images.class_names
    if loaded.class_names and names != loaded.class_names:
        raise UserError(
            "RCV-E064",
            f"the images have other classes than {loaded.source}",
            f"{', '.join(names[:3])}, ... against {', '.join(loaded.class_names[:3])}, ...",
            "harden on the data the model was trained on",
        )
    classifier = loaded.classifier
    own = loaded.description or checkpoint.describe(
        architecture=loaded.source,
        options={},
        class_names=names,
        mean=classifier.mean.flatten().tolist() if isinstance(classifier, Classifier) else [],
        std=classifier.std.flatten().tolist() if isinstance(classifier, Classifier) else [],
    )
    return replace(loaded, description={**own, "class_names": list(names)}, class_names=names)


def _audited(
    name: str,
    classifier: nn.Module,
    sets: TrainingSets,
    options: Mapping[str, Any],
    audit_defaults: Mapping[str, Any],
    out: Path | str | None,
    progress: Progress,
) -> Saved:
    """Audit one side on test images, the same for both, and keep the run inside the folder of this one."""
    assert sets.test is not None
    threat = next((each for each in parse_threats(options) if each.kind in NORMS), None)
    wanted = {
        **audit_defaults,
        "cases": SHOWN,
        "also": ["maps"],
        "measures": ["deletion", "insertion"],
        **{key: options[key] for key in ("effort", "seed", "batch_size")},
        "norm": threat.norm if threat else options["norm"],
        "eps": threat.size if threat else options["eps"],
        "n": min(options["n"], len(sets.test)),
    }
    progress.say(f"audit {name} hardening")
    folder = None if out is None else Path(out) / name
    key = runs.fingerprint("audit", name, wanted)
    kept = runs.State(None)
    if folder is not None:
        place = folder
        finished = (folder / "report.json").exists()  # from before an interruption
        if finished and runs.State(folder / "state").load("fingerprint") == key.encode():
            return Saved.read(folder)
        kept = processes.by_first(lambda: runs.open_folder(place, resume=place.exists(), fingerprint=key))
    try:
        with noting(kept):
            found = audit(classifier, sets.test, None, options=wanted, state=kept, progress=progress)
        stopping.at_boundary()  # half an audit is none
        described = {"model": name, "data": sets.spec, **found.record.options}
        record = found.record.model_copy(update={"training": None, "options": described})
        if folder is not None and processes.is_first():
            runs.save(folder, record, found.files)
            kept.clear()
    finally:
        if folder is not None:
            runs.release(folder)
    return Saved(str(folder or name), record, found.files)

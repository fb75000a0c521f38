"""harden: fine-tune a trained classifier on attacked images."""

from collections.abc import Mapping
from typing import Any

from robustcv import runs
from robustcv.errors import UserError
from robustcv.models import load as load_classifier
from robustcv.runtime import Progress
from robustcv.verbs.prepare import Clock, Result, device_of
from robustcv.verbs.train import TrainingSets, run_training


def harden(
    model: Any, images: Any, labels: Any, *, options: Mapping[str, Any], state: runs.State, progress: Progress
) -> Result:
    """Harden a classifier; ``options`` are the keyword arguments of `robustcv.harden`, all of them."""
    clock = Clock()
    loaded = load_classifier(model)
    if not loaded.description:
        raise UserError(
            "RCV-E062",
            f"{loaded.source} is not a run of robustcv",
            "hardening saves the result as a run, which needs the architecture by name",
            "train with `robustcv train`, then harden that run",
        )
    made_with = loaded.description.get("data", {})
    if images is None and (images := made_with.get("spec")) is None:
        raise UserError(
            "RCV-E063",
            f"{loaded.source} does not say which images it was trained on",
            "it was trained from Python, on images that have no name",
            "name them: --data ...",
        )
    options = {**options, **{name: options[name] or made_with.get(name) for name in ("data_dir", "resize")}}
    split_seed = made_with.get("split_seed", options["seed"])  # the images held out then must be held out again
    sets = TrainingSets(images, labels, options, progress, split_seed=split_seed)
    if sets.train.class_names != loaded.class_names:
        raise UserError(
            "RCV-E064",
            f"the images have other classes than {loaded.source}",
            f"{', '.join(sets.train.class_names[:3])}, ... against {', '.join((loaded.class_names or ())[:3])}, ...",
            "harden on the data the model was trained on",
        )
    device = device_of(loaded, options["device"])
    return run_training("harden", loaded, sets, options, device, state, progress, clock)

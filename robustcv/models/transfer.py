"""Beginning from weights that were trained for something else: the backbone is taken over, the head made new."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcv.classifier import Classifier
from robustcv.errors import UserError, first_line
from robustcv.models import checkpoint
from robustcv.models.published import Source, main_weights, timm_source, torchvision_source
from robustcv.models.sources import head_of

PUBLISHED = "published"


def source_weights(init: str, architecture: str) -> Source:
    """Read the weights to begin with.

    Parameters
    ----------
    init
        ``published`` (torchvision's or timm's own, downloaded once), a file of weights, or a run folder.
    architecture
        The network they are for.

    Raises
    ------
    UserError
        If there are none.
    """
    if init == PUBLISHED:
        return _published(architecture)
    folder = Path(init).expanduser()
    if not folder.is_dir():
        return Source(checkpoint.load_weights(folder))
    described = checkpoint.read_description(folder / "model.json")
    if described["architecture"] != architecture:
        raise UserError(
            "RCV-E076",
            f"{init} is a {described['architecture']}, not a {architecture}",
            "the weights of one network mean nothing in another",
            f"add --model {described['architecture']}",
        )
    normalisation = described["normalisation"]
    return Source(
        checkpoint.load_weights(folder / "model.safetensors"),
        tuple(described["class_names"]),
        described["options"].get("input_size"),
        normalisation["mean"],
        normalisation["std"],
        described.get("data", {}),
    )


def _published(architecture: str) -> Source:
    try:
        if architecture.startswith("timm:"):
            return timm_source(architecture.removeprefix("timm:"))
        import torchvision

        return torchvision_source(architecture, torchvision.models.get_model_weights(architecture).DEFAULT)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            "RCV-E059",
            f"there are no published weights of {architecture} to be had",
            first_line(error, 200),
            "go online once, or begin with a file or a run: --init FILE",
        ) from error


def begin_with(
    classifier: Classifier,
    weights: Mapping[str, Tensor],
    source: str,
    *,
    classes_there: Sequence[str] = (),
    classes_here: Sequence[str] = (),
    rows: Mapping[int, int] | None = None,
) -> int:
    """Fill a classifier with weights; where the head has another size it stays new but for the classes of one name.

    Parameters
    ----------
    weights
        Of a whole `Classifier`, or of the network inside it. Auxiliary heads are passed over.
    classes_there, classes_here
        What the rows of the two heads mean; rows of the same name are copied.
    rows
        Which row of the old head each of the new one is, in place of names; those not named stay new.

    Returns
    -------
    int
        Number of classes whose row of the head was taken over; all of them where the heads fit.

    Raises
    ------
    UserError
        If anything but the head does not fit.
    """
    weights = main_weights(weights)
    inner = classifier.network
    if isinstance(inner, nn.Sequential) and len(inner) == 2 and next(inner[0].parameters(), None) is None:
        inner = inner[1]  # a published network behind the layer that shows it grey images
    if any(name.startswith("network.") for name in weights):
        weights = {name.removeprefix("network."): tensor for name, tensor in weights.items() if "." in name}
        inner = classifier.network
    own = inner.state_dict()
    head = head_of(inner)
    keys = [key for key in (f"{head}.weight", f"{head}.bias") if key in own]
    kept = dict(weights)
    same = rows is None and (not classes_there or tuple(classes_there) == tuple(classes_here))
    if same and all(key in kept and kept[key].shape == own[key].shape for key in keys):
        checkpoint.fill(inner, kept, source)
        return len(own[keys[0]])
    theirs = {key: kept.pop(key) for key in keys if key in kept}
    checkpoint.fill(inner, {**kept, **{key: own[key] for key in keys}}, source)
    if rows is None:
        rows = {k: classes_there.index(name) for k, name in enumerate(classes_here) if name in classes_there}
    return _copy_rows(inner, theirs, rows)


def _copy_rows(inner: nn.Module, theirs: Mapping[str, Tensor], rows: Mapping[int, int]) -> int:
    """Take over rows of the old head: for each row of the new one, the old one's."""
    own = dict(inner.named_parameters())
    with torch.no_grad():
        for key, tensor in theirs.items():
            if tensor.shape[1:] == own[key].shape[1:]:
                if rows and max(rows.values()) >= len(tensor):
                    raise UserError(
                        "RCV-E122",
                        f"the class map names class {max(rows.values())}, but the weights have {len(tensor)}",
                        "classes are counted from 0",
                        "correct the file of --class-map",
                    )
                for here, there in rows.items():
                    own[key][here] = tensor[there]
    return len(rows)

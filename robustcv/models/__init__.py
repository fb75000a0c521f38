"""What is judged: architectures by name in `ARCHITECTURES`; classifiers from runs, torchvision and your own files."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcv.classifier import Classifier
from robustcv.errors import UserError, unknown_name
from robustcv.models import checkpoint
from robustcv.models.cifar_resnet import cifar_resnet20
from robustcv.models.small_cnn import SMALLEST, small_cnn

ARCHITECTURES = {"small_cnn": small_cnn, "cifar_resnet20": cifar_resnet20}

FROM_PYTHON = "python object"


@dataclass(frozen=True)
class Loaded:
    """A classifier and what is known about it."""

    classifier: nn.Module
    source: str
    architecture: str
    description: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None


def build(
    architecture: str,
    *,
    classes: int,
    size: int,
    channels: int = 3,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Classifier:
    """Build an untrained classifier of a named architecture; normalisation inside."""
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    if architecture == "small_cnn" and size < SMALLEST:
        raise UserError(
            "RCV-E066",
            f"small_cnn needs images of {SMALLEST} pixels or more, got {size}",
            "after two poolings nothing would be left",
            "add --resize 32",
        )
    network = ARCHITECTURES[architecture](classes=classes, size=size, channels=channels)
    return Classifier(network, mean=mean or [0.5] * channels, std=std or [0.25] * channels)


def load(spec: Any, weights: str | None = None) -> Loaded:
    """Load a classifier: a module, a run folder, ``torchvision:NAME`` or ``py:FILE:FUNCTION``.

    Parameters
    ----------
    spec
        An ``nn.Module`` is taken as it is. A run folder (or its model.safetensors) that robustcv wrote is loaded with
        its description. ``torchvision:resnet50`` or ``torchvision:resnet50@IMAGENET1K_V2`` builds the network, with
        ``weights`` from a file or else torchvision's own (downloaded once). ``py:FILE:FUNCTION`` runs FILE and calls
        FUNCTION(), which returns a module from [0, 1] images to logits.
    weights
        A safetensors file or a torch file without code.
    """
    if weights is not None and (isinstance(spec, nn.Module) or not str(spec).startswith(("torchvision:", "py:"))):
        raise UserError(
            "RCV-E065",
            f"weights from {weights} cannot be put into {spec if isinstance(spec, str) else type(spec).__name__}",
            "a run folder and a module from Python already hold theirs",
            "leave --weights out, or name the network: --model torchvision:NAME or py:FILE:FUNCTION",
        )
    if isinstance(spec, nn.Module):
        return Loaded(spec, FROM_PYTHON, type(spec).__name__)
    kind, _, rest = str(spec).partition(":")
    folder = Path(spec).expanduser()
    folder = folder.parent if folder.name == "model.safetensors" else folder
    if kind == "torchvision" and rest:
        loaded = _from_torchvision(rest, weights)
    elif kind == "py" and rest:
        loaded = _from_file(rest, weights)
    elif folder.is_dir():
        loaded = _from_run(folder)
    else:
        raise _no_model(str(spec))
    loaded.classifier.eval()  # what we load is loaded to be judged; a module from Python keeps its mode
    return loaded


def _no_model(spec: str) -> UserError:
    if spec in ARCHITECTURES:
        return UserError(
            "RCV-E057",
            f"{spec!r} is an architecture without weights",
            "an untrained classifier has nothing to audit",
            f"train it first (`robustcv train --model {spec} --data ...`) and give the run folder",
        )
    return UserError(
        "RCV-E058",
        f"there is no model {spec!r}",
        "a model is a run folder, torchvision:NAME or py:FILE:FUNCTION",
        "check --model; `robustcv list architectures` shows what can be trained",
    )


def _from_run(folder: Path) -> Loaded:
    described = checkpoint.read_description(folder / "model.json")
    normalisation = described["normalisation"]
    classifier = build(
        described["architecture"], **described["options"], mean=normalisation["mean"], std=normalisation["std"]
    )
    path = folder / "model.safetensors"
    checkpoint.fill(classifier, checkpoint.load_weights(path), str(path))
    names = tuple(described["class_names"])
    return Loaded(classifier, folder.name, described["architecture"], described, names)


def _from_torchvision(name: str, weights: str | None) -> Loaded:
    """Build a network of torchvision, with the input size and normalisation that its published weights came with."""
    import torchvision

    name, _, version = name.partition("@")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    published = torchvision.models.get_model_weights(name)
    if version and version not in published.__members__:
        raise unknown_name(f"version of {name}", version, published.__members__)
    entry = published[version] if version else published.DEFAULT
    found = None if weights is None else checkpoint.load_weights(weights)
    try:
        if found is None:
            network = torchvision.models.get_model(name, weights=entry)
        else:
            classes = _classes_in(found, torchvision.models.get_model(name, weights=None), name)
            network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    except (OSError, RuntimeError) as error:
        raise UserError(
            "RCV-E059",
            f"the weights of torchvision:{name} could not be had",
            str(error).splitlines()[0][:200],
            "go online once, or give a file with --weights",
        ) from error
    if found is not None:
        checkpoint.fill(network, found, str(weights))
    wanted = entry.transforms()
    size = wanted.crop_size[0]
    classifier = Classifier(network, mean=wanted.mean, std=wanted.std, size=(size, size))
    return Loaded(classifier, f"torchvision:{name}", name)


def _classes_in(weights: dict[str, torch.Tensor], network: nn.Module, name: str) -> int:
    """Read the number of classes off the weights of the network's last layer."""
    layers = [key for key, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    matrix = weights.get(f"{layers[-1]}.weight", weights.get(f"module.{layers[-1]}.weight"))
    if matrix is None:
        raise UserError(
            "RCV-E054",
            f"the weights hold no {layers[-1]}.weight, the last layer of {name}",
            "they were made for another architecture, so the number of classes is not known",
            "name the architecture the weights were made with (--model)",
        )
    return int(matrix.shape[0])


def _from_file(rest: str, weights: str | None) -> Loaded:
    """Run the user's file and call the function it names."""
    file, _, function = rest.rpartition(":")
    path = Path(file).expanduser()
    if not file or not path.is_file():
        raise UserError(
            "RCV-E060",
            f"py:{rest} names no file",
            "the form is py:FILE:FUNCTION",
            "for example --model py:examples/my_model.py:make_model",
        )
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError("RCV-E060", f"{path} is not a Python file", "it cannot be run", "give a .py file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules.setdefault(path.stem, module)
    module_spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise unknown_name("function", function, [name for name in vars(module) if not name.startswith("_")])
    network = getattr(module, function)()
    if not isinstance(network, nn.Module):
        raise UserError(
            "RCV-E061",
            f"{function}() in {path} returned {type(network).__name__}",
            "an nn.Module is needed, from images in [0, 1] to logits",
            "return the module itself; robustcv.Classifier puts a normalisation inside",
        )
    if weights is not None:
        checkpoint.fill(network, checkpoint.load_weights(weights), weights)
    return Loaded(network, f"py:{path.name}:{function}", type(network).__name__)

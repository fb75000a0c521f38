"""Where classifiers come from: run folders, torchvision, timm, ONNX files, your own Python."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from robustcv.errors import UserError, first_line, unknown_name
from robustcv.models import checkpoint, onnx_file
from robustcv.models.architectures import build, is_architecture
from robustcv.models.published import Source, main_weights, timm_source, timm_with, torchvision_source

FROM_PYTHON = "python object"


@dataclass(frozen=True)
class Loaded:
    """A classifier and what is known about it.

    Parameters
    ----------
    answers
        What published weights call their classes.
    class_map, whole
        Where only some classes are asked about: which, and the classifier that gives all of them.
    """

    classifier: nn.Module
    source: str
    architecture: str
    description: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    answers: tuple[str, ...] = ()
    class_map: dict[str, int] | None = None
    whole: nn.Module | None = None


def load(spec: Any, weights: str | None = None, *, say: Callable[[str], None] = lambda _: None) -> Loaded:
    """Load a classifier: a module, a run folder, ``torchvision:NAME``, ``timm:NAME`` or ``py:FILE:FUNCTION``.

    Parameters
    ----------
    spec
        An ``nn.Module`` is taken as it is. A run folder (or its model.safetensors) that robustcv wrote is loaded with
        its description. ``torchvision:resnet50`` or ``torchvision:resnet50@IMAGENET1K_V2`` builds the network, with
        ``weights`` from a file or else torchvision's own (downloaded once); ``timm:NAME`` is the same for timm.
        ``py:FILE:FUNCTION`` runs FILE and calls FUNCTION(), which returns a module from [0, 1] images to logits.
    weights
        A safetensors file or a torch file without code.
    say
        Called with a line for the user before code of a file is run.
    """
    if weights is not None and (
        isinstance(spec, nn.Module) or not str(spec).startswith(("torchvision:", "timm:", "py:"))
    ):
        raise UserError(
            "RCV-E065",
            f"weights from {weights} cannot be put into {spec if isinstance(spec, str) else type(spec).__name__}",
            "a run folder and a module from Python already hold theirs",
            "leave --weights out, or name the network: --model torchvision:NAME, timm:NAME or py:FILE:FUNCTION",
        )
    if isinstance(spec, nn.Module):
        return Loaded(spec, FROM_PYTHON, type(spec).__name__)
    kind, _, rest = str(spec).partition(":")
    folder = Path(spec).expanduser()
    folder = folder.parent if folder.name == "model.safetensors" else folder
    if kind == "torchvision" and rest:
        loaded = _from_torchvision(rest, weights)
    elif kind == "timm" and rest:
        loaded = _from_timm(rest, weights)
    elif kind == "onnx" and rest:
        loaded = Loaded(onnx_file.read(rest), f"onnx:{Path(rest).name}", "onnx")
    elif kind == "py" and rest:
        say(f"running {rest.rpartition(':')[0]}: its code can do whatever you can")
        loaded = _from_file(rest, weights)
    elif folder.is_dir():
        loaded = _from_run(folder)
    else:
        raise _no_model(str(spec))
    loaded.classifier.eval()  # what we load is loaded to be judged; a module from Python keeps its mode
    return loaded


def _no_model(spec: str) -> UserError:
    if is_architecture(spec):
        return UserError(
            "RCV-E057",
            f"{spec!r} is an architecture without weights",
            "an untrained classifier has nothing to audit",
            f"train it first (`robustcv train --model {spec} --data ...`) and give the run folder",
        )
    return UserError(
        "RCV-E058",
        f"there is no model {spec!r}",
        "a model is a run folder, torchvision:NAME, timm:NAME, onnx:FILE or py:FILE:FUNCTION",
        "check --model; `robustcv list architectures` shows what can be trained",
    )


def _from_run(folder: Path) -> Loaded:
    described = checkpoint.read_description(folder / "model.json")
    try:
        return _built(folder, described)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            "RCV-E055",
            f"{folder / 'model.json'} does not describe a model",
            f"{type(error).__name__}: {str(error)[:120]}",
            "restore the run folder as robustcv wrote it",
        ) from error


def _built(folder: Path, described: Mapping[str, Any]) -> Loaded:
    """Build the classifier that a description tells of, and fill it."""
    if not is_architecture(described["architecture"]):
        raise UserError(
            "RCV-E090",
            f"{folder} holds the weights of {described['architecture']}, whose code is not in it",
            "it was hardened from Python or from a file of yours; robustcv runs no code that a run folder names",
            f"name the code and the weights: --model py:FILE:FUNCTION --weights {folder / 'model.safetensors'}",
        )
    normalisation = described["normalisation"]
    classifier = build(
        described["architecture"], **described["options"], mean=normalisation["mean"], std=normalisation["std"]
    )
    path = folder / "model.safetensors"
    checkpoint.fill(classifier, checkpoint.load_weights(path), str(path))
    names = tuple(described["class_names"])
    return Loaded(classifier, folder.name, described["architecture"], dict(described), names)


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
    network = torchvision.models.get_model(name, weights=None)
    if weights is None:
        try:
            return _published(name, torchvision_source(name, entry), network, name)
        except (OSError, RuntimeError) as error:
            raise _unreachable(f"torchvision:{name}", error) from error
    wanted = entry.transforms()
    names = tuple(entry.meta["categories"])  # where there are as many
    made = Source(checkpoint.load_weights(weights), names, wanted.crop_size[0], list(wanted.mean), list(wanted.std))
    return _published(name, made, network, weights)


def _from_timm(name: str, weights: str | None) -> Loaded:
    """Build a network of timm, with the input size and normalisation that its published weights came with."""
    timm = timm_with(name)
    network = timm.create_model(name, pretrained=False)
    if weights is None:
        try:
            return _published(f"timm:{name}", timm_source(name), network, name)
        except (OSError, RuntimeError) as error:
            raise _unreachable(f"timm:{name}", error) from error
    wanted = timm.data.resolve_model_data_config(network)
    made = Source(
        checkpoint.load_weights(weights), (), wanted["input_size"][1], list(wanted["mean"]), list(wanted["std"])
    )
    return _published(f"timm:{name}", made, network, weights)


def _published(architecture: str, made: Source, network: nn.Module, told: str) -> Loaded:
    """Put weights into a published network, described so that it can be saved as a run of ours."""
    assert made.mean is not None and made.std is not None and made.input_size is not None
    size, kept = made.input_size, main_weights(made.weights)
    classes = _classes_in(kept, network, told)
    classifier = build(architecture, classes=classes, size=size, mean=made.mean, std=made.std, input_size=size)
    checkpoint.fill(classifier.network, kept, told)
    classifier.size = (size, size)  # images of any size may come
    described = checkpoint.describe(
        architecture=architecture,
        options={"classes": classes, "size": 0, "channels": 3, "input_size": size},
        class_names=(),
        mean=made.mean,
        std=made.std,
    )
    name = architecture if architecture.startswith("timm:") else f"torchvision:{architecture}"
    answers = made.class_names if len(made.class_names) == classes else ()
    return Loaded(classifier, name, architecture, described, answers=answers)


def _unreachable(name: str, error: Exception) -> UserError:
    return UserError(
        "RCV-E059",
        f"the weights of {name} could not be had",
        first_line(error, 200),
        "go online once, or give a file with --weights",
    )


def head_of(network: nn.Module) -> str:
    """Name the last layer that has weights: the one that gives the logits."""
    names: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return names[-1]


def _classes_in(weights: Mapping[str, torch.Tensor], network: nn.Module, name: str) -> int:
    """Read the number of classes off the weights of the network's last layer."""
    head = head_of(network)
    matrix = weights.get(f"{head}.weight")
    if matrix is None:
        raise UserError(
            "RCV-E054",
            f"the weights hold no {head}.weight, the last layer of {name}",
            "they were made for another architecture, so the number of classes is not known",
            "name the architecture the weights were made with (--model)",
        )
    return int(matrix.shape[0])


@contextlib.contextmanager
def _telling_of_code(what: str) -> Iterator[None]:
    """Tell in three lines that the user's own code fails."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            "RCV-E121",
            f"{what} fails when it is run",
            f"{type(error).__name__}: {first_line(error)}",
            "mend it; with ROBUSTCV_DEBUG=1 in the environment robustcv shows where it fails",
        ) from error


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
    with _telling_of_code(f"{path}"):
        module_spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise unknown_name("function", function, [name for name in vars(module) if not name.startswith("_")])
    with _telling_of_code(f"{function}() in {path}"):
        network = getattr(module, function)()
    if isinstance(network, nn.Module) and any(map(is_lazy, network.parameters())):
        raise UserError(
            "RCV-E061",
            f"{function}() in {path} returned a module whose layers have no size yet",
            "lazy layers get theirs with the first image",
            f"send an image through it in {function}()",
        )
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

"""The networks that can be trained, by name in `ARCHITECTURES`, each inside a `Classifier` of the right input size."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from robustcv.classifier import Classifier
from robustcv.errors import UserError, unknown_name
from robustcv.models.cifar_resnet import cifar_resnet20
from robustcv.models.cifar_wide import cifar_resnet18, preact_resnet18, wideresnet28_10, wideresnet34_10
from robustcv.models.published import TORCHVISION, Published, is_torchvision, timm_network, torchvision_network
from robustcv.models.small_cnn import small_cnn
from robustcv.models.zfnet import zfnet

OURS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "cifar_resnet20": cifar_resnet20,
    "cifar_resnet18": cifar_resnet18,
    "preact_resnet18": preact_resnet18,
    "wideresnet28_10": wideresnet28_10,
    "wideresnet34_10": wideresnet34_10,
    "zfnet": zfnet,
}
SMALLEST = {"small_cnn": 18, "zfnet": 64}  # pixels a side; below, a layer has nothing left to see


def _named(name: str) -> Callable[..., Published]:
    def network(**options: Any) -> Published:
        return torchvision_network(name, **options)

    network.__doc__ = f"Build torchvision's {name}, without weights."
    return network


ARCHITECTURES: dict[str, Callable[..., Any]] = {**OURS, **{name: _named(name) for name in TORCHVISION}}


def is_architecture(name: str) -> bool:
    """Tell whether `build` knows an architecture of that name."""
    return name.partition(",")[0] in ARCHITECTURES or name.startswith("timm:") or is_torchvision(name)


def build(
    architecture: str,
    *,
    classes: int,
    size: int,
    channels: int = 3,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    input_size: int | None = None,
) -> Classifier:
    """Build an untrained classifier of a named architecture; normalisation and resizing inside.

    Parameters
    ----------
    architecture
        A name in `ARCHITECTURES`, any classification network of torchvision, or ``timm:NAME``. The networks for CIFAR
        take ``,instance`` after their name, for instance norm in place of batch norm.
    classes, size, channels
        What the images are like.
    mean, std
        Normalisation; None means what the network was published with, or 0.5 and 0.25.
    input_size
        Resize images to this inside; None only enlarges them where they are too small for the network.

    Raises
    ------
    UserError
        If there is no such architecture, or it cannot take such images.
    """
    name, _, variant = architecture.partition(",")
    if name in OURS:
        _require_large_enough(name, input_size or size)
        network = OURS[name](classes=classes, size=input_size or size, channels=channels, **_variant(name, variant))
        found = Published(network, (0.5,) * channels, (0.25,) * channels, input_size or size)
    elif variant:
        raise unknown_name(f"variant of {name}", variant, [])
    elif name.startswith("timm:"):
        found = timm_network(name.removeprefix("timm:"), classes=classes, size=size, channels=channels)
    elif is_torchvision(name):
        found = torchvision_network(name, classes=classes, size=size, channels=channels)
    else:
        raise unknown_name("architecture", name, ARCHITECTURES)
    inside = input_size or found.size
    return Classifier(
        found.network,
        mean=mean or found.mean,
        std=std or found.std,
        size=None if inside == size else (inside, inside),
    )


def _variant(name: str, variant: str) -> Mapping[str, str]:
    takes = name in ("cifar_resnet18", "preact_resnet18", "wideresnet28_10", "wideresnet34_10")
    if variant and (not takes or variant not in ("batch", "instance")):
        raise unknown_name(f"variant of {name}", variant, ["batch", "instance"] if takes else [])
    return {"norm": variant} if variant else {}


def _require_large_enough(name: str, size: int) -> None:
    if size < (least := SMALLEST.get(name, 1)):
        raise UserError(
            "RCV-E066",
            f"{name} needs images of {least} pixels or more, got {size}",
            "after its poolings nothing would be left",
            f"add --resize {max(32, least)}",
        )

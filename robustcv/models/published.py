"""Networks of torchvision and timm, by name, with the input size and normalisation that their weights came with."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustcv.errors import UserError, missing_extra, unknown_name

# one or two of each family, for `robustcv list architectures`; every other classification network works by name too
TORCHVISION = (
    "alexnet", "vgg11", "vgg16_bn", "resnet18", "resnet50", "inception_v3", "densenet121", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "vit_b_16",
    "swin_t",
)  # fmt: skip
AUXILIARY = ("AuxLogits", "aux1", "aux2")  # second heads that only help training
PORTED = ("inception_v3", "googlenet")  # weights from another framework: torchvision normalises once more inside
_ONE_SIZE = ("vit_", "maxvit_")  # position tables of a fixed length


@dataclass(frozen=True)
class Published:
    """A network without weights, and how images have to be made ready for it."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int


@dataclass(frozen=True)
class Source:
    """Weights to begin with or to judge, and what is known about them."""

    weights: Mapping[str, Tensor]
    class_names: tuple[str, ...] = ()
    input_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


class _ThreeChannels(nn.Module):
    """Show a grey image to a network that wants colours."""

    def forward(self, images: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 3 h w"]:
        return images.expand(-1, 3, -1, -1)


def is_torchvision(name: str) -> bool:
    """Tell whether torchvision has a classification network of that name."""
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models)


def torchvision_network(name: str, *, classes: int, size: int, channels: int = 3) -> Published:
    """Build a network of torchvision without weights, for images of one size where the network can take it.

    Parameters
    ----------
    name
        As in ``torchvision.models``.
    classes
        Number of outputs (logits). Auxiliary outputs of Inception and GoogLeNet are taken off.
    size
        Height and width of the images. Images that are smaller than the network can take, or of any but the one size
        that it knows (ViT, MaxViT), are enlarged inside.
    channels
        3, or 1, which is then shown three times.
    """
    import torchvision

    entry = torchvision.models.get_model_weights(name).DEFAULT
    wanted = entry.transforms()
    own, least = int(wanted.crop_size[0]), max(32, *entry.meta.get("min_size", (1, 1)))
    options: dict[str, Any] = {"init_weights": True} if name in PORTED else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    inside = own if name.startswith(_ONE_SIZE) else max(size, 32 if name.startswith("swin") else least)
    return _shown(without_auxiliary(network), channels, wanted.mean, wanted.std, inside)


def timm_network(name: str, *, classes: int, size: int, channels: int = 3) -> Published:
    """Build a network of timm (extra ``timm``) without weights; images are resized inside to what it wants.

    Parameters
    ----------
    name
        As in ``timm.list_models()``, with or without the tag of its weights.
    classes, size, channels
        As in `torchvision_network`.

    Raises
    ------
    UserError
        If timm is not installed, or has no such network.
    """
    timm = timm_with(name)
    network = timm.create_model(name, pretrained=False, num_classes=classes)
    config = timm.data.resolve_model_data_config(network)
    fixed = network.pretrained_cfg.get("fixed_input_size", False)
    inside = config["input_size"][1] if fixed else max(size, 32)
    return _shown(network, channels, config["mean"], config["std"], inside)


def timm_with(name: str) -> Any:
    """Import timm, for a network that it has.

    Raises
    ------
    UserError
        If it is not installed, or has no such network.
    """
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise missing_extra("timm", "networks named timm:NAME come from it", "timm") from error
    if not timm.is_model(name):
        raise unknown_name("timm model", name, difflib.get_close_matches(name, timm.list_models(), 5, 0.3))
    return timm


def torchvision_source(name: str, entry: Any) -> Source:
    """Get the published weights of a network of torchvision, downloaded once, and what they were made for.

    Raises
    ------
    OSError, RuntimeError
        If they cannot be had.
    """
    import torchvision

    weights = torchvision.models.get_model(name, weights=entry).state_dict()
    wanted = entry.transforms()
    mean, std = ([0.5] * 3, [0.5] * 3) if name in PORTED else (list(wanted.mean), list(wanted.std))
    return Source(weights, tuple(entry.meta["categories"]), int(wanted.crop_size[0]), mean, std)


def timm_source(name: str) -> Source:
    """Get the published weights of a network of timm, downloaded once, and what they were made for.

    Raises
    ------
    OSError, RuntimeError
        If they cannot be had.
    """
    timm = timm_with(name)
    network = timm.create_model(name, pretrained=True)
    config = timm.data.resolve_model_data_config(network)
    return Source(network.state_dict(), (), config["input_size"][1], list(config["mean"]), list(config["std"]))


def main_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefix that DataParallel writes, and the auxiliary heads."""
    plain = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in plain.items() if name.partition(".")[0] not in AUXILIARY}


def without_auxiliary(network: nn.Module) -> nn.Module:
    """Take off the auxiliary outputs of Inception and GoogLeNet, so that the network gives logits in train mode too."""
    for name in AUXILIARY:
        if hasattr(network, name):
            setattr(network, name, None)
            network.aux_logits = False  # type: ignore[assignment]
    return network


def _shown(network: nn.Module, channels: int, mean: Any, std: Any, size: int) -> Published:
    if channels == 3:
        return Published(network, tuple(mean), tuple(std), size)
    if channels != 1:
        raise UserError(
            "RCV-E069",
            f"the images have {channels} channels",
            "published networks take colour images, or grey ones shown three times",
            "use small_cnn or cifar_resnet20, which take any number",
        )
    grey_mean, grey_std = (float(torch.tensor(each).mean()) for each in (mean, std))
    return Published(nn.Sequential(_ThreeChannels(), network), (grey_mean,), (grey_std,), size)

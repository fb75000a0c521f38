"""Networks of torchvision and timm, by name, with the input size and normalisation that their weights came with."""

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustcv.errors import UserError, unknown_name

# one or two of each family, for `robustcv list architectures`; every other classification network works by name too
TORCHVISION = (
    "alexnet", "vgg11", "vgg16_bn", "resnet18", "resnet50", "inception_v3", "densenet121", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "vit_b_16",
    "swin_t",
)  # fmt: skip
_ONE_SIZE = ("vit_", "maxvit_")  # position tables of a fixed length


@dataclass(frozen=True)
class Published:
    """A network without weights, and how images have to be made ready for it."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int


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
    with_auxiliary = name in ("inception_v3", "googlenet")
    options: dict[str, Any] = {"init_weights": True} if with_auxiliary else {}
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
    timm = import_timm()
    if not timm.is_model(name):
        raise unknown_name("timm model", name, difflib.get_close_matches(name, timm.list_models(), 5, 0.3))
    network = timm.create_model(name, pretrained=False, num_classes=classes)
    config = timm.data.resolve_model_data_config(network)
    fixed = network.pretrained_cfg.get("fixed_input_size", False)
    inside = config["input_size"][1] if fixed else max(size, 32)
    return _shown(network, channels, config["mean"], config["std"], inside)


def import_timm() -> Any:
    """Import timm.

    Raises
    ------
    UserError
        If it is not installed.
    """
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise UserError(
            "RCV-E068",
            "timm is not installed",
            "networks named timm:NAME come from it",
            'pip install "robustcv[timm]"',
        ) from error
    return timm


def without_auxiliary(network: nn.Module) -> nn.Module:
    """Take off the auxiliary outputs of Inception and GoogLeNet, so that the network gives logits in train mode too."""
    for name in ("AuxLogits", "aux1", "aux2"):
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

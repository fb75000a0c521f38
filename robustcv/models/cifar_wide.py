"""The networks that robustness papers train on CIFAR: ResNet-18, PreActResNet-18 and WideResNets with a 3x3 stem."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["batch", "instance"]
_Layer = Callable[[int], nn.Module]


def _norm(kind: Norm) -> _Layer:
    """Choose the normalisation; instance norm has weights of its own and does not look at batch mates."""
    if kind == "batch":
        return nn.BatchNorm2d
    return lambda width: nn.InstanceNorm2d(width, affine=True)


class _Block(nn.Module):
    """Two 3x3 convolutions, each followed by its normalisation, and a shortcut (He et al. 2016a, figure 2)."""

    def __init__(self, width_in: int, width: int, stride: int, norm: _Layer) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), norm(width))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        out = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class _PreActBlock(nn.Module):
    """Normalisation and ReLU before each convolution; the shortcut starts after the first (He et al. 2016b)."""

    def __init__(self, width_in: int, width: int, stride: int, norm: _Layer) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(width_in), nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = norm(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        changes = stride != 1 or width_in != width
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        ready = functional.relu(self.norm1(x))
        short = x if self.shortcut is None else self.shortcut(ready)
        out: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(ready)))) + short
        return out


def _stages(
    block: Callable[[int, int, int, _Layer], nn.Module],
    stem: int,
    widths: Sequence[int],
    strides: Sequence[int],
    depth: int,
    norm: _Layer,
) -> list[nn.Module]:
    stages: list[nn.Module] = []
    width_in = stem
    for width, stride in zip(widths, strides, strict=True):
        blocks = [block(width_in if k == 0 else width, width, stride if k == 0 else 1, norm) for k in range(depth)]
        stages.append(nn.Sequential(*blocks))
        width_in = width
    return stages


def _initialised(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            with torch.no_grad():
                module.bias.zero_()
    return network


def cifar_resnet18(*, classes: int = 10, size: int = 32, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build ResNet-18 for small images (He et al. 2016a): 3x3 stem, no early pooling; 11,173,962 parameters.

    Parameters
    ----------
    classes
        Number of outputs (logits).
    size
        Not used: the network ends in global average pooling.
    channels
        Channels of the images.
    norm
        ``batch`` or ``instance``.
    """
    del size
    layer = _norm(norm)
    stages = _stages(_Block, 64, (64, 128, 256, 512), (1, 2, 2, 2), 2, layer)
    stem = (nn.Conv2d(channels, 64, 3, 1, 1, bias=False), layer(64), nn.ReLU())
    return _initialised(nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)))


def preact_resnet18(*, classes: int = 10, size: int = 32, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build PreActResNet-18 for small images (He et al. 2016b), as robustness papers do; 11,172,170 parameters.

    Parameters
    ----------
    classes, size, channels, norm
        As in `cifar_resnet18`.
    """
    del size
    layer = _norm(norm)
    stages = _stages(_PreActBlock, 64, (64, 128, 256, 512), (1, 2, 2, 2), 2, layer)
    stem = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    end = (layer(512), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
    return _initialised(nn.Sequential(stem, *stages, *end))


def _wideresnet(depth: int, widen: int, classes: int, channels: int, norm: Norm) -> nn.Module:
    """Build a WideResNet without dropout; ``depth`` is 6 blocks a stage plus 4."""
    layer = _norm(norm)
    widths = (16 * widen, 32 * widen, 64 * widen)
    stages = _stages(_PreActBlock, 16, widths, (1, 2, 2), (depth - 4) // 6, layer)
    stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
    end = (layer(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    return _initialised(nn.Sequential(stem, *stages, *end))


def wideresnet28_10(*, classes: int = 10, size: int = 32, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build WideResNet-28-10 (Zagoruyko and Komodakis 2016): 36,479,194 parameters for 10 classes.

    Parameters
    ----------
    classes, size, channels, norm
        As in `cifar_resnet18`.
    """
    del size
    return _wideresnet(28, 10, classes, channels, norm)


def wideresnet34_10(*, classes: int = 10, size: int = 32, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build WideResNet-34-10, the large network of adversarial training papers: 46,160,474 parameters for 10 classes.

    Parameters
    ----------
    classes, size, channels, norm
        As in `cifar_resnet18`.
    """
    del size
    return _wideresnet(34, 10, classes, channels, norm)

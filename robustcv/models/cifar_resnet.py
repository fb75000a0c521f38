"""ResNet-20 for small images, as in the CIFAR section of the paper."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A: stride, then zero channels)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.more = stride, width - width_in

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        short = x[:, :, :: self.stride, :: self.stride]
        short = functional.pad(short, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return functional.relu(out + short)


def cifar_resnet20(*, classes: int = 10, size: int = 32, channels: int = 3) -> nn.Module:
    """Build ResNet-20 (He et al. 2016, section 4.2): 3x3 stem, 3 stages of 3 blocks, 269,722 parameters for 10 classes.

    Parameters
    ----------
    classes
        Number of outputs (logits).
    size
        Not used: the network ends in global average pooling.
    channels
        Channels of the images.
    """
    del size
    blocks: list[nn.Module] = []
    width_in = 16
    for width, first_stride in ((16, 1), (32, 2), (64, 2)):
        for k in range(3):
            blocks.append(_Block(width_in, width, first_stride if k == 0 else 1))
            width_in = width
    network = nn.Sequential(
        nn.Conv2d(channels, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        network[-1].bias.zero_()  # type: ignore[operator]
    return network

"""ZFNet: AlexNet with a smaller, denser first layer, found by looking at what the layers see."""

from torch import nn


def zfnet(*, classes: int = 1000, size: int = 224, channels: int = 3) -> nn.Module:
    """Build ZFNet (Zeiler and Fergus 2014, figure 3): 62,357,608 parameters for 1,000 classes.

    Contrast normalisation after the two poolings is PyTorch's local response normalisation, as in AlexNet. Images of
    other sizes than 224 are brought to the 6x6 grid of the paper by adaptive pooling, as torchvision's AlexNet does.

    Parameters
    ----------
    classes
        Number of outputs (logits).
    size
        Not used beyond its smallest value, 64.
    channels
        Channels of the images.
    """
    del size
    return nn.Sequential(
        nn.Conv2d(channels, 96, 7, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.LocalResponseNorm(5),
        nn.Conv2d(96, 256, 5, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.LocalResponseNorm(5),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.AdaptiveAvgPool2d(6),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, classes),
    )

"""The small CNN of the classic CIFAR-10 tutorial, with logits at the end."""

from torch import nn

SMALLEST = 18  # pixels a side; below, the last convolution has nothing to see


def small_cnn(*, classes: int = 10, size: int = 32, channels: int = 3) -> nn.Module:
    """Build conv 3x3 32, pool, conv 64, pool, conv 64, dense 64, dense K; 122,570 parameters at 32x32x3, 10 classes.

    The outputs are **logits**. The tutorial's well-known mistake is a softmax layer followed by a cross-entropy that
    applies softmax again: training slows down, the gradients of confident images vanish, and every gradient attack
    then reports a robustness that is not there. `torch.nn.CrossEntropyLoss` and all of robustcv take logits.

    Parameters
    ----------
    classes
        Number of outputs.
    size
        Height and width of the images; at least 18.
    channels
        Channels of the images.
    """
    side = ((size - 2) // 2 - 2) // 2 - 2
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.MaxPool2d(2),  # before the ReLU: the same function (both are monotone), a quarter of the work
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * side * side, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )

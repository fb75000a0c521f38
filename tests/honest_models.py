"""Honest classifiers, trained in a second each on coloured patches: what checks must not complain about."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustcv.attacks.pgd import pgd
from robustcv.classifier import Classifier, frozen
from robustcv.data import ImageSet

NAMES = ("rust", "moss", "sea", "plum", "sand", "slate")
COLOURS = torch.tensor(
    [[0.75, 0.3, 0.2], [0.35, 0.6, 0.2], [0.1, 0.5, 0.7], [0.55, 0.25, 0.55], [0.8, 0.7, 0.45], [0.4, 0.45, 0.5]]
)


def patches(n: int, seed: int, size: int = 16, spread: float = 0.18) -> ImageSet:
    """Draw 8-bit images whose class is their colour, under uneven light, noise and a stripe."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % len(NAMES)
    labels = labels[torch.randperm(n, generator=generator)]
    colour = COLOURS[labels] + spread * 0.5 * torch.randn(n, 3, generator=generator)
    light = 1 + 0.5 * spread * torch.randn(n, 1, size, size, generator=generator)
    ramp = torch.linspace(-0.1, 0.1, size) * torch.randn(n, 1, 1, 1, generator=generator)
    pixels = (colour[:, :, None, None] * light + ramp + 0.1 * torch.randn(n, 3, size, size, generator=generator)).clamp(
        0, 1
    )
    return ImageSet((pixels * 255).round().to(torch.uint8), labels, NAMES, "patches", flippable=False)


MEAN, STD = (0.49, 0.47, 0.45), (0.25, 0.21, 0.22)


def linear(k: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, k))


def conv(k: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, k),
    )  # fmt: skip


class Residual(nn.Module):
    """A residual network of two blocks, with batch norm."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3, 2, 1), nn.Linear(12 * 4, k)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, 1, 1))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        for block in self.blocks:
            x = functional.relu(x + block(x))
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


def trained(
    make: Callable[[int], nn.Module], seed: int, *, eps: float = 0.0, normalised: bool = True, steps: int = 60
) -> nn.Module:
    """Train a network on patches, adversarially with an eps."""
    torch.manual_seed(seed)
    network = make(len(NAMES))
    classifier = Classifier(network, mean=MEAN, std=STD) if normalised else network
    images = patches(768, 10_000 + seed)
    optimizer = torch.optim.Adam(classifier.parameters(), 0.01)
    for step in range(steps):
        rows = torch.arange(64) + 64 * (step % 12)
        x, y = images.images[rows].float() / 255, images.labels[rows]
        if eps:
            with frozen(classifier):
                x = pgd(classifier, x, y, eps=eps, steps=3, step_size=eps / 2, seeds=rows)
        classifier.train()
        optimizer.zero_grad()
        functional.cross_entropy(classifier(x), y).backward()
        optimizer.step()
    return classifier.eval()


def honest(number: int, first_seed: int) -> nn.Module:
    """Give one of any number of honest models: four kinds in turn, each with its own seed."""
    kinds = (
        {"make": linear}, {"make": conv}, {"make": Residual, "normalised": False}, {"make": conv, "eps": 8 / 255},
        {"make": Residual, "eps": 8 / 255},
    )  # fmt: skip
    return trained(**kinds[number % len(kinds)], seed=first_seed + number)

"""An epoch of training on a folder of images: robustcv against the usual torchvision loop, all else equal.

    python benchmarks/epoch.py --data ARCHIVE_OR_FOLDER [--rounds 3] [--images 20000]

Floor: the forward and backward passes of the net, measured on one batch over and over. The usual loop is ImageFolder,
per-image transforms (RandomCrop with padding 2, RandomHorizontalFlip, ToTensor) and a DataLoader, with 0 and with 2
workers; the faster one counts. robustcv decodes once (its time is printed apart) and augments in batches. Same batch
size, optimiser (fused Adam), net, images and number of steps; robustcv also moves the learning rate. Alternating runs,
medians.
"""

import argparse
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from robustcv.data import augment, load
from robustcv.models import build
from robustcv.training import OBJECTIVES, Recipe, fit

BATCH = 128


def ours(images, epochs: int) -> float:
    """Train with robustcv's loop; gives seconds an epoch. Validation is left out by giving it one image."""
    torch.manual_seed(0)
    classifier = build("small_cnn", classes=10, size=32).to(memory_format=torch.channels_last)
    one = images.take(torch.arange(1))
    start = time.perf_counter()
    recipe = Recipe(epochs=epochs, batch_size=BATCH, augment=(augment.crop, augment.flip))
    fit(classifier, images, one, objective=OBJECTIVES["standard"], recipe=recipe)
    return (time.perf_counter() - start) / epochs


def floor(images) -> float:
    """Time the forward and backward passes alone, on one batch over and over: what no loop can go below."""
    torch.manual_seed(0)
    model = build("small_cnn", classes=10, size=32).to(memory_format=torch.channels_last)
    batch, labels = next(images.batches(BATCH))
    batch = batch.contiguous(memory_format=torch.channels_last)
    start = time.perf_counter()
    for _ in range(len(images) // BATCH):
        nn.functional.cross_entropy(model(batch), labels).backward()
        model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def usual(folder: Path, rows: list[int], workers: int, epochs: int) -> float:
    """Train with the loop that tutorials show; gives seconds an epoch."""
    torch.manual_seed(0)
    change = transforms.Compose(
        [transforms.RandomCrop(32, padding=2), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    data = Subset(torchvision.datasets.ImageFolder(str(folder), change), rows)
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers)
    model = build("small_cnn", classes=10, size=32)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0, fused=True)
    loss_function = nn.CrossEntropyLoss()
    start = time.perf_counter()
    for _ in range(epochs):
        total, correct = 0.0, 0
        for images, labels in loader:
            optimizer.zero_grad()
            logits = model(images)
            loss = loss_function(logits, labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            correct += (logits.argmax(1) == labels).sum().item()
    return (time.perf_counter() - start) / epochs


def main() -> None:
    """Alternate the three loops and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20000)
    options = parser.parse_args()
    start = time.perf_counter()
    images = load(options.data, split="train").in_memory()
    decode = time.perf_counter() - start
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: options.images]
    images = images.take(rows)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.data)
        if folder.is_file():
            with tarfile.open(folder) as archive:
                archive.extractall(temporary, filter="data")
            folder = Path(temporary)
        folder = folder / "train"
        ours(images.take(torch.arange(2000)), 1)  # warm up
        seconds: dict[str, list[float]] = {"floor": [], "robustcv": [], "usual, 0 workers": [], "usual, 2 workers": []}
        for _ in range(options.rounds):
            seconds["floor"].append(floor(images))
            seconds["robustcv"].append(ours(images, 1))
            for workers in (0, 2):
                seconds[f"usual, {workers} workers"].append(usual(folder, rows.tolist(), workers, 1))
    print(f"{len(images):,} images an epoch, batch {BATCH}, {options.rounds} alternating rounds, median seconds:")
    for name, values in seconds.items():
        print(f"  {name:<18} {statistics.median(values):6.2f}   ({', '.join(f'{v:.2f}' for v in values)})")
    best = min(statistics.median(values) for name, values in seconds.items() if name.startswith("usual"))
    print(f"  ratio              {statistics.median(seconds['robustcv']) / best:6.2f}   of the faster usual loop")
    print(f"  loading and decoding, once, or from the cache: {decode:.2f} s")


if __name__ == "__main__":
    main()

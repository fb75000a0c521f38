"""The published sets that torchvision knows: CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST, SVHN."""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustcv.data.image_set import ImageSet
from robustcv.errors import UserError, first_line

_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def cifar10(*, split: str = "test", data_dir: str | None = None) -> ImageSet:
    """Load CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 colour images of 32x32, 10 classes."""
    return _from_torchvision("CIFAR10", "cifar10", split, data_dir)


def cifar100(*, split: str = "test", data_dir: str | None = None) -> ImageSet:
    """Load CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 colour images of 32x32, 100 classes."""
    return _from_torchvision("CIFAR100", "cifar100", split, data_dir)


def mnist(*, split: str = "test", data_dir: str | None = None) -> ImageSet:
    """Load MNIST (LeCun et al. 1998): 60,000 and 10,000 grey images of 28x28, padded to 32x32 RGB."""
    return _grey("MNIST", ("mnist", "MNIST/raw"), "mnist", tuple("0123456789"), split, data_dir, flippable=False)


def fashion_mnist(*, split: str = "test", data_dir: str | None = None) -> ImageSet:
    """Load Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): like MNIST, with clothes."""
    places = ("fashion_mnist", "FashionMNIST/raw")
    return _grey("FashionMNIST", places, "fashion-mnist", _FASHION, split, data_dir, flippable=True)


def svhn(*, split: str = "test", data_dir: str | None = None) -> ImageSet:
    """Load SVHN, cropped (Netzer et al. 2011): 73,257 and 26,032 house numbers of 32x32, 10 classes."""
    name = f"{'train' if split == 'train' else 'test'}_32x32.mat"
    place = next((f for f in (_root(data_dir) / name, _root(data_dir) / "svhn" / name) if f.is_file()), None)
    if place is None:
        raw = _torchvision("SVHN", "svhn", split, data_dir)
        images, labels = raw.data, raw.labels
    else:
        from scipy.io import loadmat

        stored = loadmat(place)
        images, labels = stored["X"].transpose(3, 2, 0, 1), stored["y"].ravel() % 10  # the file calls the digit 0 10
    pixels, truth = torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64))
    return ImageSet(pixels, truth, tuple("0123456789"), "svhn", split, flippable=False)


def _root(data_dir: str | None) -> Path:
    given = data_dir or os.environ.get("ROBUSTCV_DATA")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "robustcv" / "torchvision"


def _torchvision(cls: str, name: str, split: str, data_dir: str | None) -> Any:
    """Open a torchvision set, from the disk if it is there, else by download."""
    import torchvision

    root = _root(data_dir)
    make = getattr(torchvision.datasets, cls)
    part = {"split": "train" if split == "train" else "test"} if cls == "SVHN" else {"train": split == "train"}
    try:
        return make(root, **part, download=False)
    except RuntimeError:
        pass
    try:
        root.mkdir(parents=True, exist_ok=True)
        return make(root, **part, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            "RCV-E016",
            f"{name} is not under {root} and could not be downloaded",
            first_line(error, 200),
            "go online once, or point --data-dir (or ROBUSTCV_DATA) at a folder that holds a copy",
        ) from error


def _from_torchvision(cls: str, name: str, split: str, data_dir: str | None) -> ImageSet:
    raw = _torchvision(cls, name, split, data_dir)
    images = torch.from_numpy(np.ascontiguousarray(raw.data.transpose(0, 3, 1, 2)))
    return ImageSet(images, torch.tensor(raw.targets), tuple(raw.classes), name, split)


def _grey(
    cls: str,
    places: tuple[str, ...],
    name: str,
    class_names: tuple[str, ...],
    split: str,
    data_dir: str | None,
    *,
    flippable: bool,
) -> ImageSet:
    """Read IDX files, plain or gzipped, where they lie; else ask torchvision."""
    part = "train" if split == "train" else "test"
    for place in places:
        folder = _root(data_dir) / place
        files = [next((f for f in (folder / stem, folder / f"{stem}.gz") if f.exists()), None) for stem in _IDX[part]]
        if files[0] and files[1]:
            images, labels = _read_idx(files[0], 16), _read_idx(files[1], 8)
            pixels, truth = torch.from_numpy(images.reshape(-1, 28, 28)), torch.from_numpy(labels).long()
            break
    else:
        raw = _torchvision(cls, name, split, data_dir)
        pixels, truth = raw.data, raw.targets.long()
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2))[:, None].repeat(1, 3, 1, 1)
    return ImageSet(padded, truth, class_names, name, split, flippable=flippable)


def _read_idx(path: Path, header: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return np.frombuffer(data, np.uint8, offset=header).copy()

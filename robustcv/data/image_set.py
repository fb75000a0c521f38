"""Images with labels and class names: `ImageSet` in memory, `ImageStream` decoded on the way; one interface."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

from robustcv import processes
from robustcv.errors import UserError

Batches = Iterator[tuple[Tensor, Tensor]]


@runtime_checkable
class Images(Protocol):
    """What training and evaluation need of a set of images, wherever it lives."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def flippable(self) -> bool: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def skipped(self) -> int: ...
    @property
    def twins(self) -> Tensor | None: ...
    def __len__(self) -> int: ...
    def take(self, rows: Tensor) -> "Images": ...
    def in_memory(self) -> "ImageSet": ...
    def batches(self, batch_size: int, order: Tensor | None = None) -> Batches: ...


def to_float(images: Tensor) -> Float[Tensor, "n c h w"]:
    """Bring uint8 pixels to float32 in [0, 1]; floats pass."""
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.to(torch.float32)


@dataclass(frozen=True)
class ImageSet:
    """Images in memory.

    Parameters
    ----------
    images
        ``n c h w``: uint8, or float32 in [0, 1] where the pixels are not 8-bit.
    labels
        ``n``, integers below ``len(class_names)``.
    flippable
        A mirrored image keeps its class; true of photographs, not of digits.
    masks
        ``n h w`` bool, True on the pixels that decide the class, where that is known.
    indices
        Position of each image in the whole split.
    skipped
        Number of files that could not be decoded and were left out, as asked.
    twins
        Which images come from files that are training files too; None where that is not known.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    class_names: tuple[str, ...]
    name: str = "images"
    split: str = "test"
    flippable: bool = True
    masks: Tensor | None = field(default=None, repr=False)
    indices: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), repr=False)
    total: int = 0
    skipped: int = 0
    twins: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n = len(self.images)
        if n == 0 or len(self.labels) != n or self.images.ndim != 4:
            raise UserError(
                "RCV-E010",
                f"{self.name}: {n} images of shape {tuple(self.images.shape[1:])} with {len(self.labels)} labels",
                "every image needs one label, and there must be at least one image of shape c h w",
                "pass images as n c h w and labels as n",
            )
        if self.images.dtype != torch.uint8 and not (0 <= self.images.min() and self.images.max() <= 1):
            low, high = self.images.min().item(), self.images.max().item()
            raise UserError(
                "RCV-E011",
                f"{self.name}: images must lie in [0, 1], got [{low:.3g}, {high:.3g}]",
                "eps is measured in units of [0, 1]; normalised images would make it meaningless",
                "pass images in [0, 1] (or uint8) and put the normalisation into the classifier: rc.Classifier(...)",
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise UserError(
                "RCV-E012",
                f"{self.name}: labels run from {int(self.labels.min())} to {int(self.labels.max())} "
                f"but there are {len(self.class_names)} classes",
                "a label without a class cannot be judged",
                "use labels 0 to K-1 and name K classes",
            )
        if len(self.indices) == 0:
            object.__setattr__(self, "indices", torch.arange(n))
            object.__setattr__(self, "total", n)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        c, h, w = self.images.shape[1:]
        return int(c), int(h), int(w)

    def take(self, rows: Int64[Tensor, " m"]) -> "ImageSet":
        """Give the images of these rows, in this order; they remember their place in the whole split."""
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            masks=None if self.masks is None else self.masks[rows],
            indices=self.indices[rows],
            twins=None if self.twins is None else self.twins[rows],
        )

    def in_memory(self) -> "ImageSet":
        """Give itself."""
        return self

    def near(self, device: torch.device) -> "ImageSet":
        """Keep the pixels on a GPU, unless they fill an eighth of what is free: batches need not travel then."""
        if device.type != "cuda" or 8 * self.images.nbytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, images=self.images.to(device))

    def batches(self, batch_size: int, order: Tensor | None = None) -> Batches:
        """Yield float images in [0, 1] and labels, in the order given or as they stand."""
        order = torch.arange(len(self)) if order is None else order
        for rows in order.split(batch_size):
            yield to_float(self.images[rows.to(self.images.device)]), self.labels[rows]

    @cached_property
    def hashes(self) -> list[str]:
        """Hash the pixels of each image; equal for equal pixels wherever they were read from."""
        shape = str(self.shape).encode()
        return [
            hashlib.blake2b(shape + image.tobytes(), digest_size=8).hexdigest()
            for image in self.images.contiguous().cpu().numpy()
        ]

    @cached_property
    def content_hash(self) -> str:
        """Hash pixels and labels of the whole set, in order."""
        text = ",".join(f"{name}:{label}" for name, label in zip(self.hashes, self.labels.tolist(), strict=True))
        return hashlib.sha256(text.encode()).hexdigest()


class ImageStream:
    """Images decoded when they are needed, by workers, for sets that do not fit in memory.

    Parameters
    ----------
    dataset
        Gives ``(uint8 image c h w, label)`` for an index.
    labels
        The label of every index, known without decoding.
    shape
        Channels, height and width of every image.
    seed
        Seed of what workers draw, where the data set of the caller is random.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        labels: Int64[Tensor, " n"],
        class_names: tuple[str, ...],
        shape: tuple[int, int, int],
        *,
        name: str,
        split: str,
        flippable: bool = True,
        indices: Tensor | None = None,
        workers: int = 2,
        skipped: int = 0,
        twins: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.dataset, self.class_names, self.shape, self.seed = dataset, class_names, shape, seed
        self.name, self.split, self.flippable, self.workers = name, split, flippable, workers
        self.all_labels, self.skipped, self.all_twins = labels, skipped, twins
        self.indices = torch.arange(len(labels)) if indices is None else indices

    @property
    def labels(self) -> Tensor:
        """Labels of the images in this set."""
        return self.all_labels[self.indices]

    @property
    def twins(self) -> Tensor | None:
        """Which images are training files too."""
        return None if self.all_twins is None else self.all_twins[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, rows: Int64[Tensor, " m"]) -> "ImageStream":
        """Give the stream of these rows; nothing is decoded yet."""
        return ImageStream(
            self.dataset,
            self.all_labels,
            self.class_names,
            self.shape,
            name=self.name,
            split=self.split,
            flippable=self.flippable,
            indices=self.indices[rows],
            workers=self.workers,
            skipped=self.skipped,
            twins=self.all_twins,
            seed=self.seed,
        )

    @property
    def croppable(self) -> bool:
        """Whether images can be cropped as they are decoded; not where the caller's own data set decodes them."""
        return hasattr(self.dataset, "cropped")

    def redrawn(self, seed: int) -> "ImageStream":
        """Give the stream with what is random in the caller's own data set drawn by another seed, and by process."""
        found = self.take(torch.arange(len(self)))
        found.seed = seed * 4099 + processes.rank()  # each process draws for its own images
        return found

    def cropped(self, seed: int) -> "ImageStream":
        """Give the stream with a random crop of each image, taken at its full size (torchvision's RandomResizedCrop).

        Which part depends on the seed and the row alone.
        """
        found = self.take(torch.arange(len(self)))
        found.dataset = self.dataset.cropped(seed)  # type: ignore[attr-defined]
        return found

    def batches(self, batch_size: int, order: Tensor | None = None) -> Batches:
        """Decode and yield float images in [0, 1] and labels, in the order given or as they stand."""
        rows = self.indices if order is None else self.indices[order]
        workers = min(self.workers, len(os.sched_getaffinity(0)))
        loader = DataLoader(
            Subset(self.dataset, rows.tolist()), batch_size, num_workers=workers, collate_fn=_collate,
            generator=torch.Generator().manual_seed(self.seed),
        )  # fmt: skip  # what workers draw from, where a caller's data set does: not the global generator
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            images, labels = batch
            yield to_float(images), labels

    def in_memory(self) -> ImageSet:
        """Decode everything; for a subset that is small enough."""
        parts = [(images.mul(255).round().to(torch.uint8), labels) for images, labels in self.batches(64)]
        return ImageSet(
            torch.cat([images for images, _ in parts]),
            torch.cat([labels for _, labels in parts]),
            self.class_names,
            self.name,
            self.split,
            self.flippable,
            indices=self.indices,
            total=len(self.all_labels),
            skipped=self.skipped,
            twins=self.twins,
        )


def _collate(items: list[Any]) -> tuple[Tensor, Tensor] | UserError:
    for image, _ in items:
        if isinstance(image, UserError):  # in a worker, where raising it would bury it in a traceback
            return image
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


def stratified(labels: Int64[Tensor, " n"], n: int, seed: int) -> Int64[Tensor, " m"]:
    """Choose n rows so that classes keep their shares; the same labels, n and seed give the same rows, sorted.

    Raises
    ------
    UserError
        If more rows are asked for than there are.
    """
    if not 0 < n <= len(labels):
        raise UserError(
            "RCV-E013",
            f"{n} images were asked for, the set has {len(labels)}",
            "a subset cannot be larger than the set, or empty",
            f"use -n {len(labels)} or less, or leave -n out for all of them",
        )
    rng = np.random.default_rng(seed)
    values = labels.numpy()
    classes, counts = np.unique(values, return_counts=True)
    exact = counts * n / len(values)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(-(exact - quota), kind="stable")[: n - quota.sum()]] += 1
    chosen = [rng.permutation(np.flatnonzero(values == label))[:k] for label, k in zip(classes, quota, strict=True)]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def split_rows(labels: Int64[Tensor, " n"], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows in two, class by class; the second part holds ``share`` of each.

    A class of two or more images has at least one in either part; a single image stays in the first.
    """
    rng = np.random.default_rng(seed)
    values = labels.numpy()
    second = []
    for label in np.unique(values):
        rows = rng.permutation(np.flatnonzero(values == label))
        k = min(max(round(share * len(rows)), 1), len(rows) - 1)
        second.append(rows[:k])
    chosen = torch.from_numpy(np.sort(np.concatenate(second)))
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero().squeeze(1), chosen


MEMORY_LIMIT = 2 << 30  # decoded bytes; a larger set is streamed


def as_images(
    images: Any,
    labels: Any = None,
    class_names: tuple[str, ...] | None = None,
    *,
    split: str = "test",
    memory_limit: int = MEMORY_LIMIT,
) -> "Images":
    """Take what a PyTorch user has: a tensor with labels, a Dataset, a DataLoader, or one of our own sets.

    A map-style Dataset that knows its labels (``targets``) and is larger than the memory limit is streamed.

    Parameters
    ----------
    images
        Tensor ``n c h w`` in [0, 1] or uint8, Dataset or DataLoader of ``(image, label)``, `ImageSet`, `ImageStream`.
    labels
        Tensor or list, only with a tensor of images.
    class_names
        Names of the classes; taken from the data set's ``classes`` or numbered where missing.
    split
        What to call the set.

    Raises
    ------
    UserError
        If the images are not in [0, 1], labels are missing, or items are not tensors.
    """
    if isinstance(images, ImageSet | ImageStream):
        return images
    if (labels is None) == isinstance(images, Tensor):
        missing = labels is None
        raise UserError(
            "RCV-E014",
            f"images came {'without' if missing else 'as a data set and also with'} labels",
            "accuracy is measured against the true classes, which must be known once",
            "pass labels beside a tensor of images: rc.audit(model, images, labels)" if missing else "leave them out",
        )
    if isinstance(images, Tensor):
        pixels, truth = images.detach().cpu(), torch.as_tensor(labels).cpu().long()
        return ImageSet(_eight_bit(pixels), truth, class_names or _numbered(truth), split=split)
    source: Any = images.dataset if isinstance(images, DataLoader) else images
    class_names = class_names or tuple(str(each) for each in getattr(source, "classes", ())) or None
    if hasattr(source, "targets") and hasattr(source, "__getitem__") and len(source) == len(source.targets):
        truth = torch.as_tensor(source.targets).long()
        first = next(_pairs([source[0]]))[0]
        if first.numel() * len(source) > memory_limit:
            c, h, w = first.shape
            shape = (int(c), int(h), int(w))
            names = class_names or _numbered(truth)
            return ImageStream(_Rounded(source), truth, names, shape, name=type(source).__name__, split=split)
    parts = []
    for part, truth in _pairs(images if isinstance(images, DataLoader) else _unmoving(images)):
        parts.append((_eight_bit(part.detach().cpu()), truth.cpu().long()))
    if len({part.dtype for part, _ in parts}) > 1:
        parts = [(to_float(part), truth) for part, truth in parts]
    pixels, truth = torch.cat([part for part, _ in parts]), torch.cat([truth for _, truth in parts])
    return ImageSet(pixels, truth, class_names or _numbered(truth), split=split)


def _unmoving(dataset: Any) -> DataLoader[Any]:
    """Load a data set by a generator of the loader's own: it would draw a seed from the global one."""
    return DataLoader(dataset, 256, generator=torch.Generator())


def _numbered(labels: Tensor) -> tuple[str, ...]:
    return tuple(str(k) for k in range(int(labels.max()) + 1 if len(labels) else 0))


class _Rounded(Dataset[tuple[Tensor, int]]):
    """A user's data set whose images are brought to 8 bits."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image, label = self.source[row]
        return image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8), int(label)


def resized(images: Any, size: int | None) -> Any:
    """Make the images of a set this many pixels square (bilinear, antialiased); None, or that size, changes nothing."""
    if size is None or images.shape[1:] == (size, size):
        return images
    if isinstance(images, ImageStream):
        raise UserError(
            "RCV-E017",
            f"{images.name} is too large to be resized in memory",
            f"its images are {images.shape[2]}x{images.shape[1]} pixels, and are decoded as they are needed",
            "resize in the data set itself, or save it as a folder of images",
        )
    pixels = to_float(images.images)
    scaled = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    if images.images.dtype == torch.uint8:
        scaled = (scaled * 255).round().to(torch.uint8)
    masks = images.masks
    if masks is not None:
        masks = functional.interpolate(masks[:, None].float(), (size, size), mode="nearest")[:, 0] > 0.5
    return replace(images, images=scaled, masks=masks)


def _pairs(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for item in loader:
        if not (isinstance(item, list | tuple) and len(item) >= 2 and isinstance(item[0], Tensor)):
            raise UserError(
                "RCV-E015",
                f"the data gave {type(item).__name__} instead of a batch of (images, labels)",
                "images must come as tensors in [0, 1] or uint8",
                "add torchvision.transforms.ToTensor() to the data set, without Normalize",
            )
        yield item[0], torch.as_tensor(item[1])


def _eight_bit(images: Tensor) -> Tensor:
    """Store images that came from 8-bit files as 8-bit again: four times smaller, and the same hash as the files."""
    if images.dtype == torch.uint8:
        return images
    images = images.to(torch.float32)
    rounded = (images * 255).round()
    if (
        rounded.numel()
        and rounded.min() >= 0
        and rounded.max() <= 255
        and bool(((rounded / 255 - images).abs() < 1e-6).all())
    ):
        return rounded.to(torch.uint8)
    return images

"""The images of a training run: training, validation and test, which share none."""

from collections.abc import Mapping
from typing import Any

from robustcv.data import Images, as_images, resized, split_rows
from robustcv.data import load as load_images
from robustcv.errors import UserError
from robustcv.runtime import Progress

VALIDATION_SHARE = 0.1


class TrainingSets:
    """Training, validation and test images; validation is cut from training where the data has no such split."""

    def __init__(
        self,
        images: Any,
        labels: Any,
        options: Mapping[str, Any],
        progress: Progress,
        *,
        split_seed: int,
        any_shape: bool = False,
    ) -> None:
        self.spec = images if isinstance(images, str) else None
        self.split_seed = split_seed
        self.test: Images | None = None
        own: Images | None = None
        if isinstance(images, str):
            place = {name: options[name] for name in ("data_dir", "resize", "skip_bad")} | {"progress": progress}
            whole = load_images(images, split="train", **place)
            own = _split_or_none(images, "val", place)
            test = _split_or_none(images, "test", place)
            self.test = None if test is None or test.split != "test" else test  # `val` must not serve twice
        else:
            whole = resized(as_images(images, labels, split="train"), options["resize"])
        if own is not None:
            self.train, self.validation = whole, own
        else:
            rows, held_out = split_rows(whole.labels, VALIDATION_SHARE, split_seed)
            self.train, self.validation = whole.take(rows), whole.take(held_out)
        if len(self.train.labels.unique()) < 2:
            raise UserError(
                "RCV-E099",
                f"all {len(self.train)} training images are of one class",
                "there is nothing to tell apart",
                "give images of two classes or more",
            )
        _, height, width = self.train.shape
        if height != width and not any_shape:
            raise UserError(
                "RCV-E067",
                f"the training images are {width}x{height} pixels",
                "the architectures here take square images",
                f"add --resize {min(height, width)}",
            )


def _split_or_none(spec: str, split: str, place: Mapping[str, Any]) -> Images | None:
    try:
        return load_images(spec, split=split, **place)
    except UserError as error:
        if error.code == "RCV-E047":  # there is no such split
            return None
        raise

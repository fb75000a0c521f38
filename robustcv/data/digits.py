"""The embedded handwritten digits: 1,797 real ones from scikit-learn, brought to 32x32 RGB."""

import torch
from torch.nn import functional

from robustcv.data.image_set import ImageSet, split_rows

TEST_SHARE = 1 / 3


def digits(*, split: str = "test") -> ImageSet:
    """Load the UCI handwritten digits (Alpaydin and Kaynak 1998; test part, as scikit-learn ships it).

    The 8x8 images are enlarged bilinearly to 32x32 and repeated over three channels. A fixed third, drawn class by
    class, is the test split.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).to(torch.float32)[:, None] / 16
    images = functional.interpolate(images, (32, 32), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(raw.target).long()
    pixels = (images * 255).round().to(torch.uint8).repeat(1, 3, 1, 1)
    names = tuple(str(digit) for digit in range(10))
    train, test = split_rows(labels, TEST_SHARE, seed=0)
    rows = test if split == "test" else train
    return ImageSet(pixels[rows], labels[rows], names, "digits", split, flippable=False)

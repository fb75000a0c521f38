"""Single image files, without labels."""

import errno
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from robustcv.data.files import TORN, open_image
from robustcv.errors import UserError, first_line


def loose_images(paths: Sequence[str], resize: int | None, channels: int | None) -> UInt8[Tensor, "n c h w"]:
    """Read image files as one batch, as a folder of images is read.

    Parameters
    ----------
    paths
        Files of any format that Pillow reads.
    resize
        Cut and scale them to this many pixels square.
    channels
        1 or 3, as the model takes them; None: grey where all files are.

    Raises
    ------
    UserError
        If a file is missing or no image, or they differ in size.
    """
    from PIL import Image, ImageOps

    read = []
    for path in paths:
        try:
            with open_image(path) as picture:
                picture.load()
                if picture.mode[0] in "IF":
                    raise ValueError(
                        f"{picture.mode} pixels (more than 8 bits) cannot be brought to 8 bits without loss"
                    )
                read.append(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
        except (*TORN, SyntaxError) as error:
            absent = isinstance(error, FileNotFoundError) or getattr(error, "errno", None) == errno.ENAMETOOLONG
            what = f"{path} does not exist" if absent else f"{path} cannot be read as an image"
            raise UserError("RCV-E105", what, first_line(error, 120), "check --images") from error
    if resize is not None:
        read = [ImageOps.fit(picture, (resize, resize), Image.Resampling.BILINEAR) for picture in read]
    sizes = sorted({f"{picture.width}x{picture.height}" for picture in read})
    if len(sizes) > 1:
        raise UserError(
            "RCV-E106",
            f"the images differ in size: {', '.join(sizes[:4])}",
            "they are explained as one batch",
            "make them one size: --resize 224",
        )
    grey = all(picture.mode == "L" for picture in read) if channels is None else channels == 1
    arrays = [np.atleast_3d(np.asarray(picture.convert("L" if grey else "RGB"))) for picture in read]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

"""Single image files, without labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from robustcv.errors import UserError


def loose_images(paths: Sequence[str], resize: int | None) -> UInt8[Tensor, "n c h w"]:
    """Read image files as one batch; grey ones stay grey where all are.

    Parameters
    ----------
    paths
        Files of any format that Pillow reads.
    resize
        Make them this many pixels square.

    Raises
    ------
    UserError
        If a file is missing or no image, or they differ in size.
    """
    from PIL import Image

    read = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                picture.load()
                read.append(picture.convert("L" if picture.mode in ("1", "L", "I", "I;16") else "RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            what = f"{path} does not exist" if not Path(path).exists() else f"{path} cannot be read as an image"
            raise UserError("RCV-E105", what, str(error).splitlines()[0][:120], "check --images") from error
    if resize is not None:
        read = [picture.resize((resize, resize), Image.Resampling.BILINEAR) for picture in read]
    sizes = sorted({f"{picture.width}x{picture.height}" for picture in read})
    if len(sizes) > 1:
        raise UserError(
            "RCV-E106",
            f"the images differ in size: {', '.join(sizes[:4])}",
            "they are explained as one batch",
            "make them one size: --resize 224",
        )
    grey = all(picture.mode == "L" for picture in read)
    arrays = [np.atleast_3d(np.asarray(picture if grey else picture.convert("RGB"))) for picture in read]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

"""What stands for "nothing there": the grey, blurred or other images that a map is measured against."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Reference = str | float | Tensor

NAMED = {"black": 0.0, "grey": 0.5, "white": 1.0}
LEVELS = 11
GREYS = ",".join(str(level / (LEVELS - 1)) for level in range(LEVELS))


def references(images: Float[Tensor, "n c h w"], wanted: Reference) -> list[Float[Tensor, "m c h w"]]:
    """Make the reference images, each of one row for all images or of one row for each.

    Parameters
    ----------
    images
        In [0, 1].
    wanted
        A grey level in [0, 1]; ``black``, ``grey`` or ``white``; ``mean``, the image's mean colour; ``blur``, the image
        under a Gaussian of an eighth of its side; several of these, separated by commas; or other images, ``b c h w``.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    if isinstance(wanted, Tensor):
        if wanted.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"reference images of shape {tuple(wanted.shape[1:])}, images of {tuple(images.shape[1:])}"
            )
        return [image[None].to(images) for image in wanted]
    return [_one(images, name.strip()) for name in str(wanted).split(",")]


def describe(wanted: Reference) -> str:
    """Say in words what a map is measured against."""
    if isinstance(wanted, Tensor):
        return f"{len(wanted)} other image{'s' * (len(wanted) > 1)}"
    if wanted == GREYS:
        return f"{LEVELS} grey levels, black to white"
    words = {"mean": "mean colour of the image", "blur": "the image, blurred", **{name: name for name in NAMED}}
    names = [name.strip() for name in str(wanted).split(",")]
    return " and ".join(words[name] if name in words else f"constant {float(name):g}" for name in names)


def _one(images: Tensor, name: str) -> Tensor:
    if name == "mean":
        return images.detach().mean((2, 3), keepdim=True).expand_as(images)
    if name == "blur":
        return blurred(images.detach())
    try:
        level = NAMED[name] if name in NAMED else float(name)
    except ValueError:
        level = -1.0
    if not 0 <= level <= 1:
        raise ValueError(
            f"reference {name!r} cannot be read: write black, grey, white, mean, blur or a level from 0 to 1"
        )
    return torch.full_like(images[:1], level).detach()


def blurred(images: Float[Tensor, "n c h w"], share: float = 0.125) -> Float[Tensor, "n c h w"]:
    """Blur by a Gaussian whose standard deviation is a share of the longer side; the border is mirrored or repeated."""
    h, w = images.shape[2:]
    sigma = share * max(h, w)
    for axis, size in ((2, h), (3, w)):
        reach = min(int(3 * sigma) + 1, size - 1)
        line = torch.arange(-reach, reach + 1, device=images.device)
        kernel = torch.exp(-0.5 * (line / sigma) ** 2).to(images)
        kernel = (
            (kernel / kernel.sum()).reshape(1, 1, *((-1, 1) if axis == 2 else (1, -1))).repeat(images.shape[1], 1, 1, 1)
        )
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        mode = "reflect" if reach else "replicate"
        images = functional.conv2d(functional.pad(images, padding, mode=mode), kernel, groups=images.shape[1])
    return images

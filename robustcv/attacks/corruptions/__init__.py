"""What happens to pictures without an attacker, as in ImageNet-C and CIFAR-10-C: by name in `CORRUPTIONS`."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustcv.attacks.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from robustcv.attacks.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate, saturate
from robustcv.attacks.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from robustcv.attacks.corruptions.weather import brightness, fog, frost, snow, spatter

VALUES_A_CHUNK = 2**21  # 8 MB of float32: intermediate results stay in a processor's cache, or fill a GPU


def _in_chunks(corrupt: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Corrupt a few images at a time; every image has a seed of its own, so nothing else changes."""

    @functools.wraps(corrupt)
    def chunked(images: Tensor, *, severity: int, seeds: Tensor) -> Tensor:
        size = max(
            1, VALUES_A_CHUNK * (1 if images.device.type == "cpu" else 32) // max(math.prod(images.shape[1:]), 1)
        )
        if len(images) <= size:
            return corrupt(images, severity=severity, seeds=seeds)
        out = torch.empty_like(images)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            out[part] = corrupt(images[part], severity=severity, seeds=seeds[part])
        return out

    return chunked


CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function if function is glass_blur else _in_chunks(function)  # glass takes pixels in turn
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
        speckle_noise,
        gaussian_blur,
        spatter,
        saturate,
    )
}
COMMON = tuple(CORRUPTIONS)[:15]  # those that a mean corruption error is taken over; the last four are extra

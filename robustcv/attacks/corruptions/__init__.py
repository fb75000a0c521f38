"""What happens to pictures without an attacker, as in ImageNet-C and CIFAR-10-C: by name in `CORRUPTIONS`."""

from collections.abc import Callable

from torch import Tensor

from robustcv.attacks.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from robustcv.attacks.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate, saturate
from robustcv.attacks.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from robustcv.attacks.corruptions.weather import brightness, fog, frost, snow, spatter

CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "spatter": spatter,
    "saturate": saturate,
}
COMMON = tuple(CORRUPTIONS)[:15]  # those that a mean corruption error is taken over; the last four are extra

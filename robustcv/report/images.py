"""Pictures for the page: arrays and PNG files to data URIs; one colour map, blue-white-orange, symmetric about 0."""

import base64
import io

import numpy as np
from numpy.typing import NDArray

LOSSLESS_UP_TO = 64  # pixels; larger pictures are previews, the exact ones lie in evidence/
TEXTURE_UP_TO = 160  # pixels; changes and maps are as fine as noise, and would be most of the page
SHADES = 24  # of each colour of a map: more cannot be told apart, and cost bytes

# against the target - neutral - for it; safe for colour-blind readers, unlike red and green
_STOPS = np.array([[24, 78, 160], [122, 170, 226], [255, 255, 255], [240, 178, 112], [176, 84, 0]], dtype=float)


def diverging(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colour values in [-1, 1]: blue below 0, white at 0, orange above."""
    place = ((np.clip(values, -1, 1) * SHADES).round() / SHADES + 1) / 2 * (len(_STOPS) - 1)
    channels = [np.interp(place, np.arange(len(_STOPS)), _STOPS[:, k]) for k in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def heatmap_pair(maps: list[NDArray[np.float32]]) -> tuple[list[NDArray[np.uint8]], float]:
    """Colour signed maps ``c h w`` of one image on one shared scale, so that they can be compared.

    The channels are summed. The scale is the 99.5th percentile of the absolute values of all the maps together; what
    lies beyond is shown in full colour. Gives the pictures and the scale.
    """
    flat = [_averaged(np.asarray(each, dtype=float).sum(axis=0)) for each in maps]
    scale = float(np.quantile(np.abs(np.concatenate([each.ravel() for each in flat])), 0.995)) or 1.0
    return [diverging(each / scale) for each in flat], scale


def _averaged(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average a map ``h w`` over as many neighbours as bring it to TEXTURE_UP_TO pixels; small ones stay."""
    from PIL import Image

    height, width = values.shape
    share = TEXTURE_UP_TO / max(height, width)
    if share >= 1:
        return values
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BOX), dtype=float)


def _sampled(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take every so manieth pixel of a picture ``h w 3`` that is larger than TEXTURE_UP_TO, as it is."""
    height, width, _ = pixels.shape
    every = max(1.0, max(height, width) / TEXTURE_UP_TO)
    rows, columns = (np.arange(int(side / every)) * every for side in (height, width))
    return np.asarray(pixels[rows.astype(int)][:, columns.astype(int)], dtype=np.uint8)


def perturbation(clean: NDArray[np.float32], attacked: NDArray[np.float32]) -> tuple[NDArray[np.uint8], int]:
    """Show a change ``c h w`` around mid-grey, amplified by a whole number until its largest value nearly saturates.

    Gives the picture ``h w 3``, a sample of the pixels where it is large, and the factor.
    """
    change = (np.asarray(attacked, dtype=float) - np.asarray(clean, dtype=float))[:3]  # a fourth channel is opacity
    largest = float(np.abs(change).max())
    factor = max(1, int(0.5 / largest + 1e-4)) if largest > 0 else 1
    return _sampled(plain(np.clip(0.5 + factor * change, 0, 1))), factor


def unit(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    """Bring pixels, uint8 or float, to [0, 1]."""
    return np.asarray(pixels, dtype=np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1)


def plain(pixels: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Bring an image ``c h w`` in [0, 1] to ``h w 3``, 8 bit."""
    whole = (pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    return np.repeat(whole, 3 if whole.shape[2] == 1 else 1, axis=2)


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode a picture ``h w 3`` as WebP: lossless where it is small, a preview where not."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    if max(picture.size) <= LOSSLESS_UP_TO:
        picture.save(buffer, "WEBP", lossless=True, quality=100, method=6)
    else:
        picture.save(buffer, "WEBP", quality=80, method=6)
    return _uri(buffer)


def preview(uri: str, largest: int) -> str:
    """Encode a picture of the page again, at most ``largest`` pixels wide and high, and coarser."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        small = picture.convert("RGB")
    small.thumbnail((largest, largest))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=60, method=6)
    return _uri(buffer)


def _uri(buffer: io.BytesIO) -> str:
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def decode(png: bytes) -> NDArray[np.uint8]:
    """Read a PNG as ``h w 3``."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def cividis(value: float) -> tuple[str, str]:
    """Give the background of a value in [0, 1] on the cividis scale, and the text colour that can be read on it."""
    stops = [(0, 34, 78), (65, 77, 107), (124, 123, 120), (187, 172, 109), (254, 232, 56)]
    place = min(max(value, 0.0), 1.0) * (len(stops) - 1)
    k = min(int(place), len(stops) - 2)
    red, green, blue = (round(a + (b - a) * (place - k)) for a, b in zip(stops[k], stops[k + 1], strict=True))
    light = 0.2126 * _linear(red) + 0.7152 * _linear(green) + 0.0722 * _linear(blue)
    white_contrast, black_contrast = 1.05 / (light + 0.05), (light + 0.05) / 0.05
    return f"rgb({red} {green} {blue})", "#fff" if white_contrast > black_contrast else "#000"


def _linear(value: int) -> float:
    share = value / 255
    return share / 12.92 if share <= 0.04045 else float(((share + 0.055) / 1.055) ** 2.4)

"""Corruptions against scipy, scikit-image, Pillow and plain loops; in distribution where they are random."""

import io

import numpy as np
import pytest
import scipy.ndimage
import skimage
import torch
from PIL import Image

from robustcv import draws
from robustcv.attacks.corruptions import COMMON, CORRUPTIONS, blur, filters, weather
from robustcv.attacks.corruptions.filters import along_a_line

SIZES = [32, 80]  # the constants of CIFAR-10-C and of ImageNet-C
SEVERITIES = [1, 3, 5]
CLOSE = 2e-4


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return skimage.data.astronaut()


def pictures(astronaut: np.ndarray, size: int, n: int = 3) -> torch.Tensor:
    """Give n 8-bit colour pictures, with black, grey and bright parts."""
    parts = [skimage.transform.resize(astronaut[40 * k : 40 * k + 300, :300], (size, size)) for k in range(n)]
    pixels = np.stack(parts)
    pixels[0, :4, :4] = 0.0
    pixels[0, 4:8, :4] = 0.5
    pixels[0, 8:12, :4] = 1.0
    return torch.from_numpy((pixels * 255).round() / 255).permute(0, 3, 1, 2).float()


def corrupted(name: str, images: torch.Tensor, severity: int) -> torch.Tensor:
    return CORRUPTIONS[name](images, severity=severity, seeds=torch.arange(len(images)) + 5)


def constant(name: str, size: int, severity: int):
    small = {
        "gaussian_blur": [0.4, 0.6, 0.7, 0.8, 1.0],
        "zoom_blur": [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
        "pixelate": [95, 90, 85, 75, 65],
        "brightness": [0.05, 0.1, 0.15, 0.2, 0.3], "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
        "jpeg_compression": [80, 65, 58, 50, 40], "saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
    }  # fmt: skip
    large = {
        "gaussian_blur": [1, 2, 3, 4, 6], "pixelate": [60, 50, 40, 30, 25], "brightness": [0.1, 0.2, 0.3, 0.4, 0.5],
        "zoom_blur": [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
        "contrast": [0.4, 0.3, 0.2, 0.1, 0.05], "jpeg_compression": [25, 18, 15, 10, 7],
        "saturate": [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
    }  # fmt: skip
    return (small if size == 32 else large)[name][severity - 1]


def reference(name: str, image: np.ndarray, size: int, severity: int) -> np.ndarray:
    """Corrupt one picture `h w c` with other libraries, from the published description."""
    value = constant(name, size, severity)
    if name == "gaussian_blur":
        return skimage.filters.gaussian(image, value, channel_axis=-1, mode="nearest", truncate=4)
    if name == "zoom_blur":
        total, factors = image.copy(), np.arange(1, *value)
        for factor in factors:
            kept = int(np.ceil(size / factor))
            first = (size - kept) // 2
            part = image[first : first + kept, first : first + kept]
            total += scipy.ndimage.zoom(part, (factor, factor, 1), order=1)[:size, :size]
        return total / (len(factors) + 1)
    if name == "brightness" or name == "saturate":
        hsv = skimage.color.rgb2hsv(image)
        if name == "brightness":
            hsv[..., 2] = np.clip(hsv[..., 2] + value, 0, 1)
        else:
            hsv[..., 1] = np.clip(hsv[..., 1] * value[0] + value[1], 0, 1)
        return skimage.color.hsv2rgb(hsv)
    if name == "contrast":
        mean = image.mean((0, 1), keepdims=True)
        return (image - mean) * value + mean
    pil = Image.fromarray((image * 255).round().astype(np.uint8))
    if name == "pixelate":
        inner = int(size * value / 100)
        return np.asarray(pil.resize((inner, inner), Image.BOX).resize((size, size), Image.NEAREST)) / 255
    buffer = io.BytesIO()
    pil.save(buffer, "JPEG", quality=value)
    return np.asarray(Image.open(buffer)) / 255


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "name", ["gaussian_blur", "zoom_blur", "brightness", "saturate", "contrast", "pixelate", "jpeg_compression"]
)
def test_deterministic_corruptions_equal_other_libraries(astronaut, name, size, severity) -> None:
    images = pictures(astronaut, size)
    ours = corrupted(name, images, severity)
    slack = 1.01 / 255 if name == "pixelate" else CLOSE  # Pillow rounds between its two passes
    for image, mine in zip(images, ours, strict=True):
        theirs = np.clip(reference(name, image.permute(1, 2, 0).double().numpy(), size, severity), 0, 1)
        assert np.abs(mine.permute(1, 2, 0).numpy() - theirs).max() < slack


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", SIZES)
def test_defocus_is_a_convolution_with_a_soft_disk(astronaut, size, severity) -> None:
    images = pictures(astronaut, size)
    radius = {32: [0.3, 0.4, 0.5, 1, 1.5], 80: [3, 4, 6, 8, 10]}[size][severity - 1]
    alias = {32: [0.4, 0.5, 0.6, 0.2, 0.1], 80: [0.1, 0.5, 0.5, 0.5, 0.5]}[size][severity - 1]
    kernel = blur.disk(float(radius), float(alias)).numpy()
    assert kernel.sum() == pytest.approx(1, abs=1e-5 if radius < 8 else 0.02)  # published: softened up to its frame
    middle = kernel.shape[0] // 2
    assert kernel[middle, middle] > 0 and np.allclose(kernel, kernel.T) and np.allclose(kernel, kernel[::-1])
    ours = corrupted("defocus_blur", images, severity)
    theirs = scipy.ndimage.convolve(images[0, 1].double().numpy(), kernel, mode="mirror")
    assert np.abs(ours[0, 1].numpy() - np.clip(theirs, 0, 1)).max() < CLOSE


def test_glass_copies_pixels_in_the_published_order(astronaut) -> None:
    images, severity, (sigma, reach, rounds) = pictures(astronaut, 80, 2), 3, (1.0, 2, 3)
    seeds = torch.arange(2) + 5
    drawn = draws.fill(seeds, (rounds, 80, 80, 2), "uniform")
    shifts = (drawn * (2 * reach)).floor().long().numpy() - reach
    for k in range(2):
        source = images[k].permute(1, 2, 0).double().numpy()
        soft = np.floor(skimage.filters.gaussian(source, sigma, channel_axis=-1, mode="nearest") * 255 + 1e-4)
        for turn in range(rounds):
            for y in range(80 - reach, reach, -1):
                for x in range(80 - reach, reach, -1):
                    dx, dy = shifts[k, turn, y, x]
                    soft[y, x] = soft[y + dy, x + dx]
        theirs = skimage.filters.gaussian(soft / 255, sigma, channel_axis=-1, mode="nearest")
        ours = corrupted("glass_blur", images, severity)[k].permute(1, 2, 0).numpy()
        assert np.abs(ours - theirs).mean() < 1e-4 and np.abs(ours - theirs).max() < 1.5 / 255


def test_motion_follows_each_image_s_own_line(astronaut) -> None:
    images = pictures(astronaut, 32)
    degrees = torch.tensor([0.0, 33.0, -100.0])
    ours = along_a_line(images, 6, 2.0, degrees)
    weights = np.exp(-(np.arange(13) ** 2) / 8.0)
    weights /= weights.sum()
    y, x = np.mgrid[:32, :32]
    for image, angle, mine in zip(images.numpy(), np.deg2rad(degrees.numpy()), ours.numpy(), strict=True):
        total = np.zeros_like(image)
        for step, weight in enumerate(weights):
            dy, dx = -np.ceil(step * np.sin(angle) - 0.5), -np.ceil(step * np.cos(angle) - 0.5)
            rows, columns = np.clip(y - dy, 0, 31).astype(int), np.clip(x - dx, 0, 31).astype(int)
            total += weight * image[:, rows, columns]
        assert np.abs(mine - total).max() < 1e-5


def test_elastic_reads_the_picture_along_a_smooth_field(astronaut) -> None:
    images, severity = pictures(astronaut, 80, 2), 4
    seeds = torch.arange(2) + 5
    field = draws.fill(seeds, (2, 80, 80), "uniform").double().numpy() * 2 - 1
    y, x = np.mgrid[:80, :80].astype(float)
    for k in range(2):
        dx, dy = (
            scipy.ndimage.gaussian_filter(each, 0.8, mode="reflect", truncate=3) * 250 * 0.1 * 0.005 * 80
            for each in field[k]
        )
        theirs = np.stack(
            [
                scipy.ndimage.map_coordinates(channel, [y + dy, x + dx], order=1, mode="reflect")
                for channel in images[k].double().numpy()
            ]
        )
        assert np.abs(corrupted("elastic_transform", images, severity)[k].numpy() - theirs).max() < 2e-3


def test_noise_has_the_published_distribution() -> None:
    grey = torch.full((8, 3, 64, 64), 0.5)
    gaussian, speckle, shot, impulse = (
        corrupted(name, grey, 2) for name in ("gaussian_noise", "speckle_noise", "shot_noise", "impulse_noise")
    )
    n = grey.numel()
    assert float(gaussian.mean()) == pytest.approx(0.5, abs=4 * 0.06 / n**0.5)
    assert float(gaussian.std()) == pytest.approx(0.06, rel=0.02)
    assert float(speckle.std()) == pytest.approx(0.5 * 0.1, rel=0.02)
    assert float(shot.mean()) == pytest.approx(0.5, abs=0.001)
    assert float(shot.std()) == pytest.approx((0.5 / 250) ** 0.5, rel=0.02)
    assert torch.allclose(shot * 250, (shot * 250).round(), atol=1e-3)
    changed = (impulse != 0.5).double()
    assert float(changed.mean()) == pytest.approx(0.02, abs=5 * (0.02 / n) ** 0.5)
    assert set(impulse.unique().tolist()) == {0.0, 0.5, 1.0}
    assert float((impulse == 1).double().mean()) == pytest.approx(0.01, abs=5 * (0.01 / n) ** 0.5)


def test_a_plasma_is_the_diamond_square_algorithm() -> None:
    """The published recursion written as plain loops, with the same random numbers."""
    size, decay, seeds = 16, 2.0, torch.tensor([3])
    drawn = (draws.fill(seeds, (size * size,), "uniform", stream=3)[0].double() * 2 - 1).tolist()
    heights = np.zeros((size, size))
    step, wobble = size, 100.0

    def jitter() -> float:
        return wobble * wobble * drawn.pop(0)

    def at(y, x):
        return heights[y % size, x % size]

    while step >= 2:
        half = step // 2
        squares = [(y, x) for y in range(half, size, step) for x in range(half, size, step)]
        for y, x in squares:
            corners = [at(y - half, x - half), at(y - half, x + half), at(y + half, x - half), at(y + half, x + half)]
            heights[y, x] = sum(corners) / 4 + jitter()
        for first_y, first_x in ((half, 0), (0, half)):
            fresh = {}
            for y in range(first_y, size, step):
                for x in range(first_x, size, step):
                    around = [at(y - half, x), at(y + half, x), at(y, x - half), at(y, x + half)]
                    fresh[y, x] = sum(around) / 4 + jitter()
            for place, height in fresh.items():
                heights[place] = height
        step, wobble = half, wobble / decay
    heights = (heights - heights.min()) / (heights.max() - heights.min())
    ours = weather.plasma(seeds, size, decay, torch.zeros(1, dtype=torch.float32))[0].numpy()
    assert np.abs(ours - heights).max() < 1e-4


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 40), (3, 80, 70)])
def test_every_corruption_keeps_shape_range_and_inputs_and_repeats(name, shape) -> None:
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    seeds = torch.tensor([11, 12, 13, 14])
    whole = CORRUPTIONS[name](images, severity=3, seeds=seeds)
    assert whole.shape == images.shape and whole.dtype == images.dtype
    assert whole.min() >= 0 and whole.max() <= 1 and torch.equal(images, kept)
    assert torch.equal(whole, CORRUPTIONS[name](images, severity=3, seeds=seeds))
    alone = CORRUPTIONS[name](images[2:3], severity=3, seeds=seeds[2:3])
    assert torch.allclose(alone[0], whole[2], atol=1e-5)
    assert not torch.equal(whole, images) or (name, shape[0]) == ("saturate", 1)


RANDOM = [name for name in CORRUPTIONS if name not in
          ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur",
           "saturate")]  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_random_corruptions_differ_by_seed(name) -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    out = CORRUPTIONS[name](image, severity=3, seeds=torch.tensor([1, 2]))
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_the_worst_severity_changes_more_than_the_mildest(astronaut, name, size) -> None:
    images = pictures(astronaut, size)
    mild, worst = ((corrupted(name, images, severity) - images).abs().mean() for severity in (1, 5))
    assert worst > mild or (name == "elastic_transform" and size == 32)  # whose constants do not grow


def test_a_severity_that_is_not_published_is_refused() -> None:
    with pytest.raises(ValueError, match="severity is 6"):
        CORRUPTIONS["fog"](torch.rand(1, 3, 32, 32), severity=6, seeds=torch.arange(1))


def test_the_fifteen_and_the_four() -> None:
    assert len(CORRUPTIONS) == 19 and len(COMMON) == 15
    assert set(CORRUPTIONS) - set(COMMON) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    assert filters.SMALL == 64

"""Operations of the augmentation policies against torchvision's, image by image; policies against their papers."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as vision

from robustcv.data import operations
from robustcv.data.augment import (
    _MIXED,
    _WIDE,
    AUGMENTATIONS,
    _boxes,
    augmix,
    cutout,
    jitter,
    resized_crop,
    trivial,
)

PICTURES = (torch.rand(6, 3, 17, 22, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
STRENGTHS = torch.tensor([-0.9, -0.35, 0.0, 0.2, 0.55, 0.99])


def affine(image, *, angle=0.0, translate=(0, 0), shear=(0.0, 0.0), centre=None):
    return vision.affine(image, angle=angle, translate=list(translate), scale=1.0, shear=list(shear),
                         interpolation=InterpolationMode.NEAREST, center=centre)  # fmt: skip


def degrees(strength: float) -> float:
    return math.degrees(math.atan(strength))


BY_TORCHVISION = {
    "shear_x": lambda x, s: affine(x, shear=(degrees(s), 0.0), centre=[0, 0]),
    "shear_y": lambda x, s: affine(x, shear=(0.0, degrees(s)), centre=[0, 0]),
    "brightness": lambda x, s: vision.adjust_brightness(x, 1 + s),
    "colour": lambda x, s: vision.adjust_saturation(x, 1 + s),
    "contrast": lambda x, s: vision.adjust_contrast(x, 1 + s),
    "sharpness": lambda x, s: vision.adjust_sharpness(x, 1 + s),
    "solarize": lambda x, s: vision.solarize(x, abs(s)),
    "autocontrast": lambda x, s: vision.autocontrast(x),
    "equalize": lambda x, s: vision.equalize((x * 255).byte()).float() / 255,
    "identity": lambda x, s: x,
}


@pytest.mark.parametrize("name", BY_TORCHVISION)
def test_an_operation_does_to_each_image_what_torchvision_does(name: str) -> None:
    strengths = STRENGTHS.abs() if name == "solarize" else STRENGTHS
    found = getattr(operations, name)(PICTURES, strengths)
    for k, strength in enumerate(strengths.tolist()):
        expected = BY_TORCHVISION[name](PICTURES[k], strength)
        agree = (found[k] - expected).abs().amax(0) < 2e-3
        assert agree.float().mean() > (0.93 if name.startswith("shear") else 0.999), (name, strength)


def test_shifts_turns_and_bits_are_those_of_torchvision() -> None:
    for shift in (-5.0, 0.0, 3.0):
        strength = torch.full((6,), shift)
        right = affine(PICTURES, translate=(int(shift), 0))
        assert torch.equal(operations.translate_x(PICTURES, strength), right)
        assert torch.equal(operations.translate_y(PICTURES, strength), affine(PICTURES, translate=(0, int(shift))))
    for angle in (-90.0, 30.0, 135.0):
        even = PICTURES[:, :, :16]  # sides of one parity: else a quarter turn falls between pixels
        turned = operations.turn(even, torch.full((6,), angle))
        expected = vision.rotate(even, angle, InterpolationMode.NEAREST)
        assert ((turned - expected).abs().amax(1) < 1e-3).float().mean() > 0.95
    for bits in (1, 4, 7, 8):
        expected = vision.posterize((PICTURES * 255).byte(), bits).float() / 255
        assert torch.allclose(operations.posterize(PICTURES, torch.full((6,), float(bits))), expected, atol=1e-6)


def test_each_image_gets_its_own_operation_and_strength() -> None:
    which = torch.tensor([0, 1, 0, 2, 1, 2])
    made = operations.apply_each(PICTURES, which, STRENGTHS, [op for op, *_ in _WIDE[6:9]])
    for k in range(6):
        operation = _WIDE[6 + int(which[k])][0]
        assert torch.allclose(made[k], operation(PICTURES[k : k + 1], STRENGTHS[k : k + 1])[0], atol=1e-6)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmented_images_stay_images_and_repeat(name: str) -> None:
    images = torch.rand(40, 3, 32, 32)
    first, again = (AUGMENTATIONS[name](images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == images.shape and torch.equal(first, again)
    assert float(first.min()) >= -1e-6 and float(first.max()) <= 1 + 1e-6
    assert not torch.equal(first, AUGMENTATIONS[name](images, torch.Generator().manual_seed(4)))
    grey = AUGMENTATIONS[name](images[:, :1], torch.Generator().manual_seed(3))
    assert grey.shape == (40, 1, 32, 32)


def test_trivial_draws_every_operation_alike() -> None:
    drawn = torch.randint(len(_WIDE), (14_000,), generator=torch.Generator().manual_seed(0))
    assert (drawn.bincount() - 1000).abs().max() < 150
    white = torch.ones(4000, 3, 8, 8)
    changed = (trivial(white, torch.Generator().manual_seed(0)) - white).abs().flatten(1).amax(1) > 1e-3
    # on white, moves (5 of 14), darkening (half of one), fewer bits and inversion show, unless too small
    assert float(changed.float().mean()) == pytest.approx((5 + 0.5 + 1 + 1) / 14, abs=0.06)


def test_cutout_hides_a_square_of_half_the_side() -> None:
    images = torch.ones(500, 1, 20, 20)
    hidden = cutout(images, torch.Generator().manual_seed(0)) == 0.5
    area = hidden.flatten(1).float().mean(1)
    assert float(area.max()) <= 0.25 + 1e-6 and float(area.min()) >= 0.04
    assert hidden.any(0).all()  # anywhere


def test_jitter_keeps_the_mean_on_average() -> None:
    images = torch.full((2000, 3, 4, 4), 0.4)
    made = jitter(images, torch.Generator().manual_seed(0))
    assert float(made.mean()) == pytest.approx(0.4, abs=0.01) and float(made.std()) > 0.05


def test_augmix_lies_between_the_image_and_its_chains() -> None:
    images = torch.rand(200, 3, 16, 16)
    near = (augmix(images, torch.Generator().manual_seed(0), severity=0.0) - images).abs().mean()
    far = (augmix(images, torch.Generator().manual_seed(0), severity=10.0) - images).abs().mean()
    assert near < far < 0.4
    flat = torch.full((50, 3, 16, 16), 0.5)  # no operation but shifts and posterising changes a flat grey much
    assert float((augmix(flat, torch.Generator().manual_seed(0)) - 0.5).abs().max()) <= 0.5
    assert not {op.__name__ for op, *_ in _MIXED} & {"brightness", "contrast", "sharpness", "colour"}


def test_parts_are_enlarged_as_torchvision_enlarges_them() -> None:
    made = resized_crop(PICTURES, torch.Generator().manual_seed(1))
    boxes = _boxes(6, 17, 22, torch.Generator().manual_seed(1), 0.08)
    assert len(boxes[2].unique()) > 3 and len(boxes[3].unique()) > 3
    for image, own, box in zip(PICTURES, made, zip(*boxes, strict=True), strict=True):
        top, left, height, width = (int(side) for side in box)
        wanted = vision.resized_crop(image, top, left, height, width, [17, 22], antialias=False)
        assert torch.allclose(own, wanted, atol=1e-5)


@pytest.mark.parametrize(("h", "w"), [(32, 32), (20, 64), (64, 9)])
def test_parts_are_drawn_as_torchvision_draws_them(h: int, w: int) -> None:
    """Mean and spread of each side and place, and how often none of ten fits."""
    n = 4000
    own = torch.stack(_boxes(n, h, w, torch.Generator().manual_seed(0), 0.08)).double()
    crop, picture = v2.RandomResizedCrop(8), torch.zeros(3, h, w)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [crop.make_params([picture]) for _ in range(n)]
    theirs = torch.tensor([[p[k] for p in drawn] for k in ("top", "left", "height", "width")]).double()
    error = theirs.std(1) / n**0.5
    assert ((own.mean(1) - theirs.mean(1)).abs() <= 5 * error + 1e-9).all()
    assert torch.allclose(own.std(1), theirs.std(1), rtol=0.06)
    assert int(own[0].min()) == 0 and int((own[0] + own[2]).max()) <= h and int((own[1] + own[3]).max()) <= w

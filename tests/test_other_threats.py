"""Spatial, patch, wrappers, bisection and the bridge to foolbox."""

import inspect

import numpy as np
import pytest
import scipy.ndimage
import torch
from broken_defences import Noisy, Quantised
from conftest import Curved, make_images, make_linear
from test_attacks import exact_distance, scaled_linear
from test_classifier import Counting

from robustcv.attacks import ATTACKS, is_minimum_norm
from robustcv.attacks.bisection import by_bisection
from robustcv.attacks.foolbox_bridge import DENIED, FOOLBOX
from robustcv.attacks.norms import NORMS
from robustcv.attacks.patch import apply_patch, patch_each, train_patch
from robustcv.attacks.spatial import moved, spatial
from robustcv.attacks.wrappers import Bpda, Eot
from robustcv.classifier import Tracked, frozen
from robustcv.errors import UserError
from robustcv.evaluation.block import make_judge

# -- spatial ----------------------------------------------------------------------------------------------------------


def test_no_movement_is_the_image_and_quarter_turns_and_whole_shifts_are_exact() -> None:
    images = make_images(2, (3, 8, 8))
    still, turned, shifted = (
        moved(images, torch.tensor([pose, pose], dtype=torch.float64))
        for pose in ([0.0, 0.0, 0.0], [90.0, 0.0, 0.0], [0.0, 0.25, -0.125])
    )
    assert torch.allclose(still, images, atol=1e-9)
    assert torch.allclose(turned, images.rot90(1, (2, 3)), atol=1e-9) or torch.allclose(
        turned, images.rot90(-1, (2, 3)), atol=1e-9
    )
    assert torch.allclose(shifted[:, :, 2:, :7], images[:, :, :6, 1:], atol=1e-9)
    assert (shifted[:, :, :2] == 0).all() and (shifted[:, :, :, 7:] == 0).all()


def test_a_rotation_agrees_with_scipy_inside() -> None:
    images = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(21.0), torch.arange(21.0), indexing="ij")
    images[0, 0] = torch.exp(-((y - 7) ** 2 + (x - 12) ** 2) / 20)
    ours = moved(images, torch.tensor([[25.0, 0.0, 0.0]], dtype=torch.float64))[0, 0].numpy()
    both = [scipy.ndimage.rotate(images[0, 0].numpy(), sign * 25, reshape=False, order=1) for sign in (1, -1)]
    assert min(np.abs(ours - each)[4:-4, 4:-4].max() for each in both) < 1e-6


class TopLeft(torch.nn.Module):
    """Sees only the brightness of the upper left corner."""

    def forward(self, images):
        corner = images[:, :, :3, :3].mean((1, 2, 3))
        return torch.stack([corner, 0.3 - 0 * corner], 1)


@pytest.mark.parametrize("search", ["grid", "gradient"])
def test_what_looks_at_one_corner_is_broken_by_a_shift(search) -> None:
    images = torch.full((6, 1, 12, 12), 0.5)
    labels = torch.zeros(6, dtype=torch.int64)
    with frozen(TopLeft()) as model:
        out = spatial(model, images, labels, degrees=5.0, shift=0.2, search=search)
        assert (model(out).argmax(1) == 1).all()
        still = spatial(model, images, labels, degrees=0.0, shift=0.0, search=search)
        assert torch.allclose(still, images, atol=1e-6)


# -- patch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["square", "round"])
def test_a_patch_covers_its_share_inside_the_image_and_nothing_else(shape) -> None:
    images = torch.zeros(40, 3, 30, 40)
    patch = torch.ones(3, 9, 9)
    out = apply_patch(images, patch, seeds=torch.arange(40), size=0.3, shape=shape, degrees=30.0, scale=0.0)
    covered = out[:, 0].sum((1, 2))
    area = (0.3 * 30) ** 2 * (1 if shape == "square" else np.pi / 4)
    assert (covered - area).abs().max() < 0.12 * area  # it never sticks out
    assert set(out.unique().tolist()) <= {0.0, 1.0} or float(out[out > 0].min()) > 0.99
    assert len({tuple(place) for place in (out[:, 0] > 0).float().flatten(1).argmax(1)[:, None].tolist()}) > 10


@pytest.mark.parametrize(("size", "degrees"), [(0.9, 45.0), (0.8, 20.0)])
def test_a_patch_too_large_to_turn_freely_is_in_the_middle(size, degrees) -> None:
    """Four quarters of the image lose the same, whichever way it turns."""
    out = apply_patch(torch.zeros(200, 1, 40, 40), torch.ones(1, 9, 9), seeds=torch.arange(200), size=size,
                      degrees=degrees, scale=0.0)[:, 0].double()  # fmt: skip
    halves = [out[:, :20].mean(), out[:, 20:].mean(), out[:, :, :20].mean(), out[:, :, 20:].mean()]
    assert max(halves) - min(halves) < 0.01


def test_a_patch_that_every_image_is_already_taken_for_is_refused() -> None:
    with pytest.raises(UserError, match="every image it would be trained on is of that class"):
        train_patch(TopLeft(), torch.rand(4, 1, 12, 12), torch.ones(4, dtype=torch.int64), target=1, steps=2)


def test_an_upright_patch_shows_its_own_pixels() -> None:
    patch = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    out = apply_patch(torch.zeros(1, 3, 6, 6), patch, seeds=torch.arange(1), size=1.0, degrees=0.0, scale=0.0)
    assert torch.allclose(out[0], patch, atol=1e-5)


@pytest.mark.parametrize("target", [None, 2])
def test_a_trained_patch_works_on_images_it_was_not_trained_on(trained, target) -> None:
    import robustcv as rc

    train, train_labels = next(rc.load_images("digits", split="train", n=200).batches(200))
    test, labels = next(rc.load_images("digits", n=100).batches(100))
    rates = []
    with frozen(rc.load_classifier(str(trained))) as model:
        patch = train_patch(model, train, train_labels, size=0.5, target=target, steps=80)
        assert patch.min() >= 0 and patch.max() <= 1 and patch.shape[1] == round(0.5 * train.shape[-1])
        keep = (model(test).argmax(1) == labels) & ((labels != target) if target is not None else True)
        for sticker in (patch, torch.full_like(patch, 0.5)):
            answers = model(apply_patch(test, sticker, seeds=torch.arange(100) + 500, size=0.5)).argmax(1)
            rates.append(float(((answers != labels) if target is None else (answers == target))[keep].double().mean()))
    assert rates[0] > rates[1] + 0.15


def test_a_patch_for_each_image_is_at_least_as_strong_as_one_for_all() -> None:
    model = Curved().double()
    images = make_images(20, (3, 12, 12))
    with frozen(model):
        labels = model(images).argmax(1)
        out = patch_each(model, images, labels, size=0.6)
        broken = (model(out).argmax(1) != labels).double().mean()
        one = train_patch(model, images, labels, size=0.6, steps=40)
        all_of_them = apply_patch(images, one, seeds=torch.arange(20), size=0.6, degrees=0.0, scale=0.0)
        assert broken >= (model(all_of_them).argmax(1) != labels).double().mean()
    changed = (out != images).any(1).double().mean((1, 2))
    assert changed.max() <= 0.5


# -- wrappers ---------------------------------------------------------------------------------------------------------


def test_eot_averages_and_counts_every_sample() -> None:
    torch.manual_seed(0)
    linear = make_linear(4)
    images = make_images(5)
    noisy = Eot(Noisy(linear, 0.05), 400)
    assert torch.allclose(noisy(images), linear(images), atol=0.5)
    tracked = Tracked(noisy, images, make_judge(images, torch.zeros(5).long(), NORMS["linf"], 0.1))
    with frozen(noisy):
        tracked.rows()
        points = images.clone().requires_grad_()
        torch.autograd.grad(tracked(points).sum(), points)
    assert tracked.forwards.tolist() == [400] * 5 and tracked.backwards.tolist() == [400] * 5


def test_eot_finds_what_one_draw_misses() -> None:
    torch.manual_seed(0)
    linear = make_linear(4, dtype=torch.float32)
    images = make_images(40, dtype=torch.float32)
    labels = linear(images).argmax(1)
    plain, averaged = Noisy(linear, 0.3), Eot(Noisy(linear, 0.3), 64)
    broken = []
    for model in (plain, averaged):
        with frozen(model):
            out = ATTACKS["pgd"](model, images, labels, eps=0.02, loss="margin", steps=10)
            broken.append(int((linear(out).argmax(1) != labels).sum()))  # the noise's mean is zero: the truth
    assert broken[1] > broken[0]


def test_bpda_attacks_through_a_step_without_gradient() -> None:
    linear = make_linear(10, (3, 8, 8), seed=3, dtype=torch.float32)
    defended = Quantised(linear)
    passing = Bpda(lambda x: (x * 15).round() / 15, linear)
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = defended(images).argmax(1)
    assert torch.equal(passing(images), defended(images))
    broken = []
    for model in (defended, passing):
        with frozen(model):
            out = ATTACKS["apgd"](model, images, labels, eps=0.03, loss="margin", steps=20)
            broken.append(int((defended(out).argmax(1) != labels).sum()))
    assert broken[1] > broken[0] + 20


# -- bisection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "scale"),
    [
        ("linf", 1.0), ("l2", 1000.0), ("l1", 0.001),
        *(
            pytest.param(*each, marks=pytest.mark.every_case)
            for each in (("linf", 1000.0), ("linf", 0.001), ("l2", 1.0), ("l2", 0.001), ("l1", 1.0), ("l1", 1000.0))
        ),
    ],
)  # fmt: skip
def test_bisection_makes_a_fixed_budget_attack_exact(norm, scale) -> None:
    model, images, labels = scaled_linear(scale, n=12)
    attack = by_bisection(ATTACKS["apgd-t"], steps=10, loss="margin")
    assert is_minimum_norm(attack)
    with frozen(model):
        out = attack(model, images, labels, norm=norm)
        assert (model(out).argmax(1) != labels).all()
    ratio = NORMS[norm].distance(out, images).numpy() / exact_distance(norm, 12)
    assert np.median(ratio) <= 1.01 and ratio.max() <= 1.05 and ratio.min() >= 1 - 1e-3


# -- foolbox ----------------------------------------------------------------------------------------------------------

BRIDGED = [(f"foolbox-{name}", norm) for name, (by_norm, _) in FOOLBOX.items() for norm in by_norm]


@pytest.mark.parametrize(("name", "norm"), BRIDGED)
def test_foolbox_attacks_are_judged_again_counted_and_leave_no_trace(name, norm) -> None:
    model, images, labels = scaled_linear(1.0, n=6)
    labels[0] = (labels[0] + 1) % 10  # wrong already: it is not handed over
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    counting = Counting(model)
    tracked = Tracked(counting, images, make_judge(images, labels, NORMS[norm], 1e-9))
    options = {} if name == "foolbox-gaussian-blur" else {"steps": 10}
    with frozen(counting):
        out = ATTACKS[name](tracked, images, labels, norm=norm, **options)
    assert out.shape == images.shape and out.min() >= 0 and out.max() <= 1
    assert torch.equal(out[0], images[0])
    changed = (out != images).flatten(1).any(1)
    assert (model(out).argmax(1) != labels)[changed].all()  # what came back fools; the others are the clean image
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert int(tracked.forwards.sum()) == counting.forwards > 6
    assert int(tracked.backwards.sum()) == counting.backwards
    ratio = NORMS[norm].distance(out, images).numpy()[1:] / exact_distance(norm, 6)[1:]
    assert (ratio[changed[1:].numpy()] >= 1 - 1e-3).all()


def test_a_foolbox_attack_runs_in_an_audit(trained) -> None:
    import robustcv as rc

    run = rc.audit(str(trained), "digits", n=20, eps="64/255", sweep=False, explain=(), cases=2, quiet=True,
                   attacks=("foolbox-gaussian-blur", "foolbox-contrast-search"))  # fmt: skip
    assert [each.name for each in run.attacks][:2] == ["foolbox-gaussian-blur", "foolbox-contrast-search"]


def test_an_image_that_no_start_fools_does_not_keep_the_others_from_being_attacked(capsys) -> None:
    """Noise, black and white are all of class 0; the images of class 1 lie too far behind to be mates of all."""

    class Grey(torch.nn.Module):
        def forward(self, images):
            return torch.stack([torch.zeros(len(images)), 0.1 - (images - 0.5).abs().amax((1, 2, 3))], 1)

    images = torch.cat([torch.full((40, 1, 4, 4), 0.9), torch.full((4, 1, 4, 4), 0.51)])
    labels, model = torch.tensor([0] * 40 + [1] * 4), Grey().eval()
    assert (model(images).argmax(1) == labels).all()
    with frozen(model):
        out = ATTACKS["foolbox-boundary"](model, images, labels, seeds=torch.arange(44), steps=20)
    fooled = model(out).argmax(1) != labels
    assert fooled[40:].all() and fooled[0] and torch.equal(out[19:40], images[19:40])
    assert "boundary found no image to start from for 21 of 44 images" in capsys.readouterr().err


def test_bisection_reaches_as_far_as_the_image_goes() -> None:
    """A boundary that only a change of nearly all values crosses, beyond the 256 of six doublings in L1."""
    model = make_linear(2, (3, 32, 32), seed=1, dtype=torch.float32)
    image = torch.full((1, 3, 32, 32), 0.5)
    with torch.no_grad():
        gap = (model.weights[0] - model.weights[1]).flatten()
        model.bias[:] = torch.tensor([0.0, float(gap @ image.flatten() + 0.45 * gap.abs().sum())])
        label = model(image).argmax(1)
    exact_distance = 0.45 * 3072
    for norm in ("l1", "linf"):
        with frozen(model):
            out = by_bisection(ATTACKS["apgd"], steps=20, loss="margin")(model, image, label, norm=norm)
        assert int(model(out).argmax(1)) != int(label), norm
    assert float((out - image).abs().max()) == pytest.approx(0.45, rel=0.02) and exact_distance > 256


def test_every_denied_foolbox_attack_has_a_reason_and_none_is_offered() -> None:
    offered = {cls for by_norm, _ in FOOLBOX.values() for cls in by_norm.values()}
    assert not offered & set(DENIED) and all(len(reason) > 20 for reason in DENIED.values())
    assert "L2FMNAttack" in DENIED
    for name in FOOLBOX:
        assert "eps" not in inspect.signature(ATTACKS[f"foolbox-{name}"]).parameters

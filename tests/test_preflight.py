"""The checks before an audit: seeded mistakes are caught, each by the check made for it; honest models pass."""

import functools
import re

import numpy as np
import pytest
import torch
from broken_defences import Coupled, Noisy, Probabilities
from honest_models import MEAN, NAMES, STD, Residual, conv, honest, patches, trained
from PIL import Image
from torch import nn

import robustcv as rc
from robustcv.classifier import Classifier
from robustcv.data import ImageSet
from robustcv.errors import UserError


@functools.cache
def model() -> Classifier:
    return trained(conv, seed=1)


def raised(classifier: nn.Module, images: ImageSet | None = None, **options) -> set[str]:
    options = {"norm": "linf", "eps": "8/255", "quiet": True} | options
    checks = rc.doctor(classifier, patches(600, 3) if images is None else images, n=600, **options)
    assert all((check.fix is None) == (check.status != "raised") for check in checks)
    return {check.check for check in checks if check.status == "raised"}


class Wrapped(nn.Module):
    """Something done to the images or the logits of a healthy model."""

    def __init__(self, before=lambda x: x, after=lambda z: z) -> None:
        super().__init__()
        self.inner, self.before, self.after = model(), before, after

    def forward(self, images):
        return self.after(self.inner(self.before(images)))


def some_nan(logits):
    return torch.where(logits[:, :1] > logits[:, :1].median(), torch.nan, logits)


def relabelled(images: ImageSet, meaning) -> ImageSet:
    return ImageSet(images.images, torch.tensor(meaning)[images.labels], NAMES)


MISTAKES = {
    "softmax head": (lambda: (Probabilities(model()), None), "logits"),
    "no normalisation": (lambda: (model().network, None), "normalisation"),
    "normalised twice": (lambda: (Classifier(model(), mean=MEAN, std=STD).eval(), None), "normalisation"),
    "ImageNet's on top": (
        lambda: (Classifier(trained(Residual, seed=1, normalised=False), mean=(0.485, 0.456, 0.406),
                            std=(0.229, 0.224, 0.225)).eval(), None), "normalisation"),
    "0 to 255 expected": (lambda: (Wrapped(before=lambda x: x / 255), None), "normalisation"),
    "BGR": (lambda: (Wrapped(before=lambda x: x.flip(1)), None), "normalisation"),
    "labels shifted": (lambda: (model(), relabelled(patches(600, 3), [0, 2, 3, 4, 5, 0])), "label order"),
    "wrong class order": (lambda: (model(), relabelled(patches(600, 3), [3, 1, 5, 0, 4, 2])), "label order"),
    "train mode": (lambda: (trained(conv, seed=1).train(), None), "eval mode"),
    "non-determinism": (lambda: (Noisy(model()), None), "deterministic"),
    "batch coupling": (lambda: (Coupled(model()), None), "images apart"),
    "zero gradients": (lambda: (Wrapped(before=lambda x: (x * 15).round() / 15 + 0 * x), None), "usable gradients"),
    "NaN": (lambda: (Wrapped(after=some_nan), None), "finite outputs"),
    "almost black images": (
        lambda: (Wrapped(before=lambda x: 40 * x), ImageSet(patches(600, 3).images.float() / 255 / 40,
                                                            patches(600, 3).labels, NAMES)), "pixel range"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_seeded_mistake_is_caught_by_its_check(name: str) -> None:
    make, wanted = MISTAKES[name]
    classifier, images = make()
    assert wanted in raised(classifier, images)


def test_an_eps_of_eight_stops_and_a_huge_one_is_raised() -> None:
    with pytest.raises(UserError, match=r"eps 8 is outside \(0, 1\]"):
        rc.doctor(model(), patches(60, 3), eps=8, quiet=True)
    assert raised(model(), eps=0.6) == {"plausible eps"}
    assert raised(model(), norm="l2", eps=100) == {"plausible eps"}
    assert raised(model(), eps=1e-8) == {"plausible eps"}


def test_labels_that_are_all_wrong_stop_and_the_likely_reason_is_told() -> None:
    sure = patches(600, 3, spread=0.02)
    with torch.no_grad():
        right = model()(sure.images.float() / 255).argmax(1) == sure.labels
    images = relabelled(sure.take(right.nonzero()[:, 0]), [1, 2, 3, 4, 5, 0])
    with pytest.raises(UserError, match=r"would be right if every label were one"):
        rc.doctor(model(), images, quiet=True)


@pytest.mark.parametrize("number", [*range(5), *(pytest.param(k, marks=pytest.mark.every_case) for k in range(5, 20))])
def test_nothing_is_raised_on_honest_models(number: int) -> None:
    """Seeds from 500 on; thresholds were chosen on the seeds below."""
    assert raised(honest(number, 500), patches(600, 700 + number)) == set()


def test_training_images_among_test_images_are_counted(trained, tmp_path) -> None:
    found = {check.check: check for check in rc.doctor(str(trained), "digits", quiet=True)}
    assert found["apart from training images"].status == "pass"
    assert {check.status for check in found.values()} == {"pass"}


@pytest.mark.parametrize(
    ("of_training", "of_test", "status"),
    [
        ("png", "png", "raised"),
        ("png", "bmp", "raised"),
        ("png", "torn", "pass"),
        ("png", "unreadable", "pass"),
        ("none", "png", "not run"),
    ],
)
def test_a_training_image_among_the_test_images_is_raised(of_training, of_test, status, tmp_path) -> None:
    """Encoded anew (png, bmp) it has other bytes; where a file of the training split is torn, bytes are compared."""
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (2, 2, 6, 8, 8, 3), dtype=np.uint8)
    if of_test in ("png", "bmp"):
        pictures[1, 0, 3] = pictures[0, 0, 2]  # a training image of the first class, pixel by pixel
    for split, classes in zip(("train", "test"), pictures, strict=True):
        if split == "train" and of_training == "none":
            continue
        for name, images in zip(("cat", "dog"), classes, strict=True):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for k, pixels in enumerate(images):
                suffix = "bmp" if of_test == "bmp" and split == "test" else "png"
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{k}.{suffix}")
    if of_test == "torn":
        (tmp_path / "data/train/cat/0.png").write_bytes(b"torn")
    if of_test == "unreadable":
        (tmp_path / "data/train/cat/0.png").unlink()
        (tmp_path / "data/train/cat/0.png").symlink_to("/proc/self/mem")  # reading its beginning is an error
    (tmp_path / "own.py").write_text(
        "import torch\ndef f():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))\n"
    )
    checks = rc.doctor(f"py:{tmp_path}/own.py:f", str(tmp_path / "data"), quiet=True)
    (found,) = (each for each in checks if each.check == "apart from training images")
    assert found.status == status and (status != "raised" or re.search(r"\b1\b", found.figure))
    assert ("byte for byte" in found.figure) == (of_training == "png" and of_test != "bmp")


def test_a_trial_attack_that_leaves_its_ball_is_raised(monkeypatch) -> None:
    from robustcv.evaluation import preflight as module

    assert "trial attack within eps" not in raised(model())
    monkeypatch.setattr(module, "pgd", lambda ask, images, labels, **_: (images + 0.04).clamp(0, 1))
    assert "trial attack within eps" in raised(model(), eps=8 / 255)


def test_what_a_check_costs_is_counted() -> None:
    spent = []
    handle = model().register_forward_pre_hook(lambda _, given: spent.append(len(given[0])))
    try:
        checks = rc.doctor(model(), patches(600, 3), n=600, quiet=True)
    finally:
        handle.remove()
    extra = 3 + 600  # what asks for the number of classes (of two images) and for gradients, and the clean predictions
    assert sum(check.forward for check in checks) == sum(spent) - extra
    assert sum(check.backward for check in checks) == 16 * 4  # one gradient, and the three of the trial attack


def test_the_footprint_is_none_and_skipping_is_told(tmp_path) -> None:
    classifier = trained(Residual, seed=2).train()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    raised(classifier)
    assert classifier.training and all(
        torch.equal(before[name], each) for name, each in classifier.state_dict().items()
    )
    run = rc.audit(classifier.eval(), patches(60, 3), effort="quick", sweep=False, explain=(), skip_preflight=True,
                   out=tmp_path / "run", quiet=True)  # fmt: skip
    assert [check.check for check in run.preflight] == ["deterministic", "no optimisation inside"]
    assert "The checks before the attacks were left out (--skip-preflight) but for two" in run.page.read_text()


class Shaky(torch.nn.Module):
    """Adds noise to its logits, in proportion to them."""

    def __init__(self, inner: torch.nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, images):
        logits = self.scale * self.inner(images)
        return logits + 0.05 * logits.abs().mean() * torch.randn_like(logits)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_random_answers_are_noticed_at_any_scale_and_without_preflight(scale: float) -> None:
    run = rc.audit(Shaky(trained(Residual, seed=2), scale).eval(), patches(60, 3), effort="quick", sweep=False,
                   explain=(), cases=0, skip_preflight=True, fail_under={"clean_accuracy": 0.1},
                   quiet=True)  # fmt: skip
    (found,) = (check for check in run.checks if check.check == "deterministic")
    assert found.status == "raised" and found.threshold and found.source and run.verdict == "INCONCLUSIVE"


def test_a_gpu_whose_driver_is_too_old_is_told(monkeypatch, tmp_path) -> None:
    from robustcv.verbs import doctor

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "470.82.01")
    found = doctor._device()
    assert found.status == "raised" and "driver too old: driver 470.82.01" in found.figure and "13.0" in found.fix
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: None)
    assert doctor._device().status == "pass"

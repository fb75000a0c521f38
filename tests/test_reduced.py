"""Attacks in bfloat16: what is counted is what float32 says."""

import copy
from dataclasses import replace
from pathlib import Path

import honest_models
import pytest
import torch
from conftest import make_images, make_linear
from honest_models import conv, patches
from test_reliability import exact_share
from test_worst_case import job_for

import robustcv as rc
from robustcv import runtime
from robustcv.attacks import ATTACKS
from robustcv.attacks.wrappers import Eot
from robustcv.classifier import Tracked, frozen
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation import block
from robustcv.evaluation.job import Planned
from robustcv.evaluation.plans import plan_for
from robustcv.evaluation.reliability import probe
from robustcv.evaluation.worst_case import worst_case
from robustcv.reduced import Reduced, reduced


def test_logits_are_near_and_do_not_move_in_steps() -> None:
    model = honest_models.trained(conv, seed=3).eval()
    images = patches(60, 5).images.float() / 255
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        plain, reduced = model(images), Reduced(model)(images)
    assert (reduced - plain).norm() <= 0.02 * plain.norm() and not torch.equal(reduced, plain)
    assert reduced.dtype == torch.float32 and not torch.equal(reduced, reduced.bfloat16().float())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_linear_model_is_broken_exactly_where_it_can_be() -> None:
    linear, pixels = make_linear(10, seed=4, dtype=torch.float32), make_images(120, seed=4, dtype=torch.float32)
    images = ImageSet(pixels, linear(pixels).argmax(1), tuple("0123456789"))
    for eps in (0.003, 0.006):
        with frozen(linear):
            job = replace(job_for(linear, images), reduced=Reduced(linear))
            outcome = worst_case(job, plan_for("standard", "linf"), eps=eps)
        share = float(outcome.robust(eps).double().mean())
        assert share == pytest.approx(exact_share(linear, images, eps), abs=1e-9) and 0 < share < 1


def test_what_stands_narrowly_in_bfloat16_is_attacked_in_float32(monkeypatch) -> None:
    """One step along gradients with some signs wrong takes at least 0.92 of what the exact step takes."""
    linear, pixels = make_linear(2, seed=4, dtype=torch.float32), make_images(300, seed=4, dtype=torch.float32)
    images = ImageSet(0.2 + 0.6 * pixels, linear(0.2 + 0.6 * pixels).argmax(1), ("a", "b"))
    (weight,) = (each for each in linear.parameters() if each.dim() == 2)
    slope = (weight[0] - weight[1]).detach()
    rough = copy.deepcopy(linear)
    (turned,) = (each for each in rough.parameters() if each.dim() == 2)
    few = slope.abs().argsort()[: len(slope) // 6]  # the least: their signs weigh little
    with torch.no_grad():
        turned[:, few] *= -1
        margins = (linear(images.images) * torch.tensor([1.0, -1.0])).sum(1).abs()
    assert slope[few].abs().sum() < 0.04 * slope.abs().sum()
    eps = float(margins.median() / slope.abs().sum())
    exact = margins.double() > eps * slope.abs().double().sum()
    plan, stood = [Planned("fgsm", ATTACKS["fgsm"], {})], []
    monkeypatch.setattr(block, "unseen_in_bfloat16", lambda *_: False)
    for narrow in (block.NARROW, -1.0):
        monkeypatch.setattr(block, "NARROW", narrow)
        with frozen(linear), frozen(rough):
            job = replace(job_for(linear, images), reduced=rough)
            stood.append(worst_case(job, plan, eps=eps).robust(eps))
    assert torch.equal(stood[0], exact) and int((stood[1] & ~exact).sum()) > 0


def test_every_pass_is_counted_and_every_success_is_one_in_float32() -> None:
    model, images = honest_models.trained(conv, seed=3).eval(), patches(64, 5)
    with frozen(model):
        job = replace(job_for(model, images), reduced=Reduced(model))
        spent = []
        for module in (model, job.reduced):
            module.register_forward_pre_hook(lambda _, given: spent.append(len(given[0])))
        outcome = worst_case(job, plan_for("quick", "linf"), eps=8 / 255)
        assert sum(spent) == sum(each.forward for each in outcome.results)
        rows, pictures = outcome.candidates[8 / 255]
        wrong = model(pictures).argmax(1) != images.labels[rows]
    assert 5 < len(rows) and bool(wrong[outcome.broken_by[rows] >= 0].all())


@pytest.mark.parametrize("name", ["deepfool", "ddn", "fmn", pytest.param("fab", marks=pytest.mark.every_case), "apgd"])
def test_no_attack_finds_less_in_bfloat16(name: str) -> None:
    """DeepFool stops at the border that bfloat16 sees; what float32 denies it is asked again in float32."""
    model, images = honest_models.trained(conv, seed=3).eval(), patches(120, 5)
    norm, eps = ("l2", 0.5) if name == "ddn" else ("linf", 6 / 255)
    with frozen(model):
        plain = job_for(model, images, norm=norm)
        half = replace(plain, reduced=Reduced(model))
        found = [
            worst_case(job, [Planned(name, ATTACKS[name], {})], eps=eps).robust(eps).sum() for job in (plain, half)
        ]
    assert abs(int(found[0]) - int(found[1])) <= 1


def test_a_success_is_not_lost_where_a_mate_is_attacked_again() -> None:
    """FGSM only returns its images; one denied image of the batch used to withdraw what the check had found."""
    model, images = honest_models.trained(conv, seed=3).eval(), patches(60, 5)

    class Mistaken(Reduced):
        def forward(self, given):
            logits = super().forward(given).clone()
            wrong = torch.arange(len(given)) == 0  # calls the first of each batch broken
            return torch.where(wrong[:, None], logits.flip(1) - 1e3 * logits, logits)

    with frozen(model):
        plan = [Planned("fgsm", ATTACKS["fgsm"], {})]
        found = []
        for size in (60, 7, 1):
            plain = job_for(model, images, batch_size=size)
            for job in (plain, replace(plain, reduced=Mistaken(model))):
                found.append(int(worst_case(job, plan, eps=6 / 255).robust(6 / 255).sum()))
    assert len(set(found)) == 1 and found[0] < int(plain.predictions.correct.sum())


def test_passes_of_an_averaging_classifier_are_counted_whole() -> None:
    model, images = honest_models.trained(conv, seed=3).eval(), patches(24, 5)
    spent = []
    with frozen(model):
        half = Reduced(Eot(model, 4).eval())
        for module in half.network.modules():
            if isinstance(module, type(model)):
                module.register_forward_pre_hook(lambda _, given: spent.append(len(given[0])))
        tracked = Tracked(
            half, images.images.float() / 255, lambda c, logits, r: (torch.zeros(len(c)).bool(), logits[:, 0])
        )
        tracked(images.images.float() / 255)
    assert sum(spent) == int(tracked.forwards.sum()) == 4 * 24


class Head(torch.nn.Module):
    """Uses its layer's weight, not the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(192, 3)

    def forward(self, images):
        return torch.nn.functional.linear(images.flatten(1), self.layer.weight)


class Held(Head):
    """Holds what cannot be copied."""

    def __deepcopy__(self, memo):
        raise RuntimeError("a handle cannot be copied")


@pytest.mark.parametrize("make", [Head, Held])
def test_an_odd_model_is_computed_in_bfloat16_or_left_in_float32(make) -> None:
    runtime.forget_notes()
    model, images = make().eval(), torch.rand(4, 3, 8, 8)
    made = reduced(model, images)
    if make is Head:
        with torch.no_grad():
            assert made(images).shape == (4, 3)
    else:
        assert made is None and "attacks run in float32" in runtime.notes()[0]


@pytest.mark.slow
def test_a_run_in_bfloat16_holds_when_it_is_replayed(trained: Path, tmp_path: Path) -> None:
    options = {"n": 60, "eps": "16/255", "cases": 2, "quiet": True}
    half = rc.audit(str(trained), "digits", precision="bf16", out=tmp_path / "half", **options)
    whole = rc.audit(str(trained), "digits", **options)
    assert all(check.status == "pass" for check in rc.verify(tmp_path / "half", quiet=True))
    found = [run.metric("robust_accuracy", eps=16 / 255, attack=None).count for run in (half, whole)]
    assert abs(found[0] - found[1]) <= 2 and "judged in float32" in half.page.read_text()
    with pytest.raises(UserError, match="no precision called 'fp8'"):
        rc.audit(str(trained), "digits", precision="fp8", **options)


@pytest.mark.parametrize(
    ("norm", "eps", "unseen"),
    [("linf", 0.5 / 255, True), ("linf", 1 / 255, False), ("l2", 0.05, True), ("l2", 0.5, False), ("l0", 3.0, False)],
)
def test_changes_below_the_step_of_bfloat16_are_sought_in_float32(norm, eps, unseen) -> None:
    model, images = honest_models.trained(conv, seed=3), patches(80, 5)
    plan = [Planned("apgd", ATTACKS["apgd"], {"steps": 5})]
    if norm == "l0":
        plan = [Planned("fmn", ATTACKS["fmn"], {"steps": 5})]
    runtime.forget_notes()
    with frozen(model):
        job = job_for(model, images, norm=norm)
        plain = worst_case(job, plan, eps=eps)
        half = worst_case(replace(job, reduced=Reduced(model)), plan, eps=eps)
    assert any("bfloat16 cannot tell" in note for note in runtime.notes()) == unseen
    if unseen:
        assert torch.equal(half.broken_at, plain.broken_at)


def test_checks_for_masked_gradients_are_made_in_float32() -> None:
    model, images = honest_models.trained(conv, seed=3), patches(80, 5)
    asked = []
    with frozen(model):
        half = Reduced(model)
        half.register_forward_pre_hook(lambda *_: asked.append(1))
        job = replace(job_for(model, images), reduced=half)
        outcome = worst_case(job, plan_for("quick", "linf"), eps=4 / 255)
        during = len(asked)
        probe(job, outcome, plan_for("quick", "linf"))
    assert 0 < during == len(asked)

"""What must hold of every worst case, whatever the model, norm, eps and order of images: as properties."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import pytest
import torch
from conftest import Curved, make_linear
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_attacks import distance
from test_worst_case import job_for, run
from torch import nn

from robustcv.attacks import ATTACKS
from robustcv.classifier import frozen
from robustcv.data import ImageSet
from robustcv.evaluation.job import Planned
from robustcv.evaluation.plans import plan_for

SHAPE = (2, 4, 3)
EPS = {"linf": 0.06, "l2": 0.25, "l1": 0.8, "l0": 2.0}
DETERMINISTIC = ["fgsm", "mi-fgsm", "fab", "fmn", "deepfool"]  # the place in a plan moves no random draw
SHORT = {"steps": 8, "queries": 40}
few = settings(deadline=None, max_examples=15, derandomize=True)


class Scaled(nn.Module):
    """The same answers from larger or smaller logits."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, images):
        return self.factor * self.inner(images)


@dataclass(frozen=True)
class Drawn:
    """A random small classifier, and images it is mostly right about."""

    seed: int
    classes: int
    linear: bool
    factor: float

    @cached_property
    def model(self) -> nn.Module:
        made = make_linear(self.classes, SHAPE, seed=self.seed, dtype=torch.float32)
        return Scaled(made if self.linear else Curved(self.classes, channels=2, seed=self.seed), self.factor)

    @cached_property
    def images(self) -> ImageSet:
        pixels = torch.rand(14, *SHAPE, generator=torch.Generator().manual_seed(self.seed))  # many touch the box
        with torch.no_grad():
            labels = self.model(pixels).argmax(1)
        labels[0] = (labels[0] + 1) % self.classes
        return ImageSet(pixels, labels, tuple("abcde"[: self.classes]))


def problems() -> st.SearchStrategy[Drawn]:
    factors = st.sampled_from([1e-2, 1.0, 1e3])
    return st.builds(Drawn, st.integers(0, 10**6), st.integers(2, 5), st.booleans(), factors)


norms, scales = st.sampled_from(list(EPS)), st.floats(0.2, 3.0)


def fixed_budget(norm: str, scale: float) -> float:
    return float(round(EPS[norm] * scale)) if norm == "l0" else EPS[norm] * scale


@few
@given(problems(), norms)
def test_at_eps_zero_robust_accuracy_is_clean_accuracy(drawn: Drawn, norm: str) -> None:
    outcome = run(drawn.model, drawn.images, plan=plan_for("quick", norm), norm=norm, eps=0.0, sweep=())
    correct = job_for(drawn.model, drawn.images).predictions.correct
    assert torch.equal(outcome.robust(0.0), correct) and not correct[0]


@few
@given(problems(), norms, st.lists(scales, min_size=1, max_size=3))
def test_robust_accuracy_never_rises_with_eps_and_each_change_fits_its_own(drawn: Drawn, norm: str, more: list) -> None:
    headline = fixed_budget(norm, 1.0)
    sweep = [fixed_budget(norm, each) for each in more]
    outcome = run(drawn.model, drawn.images, plan=plan_for("quick", norm), norm=norm, eps=headline, sweep=sweep)
    stands = [outcome.robust(eps) for eps in outcome.sweep]
    assert not any((later & ~earlier).any() for earlier, later in pairwise(stands))
    fell = outcome.broken_by >= 0
    assert (outcome.distance[fell] <= outcome.broken_at[fell] * (1 + 2e-6) + 2e-6).all()


@few
@given(problems())
def test_where_every_pixel_may_be_anything_no_more_than_chance_stands(drawn: Drawn) -> None:
    assume(len(drawn.images.labels[1:].unique()) > 1)  # each image may become one of another class
    outcome = run(drawn.model, drawn.images, plan=plan_for("standard", "linf"), eps=1.0, sweep=())
    assert int(outcome.robust(1.0).sum()) <= len(drawn.images) / len(drawn.images.class_names)


@few
@given(problems(), norms, scales, st.integers(1, 4), st.sampled_from(["steps", "restarts"]))
def test_twice_the_steps_or_restarts_never_save_an_image(
    drawn: Drawn, norm: str, scale: float, k: int, what: str
) -> None:
    eps = fixed_budget(norm, scale)
    plain = {"steps": 3, "restarts": 1, "step_size": eps / 3}
    once, twice = (
        run(drawn.model, drawn.images, plan=[Planned("pgd", ATTACKS["pgd"], {**plain, what: times})], norm=norm,
            eps=eps, sweep=()).robust(eps)
        for times in (k, 2 * k)
    )  # fmt: skip
    assert not (twice & ~once).any()


@few
@given(problems(), st.sampled_from(["linf", "l2"]), scales, st.permutations(DETERMINISTIC))
def test_a_plan_breaks_what_its_attacks_break_one_by_one_and_nothing_else(drawn, norm, scale, order) -> None:
    eps = EPS[norm] * scale
    chosen = [Planned(name, ATTACKS[name], {"steps": 8} if name != "fgsm" else {}) for name in order[:3]]
    together = run(drawn.model, drawn.images, plan=chosen, norm=norm, eps=eps, sweep=()).robust(eps)
    alone = [run(drawn.model, drawn.images, plan=[each], norm=norm, eps=eps, sweep=()).robust(eps) for each in chosen]
    assert torch.equal(together, torch.stack(alone).all(0))


@few
@given(problems(), norms, scales, st.data())
def test_an_image_has_the_same_verdict_in_any_company(drawn: Drawn, norm: str, scale: float, data) -> None:
    eps, plan = fixed_budget(norm, scale), plan_for("standard", norm)
    rows = torch.tensor(data.draw(st.permutations(range(len(drawn.images))))[: data.draw(st.integers(1, 14))])
    size = data.draw(st.integers(1, 14))
    whole = run(drawn.model, drawn.images, plan=plan, norm=norm, eps=eps, sweep=())
    some = run(drawn.model, drawn.images.take(rows), plan=plan, norm=norm, eps=eps, sweep=(), batch_size=size)
    assert torch.equal(some.robust(eps), whole.robust(eps)[rows])
    assert torch.equal(some.broken_by, whole.broken_by[rows])


@few
@given(problems(), norms, scales, st.integers(1, 14))
def test_what_is_told_as_broken_is_in_ball_and_box_and_wrong_at_any_batch_size(drawn, norm, scale, size) -> None:
    eps = fixed_budget(norm, scale)
    outcome = run(drawn.model, drawn.images, plan=plan_for("standard", norm), norm=norm, eps=eps, sweep=())
    rows, found = outcome.candidates[eps]
    assert torch.equal(rows, (outcome.broken_by >= 0).nonzero().squeeze(1))
    for part, images in zip(rows.split(size), found.split(size), strict=True):
        if len(part):
            clean, labels = next(drawn.images.take(part).batches(len(part)))
            assert (drawn.model(images).argmax(1) != labels).all()
            assert images.min() >= 0 and images.max() <= 1
            assert (distance(norm, images, clean) <= eps * (1 + 1e-6) + 1e-6).all()


@few
@given(problems(), st.sampled_from(["linf", "l2", "l1"]), scales, st.sampled_from([1e-3, 7.0, 1e4]))
def test_the_scale_of_the_logits_changes_no_verdict_of_the_standard_plan(drawn, norm, scale, factor) -> None:
    eps, plan = EPS[norm] * scale, plan_for("standard", norm)
    plain, scaled = (
        run(model, drawn.images, plan=plan, norm=norm, eps=eps, sweep=()).robust(eps)
        for model in (drawn.model, Scaled(drawn.model, factor))
    )
    assert torch.equal(plain, scaled)


@pytest.mark.every_case
@settings(deadline=None, max_examples=60)
@given(problems(), norms, scales)
def test_no_attack_leaves_its_ball_or_returns_what_is_no_image(drawn: Drawn, norm: str, scale: float) -> None:
    eps = fixed_budget(norm, scale)
    images, labels = drawn.images.images, drawn.images.labels
    with frozen(drawn.model):
        for name in ("pgd", "apgd", "apgd-t"):
            out = ATTACKS[name](drawn.model, images, labels, eps=eps, norm=norm, steps=4)
            assert out.isfinite().all() and out.min() >= 0 and out.max() <= 1
            assert (distance(norm, out, images) <= eps * (1 + 1e-6) + 1e-6).all()

"""Attacks on a compiled form of the model: what is counted is what the plain model says."""

from dataclasses import replace
from pathlib import Path

import honest_models
import pytest
import torch
from honest_models import conv, patches
from test_worst_case import job_for

import robustcv as rc
from robustcv import runtime
from robustcv.attacks import ATTACKS
from robustcv.classifier import frozen
from robustcv.compiled import compiled
from robustcv.evaluation.job import Planned
from robustcv.evaluation.plans import plan_for
from robustcv.evaluation.worst_case import worst_case
from robustcv.reduced import FAR, STEEP

TRACED = (
    "aot_eager"  # the compiler's own traces, forward and backward, without machine code: a second in place of a minute
)


@pytest.mark.slow
def test_the_compiled_form_gives_the_same_verdicts_at_every_size_of_batch() -> None:
    runtime.forget_notes()
    model, images = honest_models.trained(conv, seed=3).eval(), patches(60, 5)
    with frozen(model):
        job = job_for(model, images, batch_size=16)
        made = compiled(model, next(images.batches(32))[0], backend=TRACED)
        assert made is not model and runtime.notes() == ()
        outcomes = [
            worst_case(each, plan_for("standard", "linf"), eps=6 / 255) for each in (job, replace(job, fast=made))
        ]
    plain, found = outcomes
    assert 0 < int(plain.robust(6 / 255).sum()) < int(job.predictions.correct.sum())
    assert torch.equal(found.broken_at, plain.broken_at)
    assert torch.equal(found.forwards, plain.forwards) and torch.equal(found.backwards, plain.backwards)


class Detached(torch.nn.Module):
    """Answers as its weights say, but what a compiler makes of it has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(12, 3)

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        return logits.detach() + 0 * logits if torch.compiler.is_compiling() else logits


class Untraceable(Detached):
    """Breaks the compiler."""

    def forward(self, images):
        if torch.compiler.is_compiling():
            raise ValueError("not here")
        return super().forward(images)


class Turned(Detached):
    """Becomes a model with the opposite slopes."""

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        return 2 * logits.detach() - logits if torch.compiler.is_compiling() else logits


BF16 = {"logits": FAR, "slopes": STEEP}


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [{}, BF16])
@pytest.mark.parametrize("make", [Detached, Turned, Untraceable])
def test_what_cannot_be_compiled_or_becomes_another_model_runs_as_it_is_and_is_told(make, allowed) -> None:
    runtime.forget_notes()
    model = make().eval()
    with frozen(model):
        assert compiled(model, torch.rand(4, 3, 2, 2), backend=TRACED, **allowed) is model
    assert len(runtime.notes()) == 1 and "could not be compiled" in runtime.notes()[0]
    runtime.forget_notes()


@pytest.mark.slow
@pytest.mark.parametrize(("effort", "norm", "eps"), [("thorough", "linf", 6 / 255), ("standard", "l0", 3.0)])
def test_minimum_norm_attacks_walk_the_compiled_graph_back_more_than_once(effort, norm, eps) -> None:
    runtime.forget_notes()
    model, images = honest_models.trained(conv, seed=3).eval(), patches(12, 5)
    plan = plan_for(
        effort, norm, {name: {"steps": 4} for name in ("fmn", "apgd", "apgd-t")} | {"square": {"queries": 9}}
    )
    plan = [*plan, Planned("deepfool", ATTACKS["deepfool"], {})]
    with frozen(model):
        job = job_for(model, images, norm=norm)
        fast = replace(job, fast=compiled(model, next(images.batches(8))[0], backend=TRACED))
        plain, found = (worst_case(each, plan, eps=eps) for each in (job, fast))
    assert runtime.notes() == () and fast.fast is not model
    assert torch.equal(found.broken_at, plain.broken_at) and torch.equal(found.backwards, plain.backwards)


@pytest.mark.slow
def test_where_the_compiler_fails_in_mid_audit_the_model_itself_goes_on() -> None:
    def short_of_breath(graph, inputs):
        made.append(graph)
        if len(made) > 3:
            raise ValueError("not here")
        return graph.forward

    runtime.forget_notes()
    made: list = []
    model, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval(), torch.rand(4, 3, 2, 2)
    with frozen(model):
        fast = compiled(model, images, backend=short_of_breath)
        assert fast is not model and 0 < len(made) <= 3 and runtime.notes() == ()
        made += [None] * 3
        with torch.no_grad():  # another graph
            assert torch.allclose(fast(images), model(images))
    assert "could not be compiled" in runtime.notes()[0]
    runtime.forget_notes()


@pytest.mark.every_case
def test_an_audit_of_a_compiled_model_holds_when_it_is_replayed(trained: Path, tmp_path: Path) -> None:
    options = {"n": 60, "eps": "16/255", "cases": 2, "quiet": True}
    fast = rc.audit(str(trained), "digits", compile=True, out=tmp_path / "fast", **options)
    plain = rc.audit(str(trained), "digits", **options)
    assert all(check.status == "pass" for check in rc.verify(tmp_path / "fast", quiet=True))
    found = [run.metric("robust_accuracy", eps=16 / 255, attack=None).count for run in (fast, plain)]
    assert abs(found[0] - found[1]) <= 1

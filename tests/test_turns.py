"""What stood after each attack in turn: counted by hand, and against audits of the shorter plans."""

from pathlib import Path

import pytest
from test_report import make_record
from test_worst_case import job_for, planned

import robustcv as rc
from robustcv import records
from robustcv.classifier import frozen
from robustcv.evaluation.worst_case import worst_case
from robustcv.models import load as load_classifier
from robustcv.report.turns import after_each
from robustcv.stats import wilson


def made(plan: dict[float, list[tuple[str, int, int, int]]], worst: dict[float, int], **more) -> records.Record:
    """Make a record of 100 images, 90 of them right when clean: of each eps its attacks, attempted, broken, carried."""
    record = make_record(100, ("a", "b"), 90, 40)
    known = {"options": {}, "norm": "linf", "forward": 1, "backward": 1, "seconds": 0.1, "reason": "plan"} | more
    attacks = tuple(
        records.AttackResult(**known, name=name, eps=eps, attempted=attempted, broken=fell, carried=carried)
        for eps, attacks in plan.items()
        for name, attempted, fell, carried in attacks
    )
    robust = tuple(
        records.Metric(name="robust_accuracy", n=100, count=count, eps=eps, norm="linf", bound="upper")
        for eps, count in worst.items()
    )
    return record.model_copy(update={"attacks": attacks, "metrics": (record.metrics[0], *robust), "headline_eps": 2.0})


PLAN = {
    1.0: [("a", 45, 15, 2), ("b", 30, 10, 3)],  # 50 fell at 2; the change of 5 of them was small enough for 1
    2.0: [("a", 90, 30, 0), ("b", 60, 20, 0)],
    4.0: [("a", 40, 10, 0), ("b", 30, 5, 0)],
}
WORST = {1.0: 60, 2.0: 40, 4.0: 25}


def test_a_line_tells_what_stood_after_an_attack_up_to_the_headline() -> None:
    lines = after_each(made(PLAN, WORST))
    assert list(lines) == ["after a"]  # what stood after b is the worst case
    # at 1: 40 stand at 2, 45 were tried and 5 carried; a broke 15 and carried 2. At 4, those that fell at 2 met no a
    assert [(each.eps, each.count) for each in lines["after a"]] == [(None, 90), (1.0, 73), (2.0, 60)]
    for each in lines["after a"][1:]:
        assert (each.low, each.high) == wilson(each.count, 100)


def test_what_broke_more_than_the_plan_makes_its_last_attack_a_line_too() -> None:
    lines = after_each(made(PLAN, WORST | {2.0: 38}))  # another seed, or an escalation
    assert [each.count for each in lines["after b"]] == [90, 60, 40]


def test_an_attack_that_broke_nothing_has_no_line_and_no_line_lies_below_the_worst_case() -> None:
    idle = {2.0: [("idle", 90, 0, 0), ("a", 90, 30, 0), ("idle", 60, 0, 0), ("b", 60, 20, 0)]}
    assert list(after_each(made(idle, {2.0: 40}))) == ["after a"]
    for line in after_each(made(idle, {2.0: 41})).values():  # one withdrawn
        assert all(each.count >= 41 for each in line)


def test_an_attack_that_is_planned_twice_is_told_apart() -> None:
    twice = {2.0: [("a", 90, 30, 0), ("a", 60, 10, 0), ("b", 50, 10, 0)]}
    assert list(after_each(made(twice, {2.0: 40}))) == ["after a", "after a (2)"]
    skipped = {2.0: [("a", 90, 0, 0), ("a", 90, 40, 0), ("b", 50, 10, 0)]}
    assert list(after_each(made(skipped, {2.0: 40}))) == ["after a (2)"]


def test_attacks_that_were_run_for_another_reason_have_no_line() -> None:
    assert after_each(made(PLAN, WORST, reason="escalation")) == {}
    assert after_each(made(PLAN, WORST).model_copy(update={"verdict": "INCOMPLETE"})) == {}


@pytest.mark.parametrize("plan", [("noise", "fmn"), ("fgsm", "mi-fgsm")])
def test_the_lines_of_an_audit_are_what_the_shorter_plan_leaves(trained: Path, plan) -> None:
    options = {"n": 60, "eps": "16/255", "explain": (), "cases": 0, "quiet": True}
    whole = rc.audit(str(trained), "digits", attacks=plan, **options).record
    line = after_each(whole)[f"after {plan[0]}"]
    model = load_classifier(str(trained)).classifier
    with frozen(model):
        job = job_for(model, rc.load_images("digits", n=60), batch_size=128)
        sweep = [each.eps for each in line[1:]]
        alone = worst_case(job, planned(plan[0]), eps=sweep[-1], sweep=sweep)
    assert sweep == [4 / 255, 8 / 255, 16 / 255]
    assert line[-1].count == int(alone.robust(sweep[-1]).sum())
    for each in line[1:]:  # what the second attack broke met the first at the larger eps alone
        assert abs(each.count - int(alone.robust(each.eps).sum())) <= 1
    counts = [each.count for each in line]
    assert counts == sorted(counts, reverse=True)

"""What stood after each attack in turn: counted by hand, and against audits of the shorter plans."""

from pathlib import Path

import pytest
from test_report import make_record

import robustcv as rc
from robustcv import records
from robustcv.report.turns import after_each
from robustcv.stats import wilson


def made(broken: dict[float, list[tuple[str, int, int]]], worst: dict[float, int], **more) -> records.Record:
    """Make a record of 100 images, 90 of them right when clean: of each eps its attacks, attempted and broken."""
    record = make_record(100, ("a", "b"), 90, 40)
    known = {"options": {}, "norm": "linf", "forward": 1, "backward": 1, "seconds": 0.1, "reason": "plan"}
    attacks = tuple(
        records.AttackResult(**known | more, name=name, eps=eps, attempted=attempted, broken=fell)
        for eps, plan in broken.items()
        for name, attempted, fell in plan
    )
    robust = tuple(
        records.Metric(name="robust_accuracy", n=100, count=count, eps=eps, norm="linf", bound="upper")
        for eps, count in worst.items()
    )
    return record.model_copy(update={"attacks": attacks, "metrics": (record.metrics[0], *robust), "headline_eps": 2.0})


PLAN = {
    1.0: [("a", 45, 15), ("b", 30, 10)],  # 50 fell at 2; of 5 the change was small enough for 1
    2.0: [("a", 90, 30), ("b", 60, 20)],
    4.0: [("a", 40, 10), ("b", 30, 5)],
}


def test_a_line_tells_what_stood_after_an_attack_at_every_eps() -> None:
    record = made(PLAN, {1.0: 60, 2.0: 40, 4.0: 25})
    lines = after_each(record)
    assert list(lines) == ["after a"]  # what stood after b is the worst case
    assert [(each.eps, each.count) for each in lines["after a"]] == [(None, 90), (1.0, 70), (2.0, 60), (4.0, 30)]
    for each in lines["after a"][1:]:
        assert (each.low, each.high) == wilson(each.count, 100)


def test_what_broke_more_than_the_plan_makes_its_last_attack_a_line_too() -> None:
    record = made(PLAN, {1.0: 60, 2.0: 38, 4.0: 25})  # another seed, or an escalation
    assert [each.count for each in after_each(record)["after b"]] == [90, 60, 40, 25]


def test_an_attack_that_broke_nothing_has_no_line_and_a_withdrawn_failure_lowers_none() -> None:
    idle = {2.0: [("a", 90, 30), ("idle", 60, 0), ("b", 60, 20)]}
    assert list(after_each(made(idle, {2.0: 40}))) == ["after a"]
    assert [each.count for each in after_each(made(idle, {2.0: 62})).get("after a", [])] == []
    twice = {2.0: [("a", 90, 30), ("a", 60, 10), ("b", 50, 10)]}
    assert list(after_each(made(twice, {2.0: 40}))) == ["after a", "after a (2)"]


def test_attacks_that_were_run_for_another_reason_have_no_line() -> None:
    assert after_each(made(PLAN, {1.0: 60, 2.0: 40, 4.0: 25}, reason="escalation")) == {}
    interrupted = made(PLAN, {1.0: 60, 2.0: 40, 4.0: 25}).model_copy(update={"verdict": "INCOMPLETE"})
    assert after_each(interrupted) == {}


def test_the_lines_of_an_audit_are_what_audits_of_the_shorter_plans_find(trained: Path) -> None:
    options = {"n": 60, "eps": "12/255", "explain": (), "cases": 0, "quiet": True}
    plan = ["fgsm", "mi-fgsm", "apgd"]
    whole = rc.audit(str(trained), "digits", attacks=plan, **options).record
    lines = after_each(whole)
    assert lines, "each attack breaks more than the one before it"
    for k in (1, 2):
        part = rc.audit(str(trained), "digits", attacks=plan[:k], **{**options, "sweep": False}).record
        found = part.metric("robust_accuracy", attack=None).count
        line = lines.get(f"after {plan[k - 1]}")
        told = whole.metric("robust_accuracy", eps=whole.headline_eps, attack=None) if line is None else next(
            each for each in line if each.eps == whole.headline_eps
        )  # fmt: skip
        assert told.count == pytest.approx(found)
    for line in lines.values():
        assert all(each.count >= whole.metric("robust_accuracy", eps=each.eps, attack=None).count for each in line[1:])

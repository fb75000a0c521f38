"""The search: it goes on where it stopped, shares its study, gives up what falls behind, and draws the trade-off."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import robustcv as rc
from robustcv.errors import UserError
from robustcv.training.search import Pruned, Scores, Trial, finished, front, open_study, search

QUICK = {"trials": 3, "epochs": 2, "objective": ["standard", "trades"], "steps": 1, "quiet": True}


def trial(number: int, clean: float | None, robust: float | None) -> Trial:
    return Trial(number, "finished" if clean is not None else "given up", {}, clean, robust, 3, 1.0)


def test_the_front_is_that_of_enumeration() -> None:
    trials = [trial(0, 0.9, 0.1), trial(1, 0.8, 0.3), trial(2, 0.8, 0.2), trial(3, 0.7, 0.3), trial(4, None, None),
              trial(5, 0.5, 0.6), trial(6, 0.5, 0.6), trial(7, 0.4, 0.5)]  # fmt: skip
    assert [each.number for each in front(trials)] == [0, 1, 5]
    assert front([]) == []


def peak(drawn: dict, report) -> Scores:
    value = 1 - abs(drawn["x"] - 0.3)
    for epoch in (1, 2, 3):
        report(epoch, value)
    return Scores(value, None)


def test_it_finds_the_peak_of_a_known_function_and_gives_up_on_slopes() -> None:
    study = open_study(None, seed=0)
    trials = search(study, 40, lambda each: {"x": each.suggest_float("x", 0, 10)}, peak)
    assert len(trials) == 40 and max(each.clean for each in trials if each.clean is not None) > 0.8
    assert any(each.state == "given up" for each in trials)
    assert all(each.clean is None for each in trials if each.state == "given up")


def test_a_study_goes_on_with_new_draws_and_repeats_from_the_start(tmp_path: Path) -> None:
    def draw(each):
        return {"x": each.suggest_float("x", 0, 1)}

    def some(name: str, *counts: int) -> list[float]:
        for count in counts:  # each time opened anew, as by another process
            found = search(open_study(f"sqlite:///{tmp_path / name}", 0), count, draw, peak)
        return [each.options["x"] for each in found]

    straight, stopped = some("a.db", 6), some("b.db", 3, 6)
    assert straight[:3] == stopped[:3] and len(set(stopped)) == 6
    assert some("c.db", 6) == straight


def test_a_loss_that_is_no_number_is_a_failed_trial() -> None:
    def breaks(drawn, report):
        raise ArithmeticError if drawn["x"] < 0.5 else Pruned

    study = open_study(None, 0)
    trials = search(study, 8, lambda each: {"x": each.suggest_float("x", 0, 1)}, breaks)
    assert {each.state for each in trials} == {"diverged", "given up"} and len(finished(study)) == 8


@pytest.mark.slow
def test_tune_writes_options_that_train_takes(tmp_path: Path) -> None:
    run = rc.tune("digits", **QUICK, out=tmp_path / "tune")
    assert len(run.tuning.trials) >= 3 and (tmp_path / "tune" / "study.db").exists()
    best = tomllib.loads((tmp_path / "tune" / "best.toml").read_text())
    chosen = next(each for each in run.tuning.trials if each.number == run.tuning.best)
    assert best["learning_rate"] == chosen.options["learning_rate"] and best["data"] == "digits"
    page = run.page.read_text()
    assert "Search" in page and "best.toml" in page and "None" not in page and "nan" not in page
    done = subprocess.run(
        [sys.executable, "-m", "robustcv.cli", "train", "--config", str(tmp_path / "tune" / "best.toml"), "-q", "-o",
         str(tmp_path / "train")], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from robustcv import runs

    made = runs.load(tmp_path / "train").training
    assert made.objective == chosen.options["objective"] and len([e for e in made.epochs if e.epoch]) == 2
    assert made.options["learning_rate"] == chosen.options["learning_rate"]


@pytest.mark.slow
def test_two_processes_work_on_one_study(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    command = [sys.executable, "-m", "robustcv.cli", "tune", "--data", "digits", "--trials", "4", "--epochs", "1",
               "--storage", storage, "-q"]  # fmt: skip
    working = [subprocess.Popen([*command, "-o", str(tmp_path / str(k))], stderr=subprocess.PIPE) for k in range(2)]
    said = [each.communicate(timeout=300)[1] for each in working]
    assert [each.returncode for each in working] == [0, 0], said
    done = finished(open_study(storage, 0))
    assert 4 <= len(done) <= 5 and len({each.options["learning_rate"] for each in done}) == len(done)


def test_mistakes_are_told_before_any_work() -> None:
    for changed, message in (
        ({"objective": ["standard", "pgd"]}, "objective called 'pgd'"),
        ({"trials": 0}, "below 1"),
        ({"storage": "nowhere://x"}, "cannot be opened"),
    ):
        with pytest.raises(UserError, match=message):
            rc.tune("digits", **{**QUICK, **changed})


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    open_study(storage, 0, identity="digits")
    open_study(storage, 0, identity="digits")
    with pytest.raises(UserError, match="searches for something else"):
        open_study(storage, 0, identity="shapes")


@pytest.mark.slow
def test_mixed_objectives_are_judged_by_one_attack_and_more_trials_can_follow(tmp_path: Path) -> None:
    common = {"epochs": 1, "objective": ["standard", "pgd-at"], "steps": 1, "quiet": True, "out": tmp_path / "tune"}
    rc.tune("digits", trials=2, **common)
    run = rc.tune("digits", trials=4, resume=True, **common)
    assert len(run.tuning.trials) == 4
    assert all(each.robust is not None for each in run.tuning.trials if each.state == "finished")

"""Other forms of the report: for pull requests, test runners, model hubs and spreadsheets; hostile names included."""

import csv
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_cli import call
from test_report import HOSTILE, make_record

import robustcv as rc
from robustcv import records, report, runs
from robustcv.report.formats import FORMATS
from robustcv.report.formats.tables import _cell

GATES = tuple(
    records.Gate(name=f"clean_accuracy{k}", metric="clean_accuracy", threshold=0.5, outcome=outcome, value=0.5, low=0.4,
                 high=0.6)
    for k, outcome in enumerate(("passed", "failed", "across"))
)  # fmt: skip
CHECKS = (
    records.Check(check="logits", status="pass", figure="fine"),
    records.Check(check="zero gradient", status="raised", figure="3 of 6", fix="look"),
    records.Check(check="noise wins", status="not run", figure="no image stands"),
)


def record_with(names=("a", "b"), **more) -> records.Record:
    return make_record(1000, names, 900, 314).model_copy(update={"gates": GATES, "preflight": CHECKS, **more})


def test_junit_has_a_case_for_each_gate_and_check() -> None:
    suite = ElementTree.fromstring(FORMATS["junit"](record_with(verdict="FAIL", exit_code=3), {})["junit.xml"])
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("6", "1", "3")
    failed = next(case for case in suite.iter("testcase") if case.find("failure") is not None)
    assert "clean_accuracy1: at least 0.5" in failed.get("name")
    assert "0.4000 to 0.6000" in failed.find("failure").get("message")
    assert [each.get("value") for each in suite.iter("property")][:2] == ["FAIL", "3"]


def test_the_summary_says_what_the_first_screen_says(audited: Path) -> None:
    record, files = runs.load(audited), runs.load_files(audited)
    text = FORMATS["md"](record, files)["summary.md"].decode()
    clean = record.metric("clean_accuracy")
    assert "NO GATE" in text and f"{100 * clean.count / clean.n:.0f} %" in text and "What this does not show" in text


def test_the_card_is_yaml_with_a_model_index(audited: Path) -> None:
    yaml = pytest.importorskip("yaml")
    text = FORMATS["card"](runs.load(audited), runs.load_files(audited))["model_card.md"].decode()
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    metrics = head["model-index"][0]["results"][0]["metrics"]
    robust = next(each for each in metrics if each["name"].startswith("Robust accuracy (L-inf 16/255, worst of fgsm"))
    assert 0 <= robust["args"]["ci_low"] <= robust["value"] <= robust["args"]["ci_high"] and robust["args"]["n"] == 60
    assert "[More Information Needed]" in body and "SHA-256" in body


def test_the_tables_hold_the_raw_numbers(audited: Path) -> None:
    record = runs.load(audited)
    written = FORMATS["csv"](record, {})
    rows = list(csv.DictReader(io.StringIO(written["csv/metrics.csv"].decode())))
    assert [row["name"] for row in rows] == [metric.name for metric in record.metrics]
    assert [int(row["count"]) for row in rows if row["count"]] == [
        m.count for m in record.metrics if m.count is not None
    ]
    assert [float(row["low"]) for row in rows if row["low"]] == [m.low for m in record.metrics if m.low is not None]
    assert {"csv/attacks.csv", "csv/classes.csv", "csv/calibration.csv"} <= written.keys()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_break_no_form(name: str) -> None:
    model = records.Model(source=name, architecture=name, parameters=1, sha256="0")
    record = record_with((name, "b"), model=model)
    written = {place: data for form in FORMATS.values() for place, data in form(record, {}).items()}
    ElementTree.fromstring(written["junit.xml"])
    for place, data in written.items():
        text = data.decode()
        assert not any(ord(each) < 32 and each != "\n" for each in text), place
        assert not any(each in text for each in "\u202e\u2066\u200f"), place
    assert "<script" not in written["summary.md"].decode().replace("\\<", "")
    rows = list(csv.reader(io.StringIO(written["csv/classes.csv"].decode())))
    assert not rows[1][0].startswith(("=", "+", "-", "@")) and len(rows) == 3


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "'x"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert _cell(text).startswith("'") and _cell(-1.5) == -1.5 and _cell(None) == ""


def test_forms_are_written_by_audit_and_by_report(capsys, audited: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(rc.UserError, match=rf"known: {', '.join(sorted(['html', *FORMATS]))}"):
        rc.audit("nowhere", "digits", format=["pdf"])
    run = rc.audit(str(trained), "digits", n=30, effort="quick", sweep=False, explain=(), cases=2, quiet=True,
                   fail_under=["clean_accuracy=0.1"], format=["junit", "md"], out=tmp_path / "run")  # fmt: skip
    suite = ElementTree.fromstring((tmp_path / "run/junit.xml").read_bytes())
    assert int(suite.get("tests")) == 1 + len(run.checks) and (tmp_path / "run/summary.md").exists()
    code, printed, _ = call(capsys, "report", str(tmp_path / "run"), "--format", "html,card,csv")
    assert code == 0 and printed.splitlines()[:2] == [
        str(tmp_path / "run" / n) for n in ("report.html", "model_card.md")
    ]
    assert call(capsys, "report", str(tmp_path / "run"), "--format", "pdf")[0] == 2


def test_every_form_of_every_verb_can_be_written(audited: Path, trained: Path) -> None:
    for folder in (audited, trained):
        assert all(FORMATS[name](runs.load(folder), runs.load_files(folder)) for name in FORMATS)
    compared = rc.compare(audited, audited)
    assert "csv/paired.csv" in FORMATS["csv"](compared.record, {}) and report.FORMATS is FORMATS


def test_several_seeds_tell_their_spread(trained: Path, tmp_path: Path) -> None:
    common = {"n": 60, "eps": "16/255", "sweep": False, "attacks": ["pgd"], "set": ["pgd.steps=3"], "explain": (),
              "cases": 2, "quiet": True}  # fmt: skip
    run = rc.audit(str(trained), "digits", seeds=3, out=tmp_path / "run", **common)
    alone = rc.audit(str(trained), "digits", seed=0, **common)
    robust = run.record.metric("robust_accuracy", attack=None)
    fell = sum(each.broken for each in alone.attacks if each.reason == "plan")  # probes may break more
    assert [each.seed for each in run.seeds] == [0, 1, 2]
    assert run.seeds[0].count == alone.metric("clean_accuracy").count - fell
    assert robust.count <= min(each.count for each in run.seeds) and "images apart" in run.page.read_text()
    assert {each.reason for each in run.attacks} >= {"plan", "seed"} and json.loads(
        (tmp_path / "run/report.json").read_text())["seeds"][2]["n"] == 60  # fmt: skip

"""The run folder: nothing half-written, nothing overwritten, nothing guessed."""

import hashlib
import json
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

import robustcv as rc
from robustcv import runs
from robustcv.errors import UserError
from robustcv.records import Record


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.json"
    runs.write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        runs.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_record_survives_json_and_fits_its_schema(audited: Path) -> None:
    record = runs.load(audited)
    assert runs.to_json(record) == (audited / "report.json").read_bytes()
    schema = Record.model_json_schema()
    jsonschema.Draft202012Validator(schema).validate(json.loads(runs.to_json(record)))


def test_the_promised_fields_are_in_the_json(audited: Path) -> None:
    raw = json.loads((audited / "report.json").read_text())
    assert raw["format"] == 1 and raw["verb"] == "audit" and raw["verdict"] == "NO GATE" and raw["exit_code"] == 0
    clean = raw["metrics"][0]
    assert clean["name"] == "clean_accuracy" and clean["method"] == "wilson" and clean["n"] == 60
    robust = next(m for m in raw["metrics"] if m["name"] == "robust_accuracy")
    assert {"norm", "eps", "bound", "count", "n", "low", "high", "level"} <= robust.keys() and robust[
        "bound"
    ] == "upper"
    wanted = {"name", "options", "norm", "eps", "attempted", "broken", "forward", "backward", "seconds"}
    assert all(wanted <= attack.keys() for attack in raw["attacks"])
    spent = sum(each["forward"] for each in (*raw["attacks"], *raw["preflight"], *raw["flags"]))
    replayed = raw["evidence"]["failures"]  # each at least once, alone
    assert spent + 60 + replayed <= raw["passes"]["forward"] <= spent + 60 + 100 * replayed
    assert {"preflight", "flags", "explanations", "cases", "environment", "options"} <= raw.keys()
    assert not any("%" in str(metric.values()) for metric in raw["metrics"])


def test_an_unknown_format_is_refused(audited: Path, tmp_path: Path) -> None:
    raw = json.loads((audited / "report.json").read_text()) | {"format": 2}
    (tmp_path / "report.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="has format 2; this robustcv reads format 1"):
        runs.load(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        runs.load(tmp_path)
    with pytest.raises(UserError, match=r"holds no report\.json"):
        runs.load(tmp_path / "nowhere")


def test_a_run_never_overwrites_another(audited: Path) -> None:
    with pytest.raises(UserError, match="is not empty"):
        rc.audit("x", "digits", out=audited)


def test_the_hashes_of_the_evidence_are_those_of_its_files(audited: Path) -> None:
    lines = (audited / "evidence/SHA256SUMS").read_text().splitlines()
    files = {str(p.relative_to(audited / "evidence")) for p in (audited / "evidence").rglob("*")} - {"SHA256SUMS"}
    assert {line.split("  ")[1] for line in lines} == files
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((audited / "evidence" / name).read_bytes()).hexdigest() == digest


def test_the_saved_adversarials_fool_the_saved_model_when_read_back(trained: Path, audited: Path) -> None:
    """A sceptic's replay: weights, images and verdicts from disk, nothing else."""
    from PIL import Image

    record, classifier = runs.load(audited), rc.load_classifier(str(trained)).eval()
    exact = runs.unpack_arrays((audited / "evidence/cases.safetensors").read_bytes())
    broken = 0
    for number, case in enumerate(record.cases):
        if case.attack is None:
            continue
        clean = torch.from_numpy(exact[f"{number:03d}-clean"].copy())
        attacked = torch.from_numpy(exact[f"{number:03d}-adversarial"].copy())
        assert float((attacked - clean).abs().max()) == pytest.approx(case.linf, abs=1e-7)
        assert case.linf <= case.eps + 1e-6 and 0 <= attacked.min() and attacked.max() <= 1
        with torch.no_grad():
            assert int(classifier(attacked[None]).argmax()) == case.adversarial_prediction
        if case.outcome == "broken":
            broken += 1
            assert case.adversarial_prediction != case.label
            png = np.array(Image.open(audited / case.files["adversarial"]).convert("RGB"))
            pixels = torch.from_numpy(png).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                assert (int(classifier(pixels).argmax()) != case.label) == case.exact_8bit
    assert broken >= 3
    lines = [json.loads(line) for line in (audited / "cases.jsonl").read_text().splitlines()]
    clean = record.metric("clean_accuracy").count
    largest = max(metric.eps for metric in record.metrics if metric.eps)
    assert len(lines) == clean - record.metric("robust_accuracy", eps=largest, attack=None).count
    assert all(line["distance"] <= line["eps"] + 1e-6 for line in lines)


def test_state_is_forgotten_when_the_run_is_finished(audited: Path) -> None:
    assert sorted(p.name for p in (audited / "state").iterdir()) == ["fingerprint", "inputs", "owner"]


def test_resuming_with_other_options_is_refused(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    runs.open_folder(out, resume=False, fingerprint="another run").save("training.pt", b"half done")
    with pytest.raises(UserError, match="was made with other options"):
        rc.audit(str(trained), "digits", n=20, out=out, resume=True, quiet=True)


def test_toml_that_is_written_can_be_read() -> None:
    import tomllib

    options = {"eps": ["8/255"], "n": 5, "sweep": True, "x": None, "s": 'a"b', "set": {"pgd": {"steps": 3}}}
    with runs.telling_origins({"n": "command line"}):
        text = runs.to_toml(options, runs.origins_of(options, ["s"])).decode()
    assert tomllib.loads(text) == {"eps": ["8/255"], "n": 5, "sweep": True, "s": 'a"b', "set": ["pgd.steps=3"]}
    assert "n = 5  # command line" in text and "# x: not set" in text
    assert 'b"  # given' in text and "sweep = true  # default" in text

"""Attacks compared on the same images, and what attacks do to calibration: against exact sets and a slow recount."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from conftest import make_linear
from PIL import Image
from test_reliability import EPS, SHAPE, labelled
from test_worst_case import job_for

import robustcv as rc
from robustcv import models, records, runs
from robustcv.attacks import ATTACKS
from robustcv.classifier import frozen
from robustcv.evaluation.accuracy import expected_calibration_error
from robustcv.evaluation.agreement import agreement
from robustcv.evaluation.job import Planned
from robustcv.evaluation.plans import plan_for
from robustcv.evaluation.worst_case import worst_case


def test_attacks_that_are_exact_on_a_linear_model_break_the_same_images() -> None:
    """FGSM and APGD find the worst case of a binary linear model; half a step breaks a part of it, noise less."""
    model = make_linear(2, SHAPE, seed=4, dtype=torch.float32)
    images = labelled(model, 80, classes=2)
    weak = Planned("pgd", ATTACKS["pgd"], {"steps": 1, "step_size": EPS / 2, "random_start": False})
    plan = [Planned("fgsm", ATTACKS["fgsm"], {}), Planned("apgd", ATTACKS["apgd"], {"steps": 10}, 0.9), weak]
    with frozen(model):
        job = job_for(model, images)
        outcome, table = agreement(job, plan, worst_case(job, plan[:1], eps=EPS), 50)
    weights, bias = (model.weights[1] - model.weights[0]).detach(), (model.bias[1] - model.bias[0]).detach()
    gap = (images.images.flatten(1) @ weights.flatten() + bias).abs()
    clipped = images.images.flatten(1)
    way = torch.where(images.labels == 1, -1.0, 1.0)[:, None] * weights.flatten().sign()
    fell = gap <= ((clipped + EPS * way).clamp(0, 1) - clipped).mul(weights.flatten()).sum(1).abs()
    assert not torch.logical_xor(fell, ~outcome.robust(EPS)).any()
    counts = np.array(table.both)
    assert table.n == 50 and table.attacks == ("fgsm", "apgd", "pgd") and 0 < counts[0, 0] < 50
    assert (counts[:2, :2] == counts[0, 0]).all()  # apgd too, although its turn comes only near the border
    assert 0 < counts[2, 2] < counts[0, 0] and (counts[2] == counts[2, 2]).all() and (counts == counts.T).all()
    assert table.only == (0, 0, 0)


def test_what_one_attack_alone_breaks_is_counted_and_is_broken() -> None:
    model = make_linear(10, SHAPE, seed=3, dtype=torch.float32)
    images = labelled(model, 60)
    weak = Planned("pgd", ATTACKS["pgd"], {"steps": 1, "step_size": EPS / 8, "random_start": False})
    strong = Planned("apgd-t", ATTACKS["apgd-t"], {"steps": 20, "classes": 9}, 1.0)
    with frozen(model):
        job = job_for(model, images)
        before = worst_case(job, [weak], eps=EPS)
        outcome, table = agreement(job, [weak, strong], before, 1000)
    assert table.n == 60 and table.only[0] == 0 and table.only[1] == table.both[1][1] - table.both[0][0] > 0
    assert int((~outcome.robust(EPS)).sum()) == table.both[1][1] > int((~before.robust(EPS)).sum())
    assert agreement(job, [weak], before, 0) == (before, None)


def test_the_same_attack_twice_has_two_names_and_a_page(trained, tmp_path) -> None:
    options = {"n": 10, "eps": "16/255", "sweep": False, "effort": "thorough", "cases": 2, "explain": (), "quiet": True}
    run = rc.audit(str(trained), "digits", **options, agreement=6, out=tmp_path / "a")
    table = run.record.agreement
    assert (
        len(set(table.attacks)) == len(table.attacks) == len(plan_for("thorough", "linf"))
        and "apgd (3)" in table.attacks
    )
    assert "Do the attacks agree?" in run.page.read_text()
    once = rc.audit(str(trained), "digits", **options)
    assert once.record.agreement is None and once.record.metrics == run.record.metrics


def test_calibration_under_attack_is_that_of_the_evidence(trained, tmp_path) -> None:
    """Each attacked image is read back from its file and asked again, alone."""
    run = rc.audit(str(trained), "digits", n=120, eps="16/255", cases=0, explain=(), quiet=True, out=tmp_path / "a")
    model = models.load(str(trained)).classifier.eval()
    verdicts = runs.unpack_arrays((tmp_path / "a/evidence/verdicts.safetensors").read_bytes())
    sure, right = verdicts["confidence"].astype(float).copy(), verdicts["correct"].copy()
    place = {int(index): row for row, index in enumerate(verdicts["index"])}
    archive = zipfile.ZipFile(tmp_path / "a/evidence/broken.zip")
    kept = tmp_path / "a/evidence/broken.safetensors"  # of those that no 8-bit image shows
    floats = runs.unpack_arrays(kept.read_bytes()) if kept.exists() else {}
    fell = 0
    for line in map(json.loads, (tmp_path / "a/cases.jsonl").read_text().splitlines()):
        if line["eps"] <= 16 / 255 + 1e-9:
            name = f"{line['evidence']}-adversarial"
            if line["form"] == "png":
                read = np.array(Image.open(io.BytesIO(archive.read(f"{name}.png"))).convert("RGB"))
                attacked = torch.from_numpy(read).permute(2, 0, 1) / 255
            else:
                attacked = torch.from_numpy(floats[name])
            with torch.no_grad():
                logits = model(attacked[None])[0]
            row = place[line["index"]]
            sure[row], right[row] = float(logits.double().softmax(0).max()), False
            fell += 1
    assert fell > 10 and run.record.evidence.only_float == len(floats) <= 3
    metric = run.record.metric("calibration_error_attacked")
    assert metric.eps == pytest.approx(16 / 255) and metric.low <= metric.value <= metric.high
    assert metric.value == pytest.approx(expected_calibration_error(sure, right.astype(float)), abs=1e-6)
    assert sum(each.n for each in run.record.calibration_attacked) == 120
    assert sum(each.correct for each in run.record.calibration_attacked) == int(right.sum())


def test_what_an_attack_without_gradients_alone_breaks_is_marked() -> None:
    from robustcv.report.sections.agreement import _row

    found = records.Agreement(
        attacks=("pgd", "square"), norm="linf", eps=0.03, n=50, both=((20, 15), (15, 18)), only=(5, 3)
    )
    assert "masked gradients" in _row(found, 1)[-1].note and _row(found, 0)[-1].note == ""
    assert _row(found, 1)[-1].background and not _row(found, 0)[-1].background


def test_what_only_one_attack_breaks_is_drawn_as_bars() -> None:
    from test_report import make_record

    from robustcv.report.sections import SECTIONS

    found = records.Agreement(
        attacks=("pgd", "square"), norm="linf", eps=0.03, n=50, both=((20, 15), (15, 18)), only=(5, 3)
    )
    record = make_record(100, ("a", "b"), 90, 40).model_copy(update={"agreement": found})
    _, chart = SECTIONS["agreement"](record, {}).blocks
    widths = [float(width) for width in re.findall(r'd="M0,[\d.]+h([\d.]+)v14h', chart.svg)]
    assert len(widths) == 2 and widths[0] / widths[1] == pytest.approx(5 / 3, rel=1e-3)
    none = record.model_copy(update={"agreement": found.model_copy(update={"only": (0, 0)})})
    assert len(SECTIONS["agreement"](none, {}).blocks) == 1

"""ONNX: what is written answers as the model does, and what is read is attacked as the black box it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_linear

import robustcv as rc
from robustcv.errors import UserError
from robustcv.evaluation.cost import cost
from robustcv.models import build, onnx_file


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "train"
    run = rc.train("digits", epochs=3, export=["onnx"], out=folder, quiet=True)
    (check,) = run.record.preflight
    assert check.check == "onnx export" and check.status == "pass"
    return folder


def test_the_file_answers_as_the_model_does_for_any_batch(exported: Path) -> None:
    model, file = rc.load_classifier(str(exported)), rc.load_classifier(f"onnx:{exported / 'model.onnx'}")
    for n in (1, 3, 70):
        images = torch.rand(n, 3, 32, 32)
        with torch.no_grad():
            expected = model(images)
        assert float((file(images) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    images = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    (logits,) = session.run(None, {"images": images})  # as a stranger would use it
    with torch.no_grad():
        assert np.allclose(logits, model(torch.from_numpy(images)).numpy(), atol=1e-4)


def test_an_audit_attacks_it_without_gradients_and_says_so(exported: Path, tmp_path: Path) -> None:
    common = {"images": "digits", "n": 40, "eps": "32/255", "sweep": False, "cases": 4, "quiet": True}
    box = rc.audit(f"onnx:{exported / 'model.onnx'}", **common, out=tmp_path / "box")
    white = rc.audit(str(exported), **common, explain=())
    assert {attack.name for attack in box.attacks} == {"square"} and box.passes.backward == 0
    robust = [run.record.metric("robust_accuracy", attack=None).count for run in (white, box)]
    assert robust[0] <= robust[1] < box.record.metric("clean_accuracy").count  # some, no more than gradients do
    (check,) = [each for each in box.record.preflight if each.check == "usable gradients"]
    assert check.status == "raised" and "black box" in check.figure
    assert "black box" in box.page.read_text() and "None" not in box.page.read_text()
    assert {each.method for each in box.explanations} == {"shapley"}
    gated = rc.audit(f"onnx:{exported / 'model.onnx'}", **common, fail_under={"clean_accuracy": 0.1}, explain=())
    assert gated.verdict == "INCONCLUSIVE"


def test_what_a_black_box_cannot_do_is_refused(exported: Path, tmp_path: Path) -> None:
    box = f"onnx:{exported / 'model.onnx'}"
    with pytest.raises(UserError, match="gradient_shap needs gradients"):
        rc.explain(box, "digits", method="gradient_shap", n=2, quiet=True)
    with pytest.raises(UserError, match="no attack without gradients knows the norm l0"):
        rc.audit(box, "digits", norm="l0", eps=1, n=4, quiet=True)
    for options, message in (
        ({"attacks": ["pgd"]}, "pgd needs gradients"),
        ({"also": ["patch"]}, "patch needs gradients"),
        ({"compile": True}, "--compile needs gradients"),
        ({"precision": "bf16"}, "--precision bf16 needs gradients"),
        ({"set": ["apgd.steps=5"]}, "apgd does not run here"),
    ):
        with pytest.raises(UserError, match=message):
            rc.audit(box, "digits", n=4, quiet=True, **options)
    few = rc.audit(box, "digits", n=4, sweep=False, explain=(), set=["square.queries=5"], quiet=True)
    assert few.attacks[0].options == {"queries": 5}
    with pytest.raises(UserError, match="hardening moves its weights"):
        rc.harden(box, "digits", quiet=True)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    for spec, message in ((tmp_path / "bad.onnx", "cannot be read as an ONNX"), ("nowhere.onnx", "does not exist")):
        with pytest.raises(UserError, match=message):
            rc.load_classifier(f"onnx:{spec}")
    with pytest.raises(UserError, match="form of export"):
        rc.train("digits", export=["onxx"], quiet=True)


def test_a_file_for_batches_of_one_size_is_fed_in_such_batches(tmp_path: Path) -> None:
    linear = make_linear(3, (3, 6, 5), dtype=torch.float32).eval()
    torch.onnx.export(linear, (torch.rand(4, 3, 6, 5),), tmp_path / "four.onnx", dynamo=True, verbose=False)
    images = torch.rand(10, 3, 6, 5)
    assert torch.allclose(onnx_file.read(str(tmp_path / "four.onnx"))(images), linear(images), atol=1e-4)


def test_the_cost_is_counted_as_by_hand() -> None:
    classifier = build("small_cnn", classes=10, size=32).eval()
    found = cost(classifier, torch.rand(3, 32, 32))
    by_hand = 2 * (30 * 30 * 32 * 27 + 13 * 13 * 64 * 288 + 4 * 4 * 64 * 576 + 1024 * 64 + 64 * 10)
    assert found.flops == by_hand
    assert found.weight_bytes == 4 * (122_570 + 6)
    assert [each.batch for each in found.latencies] == [1, 64]
    assert all(0 < each.p50 <= each.p95 and each.runs >= 5 for each in found.latencies)

"""The verbs from Python: the same numbers from every kind of input, and nothing left behind."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import robustcv as rc
from robustcv import draws, options, runs
from robustcv.attacks.corruptions import CORRUPTIONS
from robustcv.errors import UserError

QUICK = {"n": 40, "eps": "16/255", "sweep": False, "explain": (), "cases": 0, "quiet": True}


def test_importing_costs_no_torch_and_every_public_name_is_there() -> None:
    code = (
        "import sys, robustcv as rc, robustcv.report, robustcv.cli; assert 'torch' not in sys.modules;"
        "[getattr(rc, name) for name in rc.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rc.nothing
    assert set(rc.__all__) <= set(dir(rc))


def test_a_spec_a_module_a_tensor_and_a_loader_give_the_same_numbers(trained: Path) -> None:
    model = rc.load_classifier(str(trained))
    images = rc.load_images("digits", n=40)
    pixels = images.images.float() / 255
    every = [
        rc.audit(str(trained), "digits", **QUICK),
        rc.audit(model.eval(), images, **QUICK),
        rc.audit(model, pixels, images.labels, **QUICK),
        rc.audit(model, DataLoader(TensorDataset(pixels, images.labels), 16), **QUICK),
    ]
    for run in every[1:]:
        assert run.data.sha256 == every[0].data.sha256
        assert [m.count for m in run.metrics] == [m.count for m in every[0].metrics]
    assert every[0].folder is None and every[0].page is None
    assert every[0].passes.forward > 40


def test_counts_may_be_numpys() -> None:
    """Users read them off arrays; what is kept of them must be JSON. (Tests check types, so no verb is called.)"""
    given = {"n": np.int64(20), "minutes": np.float32(0.5), "eps": (np.float64(0.25), 1), "sweep": True,
             "set": {"pgd": {"steps": np.int64(5), "labels": [np.int64(1)]}}}  # fmt: skip
    options.require_counts(given)
    assert json.dumps(options.options_of(given)) == (
        '{"n": 20, "minutes": 0.5, "eps": [0.25, 1], "sweep": true, "set": {"pgd": {"steps": 5, "labels": [1]}}}'
    )
    with pytest.raises(UserError, match="no whole number"):
        options.require_counts({"n": np.float64(2)})


def test_an_audit_leaves_the_module_as_it_was_found(trained: Path) -> None:
    model = rc.load_classifier(str(trained)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    images = rc.load_images("digits", n=20)
    run = rc.audit(model, images, eps=0.05, sweep=False, cases=2, quiet=True)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert next(check for check in run.preflight if check.check == "eval mode").status == "raised"
    assert run.verdict == "INCONCLUSIVE" and run.exit_code == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_record_but_for_time(trained: Path) -> None:
    def stable(run) -> dict:
        raw = json.loads(runs.to_json(run.record))
        raw.pop("environment")
        raw["cost"].pop("latencies")
        for part in [*raw["attacks"], *raw["explanations"]]:
            part.pop("seconds")
        return raw

    options = {**QUICK, "cases": 4, "explain": ("integrated_gradients", "gradient_shap")}
    first, second = (rc.audit(str(trained), "digits", **options) for _ in range(2))
    assert stable(first) == stable(second)
    assert first.files.keys() == second.files.keys()
    assert all(first.files[name] == second.files[name] for name in first.files)
    other = rc.audit(str(trained), "digits", **options, seed=1)
    assert other.data.sha256 != first.data.sha256


def test_l2_and_method_options_are_passed_on(trained: Path) -> None:
    run = rc.audit(
        str(trained),
        "digits",
        **{**QUICK, "eps": 0.5},
        norm="l2",
        attacks=("pgd",),
        set={"pgd": {"steps": 3, "restarts": 2}},
    )
    assert {attack.norm for attack in run.attacks} == {"l2"}
    pgd = next(attack for attack in run.attacks if attack.name == "pgd")
    assert pgd.options == {"steps": 3, "restarts": 2} and pgd.max_distance <= 0.5 + 1e-6
    assert pgd.backward <= 6 * pgd.attempted
    run = rc.audit(
        str(trained), "digits", **QUICK, attacks=("pgd",), set=["pgd.random_start=False", "pgd.step_size=2/255"]
    )
    assert next(a for a in run.attacks if a.name == "pgd").options == {"random_start": False, "step_size": 2 / 255}


def test_options_of_an_attack_that_does_not_run_are_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="square does not run"):
        rc.audit(str(trained), "digits", **QUICK, set={"square": {"queries": 10}})


def test_effort_chooses_the_attacks_and_an_attack_that_lacks_the_norm_is_refused(trained: Path) -> None:
    run = rc.audit(str(trained), "digits", **QUICK, effort="quick")
    assert [each.name for each in run.attacks if each.reason == "plan"] == ["fgsm", "apgd"]
    with pytest.raises(UserError, match="did you mean 'thorough'"):
        rc.audit(str(trained), "digits", **QUICK, effort="through")
    with pytest.raises(UserError, match="ddn does not know the norm linf"):
        rc.audit(str(trained), "digits", **QUICK, attacks=("ddn",))
    assert {flag.check for flag in run.flags} >= {"zero gradient", "gradient agreement", "black box wins"}


@pytest.mark.slow
def test_l0_and_l1_are_audited(trained: Path) -> None:
    for norm, eps in (("l0", 6), ("l1", 4.0)):
        run = rc.audit(str(trained), "digits", **{**QUICK, "eps": eps}, norm=norm)
        assert run.metric("robust_accuracy", eps=eps).norm == norm
    with pytest.raises(UserError, match=r"eps 2\.5 is outside what L0 allows"):
        rc.audit(str(trained), "digits", **{**QUICK, "eps": 2.5}, norm="l0")


@pytest.mark.slow
def test_runs_of_other_threat_models_or_attacks_are_not_compared(trained: Path, tmp_path: Path) -> None:
    common = {**QUICK, "n": 20}
    for name, more in {"a": {}, "norm": {"norm": "l2"}, "eps": {"eps": "8/255"}, "quick": {"effort": "quick"}}.items():
        rc.audit(str(trained), "digits", **{**common, **more}, out=tmp_path / name)
    for other in ("norm", "eps"):
        with pytest.raises(UserError, match="different threat models"):
            rc.compare(tmp_path / "a", tmp_path / other, force=True)
    with pytest.raises(UserError, match="attacked in different ways"):
        rc.compare(tmp_path / "a", tmp_path / "quick")
    forced = rc.compare(tmp_path / "a", tmp_path / "quick", force=True).comparison
    assert forced.forced and forced.differs == ("attacks",)


def test_a_finished_run_is_not_handed_out_for_another_model(trained: Path, tmp_path: Path) -> None:
    model = rc.load_classifier(str(trained))
    images = rc.load_images("digits", n=40)
    first = rc.audit(model, images, **{**QUICK, "n": None}, effort="quick", out=tmp_path / "run")
    again = rc.audit(model, images, **{**QUICK, "n": None}, effort="quick", out=tmp_path / "run", resume=True)
    assert again.metrics == first.metrics
    with torch.no_grad():
        next(model.parameters()).mul_(-1)
    with pytest.raises(UserError, match="finished run of another model"):
        rc.audit(model, images, **{**QUICK, "n": None}, effort="quick", out=tmp_path / "run", resume=True)


def test_a_run_can_be_saved_later_and_shown_in_a_notebook(trained: Path, tmp_path: Path) -> None:
    run = rc.audit(str(trained), "digits", **{**QUICK, "cases": 2})
    page = run.save(tmp_path / "later")
    assert page.read_text().startswith("<!doctype html>")
    shown = run._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and 'sandbox="allow-scripts allow-downloads"' in shown
    with pytest.raises(AttributeError):
        _ = run.nothing


def test_explain_shows_every_method_with_its_gap(trained: Path, tmp_path: Path) -> None:
    run = rc.explain(str(trained), "digits", n=4, out=tmp_path / "explain", quiet=True)
    assert [result.method for result in run.explanations] == ["integrated_gradients", "gradient_shap", "shapley"]
    assert all(result.median_error is not None for result in run.explanations)
    assert all(len(case.heatmaps) == 3 and case.heatmaps[0].target == case.prediction for case in run.cases)


def test_explain_takes_targets_and_needs_no_labels(trained: Path) -> None:
    model, images = rc.load_classifier(str(trained)), rc.load_images("digits", n=5)
    pixels, _ = next(images.batches(5))
    run = rc.explain(model, pixels, 3, method="integrated_gradients", quiet=True)
    assert [case.heatmaps[0].target for case in run.cases] == [3] * 5 and run.metrics == ()
    assert all(case.label is None for case in run.cases)
    run = rc.explain(model, pixels, [0, 1, 2, 3, 4], method=["integrated_gradients"], n=None, quiet=True)
    assert sorted(case.heatmaps[0].target for case in run.cases) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="2 targets for 5 images"):
        rc.explain(model, pixels, [0, 1], quiet=True)


def test_a_sample_need_not_hold_every_class(trained: Path) -> None:
    model, images = rc.load_classifier(str(trained)), rc.load_images("digits")
    rows = (images.labels < 3).nonzero().squeeze(1)[:20]
    pixels, labels = next(images.take(rows).batches(20))
    run = rc.audit(model, pixels, labels, eps=0.05, sweep=False, explain=(), cases=0, quiet=True)
    assert len(run.classes) == 10 and run.classes[9].n == 0


def test_resuming_a_finished_run_gives_it_back_only_for_the_same_options(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = rc.audit(str(trained), "digits", **QUICK, out=out)
    again = rc.audit(str(trained), "digits", **QUICK, out=out, resume=True)
    assert again.record == first.record
    with pytest.raises(UserError, match="was made with other options"):
        rc.audit(str(trained), "digits", **{**QUICK, "eps": "1/255"}, out=out, resume=True)


def test_a_mistake_does_not_use_up_the_folder(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no attack called"):
        rc.audit(str(trained), "digits", **{**QUICK, "attacks": ["pdg"]}, out=tmp_path / "run")
    assert rc.audit(str(trained), "digits", **QUICK, out=tmp_path / "run").verdict == "NO GATE"


def test_two_eps_that_look_alike_keep_their_own_state(trained: Path, tmp_path: Path) -> None:
    options = {**QUICK, "eps": ["8/255", "0.0313725"]}
    written, memory = (rc.audit(str(trained), "digits", **options, out=out) for out in (tmp_path / "run", None))
    assert [m.count for m in written.metrics] == [m.count for m in memory.metrics]


def test_a_module_on_another_device_is_left_there(trained: Path) -> None:
    model = rc.load_classifier(str(trained))
    with pytest.raises(UserError, match=r"but device meta was asked for|cannot be used"):
        rc.audit(model, "digits", **{**QUICK, "device": "meta"})
    with pytest.raises(UserError, match="cannot be put into"):
        rc.audit(str(trained), "digits", **QUICK, weights="w.safetensors")


@pytest.mark.slow
def test_compare_pairs_image_by_image_and_refuses_other_images(trained: Path, audited: Path, tmp_path: Path) -> None:
    rc.audit(str(trained), "digits", n=60, eps=["16/255", "8/255"], cases=6, out=tmp_path / "same", quiet=True)
    same = rc.compare(audited, tmp_path / "same")
    for pair in same.comparison.paired:
        assert pair.only_a == pair.only_b == 0 and pair.difference == 0 and pair.p_value == 1
    rc.audit(
        str(trained), "digits", n=50, eps="16/255", seed=1, cases=2, explain=(), out=tmp_path / "other", quiet=True
    )
    with pytest.raises(UserError, match="were made on different images"):
        rc.compare(audited, tmp_path / "other")
    forced = rc.compare(audited, tmp_path / "other", force=True, out=tmp_path / "forced")
    assert forced.comparison.forced and "of the images in common" in forced.page.read_text()
    with pytest.raises(UserError, match="is the run of `train`"):
        rc.compare(trained, audited)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": "8"}, "did you mean 8/255"),
        ({"eps": "x"}, "eps 'x' is not a number"),
        ({"eps": 0}, r"eps 0 is outside \(0, 1\]"),
        ({"norm": "l7"}, "no norm called 'l7'"),
        ({"attacks": ["pdg"]}, "no attack called 'pdg'"),
        ({"explain": ["lune"]}, "no explainer called 'lune'"),
        ({"set": ["pgd.stps=3"]}, "no option of pgd called 'stps'"),
        ({"set": ["pgd.steps=many"]}, "pgd.steps=many cannot be used"),
        ({"set": ["pgd.restarts=0"]}, "pgd.restarts=0 is not above 0"),
        ({"set": ["pgd.loss=marign"]}, "no loss of pgd called 'marign'"),
        ({"attacks": []}, "no attack was named"),
        ({"batch_size": 0}, "--batch-size 0 is below 1"),
        ({"set": ["pgd"]}, "cannot be read"),
        ({"set": ["pdg.steps=3"]}, "no method called 'pdg'"),
        ({"n": 100000}, "100000 images were asked for"),
        ({"fail_under": ["robust_accuracy=2"]}, "is not a share"),
        ({"device": "cuda:9"}, "cannot be used"),
        ({"split": "valid"}, "no split 'valid'"),
    ],
)
def test_a_users_mistake_is_answered_with_what_why_and_fix(trained: Path, change, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        rc.audit(str(trained), "digits", **{**QUICK, **change})
    assert len(str(caught.value).splitlines()) == 3 and caught.value.code.startswith("RCV-E")


def test_a_model_of_other_classes_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="the data has 6 classes"):
        rc.audit(str(trained), "shapes", **QUICK)


def test_harden_needs_images_and_the_same_classes(trained: Path) -> None:
    with pytest.raises(UserError, match="does not say which images"):
        rc.harden(rc.load_classifier(str(trained)), quiet=True)
    with pytest.raises(UserError, match="the images have other classes"):
        rc.harden(str(trained), "shapes", quiet=True)
    for key, value in (
        ("objective", "tradse"),
        ("mix", "mixop"),
        ("average", "em"),
        ("schedule", "step"),
        ("optimizer", "lion"),
    ):
        with pytest.raises(UserError, match=f"no {key} called '{value}'"):
            rc.harden(str(trained), **{key: value}, quiet=True)


def test_training_from_python_gives_the_classifier(tmp_path: Path) -> None:
    images = rc.load_images("digits", split="train", n=100)
    run = rc.train(images, epochs=1, augment=["none"], quiet=True)
    assert run.metrics == () and run.classifier is not None
    assert run.training.epochs[0].n == 90 and run.training.options["augment"] == []
    assert run.classifier(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(UserError, match="no augmentation called 'filp'"):
        rc.train(images, epochs=1, augment=["filp"], quiet=True)


@pytest.mark.slow
def test_gates_are_held_on_corruptions_and_on_the_point(trained: Path) -> None:
    options = {**QUICK, "n": 20, "effort": "quick", "also": ("corruptions",)}
    plain = rc.audit(str(trained), "digits", **options)
    clean, corrupted = plain.metric("clean_accuracy"), plain.metric("corruption_accuracy")
    bars = {"clean_accuracy": clean.count / clean.n, "corruption_accuracy": corrupted.value}  # within both intervals
    exact = {name: value - 1e-9 for name, value in bars.items()}
    assert rc.audit(str(trained), "digits", **options, fail_under=exact).verdict == "INCONCLUSIVE"
    held = rc.audit(str(trained), "digits", **options, fail_under=exact, gate_on="point")
    assert held.verdict == "PASS" and [gate.outcome for gate in held.gates] == ["passed", "passed"]
    above = {"corruption_accuracy": corrupted.value + 1e-6}
    assert rc.audit(str(trained), "digits", **options, fail_under=above, gate_on="point").exit_code == 3


class LightAnywhere(torch.nn.Module):
    """Takes an image for 0 or 2 by its first pixel; where a square of 3 is bright for 1, or for 3 instead of 2."""

    def forward(self, images):
        light = torch.nn.functional.max_pool2d(torch.nn.functional.avg_pool2d(images, 3, 1), 6).flatten(1).mean(1)
        corner = images[:, 0, 0, 0]
        bright = 10 * (light - 0.8)
        return torch.stack([0.5 - corner, bright, corner - 0.5, torch.where(corner > 0.8, 2 * bright, -9.0)], 1)


def test_a_patch_with_a_target_is_judged_by_whom_it_turns_into_that_target() -> None:
    from robustcv import runs
    from robustcv.data import ImageSet
    from robustcv.evaluation.accuracy import predict
    from robustcv.evaluation.beyond import patch_threat
    from robustcv.evaluation.job import Job

    pixels = torch.full((30, 1, 8, 8), 0.3)
    pixels[20:, :, 0, 0] = 0.9
    labels = (torch.arange(30) >= 20) * 2
    labels[:4] = 1  # wrong when clean: what becomes of them is no success
    images = ImageSet(pixels, labels, ("dark", "light", "corner", "both"))
    model, cpu = LightAnywhere().eval(), torch.device("cpu")
    job = Job(model, images, predict(model, images, batch_size=8, device=cpu), "linf", 0, 8, cpu, runs.State(None))
    options = {"target": 1, "size": 0.6, "steps": 30, "degrees": 0.0}
    threat, (accuracy, rate), patch = patch_threat(job, images, options)
    assert patch.mean() > 0.7
    assert (threat.attempted, threat.broken, threat.aimed) == (26, 26, 26) and accuracy.count == 0
    assert (threat.reached, threat.control_reached) == (16, 0)  # the others are taken for another wrong class
    assert (rate.name, rate.count, rate.n, rate.bound) == ("patch_target_rate", 16, 26, "lower")
    away, (only,), _ = patch_threat(job, images, {**options, "target": None})
    assert only.name == "patch_accuracy" and away.reached is None


@pytest.mark.slow
def test_other_threats_are_measured_beside_the_worst_case(trained: Path, tmp_path: Path) -> None:
    options = {**QUICK, "cases": 2, "set": {"patch": {"steps": 20, "size": 0.4}, "spatial": {"angles": 5, "places": 3}}}
    run = rc.audit(str(trained), "digits", **options, also=("corruptions", "spatial", "patch"), out=tmp_path / "run")
    assert len(run.corruptions) == 75 and {row.severity for row in run.corruptions} == {1, 2, 3, 4, 5}
    error = run.metric("mean_corruption_error")
    assert error.value == pytest.approx(1 - sum(row.correct for row in run.corruptions) / (75 * 40))
    assert error.low <= error.value <= error.high
    assert sum(row.corrupted * row.n for row in run.classes) == pytest.approx(40 * (1 - error.value))
    for row in run.classes:
        assert sum(row.fell.values()) == row.clean - row.robust
    spatial, patch = run.others
    clean = run.metric("clean_accuracy").count
    assert run.metric("spatial_accuracy").count == clean - spatial.broken and spatial.attempted == clean
    assert run.metric("patch_accuracy").count == clean - patch.broken and patch.control_broken is not None
    assert run.files["evidence/patch.png"].startswith(b"\x89PNG") and patch.target is None and patch.aimed is None
    images = rc.load_images("digits", n=40)
    row = images.hashes.index(run.cases[0].image)
    image = images.images[row : row + 1] / 255
    pictured = [row for row in run.corruptions if row.file is not None]
    assert {row.severity for row in pictured} == {1, 3, 5} and len(pictured) == 45
    for row in pictured:
        seeds = draws.image_seeds(0, [run.cases[0].image], f"corruption-{row.name}-{row.severity}")
        again = CORRUPTIONS[row.name](image, severity=row.severity, seeds=seeds)
        shown = np.asarray(Image.open(io.BytesIO(run.files[row.file])).convert("RGB")).transpose(2, 0, 1) / 255
        assert np.abs(shown - again[0].numpy()).max() <= 0.5 / 255 + 1e-6, row
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.split('class="thumbs"', 1)[1].count("<img") >= 45
    page = run.page.read_text()
    assert "Beyond norm balls" in page and "gaussian noise" in page
    plain = rc.audit(str(trained), "digits", **QUICK)
    assert plain.metric("robust_accuracy") == run.metric("robust_accuracy")
    images = rc.load_images("digits", n=60)
    with pytest.raises(UserError, match="training images of its own"):
        rc.audit(rc.load_classifier(str(trained)), images, **QUICK, also=("patch",))


class Overflowing(torch.nn.Module):
    """Answers with no number where a pixel is nearly white."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))

    def forward(self, images):
        logits = self.inner(images)
        return torch.where(images.flatten(1).amax(1)[:, None] > 0.995, torch.nan, logits)


def test_a_model_that_overflows_under_attack_gets_its_page() -> None:
    images = (torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 240).to(torch.uint8)
    model = Overflowing()
    with torch.no_grad():
        labels = model(images / 255).argmax(1)
    run = rc.audit(model, images, labels, eps="24/255", effort="quick", sweep=False, cases=8, quiet=True)
    assert run.metric("robust_accuracy", attack=None).count < 40
    assert all(flow.label != flow.prediction for flow in run.flows)
    broken = [case for case in run.cases if case.outcome == "broken"]
    unanswered = [case for case in broken if case.adversarial_confidence == 0]
    assert unanswered and all({ref.image for ref in case.heatmaps} == {"clean"} for case in unanswered)


@pytest.mark.parametrize(
    ("channels", "classes", "also", "told"),
    [(3, 1, (), "knows one class"), (5, 3, (), "5 channels"), (4, 3, ("corruptions",), "4 channels")],
)
def test_what_cannot_be_judged_is_refused_before_the_attacks(channels, classes, also, told) -> None:
    images = (torch.rand(12, channels, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64 * channels, classes))
    with torch.no_grad():
        labels = model(images / 255).argmax(1)
    with pytest.raises(UserError, match=told):
        rc.audit(model, images, labels, also=also, quiet=True)


def test_the_page_tells_where_options_came_from(trained: Path, tmp_path: Path) -> None:
    run = rc.audit(str(trained), "digits", **QUICK, effort="quick", out=tmp_path / "run")
    told = run.record.origins
    assert {told["model"], told["data"], told["n"], told["effort"]} == {"given"} and told["norm"] == "default"
    assert "model" not in [name for name, where in runs.load(trained).origins.items() if where == "given"]
    row = re.search(r'scope="row">effort</th>(.*?)</tr>', run.page.read_text()).group(1)
    assert re.findall(r">([^<>]+)</td>", row) == ["quick", "given"]


def test_measures_without_methods_are_refused_and_those_that_cannot_be_had_are_noted(trained: Path) -> None:
    with pytest.raises(UserError, match="--measures has no maps"):
        rc.audit(str(trained), "digits", **QUICK, measures=["deletion"])
    options = {**QUICK, "effort": "quick", "explain": ("saliency",), "n": 20}
    run = rc.audit(str(trained), "digits", **options, measures=["completeness", "completeness"])
    assert run.measures == () and any("cannot be had here" in note for note in run.record.environment.notes)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["/x/bin/robustcv", "audit", "--data", "a b"], "robustcv audit --data 'a b'"),
        (["/x/robustcv/__main__.py", "audit"], "robustcv audit"),
        (["/x/mine.py", "audit"], "python"),
    ],
)
def test_the_command_is_told_as_it_can_be_pasted(words, told, monkeypatch) -> None:
    from robustcv.verbs.prepare import Clock

    monkeypatch.setattr("sys.argv", words)
    assert Clock().environment(torch.device("cpu")).command == told

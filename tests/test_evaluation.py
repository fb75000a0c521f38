"""Calibration, gates and the checks before an audit."""

import numpy as np
import pytest
import torch
from conftest import Curved, make_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import robustcv as rc
from robustcv import records, runs
from robustcv.classifier import frozen
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.accuracy import BINS, Predictions, calibration, expected_calibration_error, predict, proportion
from robustcv.evaluation.plans import plan_for
from robustcv.evaluation.preflight import preflight, require_some_right
from robustcv.records import Check, Metric
from robustcv.stats import bootstrap
from robustcv.verbs.gates import FLATTERING, conclude, judge_drops, judge_floors, parse_gates, require_baseline
from robustcv.verbs.pairing import Saved, attacked_alike, escalated, require_same_images


def slow_ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Guo et al.'s equation 3 in a plain loop."""
    total = 0.0
    for k in range(BINS):
        inside = [
            i for i, c in enumerate(confidence) if k / BINS <= c and (c < (k + 1) / BINS or (k == BINS - 1 and c == 1))
        ]
        if inside:
            gap = abs(np.mean([correct[i] for i in inside]) - np.mean([confidence[i] for i in inside]))
            total += len(inside) / len(confidence) * gap
    return total


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_calibration_error_equals_a_slow_version(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(n), (rng.random(n) < 0.5).astype(float)
    assert expected_calibration_error(confidence, correct) == pytest.approx(slow_ece(confidence, correct), abs=1e-9)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_its_excess() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20000)
    assert expected_calibration_error(confidence, (rng.random(20000) < confidence).astype(float)) < 0.02
    over = (rng.random(20000) < confidence - 0.2).astype(float)
    assert expected_calibration_error(confidence, over) == pytest.approx(0.2, abs=0.02)


def test_the_interval_of_the_calibration_error_holds_it_and_covers_a_known_one() -> None:
    """Models that are overconfident by exactly 0.1 everywhere: the true error is 0.1."""
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(60):
        confidence = rng.uniform(0.5, 1, 500)
        correct = (rng.random(500) < confidence - 0.1).astype(float)
        low, high = bootstrap(expected_calibration_error, confidence, correct, seed=seed, resamples=300)
        assert low <= expected_calibration_error(confidence, correct) <= high
        covered.append(low <= 0.1 <= high)
    assert np.mean(covered) >= 0.85
    calibrated = rng.uniform(0.5, 1, 1000)
    correct = (rng.random(1000) < calibrated).astype(float)
    low, high = bootstrap(expected_calibration_error, calibrated, correct, seed=0)
    assert low <= expected_calibration_error(calibrated, correct) <= high


def test_the_bins_add_up_and_the_interval_holds_the_figure() -> None:
    logits = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) * 2
    predictions = Predictions(logits, torch.arange(300) % 4)
    metric, bins = calibration(predictions.confidences, predictions.correct, seed=0)
    assert sum(each.n for each in bins) == 300
    assert sum(each.correct for each in bins) == int(predictions.correct.sum())
    weighted = sum(abs(each.correct - each.confidence * each.n) for each in bins) / 300
    assert metric.value == pytest.approx(weighted)
    assert metric.low <= metric.value <= metric.high


def test_a_logit_that_is_not_finite_is_never_right() -> None:
    logits = torch.tensor([[2.0, 1.0], [torch.inf, 0.0], [torch.nan, 0.0]])
    assert Predictions(logits, torch.zeros(3).long()).correct.tolist() == [True, False, False]


def images_for(model: nn.Module, n: int = 24) -> ImageSet:
    images = make_images(n, dtype=torch.float32)
    images = (images - 0.5) * 1.4 + 0.5
    with torch.no_grad():
        labels = model.eval()(images).argmax(1)
    if len(labels.unique()) == 1:  # an honest test set has more than one class
        labels[: n // 3] = (labels[: n // 3] + 1) % 4
    return ImageSet(images, labels, tuple("abcd"))


def check(
    model: nn.Module, images: ImageSet, *, was_training: bool = False, trained_on=("a", "b", "c", "d")
) -> dict[str, str]:
    with frozen(model):
        predictions = predict(model, images, batch_size=64, device=torch.device("cpu"))
        found = preflight(
            model, images, predictions, was_training=was_training, trained_on=trained_on, device=torch.device("cpu")
        )
    assert all((each.fix is None) == (each.status != "raised") for each in found)
    return {each.check: each.status for each in found}


class Spread(nn.Module):
    """A healthy model that uses all four classes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.inner = Curved(seed=seed)
        with torch.no_grad():
            typical = self.inner(make_images(200, dtype=torch.float32, seed=7))
        self.register_buffer("middle", typical.mean(0))

    def forward(self, images):
        return 20 * (self.inner(images) - self.middle)


@pytest.mark.parametrize(
    "seed", [*range(10, 14), *(pytest.param(seed, marks=pytest.mark.every_case) for seed in range(14, 30))]
)
def test_nothing_is_raised_on_healthy_models(seed: int) -> None:
    model = Spread(seed)
    assert "raised" not in check(model, images_for(model)).values()


class Noisy(Spread):
    def forward(self, images):
        return super().forward(images) + torch.randn(len(images), 4)


class Probabilities(Spread):
    def forward(self, images):
        return super().forward(images).softmax(1)


class Quantised(Spread):
    def forward(self, images):
        return super().forward((images * 16).round() / 16)


class SomeNaN(Spread):
    def forward(self, images):
        out = super().forward(images)
        out[:1] = torch.nan
        return out


@pytest.mark.parametrize(
    ("broken", "name"),
    [(Noisy, "deterministic"), (Probabilities, "logits"), (Quantised, "usable gradients"), (SomeNaN, "finite outputs")],
)
def test_a_broken_model_raises_its_check(broken: type[Spread], name: str) -> None:
    images = images_for(Spread(0))
    model = broken(0)
    assert check(model, images)[name] == "raised"


def test_training_mode_and_shifted_labels_are_raised() -> None:
    model = Spread(0)
    images = images_for(model)
    assert check(model, images, was_training=True)["eval mode"] == "raised"
    shifted = ImageSet(images.images, (images.labels + 1) % 4, images.class_names)
    assert check(model, shifted)["better than the majority class"] == "raised"
    assert check(model, images, trained_on=("a", "c", "b", "d"))["class order"] == "raised"
    assert check(model, images, trained_on=None)["class order"] == "not run"


def test_an_audit_goes_on_without_gradients_and_stops_where_no_number_can_be_computed() -> None:
    class NoGradient(Spread):
        def forward(self, images):
            with torch.no_grad():
                return super().forward(images)

    assert check(NoGradient(0), images_for(Spread(0)))["usable gradients"] == "raised"
    run = rc.audit(NoGradient(0), images_for(Spread(0)), eps=0.05, sweep=False, cases=2, quiet=True)
    assert run.verdict == "INCONCLUSIVE" and {each.name for each in run.attacks} == {"square"}
    assert run.record.metric("robust_accuracy").count < run.record.metric("clean_accuracy").count
    assert run.explanations[0].method == "shapley"
    with pytest.raises(UserError, match="none of the 2 images"):
        require_some_right(Predictions(torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([1, 1])))


def bars_of(*texts, kind="floor", asked=(8 / 255,), also=()):
    return parse_gates(texts, kind=kind, norm="linf", asked=asked, tried=(4 / 255, 8 / 255), also=also)


@pytest.mark.parametrize(
    ("gate", "verdict", "code", "point"),
    [
        (0.5, "PASS", 0, 0), (0.9, "FAIL", 3, 3), (0.71, "INCONCLUSIVE", 4, 3), (0.69, "INCONCLUSIVE", 4, 0),
        (None, "NO GATE", 0, 0),
    ],
)  # fmt: skip
def test_a_gate_is_held_against_the_interval_or_the_point(gate, verdict, code, point) -> None:
    metrics = (proportion("clean_accuracy", torch.arange(1000) < 700),)
    bars = bars_of() if gate is None else bars_of(f"clean_accuracy={gate}")
    assert conclude(judge_floors(bars, metrics, on="interval"), (), ()) == (verdict, code)
    assert conclude(judge_floors(bars, metrics, on="point"), (), ())[1] == point


def test_a_gate_at_the_very_end_of_the_interval_passes_and_a_raised_check_leaves_it_open() -> None:
    metric = proportion("clean_accuracy", torch.arange(1000) < 700)
    for level, outcome in ((metric.low, "passed"), (metric.low + 1e-6, "across"), (metric.high, "across"),
                           (metric.high + 1e-6, "failed")):  # fmt: skip
        (gate,) = judge_floors(bars_of(f"clean_accuracy={level!r}"), (metric,), on="interval")
        assert gate.outcome == outcome
    passed = judge_floors(bars_of("clean_accuracy=0.1"), (metric,), on="interval")
    raised = (Check(check="logits", status="raised", figure=""),)
    assert conclude(passed, raised, ()) == ("INCONCLUSIVE", 4) and conclude((), raised, ()) == ("INCONCLUSIVE", 0)


def test_gates_name_their_threat_model() -> None:
    metrics = tuple(proportion("robust_accuracy", torch.arange(1000) < hits, norm="linf", eps=eps, bound="upper")
                    for hits, eps in ((800, 4 / 255), (200, 8 / 255)))  # fmt: skip
    bars = bars_of("robust_accuracy@linf:4/255=0.7", "robust_accuracy=0.7", "robust_accuracy@linf:0.015686=0.7")
    assert [gate.outcome for gate in judge_floors(bars, metrics, on="interval")] == ["passed", "failed", "passed"]


@pytest.mark.parametrize(("now", "outcome"), [(80, "passed"), (75, "across"), (40, "failed")])
def test_a_drop_is_judged_on_the_same_images(now, outcome, audited) -> None:
    def verdicts(right: int) -> dict[str, np.ndarray]:
        hashes = np.arange(100, dtype=np.uint8)[:, None]
        return {"hash": hashes, "label": np.zeros(100, np.int64), "correct": np.arange(100) < right}

    files = {"evidence/verdicts.safetensors": runs.pack_arrays(verdicts(80))}
    bars = bars_of("clean_accuracy=0.05", kind="drop")
    baseline = Saved("before", runs.load(audited), files)
    (gate,) = judge_drops(bars, verdicts(now), baseline, "linf", on="interval", escalated_now=False)
    assert gate.outcome == outcome and gate.value == pytest.approx((now - 80) / 100)
    two = bars_of("clean_accuracy=0.02", kind="drop")  # 0.78 - 0.80 is -0.020000000000000018
    (point,) = judge_drops(two, verdicts(78), baseline, "linf", on="point", escalated_now=False)
    assert point.outcome == "passed"
    other = verdicts(80) | {"hash": np.arange(100, 200, dtype=np.uint8)[:, None]}
    with pytest.raises(UserError, match="made on different images"):
        require_same_images(Saved("before", runs.load(audited), files), other)
    with pytest.raises(UserError, match="nothing to compare with"):
        require_baseline(bars, None, "linf")


def test_an_audit_with_a_baseline_tells_what_compare_tells(audited, trained, tmp_path) -> None:
    options = {"n": 60, "eps": ["16/255", "8/255"], "cases": 0, "explain": (), "seed": 0, "quiet": True}
    trained_on = rc.train("digits", epochs=1, seed=3, out=tmp_path / "less", quiet=True)
    run = rc.audit(str(trained_on.folder), "digits", **options, baseline=audited, out=tmp_path / "run")
    assert run.baseline == audited.name and [pair.name for pair in run.paired] == ["clean_accuracy", "robust_accuracy"]
    pairs = rc.compare(audited, tmp_path / "run").comparison.paired
    assert all(pair in pairs for pair in run.paired)
    assert run.paired[1].eps == run.headline_eps and f"against {audited.name}, paired" in run.page.read_text()
    elsewhere = rc.audit(str(trained_on.folder), "digits", **{**options, "eps": "3/255", "sweep": False},
                         attacks=["fgsm"], baseline=audited)  # fmt: skip
    assert [pair.name for pair in elsewhere.paired] == ["clean_accuracy"]


def test_a_baseline_that_was_attacked_in_another_way_is_not_held_against(audited, trained) -> None:
    options = {"n": 60, "eps": ["16/255", "8/255"], "cases": 0, "explain": (), "quiet": True, "baseline": audited}
    run = rc.audit(str(trained), "digits", **options, attacks=["noise"])
    assert [pair.name for pair in run.paired] == ["clean_accuracy"]
    assert any("attacked in another way" in note for note in run.record.environment.notes)
    assert rc.audit(str(trained), "digits", **options, attacks=["noise"], max_drop={"clean_accuracy": 0.1}).gates
    for other in ({"attacks": ["noise"]}, {"eight_bit": True}, {"eps": "8/255", "sweep": False}):
        with pytest.raises(UserError, match="attacked in another way"):
            rc.audit(str(trained), "digits", **{**options, **other}, max_drop={"robust_accuracy@linf:8/255": 0.02})


def test_a_baseline_on_other_images_is_refused_before_any_attack(audited, trained) -> None:
    with pytest.raises(UserError, match="made on different images"):
        rc.audit(str(trained), "digits", n=20, baseline=audited, quiet=True)


def test_gates_are_read_and_nonsense_is_refused() -> None:
    (bar,) = bars_of("robust_accuracy=0.4")
    assert (bar.metric, bar.threshold, bar.eps) == ("robust_accuracy", 0.4, 8 / 255)
    for text, message, more in (
        ("robust=0.4", "no metric called 'robust'", {}),
        ("clean_accuracy=40", "is not a share", {}),
        ("clean_accuracy=nan", "is not a share", {}),
        ("clean_accuracy", "no metric called 'clean_accuracy'|is not a share", {}),
        ("robust_accuracy=0.4", "does not say at which eps", {"asked": (4 / 255, 8 / 255)}),
        ("robust_accuracy@linf:5/255=0.4", "does not attack there", {}),
        ("robust_accuracy@l2:8/255=0.4", "does not attack there", {}),
        ("robust_accuracy@linf:x=0.4", "eps 'x' is not a number", {}),
        ("clean_accuracy@linf:8/255=0.4", "has no eps", {}),
        ("corruption_accuracy=0.4", "no corruption is measured", {}),
        ("corruption_accuracy=0.4", "not measured image by image", {"kind": "drop", "also": ("corruptions",)}),
    ):
        with pytest.raises(UserError, match=message):
            bars_of(text, **more)
    assert Metric(name="x", n=3).count is None


def test_a_failed_gate_stays_failed_unless_the_model_may_be_fed_wrongly() -> None:
    """Masked gradients can only flatter; labels or preprocessing that are wrong make a good model look bad."""

    def gate(outcome: str) -> records.Gate:
        return records.Gate(name="clean", metric="clean_accuracy", threshold=0.5, outcome=outcome)

    def check(name: str) -> tuple[records.Check, ...]:
        return (records.Check(check=name, status="raised", figure=""),)

    failed, passed = [gate("failed")], [gate("passed")]
    assert conclude(failed, (), check("black box wins")) == conclude(failed, check("logits"), ()) == ("FAIL", 3)
    for name in ("normalisation", "label order", "class order", "pixel range", "better than the majority class",
                 "trial attack within eps", "plausible eps"):  # fmt: skip
        assert conclude(failed, check(name), ()) == ("INCONCLUSIVE", 4)
        assert conclude(passed, check(name), ()) == ("INCONCLUSIVE", 4)
    assert conclude([*passed, *failed], (), ()) == ("FAIL", 3) and conclude(passed, (), ()) == ("PASS", 0)
    assert conclude(passed, (), check("noise wins")) == ("INCONCLUSIVE", 4)
    assert conclude([], check("logits"), ()) == ("INCONCLUSIVE", 0)


def test_every_check_that_only_flatters_is_a_check(audited) -> None:
    assert set(FLATTERING) <= {check.check for check in runs.load(audited).preflight}


def test_a_drop_is_not_judged_where_only_one_of_the_two_met_more_attacks(audited) -> None:
    record = runs.load(audited)
    verdicts = runs.unpack_arrays((audited / "evidence/verdicts.safetensors").read_bytes())
    baseline = Saved("before", record, runs.load_files(audited))
    eps = (record.headline_eps,)
    bars = parse_gates(["robust_accuracy=0.0"], kind="drop", norm="linf", asked=eps, tried=eps, also=())
    worse = verdicts | {"broken_at/linf": np.zeros_like(verdicts["broken_at/linf"])}
    outcomes = [
        judge_drops(bars, worse, baseline, "linf", on="interval", escalated_now=more)[0].outcome
        for more in (escalated(record.attacks), not escalated(record.attacks))
    ]
    assert outcomes == ["failed", "across"]


def test_audits_over_more_seeds_or_with_agreement_are_no_like_baseline(audited) -> None:
    record = runs.load(audited)
    plan = plan_for(record.options["effort"], record.options["norm"])
    assert attacked_alike(record, record.options, plan, record.headline_eps)
    for more in ({"seeds": 4}, {"agreement": 20}, {"eot": 3}):
        assert not attacked_alike(record, {**record.options, **more}, plan, record.headline_eps)

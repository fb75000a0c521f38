"""Gates: bars the user sets, held against intervals, to a verdict and an exit code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from robustcv import records, runs, runtime
from robustcv.errors import DONE, GATE_FAILED, INCONCLUSIVE, UserError, unknown_name
from robustcv.verbs.pairing import Saved, equal_eps, escalated, pairs_with
from robustcv.verbs.parse import parse_eps

METRICS = ("clean_accuracy", "robust_accuracy", "corruption_accuracy")
SLACK = 1e-9  # of a share: 0.78 - 0.80 is a little less than -0.02 in floating point
# raised checks that can only mean that robustness is overstated: a gate that failed all the same has failed
FLATTERING = ("logits", "deterministic", "no optimisation inside", "usable gradients",
              "apart from training images", "finite outputs")  # fmt: skip
Kind = Literal["floor", "drop"]
On = Literal["interval", "point"]


@dataclass(frozen=True)
class Bar:
    """A bar as it was asked for: the least a metric may be, or the most it may drop from a baseline."""

    text: str
    kind: Kind
    metric: str
    threshold: float
    eps: float | None = None


def parse_gates(
    given: Any, *, kind: Kind = "floor", norm: str, asked: Sequence[float], tried: Sequence[float], also: Sequence[str]
) -> list[Bar]:
    """Read ``["robust_accuracy@linf:8/255=0.4"]`` or a mapping.

    Parameters
    ----------
    norm, asked, tried
        The norm of this run, the eps it was asked about, and all eps it tries.
    also
        What it measures beside.

    Raises
    ------
    UserError
        If a metric is unknown or not measured here, a threshold is no share, or several eps leave open which is meant.
    """
    option = "--fail-under" if kind == "floor" else "--max-drop"
    pairs = given.items() if isinstance(given, Mapping) else (_split(str(text)) for text in given or ())
    bars = []
    for text, value in pairs:
        metric, _, threat = text.partition("@")
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        if metric == "corruption_accuracy" and (kind == "drop" or "corruptions" not in also):
            why = "corruptions are not measured image by image" if kind == "drop" else "no corruption is measured here"
            fix = f"use {option} clean_accuracy=..." if kind == "drop" else "add --also corruptions"
            raise UserError("RCV-E005", f"{option} {text} has nothing to judge", why, fix)
        if threat and metric != "robust_accuracy":
            raise UserError("RCV-E005", f"{option} {text}: {metric} has no eps", "only attacks do", f"write {metric}=")
        eps = _eps_of(option, text, threat, norm, asked, tried) if metric == "robust_accuracy" else None
        bars.append(Bar(text, kind, metric, _threshold(option, text, value), eps))
    return bars


def _split(text: str) -> tuple[str, str]:
    name, _, value = text.rpartition("=")
    return (name, value) if name else (value, "")


def _threshold(option: str, text: str, value: Any) -> float:
    try:
        threshold = float(value)
    except (TypeError, ValueError):
        threshold = float("nan")
    if not 0 <= threshold <= 1:
        raise UserError(
            "RCV-E005",
            f"{option} {text}={value} is not a share",
            "a gate is compared with an accuracy between 0 and 1",
            f"{option} {text}=0.4",
        )
    return threshold


def _eps_of(
    option: str, text: str, threat: str, norm: str, asked: Sequence[float], tried: Sequence[float]
) -> float | None:
    """Find the eps that a gate on robust accuracy means."""
    if not threat:
        if len(set(asked)) > 1:
            raise UserError(
                "RCV-E005",
                f"{option} {text} does not say at which eps",
                f"this run was asked about {len(set(asked))} of them",
                f"write {option} robust_accuracy@{norm}:8/255=...",
            )
        return asked[0]
    other, _, size = threat.partition(":")
    eps = parse_eps(size)
    found = next((each for each in tried if equal_eps(each, eps)), None)
    if other != norm or found is None:
        raise UserError(
            "RCV-E005",
            f"{option} {text}: this run does not attack there",
            f"it attacks in {norm} at eps {', '.join(f'{each:.4g}' for each in tried)}",
            f"add --eps {size}" if other == norm else f"run with --norm {other}",
        )
    return found


def judge_floors(bars: Sequence[Bar], metrics: tuple[records.Metric, ...], *, on: On) -> list[records.Gate]:
    """Hold each floor against its metric: an interval above it passes, below it fails, across it is neither."""
    judged = []
    for bar in (each for each in bars if each.kind == "floor"):
        match_on = {} if bar.eps is None else {"eps": bar.eps, "attack": None}
        metric = records.find_metric(metrics, bar.metric, **match_on)
        low, high, norm = 0.0, 1.0, None
        value = None
        if metric is not None:
            low, high, norm = metric.low or 0.0, 1.0 if metric.high is None else metric.high, metric.norm
            value = metric.value if metric.count is None else metric.count / metric.n
        judged.append(_judged(bar, value, low, high, norm, on))
    return judged


def judged_again(gate: records.Gate, metrics: tuple[records.Metric, ...]) -> str:
    """Give the outcome that a recorded gate must have, from the metrics, or, of a drop, from its own interval."""
    bar = Bar(gate.name, gate.kind, gate.metric, gate.threshold, gate.eps)
    if gate.kind == "floor":
        return judge_floors([bar], metrics, on=gate.on)[0].outcome
    low, high = (0.0 if end is None else end for end in (gate.low, gate.high))
    return _judged(bar, gate.value, low, high, gate.norm, gate.on).outcome


def require_baseline(bars: Sequence[Bar], baseline: Saved | None, norm: str) -> None:
    """Refuse a gate on a drop that could not be judged, before any work is done.

    Raises
    ------
    UserError
        If there is no baseline, or it was not attacked at that eps.
    """
    for bar in (each for each in bars if each.kind == "drop"):
        if baseline is None:
            raise UserError(
                "RCV-E005", "--max-drop has nothing to compare with", "a drop is from a baseline", "add --baseline RUN"
            )
        if bar.eps is not None and not any(equal_eps(eps, bar.eps) for eps in _tried(baseline, norm)):
            raise UserError(
                "RCV-E085",
                f"{baseline.name} was not attacked in {norm} at eps {bar.eps:.4g}",
                "there is no robust accuracy to drop from",
                "audit the baseline with the same --norm and --eps",
            )


def require_alike(bars: Sequence[Bar], baseline: Saved, *, alike: bool) -> None:
    """Refuse a gate on a drop of robust accuracy from a baseline that was attacked in another way; note it otherwise.

    Raises
    ------
    UserError
        If there is such a gate.
    """
    if alike:
        return
    if any(bar.kind == "drop" and bar.metric == "robust_accuracy" for bar in bars):
        raise UserError(
            "RCV-E085",
            f"{baseline.name} was attacked in another way",
            "a drop could come from the attacks",
            "audit the baseline with the same --norm, --eps, --effort, --attacks and --set",
        )
    runtime.note("robust accuracy is not held against the baseline, which was attacked in another way")


def _tried(baseline: Saved, norm: str) -> list[float]:
    return [each.eps for each in baseline.record.attacks if each.norm == norm]


def judge_drops(
    bars: Sequence[Bar], now: runs.Arrays, baseline: Saved, norm: str, *, on: On, escalated_now: bool
) -> list[records.Gate]:
    """Hold each drop against the paired difference to a baseline on the same images.

    Where a raised check brought further attacks to one of the two alone, robust accuracies cannot be told apart.
    """
    judged = []
    alike = escalated(baseline.record.attacks) == escalated_now
    for bar in (each for each in bars if each.kind == "drop"):
        pair = next(each for each in pairs_with(baseline, now, norm, bar.eps) if each.name == bar.metric)
        gate = _judged(bar, pair.difference, pair.low, pair.high, norm if bar.eps else None, on)
        unlike = bar.metric == "robust_accuracy" and not alike
        judged.append(gate.model_copy(update={"outcome": "across"}) if unlike else gate)
    return judged


def _judged(bar: Bar, value: float | None, low: float, high: float, norm: str | None, on: On) -> records.Gate:
    """Judge one bar; a drop is a difference that must not lie below minus its threshold."""
    level = (bar.threshold if bar.kind == "floor" else -bar.threshold) - SLACK
    outcome: Literal["passed", "failed", "across"]
    if on == "point" and value is not None:
        outcome = "passed" if value >= level else "failed"
    else:
        outcome = "passed" if low >= level else "failed" if high < level else "across"
    return records.Gate(
        name=bar.text,
        threshold=bar.threshold,
        outcome=outcome,
        kind=bar.kind,
        metric=bar.metric,
        norm=norm,
        eps=bar.eps,
        value=value,
        low=low,
        high=high,
        on=on,
    )


def conclude(
    gates: Sequence[records.Gate], preflight: Sequence[records.Check], flags: Sequence[records.Check]
) -> tuple[records.Verdict, int]:
    """Give verdict and exit code; a raised check makes the verdict inconclusive.

    A gate that failed stays failed where what was raised can only mean that the figures are too good: masked gradients
    do, labels or preprocessing that are wrong do not.
    """
    wrongly_fed = any(check.status == "raised" and check.check not in FLATTERING for check in preflight)
    raised = wrongly_fed or any(check.status == "raised" for check in (*preflight, *flags))
    outcomes = {gate.outcome for gate in gates}
    if "failed" in outcomes and not wrongly_fed:
        return "FAIL", GATE_FAILED
    if outcomes & {"across", "failed"} or raised:
        return "INCONCLUSIVE", INCONCLUSIVE if gates else DONE
    return ("PASS" if gates else "NO GATE"), DONE

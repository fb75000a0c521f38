"""Gates: thresholds the user sets, held against intervals, to a verdict and an exit code."""

from collections.abc import Mapping
from typing import Any, Literal

from robustcv import records
from robustcv.errors import DONE, GATE_FAILED, INCONCLUSIVE, UserError, unknown_name


def parse_gates(given: Any) -> dict[str, float]:
    """Read ``["robust_accuracy=0.4"]`` or a mapping.

    Raises
    ------
    UserError
        If a metric is unknown, or a threshold is not a share.
    """
    known = ("clean_accuracy", "robust_accuracy")
    pairs = given.items() if isinstance(given, Mapping) else (str(text).split("=", 1) for text in given or ())
    gates = {}
    for pair in pairs:
        name, value = (*pair, "")[:2]
        if name not in known:
            raise unknown_name("metric", name, known)
        try:
            gates[name] = float(value)
        except ValueError:
            gates[name] = float("nan")
        if not 0 <= gates[name] <= 1:
            raise UserError(
                "RCV-E005",
                f"--fail-under {name}={value} is not a share",
                "a gate is compared with an accuracy between 0 and 1",
                f"--fail-under {name}=0.4",
            )
    return gates


def judge_gates(
    gates: Mapping[str, float], metrics: tuple[records.Metric, ...], headline: float, checks: tuple[records.Check, ...]
) -> tuple[records.Verdict, int, tuple[records.Gate, ...]]:
    """Hold each gate against its metric's interval: above passes, below fails, across is inconclusive.

    A raised check makes the verdict inconclusive unless a gate has failed anyway.
    """
    raised = any(check.status == "raised" for check in checks)
    judged_gates = []
    for name, threshold in gates.items():
        match: dict[str, Any] = {"eps": headline, "attack": None} if name == "robust_accuracy" else {}
        metric = records.find_metric(metrics, name, **match)
        low, high = (metric.low or 0.0, metric.high or 0.0) if metric else (0.0, 1.0)
        outcome: Literal["passed", "failed", "across"] = (
            "passed" if low >= threshold else "failed" if high < threshold else "across"
        )
        judged_gates.append(records.Gate(name=name, threshold=threshold, outcome=outcome))
    outcomes = {gate.outcome for gate in judged_gates}
    if "failed" in outcomes:
        return "FAIL", GATE_FAILED, tuple(judged_gates)
    if "across" in outcomes or raised:
        return "INCONCLUSIVE", INCONCLUSIVE if gates else DONE, tuple(judged_gates)
    return ("PASS" if gates else "NO GATE"), DONE, tuple(judged_gates)

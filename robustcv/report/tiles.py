"""The four figures of the first screen, by verb."""

import dataclasses
from typing import Any

from robustcv.records import Metric, PairedMetric, Record, Tuning, find_metric
from robustcv.report import cells, numbers
from robustcv.report.blocks import Tile
from robustcv.report.summary import headline, paired_headline


def tiles(record: Record) -> tuple[Tile, ...]:
    """Give the four figures of the first screen."""
    if record.verdict == "INCOMPLETE" and record.model is None:
        return ()
    if record.overview:
        return _overview_tiles(record)
    if record.comparison is not None:
        return _compare_tiles(record)
    clean = record.metric("clean_accuracy")
    first = _metric_tile("Clean accuracy", clean, "no test split given")
    if record.tuning is not None:
        return _tuning_tiles(record.tuning)
    if record.verb in ("train", "harden"):
        return (first, *_training_tiles(record))
    if record.verb == "explain":
        return (first, *_explainer_tiles(record), *_cost_tiles(record))[:4]
    pairs = {pair.name: pair for pair in record.paired}
    first = _with_delta(first, pairs.get("clean_accuracy"), record)
    robust, error = headline(record), record.metric("calibration_error")
    corrupted = record.metric("corruption_accuracy")
    where = numbers.threat(robust.eps or 0, robust.norm or "linf") if robust else ""
    return (
        first,
        _with_delta(
            _metric_tile(f"Robust accuracy, {where} (upper bound)", robust, "add --eps 8/255"),
            pairs.get("robust_accuracy"),
            record,
        ),
        _metric_tile("Corruption accuracy", corrupted, "")
        if corrupted
        else _metric_tile("Calibration error", error, ""),
        _stability_tile(record) or _explainer_tiles(record)[0],
    )


def _with_delta(tile: Tile, pair: PairedMetric | None, record: Record) -> Tile:
    """Add the paired difference to the baseline, if there is one; green or red where its interval leaves out 0."""
    return tile if pair is None else dataclasses.replace(tile, **_delta(pair, f"against {record.baseline}"))


def _delta(pair: PairedMetric, against: str) -> dict[str, Any]:
    return {
        "delta": f"{numbers.arrow(pair.difference)} {numbers.points(pair.difference)}",
        "delta_note": f"{against}, paired, 95{numbers.NBSP}% CI {numbers.between(pair.low, pair.high)}",
        "better": None if pair.low <= 0 <= pair.high else pair.difference > 0,
    }


def _stability_tile(record: Record) -> Tile | None:
    """Make the tile of how far maps keep their order under attack, the prediction held; None where nobody measured."""
    rows = [row for row in record.stability if row.change == "attack, prediction held" and row.quantity == "spearman"]
    if not rows:
        return None
    row = max((each for each in rows if each.method == rows[0].method), key=lambda each: each.eps)
    label = f"Stability of maps, {numbers.threat(row.eps, row.norm)}"
    within = f"95{numbers.NBSP}% CI {row.low:.2f}–{row.high:.2f}; n{numbers.NBSP}={numbers.NBSP}{row.n:,}"
    return Tile(label, f"{row.mean:.2f}", f"{within}; {row.method.replace('_', ' ')}")


def _metric_tile(label: str, metric: Metric | None, absent: str) -> Tile:
    """Make the tile of a metric; ``absent`` is the remark where there is none."""
    note = absent if metric is None else numbers.interval(metric)
    return Tile(label, numbers.percent(metric), note, told=cells.told_of(metric))


def _explainer_tiles(record: Record) -> tuple[Tile, ...]:
    if not record.explanations:
        return (Tile("Error of the maps", "not run", "add --explain integrated_gradients"),)
    made = []
    for result in record.explanations:
        known = result.median_error is not None
        what = "Relative error" if known else "Completeness gap"
        median, worst = (result.median_error, result.worst_error) if known else (result.median_gap, result.worst_gap)
        label = f"{what}, {result.method.replace('_', ' ')}"
        if worst == 0:
            made.append(Tile(label, "exact", f"all {result.images} maps"))
            continue
        value = "not known" if median is None else f"{100 * median:.1f}{numbers.NBSP}%"
        most = "" if worst is None else f"; worst {100 * worst:.1f}{numbers.NBSP}%"
        if known and result.error_interval is not None:
            low, high = result.error_interval
            most += f"; 95{numbers.NBSP}% CI {100 * low:.1f}–{100 * high:.1f}"
        made.append(Tile(label, value, f"median of {result.images} maps{most}"))
    return tuple(made[:3])


def _cost_tiles(record: Record) -> tuple[Tile, ...]:
    maps = sum(result.images for result in record.explanations)
    forwards = sum(result.forwards for result in record.explanations)
    seconds = sum(result.seconds for result in record.explanations)
    each = f"{forwards / max(1, maps):,.0f}"
    return (
        Tile("Cost of a map", each, "forward passes or their equivalent, mean"),
        Tile("Time", numbers.duration(seconds), f"for {maps:,} maps"),
    )


def _training_tiles(record: Record) -> tuple[Tile, ...]:
    training = record.training
    assert training is not None
    kept = next(epoch for epoch in training.epochs if epoch.epoch == training.selected_epoch)
    n = kept.validation_n
    made = [_counted("Validation accuracy", "validation", kept.validation_correct, n, f"epoch {kept.epoch}, kept")]
    if kept.validation_robust is not None:
        at = numbers.eps_short(_eps(record), str(record.options.get("norm")))
        against = record.options.get("against")
        by = training.attack or f"PGD-{record.options.get('steps')}"
        label = "Validation, attacked" if against else f"Validation, attacked at {at}"
        note = f"{by} alone; audit for the worst case"
        made.append(_counted(label, "validation, attacked", kept.validation_robust, n, note))
    made.append(_metric_tile("Calibration error", record.metric("calibration_error"), "no test split"))
    seconds = sum(epoch.seconds for epoch in training.epochs)
    each = seconds / max(1, training.epochs[-1].epoch)
    made.append(Tile("Training time", numbers.duration(seconds), f"{numbers.duration(each)} an epoch"))
    return tuple(made[:3])


def _counted(label: str, name: str, count: float, n: int, note: str) -> Tile:
    """Make the tile of a count with its interval, and a remark."""
    told = cells.told(name, count, n)
    within = numbers.interval_of(told.low, told.high, n)
    return Tile(label, numbers.share(count / n, n), f"{within}; {note}", told=told)


def _tuning_tiles(tuning: Tuning) -> tuple[Tile, ...]:
    best = next(trial for trial in tuning.trials if trial.number == tuning.best)
    n, done = tuning.validation_n, [trial for trial in tuning.trials if trial.state == "finished"]
    robust = Tile("Validation, attacked", "not run", "")
    if best.robust is not None:
        note = "by the attack of training alone"
        robust = _counted(robust.label, "validation, attacked", best.robust * n, n, note)
    seconds = sum(trial.seconds for trial in tuning.trials)
    return (
        _counted("Validation accuracy", "validation", (best.clean or 0) * n, n, f"trial {best.number}"),
        robust,
        Tile("Trials", f"{len(done):,}", f"finished, of {len(tuning.trials):,}"),
        Tile("Time", numbers.duration(seconds), "of all trials"),
    )


def _eps(record: Record) -> float:
    from fractions import Fraction

    value = record.options.get("eps", 0)
    value = value[0] if isinstance(value, list | tuple) else value
    return float(Fraction(value)) if isinstance(value, str) else float(value)


def _compare_tiles(record: Record) -> tuple[Tile, ...]:
    assert record.comparison is not None
    made = []
    clean = next((pair for pair in record.comparison.paired if pair.name == "clean_accuracy"), None)
    for pair, label in ((clean, "Clean accuracy"), (paired_headline(record), "Robust accuracy")):
        if pair is None:
            made.append(Tile(label, "not run", "no threat model in common"))
            continue
        n = pair.both + pair.only_a + pair.only_b + pair.neither
        if pair.eps is not None:
            label += f", {numbers.threat(pair.eps, pair.norm or 'linf')} (upper bound)"
        told = cells.told(pair.name, pair.both + pair.only_b, n)
        made.append(
            Tile(
                label,
                numbers.share((pair.both + pair.only_b) / n, n),
                numbers.interval_of(told.low, told.high, n),
                told=told,
                **_delta(pair, f"against {record.comparison.a.name}"),
            )
        )
    sides = record.comparison.a, record.comparison.b
    errors = [find_metric(side.metrics, "calibration_error") for side in sides]
    if errors[0] and errors[1] and errors[0].value is not None and errors[1].value is not None:
        difference = errors[1].value - errors[0].value
        delta = f"{numbers.arrow(difference)} {numbers.points(difference)}"
        tile = _metric_tile("Calibration error", errors[1], "")
        made.append(dataclasses.replace(tile, delta=delta, delta_note="lower is better"))
    pair = paired_headline(record)
    if pair is not None:
        made.append(
            Tile(
                "Images won and lost",
                f"+{pair.only_b:,} −{pair.only_a:,}",
                f"McNemar, exact: {numbers.p_value(pair.p_value)}",
            )
        )
    return tuple(made[:4])


def _overview_tiles(record: Record) -> tuple[Tile, ...]:
    rows = record.overview
    better = sum(row.paired is not None and row.paired.low > 0 for row in rows)
    worse = sum(row.paired is not None and row.paired.high < 0 for row in rows)
    paired = sum(row.paired is not None for row in rows)
    models = len({row.model for row in rows})
    against = f"than {rows[0].name}, of {paired} on the same images"
    return (
        Tile("Audits", f"{len(rows):,}", "of one model" if models == 1 else f"of {models} models"),
        Tile("Surely more robust", f"{better:,}", against),
        Tile("Surely less robust", f"{worse:,}", against),
        Tile("Checks raised", f"{sum(row.raised for row in rows):,}", f"in {sum(row.raised > 0 for row in rows)} runs"),
    )

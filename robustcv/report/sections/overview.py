"""Many runs side by side: a table that can be sorted by any column, and searched."""

from collections.abc import Mapping

from robustcv.records import Metric, OverviewRow, Record, find_metric
from robustcv.report import cells, numbers
from robustcv.report.blocks import Cell, Section, Table

Files = Mapping[str, bytes]


def overview(record: Record, files: Files) -> Section | None:
    """Tabulate each run: what it judged, its accuracies, and the paired difference to the first."""
    if not record.overview:
        return None
    headers = ("run", "model", "images", "threat", "clean (95 % CI)", "robust (95 % CI)",
               "against the first (95 % CI)", "McNemar", "calibration error", "checks raised", "date")  # fmt: skip
    table = Table(headers, tuple(_row(row) for row in record.overview), sortable=True)
    subtitle = (
        f"differences: against {record.overview[0].name}, image by image, where images, threat and attacks are the "
        "same; p-values adjusted for the number of runs (Holm)"
    )
    return Section("overview", "The runs", subtitle, (table,), "The runs")


def _row(row: OverviewRow) -> tuple[Cell, ...]:
    clean = find_metric(row.metrics, "clean_accuracy")
    robust = find_metric(row.metrics, "robust_accuracy", eps=row.eps, attack=None)
    error = find_metric(row.metrics, "calibration_error")
    pair = row.paired
    if pair is None:
        difference, p = Cell(row.why), Cell("–")
    else:
        ends = numbers.between(pair.low, pair.high)
        difference = Cell(numbers.points(pair.difference), ends, number=True, value=pair.difference)
        p = Cell(numbers.p_value(row.p_value or 0.0), number=True, value=row.p_value)
    return (
        Cell(row.name),
        Cell(row.architecture, row.model[:8]),
        Cell(f"{row.data}, {row.n:,}", row.images[:8]),
        Cell(numbers.threat(row.eps, row.norm) if robust else "not attacked"),
        _share(clean),
        _share(robust),
        difference,
        p,
        cells.metric(error) if error else Cell("not run"),
        Cell(f"{row.raised:,}", number=True, value=row.raised),
        Cell(row.started[:10]),
    )


def _share(metric: Metric | None) -> Cell:
    if metric is None or metric.count is None:
        return Cell("not run")
    return cells.share_within(metric.name, metric.count, metric.n)

"""Size and speed of the model that was judged."""

from collections.abc import Mapping

from robustcv.records import Record
from robustcv.report import numbers
from robustcv.report.blocks import Cell, Section, Table

Files = Mapping[str, bytes]


def cost(record: Record, files: Files) -> Section | None:
    """Tabulate parameters, operations, bytes, and latency by batch size."""
    made = record.cost
    if made is None or record.model is None:
        return None
    rows = tuple(
        (
            Cell(f"{each.batch}"),
            Cell(f"{each.batch / each.p50:,.0f}" if each.p50 else "too fast to time", number=True),
            Cell(_milliseconds(each.p50), number=True),
            Cell(_milliseconds(each.p95), number=True),
            Cell(f"{each.runs}", number=True),
        )
        for each in made.latencies
    )
    size = f"{record.model.parameters:,} parameters · {made.weight_bytes / 1e6:,.2f}{numbers.NBSP}MB of weights"
    work = "" if made.flops is None else f" · {_giga(made.flops)} an image, two for each multiply-add"
    where = f"measured on {record.environment.device}, {made.threads} thread{'s' if made.threads != 1 else ''}"
    headers = ("batch", "images a second", "median", "95th percentile", "runs")
    return Section("cost", "Size and speed", f"{size}{work} · {where}", (Table(headers, rows),), "Size and speed")


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.2f}{numbers.NBSP}ms"


def _giga(flops: int) -> str:
    scale, unit = (1e9, "GFLOP") if flops >= 1e9 else (1e6, "MFLOP")
    return f"{flops / scale:,.1f}{numbers.NBSP}{unit}"

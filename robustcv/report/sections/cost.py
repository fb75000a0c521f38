"""Size and speed of the model that was judged."""

from collections.abc import Mapping

from robustcv.records import Cost, Latency, Model, Record
from robustcv.report import numbers
from robustcv.report.blocks import Cell, Section, Table

Files = Mapping[str, bytes]


def cost(record: Record, files: Files) -> Section | None:
    """Tabulate parameters, operations, bytes, and latency by batch size; of a comparison, of both models."""
    both = record.comparison
    here = [("", record.model, record.cost, record.environment.device)]
    sides = here if both is None else [(side.name, side.model, side.cost, side.device) for side in (both.a, both.b)]
    told, tables = [], []
    for name, model, made, device in sides:
        if model is not None and made is not None:
            told.append(f"{name}: {_size(model, made, device)}" if name else _size(model, made, device))
            tables.append(Table(_HEADERS, tuple(_row(each) for each in made.latencies), caption=name))
    return Section("cost", "Size and speed", " · ".join(told), tuple(tables), "Size and speed") if tables else None


_HEADERS = ("batch", "images a second", "median", "95th percentile", "runs")


def _size(model: Model, made: Cost, device: str) -> str:
    size = f"{model.parameters:,} parameters, {made.weight_bytes / 1e6:,.2f}{numbers.NBSP}MB of weights"
    size += "" if made.flops is None else f", {_giga(made.flops)} an image (two for each multiply-add)"
    where = f" on {device}" if device else ""  # comparisons of before did not keep it
    return f"{size}, the model alone{where}, {made.threads} thread{'s' if made.threads != 1 else ''}"


def _row(each: Latency) -> tuple[Cell, ...]:
    return (
        Cell(f"{each.batch}"),
        Cell(f"{each.batch / each.p50:,.0f}" if each.p50 else "too fast to time", number=True),
        Cell(_milliseconds(each.p50), number=True),
        Cell(_milliseconds(each.p95), number=True),
        Cell(f"{each.runs}", number=True),
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.2f}{numbers.NBSP}ms"


def _giga(flops: int) -> str:
    scale, unit = (1e9, "GFLOP") if flops >= 1e9 else (1e6, "MFLOP")
    return f"{flops / scale:,.1f}{numbers.NBSP}{unit}"

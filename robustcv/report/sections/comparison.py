"""What differs between two runs: paired figures, and how they were made."""

from collections.abc import Mapping

from robustcv.records import Record
from robustcv.report import cells, numbers
from robustcv.report.blocks import Cell, Section, Table

Files = Mapping[str, bytes]


def paired(record: Record, files: Files) -> Section | None:
    """Tabulate the paired differences, of two runs or to a baseline."""
    if record.comparison is not None:
        a, b, pairs = record.comparison.a.name, record.comparison.b.name, record.comparison.paired
    else:
        a, b, pairs = record.baseline or "baseline", "this run", record.paired
    if not pairs:
        return None
    rows = []
    for pair in pairs:
        n = pair.both + pair.only_a + pair.only_b + pair.neither
        name = "clean" if pair.eps is None else numbers.threat(pair.eps, pair.norm or "linf")
        rows.append(
            (
                Cell(name),
                cells.share(pair.name, pair.both + pair.only_a, n),
                cells.share(pair.name, pair.both + pair.only_b, n),
                Cell(numbers.points(pair.difference), numbers.between(pair.low, pair.high), number=True),
                Cell(f"{pair.only_b:,}", number=True),
                Cell(f"{pair.only_a:,}", number=True),
                Cell(numbers.p_value(pair.p_value), number=True),
            )
        )
    headers = ("right under", a, b, "difference (95 % CI)", "images won", "images lost", "McNemar")
    subtitle = f"{b} minus {a}, image by image · Newcombe's paired interval · exact McNemar test"
    return Section("paired", "Paired differences", subtitle, (Table(headers, tuple(rows)),), "Paired differences")


def changes(record: Record, files: Files) -> Section | None:
    """List the options in which the two runs differ."""
    if record.comparison is None or not record.comparison.options_changed:
        return None
    a, b = record.comparison.a.name, record.comparison.b.name
    rows = tuple(
        (Cell(name), Cell(before), Cell(after)) for name, (before, after) in record.comparison.options_changed.items()
    )
    table = Table(("option", a, b), rows)
    return Section("changes", "What differs in the making", "options of audit and training", (table,))

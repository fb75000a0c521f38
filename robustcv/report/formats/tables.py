"""CSV files with the raw numbers behind every chart and table."""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from robustcv.errors import printable
from robustcv.records import Record
from robustcv.report.turns import after_each

TABLES = (
    "metrics", "attacks", "preflight", "flags", "gates", "classes", "calibration", "calibration_attacked",
    "corruptions", "others", "certified",
    "explanations", "measures", "stability", "focus", "overview", "flows", "seeds", "paired",
)  # fmt: skip


def tables(record: Record, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Write csv/NAME.csv for each list of the record that is not empty; of a comparison, of both runs."""
    del files
    found: dict[str, list[dict[str, Any]]] = {name: _rows(getattr(record, name)) for name in TABLES}
    found["turns"] = [{"line": line, **row} for line, each in after_each(record).items() for row in _rows(tuple(each))]
    if record.training is not None:
        found["epochs"] = _rows(record.training.epochs)
    if record.agreement is not None:
        found["agreement"] = _rows((record.agreement,))
    if record.tuning is not None:
        found["trials"] = _rows(record.tuning.trials)
    if record.comparison is not None:
        found |= {"paired": _rows(record.comparison.paired), "moved": _rows(record.comparison.moved)}
        for name in ("metrics", "attacks", "classes", "explanations", "measures", "stability"):
            sides = (record.comparison.a, record.comparison.b)
            found[name] = [{"run": side.name, **row} for side in sides for row in _rows(getattr(side, name))]
    return {f"csv/{name}.csv": _written(rows) for name, rows in found.items() if rows}


def _rows(items: tuple[BaseModel, ...]) -> list[dict[str, Any]]:
    return [item.model_dump(mode="json") for item in items]


def _written(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = list(rows[0])
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return buffer.getvalue().encode()


def _cell(value: Any) -> Any:
    """Write a value; text that a spreadsheet would take for a formula is quoted, nested values are JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        safe = printable(value)
        return f"'{safe}" if safe.startswith(("=", "+", "-", "@", "'", "＝", "＋", "－", "＠")) else safe
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value

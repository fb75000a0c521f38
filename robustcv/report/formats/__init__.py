"""Other forms of a report, each a function from the record and its files to the files it writes: `FORMATS`."""

from collections.abc import Callable, Mapping

from robustcv.records import Record
from robustcv.report.formats.card import card
from robustcv.report.formats.junit import junit
from robustcv.report.formats.markdown import markdown
from robustcv.report.formats.tables import tables

FORMATS: dict[str, Callable[[Record, Mapping[str, bytes]], Mapping[str, bytes]]] = {
    "md": markdown,
    "junit": junit,
    "card": card,
    "csv": tables,
}

"""Where attacked images go: which class the images of each class are taken for."""

from collections.abc import Mapping

from robustcv.records import Record
from robustcv.report import numbers
from robustcv.report.blocks import Cell, Section, Table
from robustcv.report.gallery import cases_of, link_to
from robustcv.report.images import cividis

Files = Mapping[str, bytes]
FEW_CLASSES, SHOWN = 12, 30


def flows(record: Record, files: Files) -> Section | None:
    """Show a matrix of classes where there are few, else the largest flows."""
    if not record.flows or record.headline_eps is None:
        return None
    few = len(record.classes) <= FEW_CLASSES
    table = _matrix(record) if few else _list(record)
    norm = next((each.norm for each in record.attacks), "linf")
    broken = sum(flow.count for flow in record.flows)
    subtitle = f"{broken:,} images that an attack broke at {numbers.threat(record.headline_eps, norm)} or below"
    subtitle += ": true class in rows, what it is taken for in columns; the diagonal stands" if few else ""
    return Section("flows", "Where attacked images go", subtitle, (table,), "Flows")


def _matrix(record: Record) -> Table:
    names = [row.name for row in record.classes]
    shown = cases_of(record)
    counts = {(flow.label, flow.prediction): flow.count for flow in record.flows}
    rows = []
    for k, row in enumerate(record.classes):
        cells = [Cell(row.name)]
        for other in range(len(names)):
            count = (row.robust or 0) if other == k else counts.get((k, other), 0)
            background, colour = cividis(count / row.clean) if row.clean else ("", "")
            link = link_to(class_=row.name, as_=names[other]) if shown[row.name, names[other]] else ""
            cells.append(Cell(f"{count:,}", number=True, background=background, colour=colour, link=link))
        cells.append(Cell(f"{row.n - row.clean:,}", number=True))
        rows.append(tuple(cells))
    return Table(("", *names, "wrong when clean"), tuple(rows), matrix=True)


def _list(record: Record) -> Table:
    largest = sorted(record.flows, key=lambda flow: (-flow.count, flow.label, flow.prediction))[:SHOWN]
    rows = []
    shown = cases_of(record)
    for flow in largest:
        mine, other = record.classes[flow.label], record.classes[flow.prediction]
        share = numbers.share(flow.count / mine.clean, mine.clean) if mine.clean else "not run"
        link = link_to(class_=mine.name, as_=other.name) if shown[mine.name, other.name] else ""
        count = Cell(f"{flow.count:,}", number=True, link=link)
        rows.append((Cell(mine.name), Cell(other.name), count, Cell(share, number=True)))
    headers = ("true class", "taken for", "images", "of those right when clean")
    caption = f"the {len(largest)} largest of {len(record.flows):,} flows" if len(record.flows) > len(largest) else ""
    return Table(headers, tuple(rows), caption=caption)

"""Where attacked images go: which class the images of each class are taken for."""

from collections.abc import Mapping

from robustcv.records import Record
from robustcv.report import cells, charts, numbers
from robustcv.report.blocks import Block, Cell, Chart, Section, Table
from robustcv.report.gallery import cases_of, link_to
from robustcv.report.images import cividis
from robustcv.report.text import shortened

Files = Mapping[str, bytes]
FEW_CLASSES, SHOWN = 12, 30
BAR, GAP, SMALLEST = 22, 18, 120  # pixels: of a class on average, between two (its name must fit), of all bars


def flows(record: Record, files: Files) -> Section | None:
    """Show a matrix of classes where there are few, else the largest flows."""
    if not record.flows or record.headline_eps is None:
        return None
    few = len(record.classes) <= FEW_CLASSES
    blocks: tuple[Block, ...] = (_alluvial(record), _matrix(record)) if few else (_list(record),)
    norm = next((each.norm for each in record.attacks), "linf")
    broken = sum(flow.count for flow in record.flows)
    subtitle = f"{broken:,} images that an attack broke at {numbers.threat(record.headline_eps, norm)} or below"
    subtitle += (
        ": true class, right when clean, left and in rows; the answer under attack right and in columns" if few else ""
    )
    return Section("flows", "Where attacked images go", subtitle, blocks, "Flows")


def _alluvial(record: Record) -> Chart:
    """Draw each class's right answers as a bar left, and what became of them under attack right."""
    names, shown = [row.name for row in record.classes], cases_of(record)
    carried = {(k, k): row.robust or 0 for k, row in enumerate(record.classes)}
    carried |= {(flow.label, flow.prediction): flow.count for flow in record.flows}
    carried = {pair: count for pair, count in sorted(carried.items()) if count}
    bars = max(SMALLEST, BAR * len(names))
    gap = sum(carried.values()) * GAP / bars
    nodes, starts = [], {}
    for side in (0, 1):
        top = 0.0
        for k, name in enumerate(names):
            held = {pair: count for pair, count in carried.items() if pair[side] == k}
            start = top
            for pair, count in held.items():
                starts[side, pair] = top
                top += count
            text = f"{sum(held.values()):,} {'as' if side else 'of'} {shortened(name)}"
            nodes.append({"side": side, "start": start, "end": top, "text": text})
            top += gap
    rows = []
    for (a, b), count in carried.items():
        left, right = starts[0, (a, b)], starts[1, (a, b)]
        fell = a != b
        told = f"{count:,} of {names[a]} taken for {names[b]}" if fell else f"{count:,} of {names[a]} stand"
        row: charts.Row = {"ribbon": f"{a}-{b}", "kind": "broken" if fell else "stands", "told": told}
        row |= {"left": left, "left_end": left + count, "right": right, "right_end": right + count}
        linked = fell and shown[names[a], names[b]]
        rows.append(row | ({"link": f"#{link_to(class_=names[a], as_=names[b])}"} if linked else {}))
    return Chart(charts.alluvial(rows, nodes, height=bars + GAP * (len(names) - 1), label=_takeaway(record, names)))


def _takeaway(record: Record, names: list[str]) -> str:
    """Say in a sentence which way most of the broken images go."""
    most = max(record.flows, key=lambda flow: (flow.count, -flow.label, -flow.prediction))
    return f"Most often {names[most.label]} is taken for {names[most.prediction]}: {most.count:,} images."


def _matrix(record: Record) -> Table:
    names = [row.name for row in record.classes]
    shown = cases_of(record)
    counts = {(flow.label, flow.prediction): flow.count for flow in record.flows}
    rows = []
    for k, row in enumerate(record.classes):
        line = [Cell(row.name)]
        for other in range(len(names)):
            count = (row.robust or 0) if other == k else counts.get((k, other), 0)
            background, colour = cividis(count / row.clean) if row.clean else ("", "")
            link = link_to(class_=row.name, as_=names[other]) if shown[row.name, names[other]] else ""
            line.append(Cell(f"{count:,}", number=True, background=background, colour=colour, link=link))
        line.append(Cell(f"{row.n - row.clean:,}", number=True))
        rows.append(tuple(line))
    return Table(("", *names, "wrong when clean"), tuple(rows), matrix=True)


def _list(record: Record) -> Table:
    largest = sorted(record.flows, key=lambda flow: (-flow.count, flow.label, flow.prediction))[:SHOWN]
    rows = []
    shown = cases_of(record)
    for flow in largest:
        mine, other = record.classes[flow.label], record.classes[flow.prediction]
        share = cells.share("flow", flow.count, mine.clean) if mine.clean else Cell("not run", number=True)
        link = link_to(class_=mine.name, as_=other.name) if shown[mine.name, other.name] else ""
        count = Cell(f"{flow.count:,}", number=True, link=link)
        rows.append((Cell(mine.name), Cell(other.name), count, share))
    headers = ("true class", "taken for", "images", "of those right when clean")
    caption = f"the {len(largest)} largest of {len(record.flows):,} flows" if len(record.flows) > len(largest) else ""
    return Table(headers, tuple(rows), caption=caption)

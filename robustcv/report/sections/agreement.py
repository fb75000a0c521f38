"""Which attacks break the same images: each run alone on the same sample."""

import dataclasses
from collections.abc import Mapping

from robustcv.records import GRADIENT_FREE, Agreement, Record
from robustcv.report import cells, charts, numbers
from robustcv.report.blocks import Block, Cell, Chart, Section, Table

Files = Mapping[str, bytes]


def agreement(record: Record, files: Files) -> Section | None:
    """Show for each attack how much of what it breaks every other one breaks too, and what it alone breaks."""
    found = record.agreement
    if found is None:
        return None
    rows = tuple(_row(found, k) for k in range(len(found.attacks)))
    table = Table(("", *found.attacks, "breaks", "only this one"), rows, matrix=True)
    subtitle = (
        f"each attack alone on the same {found.n:,} images that are right when clean, at "
        f"{numbers.threat(found.eps, found.norm)}: of the images that the attack of a row breaks, the share that the "
        "attack of a column breaks too"
    )
    blocks: tuple[Block, ...] = (table,)
    if any(found.only):
        bars = [
            {"attack": name, "images": count, "kind": f"with{'out' * (name in GRADIENT_FREE)} gradients"}
            for name, count in zip(found.attacks, found.only, strict=True)
        ]
        told = ", ".join(f"{each['attack']} {each['images']}" for each in bars)
        blocks = (table, Chart(charts.only_found(bars, label=f"Images that only one attack breaks: {told}")))
    return Section("agreement", "Do the attacks agree?", subtitle, blocks, "Agreement")


_MASKED = "no gradient finds them: a sign of masked gradients"


def _row(found: Agreement, k: int) -> tuple[Cell, ...]:
    own = found.both[k][k]
    made = [Cell(found.attacks[k])]
    for j, count in enumerate(found.both[k]):
        if j == k or own == 0:
            made.append(Cell("–" if j == k else "breaks none", number=True))
        else:
            made.append(cells.heat("agreement", count, own))
    made.append(cells.share_within("broken", own, found.n, "95 % CI "))
    alone = found.attacks[k] in GRADIENT_FREE and found.only[k] > 0
    last = Cell(f"{found.only[k]:,}", _MASKED if alone else "", number=True, value=found.only[k])
    made.append(dataclasses.replace(last, background="var(--inc)", colour="var(--card)") if alone else last)
    return tuple(made)

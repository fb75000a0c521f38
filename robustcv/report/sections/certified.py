"""What was proved beside what was broken: one two-sided interval where both are of the same classifier."""

from collections.abc import Mapping

from robustcv.records import Certified, Record
from robustcv.report import cells, charts, numbers
from robustcv.report.blocks import Block, Cell, Chart, Section, Table, Text

Files = Mapping[str, bytes]
_OF = {
    "bounds": "the model itself; linear relaxations (CROWN) and intervals",
    "smoothing": "another classifier: the commonest answer under Gaussian noise (Cohen et al. 2019)",
}
_APART = (
    "The smoothed classifier is not the model on the first screen: its rows stand alone and are joined to no figure of "
    "the model. They are two-sided all the same: the attack in them is on the smoothed classifier too, in the same "
    "norm, at the same radius, on the same images."
)


def certified(record: Record, files: Files) -> Section | None:
    """Show for each eps what was proved, what was broken, and the interval that both give."""
    if not record.certified:
        return None
    blocks: list[Block] = []
    for method in dict.fromkeys(row.method for row in record.certified):
        rows = [row for row in record.certified if row.method == method]
        blocks.append(Chart(_drawn(rows), _table(rows)))
        if method == "smoothing":
            blocks.append(Text(_APART))
            blocks.append(Text(_settings(rows[0])))
    contradicted = sum(row.contradictions for row in record.certified)
    subtitle = (
        "a proof is a lower bound (formal evidence, ISO/IEC TR 24029-1), an attack an upper one: the truth lies between"
    )
    subtitle += f" · images both proved and broken: {contradicted}"
    return Section("certified", "Proved and attacked", subtitle, tuple(blocks), "Proved")


def _drawn(rows: list[Certified]) -> str:
    values = []
    for row in rows:
        parts = (row.certified, row.n - row.certified - row.broken, row.broken)
        names = ("proved", "open", "broken or wrong")
        for place, (name, count) in enumerate(zip(names, parts, strict=True)):
            eps = numbers.eps_short(row.eps, row.norm)
            values.append({"eps": eps, "state": name, "share": max(0, count) / row.n, "place": place})
    told = "; ".join(
        f"{numbers.threat(row.eps, row.norm)}: {numbers.share(row.certified / row.n, row.n)} proved, "
        f"{numbers.share(row.broken / row.n, row.n)} broken or wrong"
        for row in rows
    )
    return charts.proved_and_broken(values, x_title=f"eps, {numbers.NORM_NAMES[rows[0].norm]}", label=f"{told}.")


def _table(rows: list[Certified]) -> Table:
    made = tuple(
        (
            Cell(numbers.threat(row.eps, row.norm), _OF[row.method] if k == 0 else ""),
            Cell(f"{row.n:,}", number=True),
            cells.share("certified_accuracy", row.certified, row.n),
            cells.share("robust_accuracy", row.n - row.broken, row.n),
            Cell(f"{numbers.ends(row.low, row.high, row.n)}{numbers.NBSP}%", number=True),
        )
        for k, row in enumerate(rows)
    )
    headers = ("at", "n", "proved: at least", "not broken: at most", "between, with 95 % intervals")
    return Table(headers, made)


def _settings(row: Certified) -> str:
    details = row.details
    return (
        f"Noise of standard deviation {details['sigma']:g}, {details['samples']:,} votes an image, each radius wrong "
        f"with a chance of at most {details['alpha']:g} (Clopper and Pearson); unanimous votes certify "
        f"{details['largest radius']:.3f}, the most that votes can; {details['abstained']} images without an answer."
    )

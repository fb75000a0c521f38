"""What the maps cost, how far they are off, how good each method is, and whether they stand an attack."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from robustcv import runs
from robustcv.records import ExplainerResult, MeasureResult, Record, StabilityRow
from robustcv.report import charts, images, numbers
from robustcv.report.blocks import Block, Bullet, Bullets, Cell, Chart, Gallery, Item, Picture, Section, Strip, Table

Files = Mapping[str, bytes]

QUANTITIES = {
    "spearman": "rank correlation",
    "top_overlap": "overlap of the top 10 %",
    "mass_shift": "mass moved",
    "centroid_shift": "centre moved, of the diagonal",
}


def explanations(record: Record, files: Files) -> Section | None:
    """Tabulate the explanation methods: what they explained, against what, how far off they are, at what cost."""
    if record.comparison is not None:
        sides = [(f"{side.name}: ", side.explanations) for side in (record.comparison.a, record.comparison.b)]
    else:
        sides = [("", record.explanations)]
    chosen = "class asked for" if record.options.get("targets") is not None else "predicted class"
    rows = tuple(_method_row(prefix, result, chosen) for prefix, results in sides for result in results)
    if not rows:
        return None
    headers = (
        "method",
        "explains",
        "against",
        "maps",
        "relative error, median",
        "worst",
        "completeness gap, median",
        "forward-equivalents a map",
        "time",
    )
    note = (
        "relative error: estimated distance from the same method without limits on steps or samples, as a share of the "
        "map's length, medians with intervals of order statistics · completeness gap: |sum of the map − change of the "
        "logit| as a share of that change"
    )
    return Section("explanations", "Explanations", note, (Table(headers, rows),), "Explanations")


def _method_row(prefix: str, result: ExplainerResult, chosen: str) -> tuple[Cell, ...]:
    details = result.details
    how = [str(details[key]) for key in ("layer", "regions") if key in details]
    for key in ("steps", "samples"):
        if (given := details.get(key)) is not None:
            how.append(f"{key} {given}" if isinstance(given, str) else f"{given} {key}")
    reused = f"{result.reused:,} shared with other methods" if result.reused > 0 else ""
    return (
        Cell(f"{prefix}{named(result.method)}", " · ".join(how)),
        Cell(f"{details.get('target', '')} of the {chosen}"),
        Cell(str(details.get("baseline", "none"))),
        Cell(f"{result.images:,}", number=True),
        Cell(_share(result.median_error), number=True),
        Cell(_share(result.worst_error), number=True),
        Cell(_share(result.median_gap, none="promises none"), number=True),
        Cell(f"{result.forwards / max(1, result.images):,.0f}", reused, number=True),
        Cell(numbers.duration(result.seconds), number=True),
    )


def named(method: str) -> str:
    """Write a method's name for a person."""
    return method.replace("_", " ")


def _share(value: float | None, none: str = "not known") -> str:
    if value is None:
        return none
    if value == 0:
        return "exact"
    if not 5e-5 <= value < 9.995:
        return f"under 0.01{numbers.NBSP}%" if value < 5e-5 else f"over 1,000{numbers.NBSP}%"
    return f"{100 * value:.{2 if value < 0.001 else 1 if value < 0.0995 else 0}f}{numbers.NBSP}%"


def league(record: Record, files: Files) -> Section | None:
    """Tabulate the measures, one column each, and name the methods that do not beat an edge filter."""
    sides = _sides(record, "measures")
    if not sides:
        return None
    blocks: list[Block] = []
    for name, results in sides:
        blocks += _league(name, results)
    first = sides[0][1]
    budget = record.options.get("budget")
    equal = f"those with a choice at about {budget} forward-equivalents" if budget else "methods at different cost"
    subtitle = (
        f"{equal} · mean over {first[0].n:,} images, with 95 % bootstrap intervals · beside maps that know nothing of "
        "the model: random, Sobel edges, a Gaussian in the centre · ✓ better than edges by the interval of the "
        "difference, – not"
    )
    return Section("league", "How good are the maps?", subtitle, tuple(blocks), "Quality of maps")


def _league(name: str, results: tuple[MeasureResult, ...]) -> list[Block]:
    measures = list(dict.fromkeys(result.measure for result in results))
    found = {(result.method, result.measure): result for result in results}
    methods = list(dict.fromkeys(result.method for result in results))
    wins = {each: sum(bool(r.beats) for r in results if r.method == each) for each in methods}
    control = {result.method: result.control for result in results}
    methods.sort(key=lambda each: (control[each], -wins[each]))
    better = {result.measure: result.better for result in results}
    headers = ("", *(named(method) for method in methods))
    spent = tuple(Cell("none" if control[each] else _cost(each, results), number=True) for each in methods)
    rows = (
        (Cell("forward-equivalents a map"), *spent),
        *(
            (
                Cell(named(each), f"{better[each]} is better"),
                *(_judged(found.get((method, each))) for method in methods),
            )
            for each in measures
        ),
    )
    lost = [result for result in results if result.beats is False]
    items = [
        Bullet(f"{named(method)} does not beat an edge filter on {_list(lost, method)}")
        for method in methods
        if any(result.method == method for result in lost)
    ]
    table = Table(headers, rows, caption=name, matrix=True)
    return [table, Bullets(tuple(items))] if items else [table]


def _cost(method: str, results: tuple[MeasureResult, ...]) -> str:
    return f"{next(result.forwards for result in results if result.method == method):,}"


def _list(lost: Iterable[MeasureResult], method: str) -> str:
    return ", ".join(named(result.measure) for result in lost if result.method == method)


def _judged(result: MeasureResult | None) -> Cell:
    if result is None:
        return Cell("not run", number=True)
    mark = {True: " ✓", False: " –", None: ""}[result.beats]
    low, high = (f"{value:.2f}".replace("-", "−") for value in (result.low, result.high))
    interval = f"{low} to {high}" if result.low < 0 else f"{low}–{high}"
    return Cell(f"{result.mean:.2f}".replace("-", "−") + mark, interval, number=True)


def stability(record: Record, files: Files) -> Section | None:
    """Draw how the maps' rank correlation falls under noise and attacks, with all quantities in the table."""
    sides = _sides(record, "stability")
    if not sides:
        return None
    drawn = [point for name, rows in sides for point in _points(name, rows)]
    lowest = min(drawn, key=lambda each: each["mean"])
    label = f"Rank correlation of maps; lowest {lowest['mean']:.2f}, {lowest['method']}, {lowest['series']}"
    x_title = "eps, in 1/255" if sides[0][1][0].norm == "linf" else "eps"
    svg = charts.stability(drawn, x_title=x_title, label=label)
    tables = [_quantities(name, rows) for name, rows in sides]
    blocks: list[Block] = [Chart(svg, tables[0]), *tables[1:]]
    n = max(row.n for _, rows in sides for row in rows)
    norm = numbers.NORM_NAMES.get(sides[0][1][0].norm, sides[0][1][0].norm)
    subtitle = (
        f"maps of changed images against maps of the images, for the same class · stability of relevance (ISO/IEC "
        f"24029-2) · {norm} · {n:,} images, 95 % bootstrap intervals · "
        "prediction held: as far towards the worst case as the prediction stays · attack on the map: PGD that moves "
        "the gradient map and keeps the prediction"
    )
    return Section("stability", "Do the maps stand an attack?", subtitle, tuple(blocks), "Stability of maps")


def _points(name: str, rows: tuple[StabilityRow, ...]) -> list[charts.Row]:
    return [
        {
            "method": f"{name}: {named(row.method)}" if name else named(row.method),
            "series": row.change,
            "eps": row.eps * 255 if row.norm == "linf" else row.eps,
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
        }
        for row in rows
        if row.quantity == "spearman"
    ]


def _quantities(name: str, rows: tuple[StabilityRow, ...]) -> Table:
    keys = list(dict.fromkeys((row.method, row.change, row.eps, row.n) for row in rows))
    found = {(row.method, row.change, row.eps, row.quantity): row for row in rows}
    return Table(
        ("method", "change", "eps", "n", *QUANTITIES.values()),
        tuple(
            (
                Cell(named(method)),
                Cell(change),
                Cell(numbers.eps_short(eps, rows[0].norm), number=True),
                Cell(f"{n:,}", number=True),
                *(_moved(found[method, change, eps, quantity]) for quantity in QUANTITIES),
            )
            for method, change, eps, n in keys
        ),
        folded=f"{name}: all quantities" if name else "All quantities",
    )


def _moved(row: StabilityRow) -> Cell:
    return Cell(f"{row.mean:.2f}", f"{row.low:.2f} to {row.high:.2f}", number=True)


def _sides(record: Record, field: str) -> list[tuple[str, tuple[Any, ...]]]:
    if record.comparison is not None:
        sides = [(side.name, getattr(side, field)) for side in (record.comparison.a, record.comparison.b)]
    else:
        sides = [("", getattr(record, field))]
    return [(name, rows) for name, rows in sides if rows]


def focus(record: Record, files: Files) -> Section | None:
    """Show the mean map of each class, and where it is heaviest."""
    if not record.focus or "evidence/focus.safetensors" not in files:
        return None
    arrays = runs.unpack_arrays(files["evidence/focus.safetensors"])
    classes = list(dict.fromkeys(row.name for row in record.focus))
    alarms = [row for row in record.focus if row.alarm]
    classes.sort(key=lambda name: -max(row.share for row in record.focus if row.name == name))
    items = []
    for name in classes[:24]:
        own = [row for row in record.focus if row.name == name]
        pictures = []
        for row in own:
            values = np.asarray(arrays[row.file], dtype=float)[0]
            picture = images.data_uri(images.diverging(values / (float(values.max()) or 1.0)))
            where = f"{100 * row.place[1]:.0f} % across, {100 * row.place[0]:.0f} % down"
            alt = f"Mean {named(row.method)} map of class {name}: {100 * row.share:.0f} % in one window, {where}"
            note = f"{100 * row.share:.0f} %" + (" · alarm" if row.alarm else "")
            pictures.append(Picture(picture, alt, f"{named(row.method)}: {note}", bad=row.alarm))
        items.append(Item(f"Class {name}", (Strip(tuple(pictures)),), f"class {name} · mean of {own[0].n} maps"))
    table = Table(
        ("class", "method", "maps", "in the heaviest 64th", "by chance, 99 %", "inside the object", "shortcut alarm"),
        tuple(
            (
                Cell(row.name),
                Cell(named(row.method)),
                Cell(f"{row.n:,}", number=True),
                Cell(f"{100 * row.share:.0f}{numbers.NBSP}%", number=True),
                Cell("one class" if row.chance is None else f"{100 * row.chance:.0f}{numbers.NBSP}%", number=True),
                Cell("no masks" if row.inside is None else f"{100 * row.inside:.0f}{numbers.NBSP}%", number=True),
                Cell("raised" if row.alarm else "no"),
            )
            for row in record.focus
        ),
        folded="Data table",
    )
    told = f"{len(alarms)} of {len(record.focus)} raise the shortcut alarm" if alarms else "no shortcut alarm"
    subtitle = (
        "positive relevance, averaged over the images that are given each class, and how much of it lies in the "
        f"heaviest 64th of the image · {told}: more there than 99 % of as many maps drawn from all classes have, and "
        "above 8 %; or less inside the object than an even spread would have. A class that always lies in one place "
        "raises it too"
    )
    small = max(record.data.shape[1:]) <= images.LOSSLESS_UP_TO if record.data else True
    return Section(
        "focus", "Where classes are looked for", subtitle, (Gallery(tuple(items), small), table), "Mean maps"
    )

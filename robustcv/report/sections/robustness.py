"""The curve over eps, accuracy per class, and the threat model with what each attack cost."""

from collections import Counter
from collections.abc import Mapping

from robustcv.records import GRADIENT_FREE, AttackResult, ClassRow, Metric, Record, Side
from robustcv.report import cells, charts, numbers
from robustcv.report.blocks import Cell, Chart, Section, Table
from robustcv.report.gallery import cases_of, link_to
from robustcv.report.summary import black_box
from robustcv.report.turns import after_each

Files = Mapping[str, bytes]
FEW_CLASSES, MANY_CLASSES, OVERLAID, TURNS = 12, 50, 5, 4


def curve(record: Record, files: Files) -> Section | None:
    """Draw robust accuracy over eps: the worst case over all attacks, or the worst cases of two runs."""
    if record.comparison is not None:
        a, b = record.comparison.a, record.comparison.b
        series = {side.name: _with_clean(side.metrics) for side in (a, b)}
        attacks = sorted({each.name for side in (a, b) for each in side.attacks})
        classes = len(b.classes)
    elif record.overview:
        alike = [row for row in record.overview if row.norm == record.overview[0].norm]
        series = {row.name: _with_clean(row.metrics) for row in alike[:OVERLAID]}
        attacks, classes = ["the attacks of each run"], 0
    else:
        attacks = list(dict.fromkeys(each.name for each in record.attacks))
        series = {"worst case": _with_clean(record.metrics)}
        classes = len(record.classes)
    series = {name: metrics for name, metrics in series.items() if len(metrics) > 1}
    if not series:
        return None
    every_turn = {} if record.comparison is not None or record.overview else after_each(record)
    turns = dict(list(every_turn.items())[:TURNS])
    norm = next(metric.norm for metrics in series.values() for metric in metrics if metric.norm) or "linf"
    factor = 255.0 if norm == "linf" else 1.0
    rows = [
        {
            "series": name,
            "eps": round((metric.eps or 0) * factor, 4),
            "share": (metric.count or 0) / metric.n,
            "low": metric.low,
            "high": metric.high,
        }
        | ({"thin": True} if name in turns else _fallen_at(record, metric.eps, norm))
        for name, metrics in (turns | series).items()
        for metric in metrics
    ]
    unit = "k/255, and as a decimal, L-inf" if norm == "linf" else numbers.NORM_NAMES[norm]
    bars = _bars(record, norm)
    svg = charts.robustness_curve(
        rows,
        chance=1 / classes if classes else None,
        x_title=f"eps ({unit})",
        label=_curve_takeaway(series, norm, record.headline_eps),
        decimals_of=factor,
        bars=[{"eps": round(eps * factor, 4), "bar": bar} for eps, bar in bars],
    )
    every_line = series | turns
    every = sorted({metric.eps or 0 for metrics in series.values() for metric in metrics})
    table = Table(
        ("eps", *every_line),
        tuple(
            (
                Cell(numbers.eps_short(eps, norm)),
                *(
                    cells.metric(next((m for m in metrics if (m.eps or 0) == eps), None))
                    for metrics in every_line.values()
                ),
            )
            for eps in every
        ),
        folded="Data table",
    )
    subtitle = f"Worst case per image over {', '.join(attacks)}{_escalated(record)}"
    subtitle += " · bands: pointwise 95 % Wilson" + (f" · dotted: chance, 1/{classes}" if classes else "")
    if turns:
        subtitle += " · thin, up to the headline: what still stood after each attack in turn"
        subtitle += f", the first {len(turns)} of {len(every_turn)} lines" if len(turns) < len(every_turn) else ""
    if bars:
        subtitle += " · thick bar: the gate"
    if len(record.overview) > len(series):
        subtitle += f" · {len(series)} of {len(record.overview)} runs"
    return Section("curve", "Robustness curve", subtitle, (Chart(svg, table),), "Robustness curve", "main")


def _bars(record: Record, norm: str) -> list[tuple[float, float]]:
    """List the gates on robust accuracy: at which eps, and how high."""
    gates = [gate for gate in record.gates if gate.metric == "robust_accuracy" and gate.kind != "drop"]
    return [
        (eps, gate.threshold)
        for gate in gates
        if (gate.norm or norm) == norm
        and (eps := gate.eps if gate.eps is not None else record.headline_eps) is not None
    ]


def _fallen_at(record: Record, eps: float | None, norm: str) -> dict[str, str]:
    """Link to the cases that were broken at this eps and at none that is smaller, if any is shown."""
    if eps is None or not any(case.outcome == "broken" and case.eps == eps for case in record.cases):
        return {}
    short = numbers.eps_short(eps, norm)
    return {"link": f"#{link_to(eps=short)}", "told": f"cases that fell at eps {short}"}


def _with_clean(metrics: tuple[Metric, ...]) -> list[Metric]:
    robust = [each for each in metrics if each.name == "robust_accuracy" and each.attack is None]
    clean = [each for each in metrics if each.name == "clean_accuracy"]
    return [*clean, *sorted(robust, key=lambda each: each.eps or 0)]


def _curve_takeaway(series: dict[str, list[Metric]], norm: str, headline: float | None) -> str:
    """Say in a sentence what the curve shows, at the eps of the first screen."""
    parts = []
    for name, metrics in series.items():
        told = next((metric for metric in metrics if metric.eps == headline), metrics[-1])
        where = numbers.threat(told.eps or 0.0, norm)
        parts.append(f"{name}: {numbers.percent(metrics[0])} clean, {numbers.percent(told)} at {where}")
    return "Accuracy under attack over eps. " + "; ".join(parts) + "."


def classes(record: Record, files: Files) -> Section | None:
    """Tabulate accuracy per class, clean and under attack, the largest drop first."""
    if record.comparison is not None:
        sides = [(f"{side.name}, ", side.classes) for side in (record.comparison.a, record.comparison.b)]
    else:
        sides = [("", record.classes)]
    if not sides[0][1] or all(row.robust is None for row in sides[-1][1]):
        return None
    order = sorted(range(len(sides[-1][1])), key=lambda k: _kept(sides[-1][1][k]))
    norm = next((each.norm for each in _attacks(record)), "linf")
    where = numbers.threat(record.headline_eps or 0.0, norm)
    names = tuple(sides[0][1][k].name for k in order)
    lines = [("n", tuple(Cell(f"{n:,}", number=True, value=n) for n in (sides[0][1][k].n for k in order)))]
    for prefix, rows in sides:
        lines.append((f"{prefix}clean", tuple(_heat_cell("clean_accuracy", rows[k].clean, rows[k].n) for k in order)))
        lines.append(
            (f"{prefix}{where}", tuple(_heat_cell("robust_accuracy", rows[k].robust, rows[k].n) for k in order))
        )
        if any(row.corrupted is not None for row in rows):
            lines.append((f"{prefix}corruptions, mean", tuple(_corrupted_cell(rows[k]) for k in order)))
    tested = sides[-1][1]
    if record.comparison is None:
        for attack in dict.fromkeys(name for row in tested for name in row.fell):
            counts = [(tested[k].fell.get(attack, 0), tested[k].n) for k in order]
            fallen = [
                cells.with_ends(cells.share("broken", count, n)) if n else Cell("no image", number=True)
                for count, n in counts
            ]
            lines.append((f"broken by {attack}", tuple(fallen)))
    if record.comparison is None and all(row.p_value is not None for row in tested):
        p_values = [tested[k].p_value or 0.0 for k in order]
        told = (
            Cell(numbers.p_value(p).removeprefix("p = ").removeprefix("p "), number=True, value=p) for p in p_values
        )
        lines.append(("p against the rest", tuple(told)))
    if record.comparison is None and record.cases:
        shown = Counter(name for name, _ in cases_of(record).elements())
        told = (
            Cell(f"{shown[name]:,}", number=True, value=shown[name], link=link_to(class_=name) if shown[name] else "")
            for name in names
        )
        lines.append(("cases shown", tuple(told)))
    smallest = min((row.n for row in sides[0][1] if row.n), default=1)
    subtitle = "worst case per image, the largest drop first · in brackets 95 % intervals (Wilson's)"
    subtitle += f" · smallest class n = {smallest}: read ±{98 / smallest**0.5:.0f} pp"
    if record.comparison is None:
        subtitle += (
            " · broken by: the attack that broke an image at the smallest eps where it fell"
            if any(row.fell for row in tested)
            else ""
        )
        subtitle += " · p: Fisher's exact test, adjusted for the number of classes (Holm)"
    return Section("classes", "Per class", subtitle, _class_tables(names, lines), "Per class")


def _class_tables(names: tuple[str, ...], lines: list[tuple[str, tuple[Cell, ...]]]) -> tuple[Table, ...]:
    """Lay few classes out as a matrix, many as a list whose end is folded."""
    if len(names) <= FEW_CLASSES:
        rows = tuple((Cell(label), *line) for label, line in lines)
        return (Table(("", *names), rows, matrix=True),)
    headers = ("class", *(label for label, _ in lines))
    rows = tuple((Cell(name), *(line[k] for _, line in lines)) for k, name in enumerate(names))
    tables = [Table(headers, rows[:MANY_CLASSES], sortable=True)]
    if len(rows) > MANY_CLASSES:
        tables.append(Table(headers, rows[MANY_CLASSES:], folded=f"{len(rows) - MANY_CLASSES} more classes"))
    return tuple(tables)


def _attacks(record: Record) -> tuple[AttackResult, ...]:
    return record.comparison.b.attacks if record.comparison else record.attacks


def _kept(row: ClassRow) -> tuple[float, str]:
    """Give minus what attacks take from a class, as a share of its images; what has no image comes last."""
    return (((row.robust or 0) - row.clean) / row.n if row.n else 2.0, row.name)


def _heat_cell(name: str, count: float | None, n: int) -> Cell:
    if count is None or n == 0:
        return Cell("not run" if n else "no image", number=True)
    return cells.with_ends(cells.heat(name, count, n))


def _corrupted_cell(row: ClassRow) -> Cell:
    """Tell the mean over corrupted copies; an image's copies go together, so Wilson's interval is on the wide side."""
    absent = row.corrupted is None or row.n == 0
    return _heat_cell("corruption_accuracy", None if absent else (row.corrupted or 0.0) * row.n, row.n)


def _escalated(record: Record) -> str:
    return (
        " (escalated at the headline eps only)" if any(each.reason == "escalation" for each in record.attacks) else ""
    )


def _first_alone(record: Record) -> tuple[tuple[str, str], ...]:
    """Tell what the first, cheapest attack alone would have claimed."""
    named = (each for each in record.metrics if each.name == "robust_accuracy")
    metric = next((each for each in named if each.attack is not None), None)
    if metric is None:
        return ()
    return ((f"{metric.attack} alone", f"{numbers.percent(metric)} ({numbers.interval(metric)}) would seem robust"),)


def _spread(record: Record) -> tuple[tuple[str, str], ...]:
    """Tell how far the seed of the attacks' random choices matters."""
    if not record.seeds:
        return ()
    shares = [numbers.share(each.count / each.n, each.n) for each in record.seeds]
    apart = max(each.count for each in record.seeds) - min(each.count for each in record.seeds)
    told = f"{', '.join(shares)} stand against the plan with seeds {', '.join(str(each.seed) for each in record.seeds)}"
    return (("seeds", f"{told}: {apart:,} images apart; robust accuracy counts what any of them broke"),)


def _how(attack: AttackResult) -> str:
    """Tell an attack's options, and why it ran where that was not the plan."""
    options = numbers.plain(attack.options) if attack.options else ""
    why = {
        "plan": "",
        "probe": "probe",
        "escalation": "escalation: a check was raised",
        "seed": "another seed",
        "alone": "alone, for the agreement",
    }[attack.reason]
    return " · ".join(part for part in (why, options) if part)


_HALF = "gradients in bfloat16 where model and attack allow it; every success was judged in float32"
_KNOWN = {
    False: "white box: architecture, weights and gradients are known to the attacker",
    True: "black box: the attacker asks for answers, and knows no weights",
}
_ATLAS = {False: "AML.T0043.000 White-Box Optimization", True: "AML.T0043.001 Black-Box Optimization"}
_VERBS = {"audit": "AML.M0008 Validate AI Model", "harden": "AML.M0003 Model Hardening"}


def _atlas(record: Record, attacks: tuple[AttackResult, ...]) -> str:
    """Name the techniques that attacks stand for, and the mitigation that this run is part of."""
    told = []
    for free, technique in _ATLAS.items():
        if names := dict.fromkeys(each.name for each in attacks if (each.name in GRADIENT_FREE) is free):
            told.append(f"{technique} ({', '.join(names)})")
    mitigation = _VERBS["harden" if record.training is not None and record.verb != "audit" else "audit"]
    return f"{'; '.join(told)}; AML.T0015 Evade AI Model. This run: {mitigation}"


def under_corruptions(record: Record) -> bool:
    """Tell whether corruptions were measured, in this run or in one of those compared."""
    sides = [] if record.comparison is None else [record.comparison.a, record.comparison.b]
    return bool(record.corruptions) or any(row.corrupted is not None for side in sides for row in side.classes)


def _law(record: Record) -> str:
    """Tell which paragraphs of the EU AI Act on high-risk systems ask for figures such as these."""
    asked = ["3 (accuracy, declared)"]
    asked += ["4 (errors and faults: corruptions)"] if under_corruptions(record) else []
    asked += ["5 (adversarial examples)"]
    return f"Article 15: evidence towards paragraphs {', '.join(asked)}; no statement of compliance"


def threat_model(record: Record, files: Files) -> Section | None:
    """State the threat model, the attacks as run, and what they cost."""
    sides: list[Side | Record] = [record] if record.comparison is None else [record.comparison.a, record.comparison.b]
    if not sides[-1].attacks:
        return None
    norm = sides[-1].attacks[0].norm
    judged = [(each.options.get("eight_bit"), each.options.get("precision") == "bf16") for each in sides]
    stated = (
        ("goal", "any wrong class (untargeted): a violation of integrity, by evasion (NIST AI 100-2)"),
        ("stage", "deployment: the model is trained, and asked"),
        ("knowledge", _KNOWN[black_box(sides[-1].attacks)]),
        ("capability", f"each image changed within {numbers.NORM_NAMES[norm]} eps, and kept in [0, 1]"),
        (
            "success",
            "a wrong answer, confirmed by a second forward pass of the plain model, inside the ball and the box",
        ),
        ("headline", numbers.eps_long(record.headline_eps or 0.0, norm)),
        *_first_alone(record),
        *_spread(record),
        *((("also", "a success counts only after rounding to 8 bits"),) if any(e for e, _ in judged) else ()),
        *((("precision", _HALF),) if any(half for _, half in judged) else ()),
        ("preprocessing", "inside the model; eps is measured on pixels in [0, 1]"),
        ("MITRE ATLAS", _atlas(record, sides[-1].attacks)),
        ("kind of evidence", "empirical: attacks that were run (the terms of ISO/IEC TR 24029-1); proofs stand apart"),
        ("Regulation (EU) 2024/1689", _law(record)),
        ("not tested", "poisoning of training data, theft of the model, inference about its training data"),
    )
    facts = Table(("", ""), tuple((Cell(name), Cell(text)) for name, text in stated))
    rows = []
    for side in sides:
        prefix = f"{side.name}: " if isinstance(side, Side) else ""
        for each in side.attacks:
            measured = "none attacked" if each.max_distance is None else f"{each.max_distance:.5f}"
            rows.append(
                (
                    Cell(f"{prefix}{each.name}", _how(each)),
                    Cell(numbers.threat(each.eps, each.norm)),
                    Cell(f"{each.attempted:,}", number=True),
                    Cell(f"{each.broken:,}", number=True),
                    Cell(measured, f"eps {each.eps:.5f}", number=True),
                    Cell(f"{each.forward:,}", number=True),
                    Cell(f"{each.backward:,}", number=True),
                    Cell(numbers.duration(each.seconds), number=True),
                )
            )
    headers = (
        "attack",
        "at",
        "attacked",
        "broken",
        "largest change measured",
        "forward passes",
        "backward passes",
        "time",
    )
    subtitle = "each attack sees what the ones before it left; an image is left alone from the moment it is broken"
    tables = (facts, Table(headers, tuple(rows), caption="Attacks as run"))
    return Section("threat", "Threat model", subtitle, tables, "Threat model")

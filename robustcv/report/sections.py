"""The sections of the page, in order: each a function from the record to a section, or None where it has nothing."""

from collections.abc import Callable, Mapping

from robustcv.records import AttackResult, ClassRow, Metric, Record, Side
from robustcv.report import charts, numbers
from robustcv.report.blocks import Bullet, Bullets, Cell, Chart, Section, Table, Text
from robustcv.report.gallery import case_gallery, paired_gallery
from robustcv.report.images import cividis
from robustcv.report.summary import headline

Files = Mapping[str, bytes]
FEW_CLASSES, MANY_CLASSES = 12, 50


def _worst(metrics: tuple[Metric, ...]) -> list[Metric]:
    return [metric for metric in metrics if metric.name == "robust_accuracy" and metric.attack is None]


def _metric_cell(metric: Metric | None) -> Cell:
    if metric is None:
        return Cell("not run")
    return Cell(numbers.percent(metric), numbers.interval(metric), number=True)


# -- the curve ------------------------------------------------------------------------------------------------------


def curve(record: Record, files: Files) -> Section | None:
    """Draw robust accuracy over eps: each attack alone and the worst case, or the worst cases of two runs."""
    if record.comparison is not None:
        a, b = record.comparison.a, record.comparison.b
        series = {side.name: _with_clean(side.metrics, None) for side in (a, b)}
        attacks = sorted({each.name for side in (a, b) for each in side.attacks})
        classes = len(b.classes)
    else:
        attacks = list(dict.fromkeys(each.name for each in record.attacks))
        names = {None: "worst case", **({name: f"{name} alone" for name in attacks} if len(attacks) > 1 else {})}
        series = {label: _with_clean(record.metrics, name) for name, label in names.items()}
        classes = len(record.classes)
    series = {name: metrics for name, metrics in series.items() if len(metrics) > 1}
    if not series:
        return None
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
        for name, metrics in series.items()
        for metric in metrics
    ]
    unit = "k/255, L-inf" if norm == "linf" else numbers.NORM_NAMES[norm]
    svg = charts.robustness_curve(
        rows, chance=1 / max(classes, 1), x_title=f"eps ({unit})", label=_curve_takeaway(series, norm)
    )
    every = sorted({metric.eps or 0 for metrics in series.values() for metric in metrics})
    table = Table(
        ("eps", *series),
        tuple(
            (
                Cell(numbers.eps_short(eps, norm)),
                *(_metric_cell(next((m for m in metrics if (m.eps or 0) == eps), None)) for metrics in series.values()),
            )
            for eps in every
        ),
        folded="Data table",
    )
    subtitle = (
        f"Worst case per image over {', '.join(attacks)} · bands: pointwise 95 % Wilson · dotted: chance, 1/{classes}"
    )
    return Section("curve", "Robustness curve", subtitle, (Chart(svg, table),), "Robustness curve", "main")


def _with_clean(metrics: tuple[Metric, ...], attack: str | None) -> list[Metric]:
    robust = [each for each in metrics if each.name == "robust_accuracy" and each.attack == attack]
    clean = [each for each in metrics if each.name == "clean_accuracy"]
    return [*clean, *sorted(robust, key=lambda each: each.eps or 0)]


def _curve_takeaway(series: dict[str, list[Metric]], norm: str) -> str:
    parts = []
    for name, metrics in series.items():
        last = metrics[-1]
        parts.append(
            f"{name}: {numbers.percent(metrics[0])} clean, {numbers.percent(last)} at {numbers.threat(last.eps or 0, norm)}"
        )
    return "Robust accuracy over eps. " + "; ".join(parts) + "."


# -- what to know first ---------------------------------------------------------------------------------------------


def findings(record: Record, files: Files) -> Section | None:
    """List what a reviewer should know first, worst first; each line is written by a rule with a number."""
    bullets: list[Bullet] = []
    for check in record.preflight:
        if check.status == "raised":
            bullets.append(Bullet(f"{check.check}: {check.figure}. Next: {check.fix}.", "RCV-F01"))
    for rule in (_weakest_class, _one_step_flatters, _stands_at_large_eps, _overconfident, _incomplete_maps, _traded):
        if (bullet := rule(record)) is not None:
            bullets.append(bullet)
    if not bullets:
        return None
    return Section("findings", "Findings", "worst first", (Bullets(tuple(bullets)),), place="side")


def _weakest_class(record: Record) -> Bullet | None:
    rows = record.comparison.b.classes if record.comparison else record.classes
    judged = [row for row in rows if row.robust is not None and row.n > 0]
    if not judged or record.headline_eps is None:
        return None
    worst = min(judged, key=lambda row: ((row.robust or 0) / row.n, row.name))
    clean, robust = (numbers.share(count / worst.n, worst.n) for count in (worst.clean, worst.robust or 0))
    who = f" ({record.comparison.b.name})" if record.comparison else ""
    return Bullet(
        f"Class {worst.name!r} stands least{who}: {clean} clean, {robust} under attack, n = {worst.n}",
        "RCV-F02",
        "classes",
    )


def _one_step_flatters(record: Record) -> Bullet | None:
    single = record.metric("robust_accuracy", eps=record.headline_eps, attack="fgsm")
    worst = headline(record)
    if single is None or worst is None or single.count is None or worst.count is None or single.count == worst.count:
        return None
    gap = (single.count - worst.count) / worst.n
    return Bullet(f"FGSM alone would overstate robustness by {100 * gap:.1f} pp", "RCV-F03", "curve")


def _stands_at_large_eps(record: Record) -> Bullet | None:
    worst = _worst(record.metrics)
    if not worst or not record.data:
        return None
    last = max(worst, key=lambda metric: metric.eps or 0)
    chance = 1 / len(record.data.class_names)
    if last.low is None or last.low <= chance:
        return None
    where = numbers.threat(last.eps or 0, last.norm or "linf")
    return Bullet(
        f"{numbers.percent(last)} still stand at {where}, more than chance: try larger eps, or distrust the attack",
        "RCV-F04",
        "curve",
    )


def _overconfident(record: Record) -> Bullet | None:
    filled = [each for each in record.calibration if each.n]
    error = record.metric("calibration_error")
    if error is None or error.low is None or error.low < 0.05 or not filled:
        return None
    over = sum(each.confidence * each.n for each in filled) > sum(each.correct for each in filled)
    word = "over" if over else "under"
    return Bullet(f"{word}confident: calibration error {numbers.percent(error)}", "RCV-F05", "calibration")


def _incomplete_maps(record: Record) -> Bullet | None:
    for result in record.explanations:
        if result.median_error is not None and result.median_error > 0.05:
            gap = f"{100 * result.median_error:.0f} %"
            return Bullet(
                f"{result.method}: maps miss {gap} of the logit's change (median); use more steps",
                "RCV-F06",
                "explanations",
            )
    return None


def _traded(record: Record) -> Bullet | None:
    if record.comparison is None:
        return None
    clean = record.comparison.paired[0]
    if clean.low <= 0 <= clean.high:
        return Bullet(
            f"Clean accuracy: no difference shown ({numbers.points(clean.difference)}, {numbers.p_value(clean.p_value)})",
            "RCV-F07",
            "paired",
        )
    word = "gained" if clean.difference > 0 else "lost"
    return Bullet(
        f"Clean accuracy {word}: {numbers.points(clean.difference)} ({numbers.p_value(clean.p_value)})",
        "RCV-F07",
        "paired",
    )


def limits(record: Record, files: Files) -> Section | None:
    """Say what the figures do not show."""
    if not (record.attacks or record.comparison):
        return None
    norms = {each.norm for each in (record.comparison.b.attacks if record.comparison else record.attacks)}
    others = [name for key, name in numbers.NORM_NAMES.items() if key not in norms]
    items = [
        f"other threats: {', '.join(others)}, patches, rotations, corruptions",
        "attacks adapted by hand to this model",
        "a guarantee: robust accuracy is an upper bound",
    ]
    if record.data and record.data.n < record.data.total:
        items.append(f"the other {record.data.total - record.data.n:,} images of the split")
    where = f"under {' and '.join(numbers.NORM_NAMES[norm] for norm in sorted(norms))} only"
    blocks = (Bullets(tuple(Bullet(text) for text in items)),)
    return Section("limits", "What this does not show", where, blocks, place="side")


# -- compare --------------------------------------------------------------------------------------------------------


def paired(record: Record, files: Files) -> Section | None:
    """Tabulate the paired differences."""
    if record.comparison is None:
        return None
    a, b = record.comparison.a.name, record.comparison.b.name
    rows = []
    for pair in record.comparison.paired:
        n = pair.both + pair.only_a + pair.only_b + pair.neither
        name = "clean" if pair.eps is None else numbers.threat(pair.eps, pair.norm or "linf")
        low, high = f"{100 * pair.low:+.1f}", f"{100 * pair.high:+.1f}"
        rows.append(
            (
                Cell(name),
                Cell(numbers.share((pair.both + pair.only_a) / n, n), number=True),
                Cell(numbers.share((pair.both + pair.only_b) / n, n), number=True),
                Cell(numbers.points(pair.difference), f"{low} to {high}", number=True),
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


# -- per class ------------------------------------------------------------------------------------------------------


def classes(record: Record, files: Files) -> Section | None:
    """Tabulate accuracy per class, clean and under attack, worst first."""
    if record.comparison is not None:
        sides = [(f"{side.name}, ", side.classes) for side in (record.comparison.a, record.comparison.b)]
    else:
        sides = [("", record.classes)]
    if not sides[0][1] or all(row.robust is None for row in sides[-1][1]):
        return None
    order = sorted(range(len(sides[-1][1])), key=lambda k: _standing(sides[-1][1][k]))
    norm = next((each.norm for each in _attacks(record)), "linf")
    where = numbers.threat(record.headline_eps or 0.0, norm)
    names = tuple(sides[0][1][k].name for k in order)
    lines = [("n", tuple(Cell(f"{sides[0][1][k].n:,}", number=True) for k in order))]
    for prefix, rows in sides:
        lines.append((f"{prefix}clean", tuple(_heat_cell(rows[k].clean, rows[k].n) for k in order)))
        lines.append((f"{prefix}{where}", tuple(_heat_cell(rows[k].robust, rows[k].n) for k in order)))
    smallest = min((row.n for row in sides[0][1] if row.n), default=1)
    subtitle = f"worst case per image, worst class first · smallest class n = {smallest}: read ±{98 / smallest**0.5:.0f} pp"
    return Section("classes", "Per class", subtitle, _class_tables(names, lines), "Per class")


def _class_tables(names: tuple[str, ...], lines: list[tuple[str, tuple[Cell, ...]]]) -> tuple[Table, ...]:
    """Lay few classes out as a matrix, many as a list whose end is folded."""
    if len(names) <= FEW_CLASSES:
        rows = tuple((Cell(label), *cells) for label, cells in lines)
        return (Table(("", *names), rows, matrix=True),)
    headers = ("class", *(label for label, _ in lines))
    rows = tuple((Cell(name), *(cells[k] for _, cells in lines)) for k, name in enumerate(names))
    tables = [Table(headers, rows[:MANY_CLASSES])]
    if len(rows) > MANY_CLASSES:
        tables.append(Table(headers, rows[MANY_CLASSES:], folded=f"{len(rows) - MANY_CLASSES} more classes"))
    return tuple(tables)


def _attacks(record: Record) -> tuple[AttackResult, ...]:
    return record.comparison.b.attacks if record.comparison else record.attacks


def _standing(row: ClassRow) -> tuple[float, str]:
    return ((row.robust or 0) / row.n if row.n else 2.0, row.name)


def _heat_cell(count: int | None, n: int) -> Cell:
    if count is None or n == 0:
        return Cell("not run" if n else "no image", number=True)
    background, colour = cividis(count / n)
    return Cell(numbers.share(count / n, n), number=True, background=background, colour=colour)


# -- cases and explanations ------------------------------------------------------------------------------------------


def cases(record: Record, files: Files) -> Section | None:
    """Show the cases with their heat maps."""
    if record.comparison is not None:
        gallery, subtitle = paired_gallery(record.comparison, files)
        title = "The same images, both models"
    elif record.cases:
        gallery, subtitle = case_gallery(record, files)
        title = "Cases" if record.verb == "audit" else "Heat maps"
    else:
        return None
    return Section("cases", title, subtitle, (gallery,), title) if gallery.items else None


def explanations(record: Record, files: Files) -> Section | None:
    """Tabulate the explanation methods: what they explained, against which baseline, how complete, at what cost."""
    if record.comparison is not None:
        sides = [(f"{side.name}: ", side.explanations) for side in (record.comparison.a, record.comparison.b)]
    else:
        sides = [("", record.explanations)]
    rows = tuple(
        (
            Cell(f"{prefix}{result.method}"),
            Cell(f"{result.details.get('target', '')} of the predicted class"),
            Cell(str(result.details.get("baseline", "none"))),
            Cell(f"{result.images:,}", number=True),
            Cell(_gap(result.median_error), number=True),
            Cell(_gap(result.worst_error), number=True),
            Cell(f"{result.forwards / max(1, result.images):,.0f}", number=True),
            Cell(numbers.duration(result.seconds), number=True),
        )
        for prefix, results in sides
        for result in results
    )
    if not rows:
        return None
    headers = ("method", "explains", "baseline", "maps", "completeness gap, median", "worst", "forward-equivalents a map", "time")
    note = "completeness gap: |sum of the map − change of the logit from the baseline| as a share of that change"
    return Section("explanations", "Explanations", note, (Table(headers, rows),), "Explanations")


def _gap(value: float | None) -> str:
    return "none known" if value is None else f"{100 * value:.2f}{numbers.NBSP}%"


# -- calibration and training ------------------------------------------------------------------------------------------


def calibration(record: Record, files: Files) -> Section | None:
    """Draw the reliability diagram."""
    filled = [each for each in record.calibration if each.n]
    error = record.metric("calibration_error")
    if not filled or error is None:
        return None
    rows = [{"confidence": each.confidence, "accuracy": each.correct / each.n, "n": each.n} for each in filled]
    label = f"Accuracy against confidence; expected calibration error {numbers.percent(error)}"
    table = Table(
        ("confidence", "mean confidence", "accuracy", "n"),
        tuple(
            (
                Cell(f"{each.low:.2f}–{each.high:.2f}"),
                Cell(numbers.share(each.confidence, 100), number=True),
                Cell(numbers.share(each.correct / each.n, each.n), number=True),
                Cell(f"{each.n:,}", number=True),
            )
            for each in filled
        ),
        folded="Data table",
    )
    subtitle = f"expected calibration error {numbers.percent(error)} ({numbers.interval(error)}), {error.method} · 15 bins"
    chart = Chart(charts.reliability(rows, label=label), table)
    return Section("calibration", "Calibration", subtitle, (chart,), "Calibration")


def training(record: Record, files: Files) -> Section | None:
    """Draw the learning curves, of the run itself or of the model that was audited."""
    made = record.training
    if made is None:
        return None
    rows = []
    for epoch in made.epochs:
        seen = "training images, as trained on" if made.objective == "standard" else "training images, attacked"
        rows.append({"series": seen, "epoch": epoch.epoch, "share": epoch.correct / epoch.n})
        right = epoch.validation_correct / epoch.validation_n
        rows.append({"series": "validation, clean", "epoch": epoch.epoch, "share": right})
        if epoch.validation_robust is not None and epoch.validation_robust_n:
            robust = epoch.validation_robust / epoch.validation_robust_n
            rows.append({"series": "validation, attacked", "epoch": epoch.epoch, "share": robust})
    label = f"Accuracy over {len(made.epochs)} epochs; epoch {made.selected_epoch} was kept"
    chart = Chart(charts.training_curve(rows, selected=made.selected_epoch, label=label), _epoch_table(record))
    subtitle = f"{made.objective} · kept: epoch {made.selected_epoch}, by {made.selected_by} · the test split was read once"
    return Section("training", "Training", subtitle, (chart,), "Training")


def _epoch_table(record: Record) -> Table:
    assert record.training is not None
    rows = tuple(
        (
            Cell(str(epoch.epoch)),
            Cell(f"{epoch.loss:.3f}", number=True),
            Cell(numbers.share(epoch.correct / epoch.n, epoch.n), number=True),
            Cell(numbers.share(epoch.validation_correct / epoch.validation_n, epoch.validation_n), number=True),
            Cell(
                "not run"
                if epoch.validation_robust is None
                else numbers.share(epoch.validation_robust / epoch.validation_n, epoch.validation_n),
                number=True,
            ),
            Cell(numbers.duration(epoch.seconds), number=True),
        )
        for epoch in record.training.epochs
    )
    headers = ("epoch", "loss", "training", "validation, clean", "validation, attacked", "time")
    return Table(headers, rows, folded="Data table")


# -- threat model and reproduction -------------------------------------------------------------------------------------


def threat_model(record: Record, files: Files) -> Section | None:
    """State the threat model, the attacks as run, and what they cost."""
    sides: list[Side | Record] = [record] if record.comparison is None else [record.comparison.a, record.comparison.b]
    if not sides[-1].attacks:
        return None
    norm = sides[-1].attacks[0].norm
    stated = (
        ("goal", "any wrong class (untargeted); NIST AI 100-2: evasion, integrity"),
        ("knowledge", "white box: architecture, weights and gradients are known to the attacker"),
        ("capability", f"each image changed within {numbers.NORM_NAMES[norm]} eps, and kept in [0, 1]"),
        ("success", "a wrong answer, confirmed by a second forward pass of the plain float32 model, inside the ball and the box"),
        ("preprocessing", "inside the model; eps is measured on pixels in [0, 1]"),
        ("MITRE ATLAS", "AML.T0043.000 White-Box Optimization; AML.T0015 Evade AI Model"),
    )
    facts = Table(("", ""), tuple((Cell(name), Cell(text)) for name, text in stated))
    rows = []
    for side in sides:
        prefix = f"{side.name}: " if isinstance(side, Side) else ""
        for each in side.attacks:
            measured = "none attacked" if each.max_distance is None else f"{each.max_distance:.5f}"
            rows.append(
                (
                    Cell(f"{prefix}{each.name}", numbers.plain(each.options) if each.options else ""),
                    Cell(numbers.threat(each.eps, each.norm)),
                    Cell(f"{each.attempted:,}", number=True),
                    Cell(f"{each.broken:,}", number=True),
                    Cell(measured, f"eps {each.eps:.5f}", number=True),
                    Cell(f"{each.forward:,}", number=True),
                    Cell(f"{each.backward:,}", number=True),
                    Cell(numbers.duration(each.seconds), number=True),
                )
            )
    headers = ("attack", "at", "attacked", "broken", "largest change measured", "forward passes", "backward passes", "time")
    subtitle = "an image broken at a smaller eps counts as broken at a larger one, and is not attacked again"
    tables = (facts, Table(headers, tuple(rows), caption="Attacks as run"))
    return Section("threat", "Threat model", subtitle, tables, "Threat model")


def reproduce(record: Record, files: Files) -> Section | None:
    """Give what is needed to repeat the run."""
    environment = record.environment
    identity = [("command", environment.command), ("robustcv", record.version), ("started (UTC)", environment.started)]
    identity += [("took", numbers.duration(environment.seconds)), ("device", environment.device)]
    identity += [("platform", f"{environment.platform}, Python {environment.python}, {environment.threads} threads")]
    identity += [("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items()))]
    if record.model:
        identity += [("model", f"{record.model.source}, {record.model.parameters:,} parameters")]
        identity += [("weights SHA-256", record.model.sha256)]
    if record.comparison:
        for side in (record.comparison.a, record.comparison.b):
            identity += [(side.name, f"{side.run}, weights SHA-256 {side.model.sha256[:16]}")]
    if record.data:
        identity += [("images", f"{record.data.name}, {record.data.split}, {record.data.n:,} of {record.data.total:,}, {record.data.selection}")]
        identity += [("images SHA-256", record.data.sha256)]
    if record.passes.forward:
        identity += [("passes", f"{record.passes.forward:,} forward, {record.passes.backward:,} backward")]
    facts = Table(("", ""), tuple((Cell(name), Cell(text)) for name, text in identity))
    options = tuple((Cell(name), Cell(numbers.plain(value))) for name, value in record.options.items())
    folded = Table(("option", "value"), options, folded="Options, all of them")
    subtitle = "same seed, same machine, same result; config.toml in the run folder repeats the run"
    return Section("reproduce", "Reproduce", subtitle, (facts, folded), "Reproduce")


def glossary(record: Record, files: Files) -> Section | None:
    """Define every number of the first screen."""
    terms = [("clean accuracy", "right answers / images, nothing changed")]
    if record.attacks or record.comparison:
        terms += [
            ("robust accuracy", "images right when clean that no attack of the list broke / images; an upper bound, since a better attack could break more"),
            ("eps", "largest change allowed: of any one value for L-inf, the Euclidean length for L2; pixels lie in [0, 1]"),
        ]  # fmt: skip
    if record.calibration or record.comparison:
        terms += [("calibration error", "sum over 15 confidence bins of (images in bin / images) × |accuracy − mean confidence| (Guo et al. 2017)")]
    if record.explanations or record.comparison:
        terms += [("completeness gap", "|sum of the map − (logit of the image − logit of the baseline)| / |that difference|")]
    terms += [("95 % CI", "Wilson interval for shares; bootstrap where said; Newcombe's for paired differences")]
    return Section("glossary", "What the numbers mean", "", (Table(("", ""), tuple((Cell(a), Cell(b)) for a, b in terms)),))


def other_figures(record: Record, files: Files) -> Section | None:
    """Say in words what a page without attacks rests on."""
    if record.verb not in ("train", "harden"):
        return None
    text = "How easily this model is broken, and what it looks at, is not measured by training: run `robustcv audit` on this folder."
    return Section("next", "What next", "", (Text(text),), place="full")


SECTIONS: dict[str, Callable[[Record, Files], Section | None]] = {
    "curve": curve,
    "findings": findings,
    "limits": limits,
    "paired": paired,
    "classes": classes,
    "cases": cases,
    "explanations": explanations,
    "calibration": calibration,
    "training": training,
    "next": other_figures,
    "threat": threat_model,
    "changes": changes,
    "reproduce": reproduce,
    "glossary": glossary,
}


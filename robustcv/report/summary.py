"""The first screen: the verdict's sentence, the threat, what stands behind the page, the checks."""

from collections.abc import Callable, Sequence

from robustcv.records import GRADIENT_FREE, AttackResult, Check, Gate, Metric, Model, PairedMetric, Record, find_metric
from robustcv.report import numbers

GLYPHS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "◐", "NO GATE": "○", "INCOMPLETE": "◌"}
KINDS = {"PASS": "pass", "FAIL": "fail", "INCONCLUSIVE": "inc", "NO GATE": "none", "INCOMPLETE": "inc"}


def headline(record: Record) -> Metric | None:
    """Give the worst-case robust accuracy at the headline eps."""
    return find_metric(record.metrics, "robust_accuracy", eps=record.headline_eps, attack=None)


def name_of(record: Record) -> str:
    """Name the model as its maker would."""
    if record.overview:
        return f"{len(record.overview)} audits"
    if record.comparison is not None and record.model is None:
        return f"{record.comparison.a.name} and {record.comparison.b.name}"
    return record.model.architecture if record.model else str(record.options.get("model", "the model"))


def kicker(record: Record) -> str:
    """Write the line above the verdict: what was done to what, when."""
    parts = [f"robustcv {record.verb}", name_of(record)]
    if record.data:
        parts[1] += f" on {record.data.name}"
        parts.append(f"{record.data.n:,} {record.data.split} images")
    parts.append(record.environment.started[:10])
    seed = record.options.get("seed")
    return " · ".join([*parts, *([] if seed is None else [f"seed {seed}"])])


def sentence(record: Record) -> str:
    """Write the verdict in one sentence."""
    if record.verdict != "INCOMPLETE":
        return _SENTENCES[record.verb](record)
    go_on = "The same command with --resume goes on."
    if record.model is None and record.comparison is None and not record.overview:
        return f"Interrupted before there was a figure. {go_on}"
    return f"Interrupted, and this is what there was by then. {_SENTENCES[record.verb](record)} {go_on}"


def _audit_sentence(record: Record) -> str:
    clean, robust = record.metric("clean_accuracy"), headline(record)
    if robust is None or clean is None:
        return f"{name_of(record)}: accuracy {numbers.percent(clean)}."
    where = numbers.threat(robust.eps or 0, robust.norm or "linf")
    text = f"Right on {numbers.percent(clean)} of images, and on {numbers.percent(robust)} under attack at {where}"
    for gate in record.gates:
        text = gate_sentence(record, gate)
        if gate.outcome != "passed":
            break
    return f"{text}{_but_raised(record)}."


def _but_raised(record: Record) -> str:
    """Write the end of a sentence whose figures a raised check puts in doubt."""
    raised = sum(status == "raised" for status, _, _ in checks(record))
    many = f"{raised} check{'s were' if raised > 1 else ' was'} raised"
    return f", but {many}, so the figures may mislead" if raised else ""


def gate_sentence(record: Record, gate: Gate) -> str:
    """Write how a gate was met: the metric with its interval, and where that lies."""
    label = gate.metric.replace("_", " ")
    eps = gate.eps if gate.eps is not None else record.headline_eps
    if gate.metric == "robust_accuracy":
        label += f" at {numbers.threat(eps or 0, gate.norm or 'linf')}"
    bar = f"{100 * gate.threshold:g}{numbers.NBSP}"
    if gate.kind == "drop":
        word = {"passed": "is within", "failed": "is more than", "across": "cannot be told from"}[gate.outcome]
        ends = numbers.between(gate.low or 0, gate.high or 0)
        moved = f"{numbers.points(gate.value or 0)}, 95{numbers.NBSP}% CI {ends}"
        return f"The drop in {label} against the baseline ({moved}) {word} the {bar}pp allowed"
    match = {} if gate.metric != "robust_accuracy" else {"eps": eps, "attack": None}
    metric = record.metric(gate.metric, **match)
    word = {"passed": "is above", "failed": "is below", "across": "cannot be told from"}[gate.outcome]
    told = f"{label[0].upper()}{label[1:]} {numbers.percent(metric)}"
    told += f" ({numbers.interval(metric)})" if metric else ""
    return f"{told} {word} the gate of {bar}%"


def _training_sentence(record: Record) -> str:
    if record.comparison is not None:
        return _compare_sentence(record)
    clean = record.metric("clean_accuracy")
    training = record.training
    epochs = 0 if training is None else training.epochs[-1].epoch
    how = "" if training is None else f" after {epochs} epoch{'s' * (epochs != 1)} of {training.objective}"
    if clean is None:
        why = "" if record.verdict == "INCOMPLETE" else "; there was no test split to judge it on"
        return f"{name_of(record)} was trained{how}{why}."
    verb = "hardened: right" if record.verb == "harden" else "is right"
    return f"{name_of(record)} {verb} on {numbers.percent(clean)} of the test images{how}."


def _explain_sentence(record: Record) -> str:
    n = record.data.n if record.data else len(record.cases)
    methods = len(record.explanations)
    return f"What {name_of(record)} looks at: {n} images by {methods} method{'s' if methods != 1 else ''}."


def _tuning_sentence(record: Record) -> str:
    tuning = record.tuning
    assert tuning is not None
    best = next(trial for trial in tuning.trials if trial.number == tuning.best)
    n = tuning.validation_n
    text = (
        f"The best of {len(tuning.trials)} trials is right on {numbers.share(best.clean or 0, n)} of validation images"
    )
    if best.robust is not None:
        text += f", and on {numbers.share(best.robust, n)} under attack"
    return text + "; no test image was looked at."


def _overview_sentence(record: Record) -> str:
    rows = record.overview
    told = [(row, find_metric(row.metrics, "robust_accuracy", eps=row.eps, attack=None)) for row in rows]
    measured = [(row, metric) for row, metric in told if metric is not None]
    if len(measured) < len(rows) or any(row.paired is None for row in rows[1:]):
        sets = len({row.images for row in rows})
        which = f"{sets} sets of images" if sets > 1 else "the same images"
        same = "the same threat and attacks on the same images"
        return f"{len(rows)} audits on {which}; only those of {same} can be compared."
    most = max(metric.count or 0 for _, metric in measured)
    leading = [(row, metric) for row, metric in measured if (metric.count or 0) == most]
    names, (row, metric) = " and ".join(row.name for row, _ in leading), leading[0]
    stand = "stands" if len(leading) == 1 else "stand"
    first = f"{names} {stand} most at {numbers.threat(row.eps, row.norm)}: {numbers.percent(metric)}"
    alike = [row for row in rows[1:] if row.paired is not None and row.paired.low <= 0 <= row.paired.high]
    if rows[0] in [row for row, _ in leading]:
        alike = [each for each in alike if each not in [row for row, _ in leading]]
        unsure = f"; {len(alike)} of the others cannot be told apart from {rows[0].name}" if alike else ""
    else:
        unsure = f", not to be told apart from {rows[0].name}" if row in alike else ""
    return f"Of {len(rows)} audits on the same images, {first}{unsure}."


def _compare_sentence(record: Record) -> str:
    if record.overview:
        return _overview_sentence(record)
    assert record.comparison is not None
    a, b = record.comparison.a.name, record.comparison.b.name
    pair = paired_headline(record)
    if pair is None:
        return f"{b} against {a}: no threat model in common."
    n = pair.both + pair.only_a + pair.only_b + pair.neither
    before, after = (numbers.share((pair.both + only) / n, n) for only in (pair.only_a, pair.only_b))
    where = numbers.threat(pair.eps or 0, pair.norm or "linf")
    robust = f"Robust accuracy at {where}"
    if pair.low <= 0 <= pair.high:
        told = f"{robust} of {a} ({before}) and {b} ({after}) cannot be told apart on the same {n:,} images"
    else:
        word = "rises" if pair.difference > 0 else "falls"
        told = f"{robust} {word} from {before} ({a}) to {after} ({b}) on the same {n:,} images"
    return f"{told}{_but_raised(record)}."


_SENTENCES: dict[str, Callable[[Record], str]] = {
    "audit": _audit_sentence,
    "train": _training_sentence,
    "harden": _training_sentence,
    "explain": _explain_sentence,
    "compare": _compare_sentence,
    "tune": _tuning_sentence,
}


def paired_headline(record: Record) -> PairedMetric | None:
    """Give the paired robust accuracy at the headline eps, or at the largest eps both runs tried."""
    assert record.comparison is not None
    pairs = [pair for pair in record.comparison.paired if pair.name == "robust_accuracy"]
    at_headline = [pair for pair in pairs if pair.eps == record.headline_eps]
    return next(iter(at_headline or pairs[-1:]), None)


def threat(record: Record) -> str:
    """Say in a sentence what attackers were allowed, and know; empty where nobody attacked."""
    attacks = record.attacks if record.comparison is None else record.comparison.b.attacks
    if record.stability and not attacks:
        row = max(record.stability, key=lambda each: each.eps)
        within = numbers.eps_long(row.eps, row.norm)
        return f"Threat to the maps: whoever knows the weights changes each image within {within}."
    if not attacks or record.headline_eps is None:
        return ""
    knows = "asks for answers alone" if black_box(attacks) else "knows the weights"
    within = numbers.eps_long(record.headline_eps, attacks[0].norm)
    return f"Threat: whoever {knows} changes each image within {within}, until any wrong class is named."


def black_box(attacks: Sequence[AttackResult]) -> bool:
    """Tell whether all attacks are such as ask for answers alone."""
    return all(each.name in GRADIENT_FREE for each in attacks)


def made(record: Record) -> str:
    """Say what stands behind the page: the model and the images by their hashes, the version, the time it took."""
    parts = [identity(record), f"robustcv {record.version}"]
    if record.verb != "compare":  # which computes next to nothing
        parts += [record.environment.device, numbers.duration(record.environment.seconds)]
    return " · ".join(each for each in parts if each)


def identity(record: Record) -> str:
    """Say in hex digits which model was judged on which images."""
    models = [record.model] if record.comparison is None else [record.comparison.a.model, record.comparison.b.model]
    parts = [f"model {model.sha256[:12]}{_asked(model)}" for model in models if model is not None]
    models_told = {row.model for row in record.overview}
    parts += [f"{len(models_told)} model{'s' if len(models_told) > 1 else ''}"] if models_told else []
    parts += [f"data {record.data.sha256[:12]}"] if record.data is not None else []
    return " · ".join(parts)


def _asked(model: Model) -> str:
    """Say that a model could have answered more than it was asked, which makes it look better."""
    return f", asked about {len(model.class_map)} of its classes alone" if model.class_map else ""


def strip(record: Record) -> tuple[tuple[str, str], ...]:
    """Give the chips of the first screen: each check that is not passed, and how many are, before and after attacks."""
    made = [(status, text) for status, text, _ in checks(record) if status != "pass"]
    before, after = (" before the attacks", " after the attacks") if record.attacks else ("", "")
    groups = [(before, record.preflight), (after, record.flags)]
    if record.comparison is not None:
        both = (*record.comparison.a.preflight, *record.comparison.b.preflight)
        groups = [(" of the two runs", both)]
    for where, group in groups:
        passed = sum(check.status == "pass" for check in group)
        if passed:
            what = f"all {passed}" if passed == len(group) else f"{passed} of {len(group)}"
            made.append(("pass", f"✓ {what} checks{where} passed"))
    return tuple(made)


def checks(record: Record) -> tuple[tuple[str, str, str], ...]:
    """Give the checks as (status, sign and name, remark); of a comparison, those of both runs."""
    every: list[tuple[str, Check]] = [("", check) for check in record.checks]
    if record.comparison is not None:
        for side in (record.comparison.a, record.comparison.b):
            every += [(f"{side.name}: ", check) for check in side.preflight if check.status != "pass"]
        passed = [check.check for check in record.comparison.b.preflight if check.status == "pass"]
        every += [("", check) for check in record.comparison.b.preflight if check.check in passed]
    signs = {"pass": "✓", "raised": "◐", "not run": "–"}
    return tuple(
        (
            check.status,
            f"{signs[check.status]} {prefix}{check.check}" + (f": {check.figure}" if check.status == "raised" else ""),
            check.figure,
        )
        for prefix, check in every
    )

"""What to know first, each line written by a rule with a number; and what the figures do not show."""

from collections.abc import Mapping

from robustcv import stats
from robustcv.records import GRADIENT_FREE, Record
from robustcv.report import numbers
from robustcv.report.blocks import Bullet, Bullets, Section
from robustcv.report.summary import gate_sentence, headline

Files = Mapping[str, bytes]


def findings(record: Record, files: Files) -> Section | None:
    """List what a reviewer should know first, worst first; each line is written by a rule with a number."""
    bullets: list[Bullet] = []
    for check in record.checks:
        if check.status == "raised":
            bullets.append(Bullet(f"{check.check}: {check.figure}. Next: {check.fix}.", "RCV-F01", "found", "high"))
    for rule in _RULES:
        if (bullet := rule(record)) is not None:
            bullets.append(bullet)
    if not bullets:
        return None
    bullets.sort(key=lambda each: ("high", "medium", "low").index(each.severity))
    return Section("findings", "Findings", "worst first", (Bullets(tuple(bullets)),), place="side")


def _left_out(record: Record) -> Bullet | None:
    skipped = record.data.skipped if record.data else 0
    if not skipped:
        return None
    told = f"{skipped:,} files could not be decoded and were left out: the figures are of the others"
    return Bullet(told, "RCV-F08", "reproduce", "low")


def _weakest_class(record: Record) -> Bullet | None:
    rows = record.comparison.b.classes if record.comparison else record.classes
    judged = [row for row in rows if row.robust is not None and row.n > 0]
    if not judged or record.headline_eps is None:
        return None
    worst = min(judged, key=lambda row: ((row.robust or 0) / row.n, row.name))
    clean, robust = (numbers.share(count / worst.n, worst.n) for count in (worst.clean, worst.robust or 0))
    within = numbers.interval_of(*stats.wilson(worst.robust or 0, worst.n), worst.n)
    who = f" ({record.comparison.b.name})" if record.comparison else ""
    told = ""
    if worst.p_value is not None and len(judged) > 1:
        apart = "" if worst.p_value < 0.05 else "not told apart from "
        told = f"; {apart}{'against ' * (not apart)}the other classes, {numbers.p_value(worst.p_value)} (Fisher, Holm)"
    return Bullet(
        f"Class {worst.name!r} stands least{who}: {clean} clean, {robust} under attack ({within}){told}",
        "RCV-F02",
        "classes",
        "medium" if worst.p_value is None or worst.p_value < 0.05 else "low",
    )


def _one_step_flatters(record: Record) -> Bullet | None:
    single = next((each for each in record.metrics if each.name == "robust_accuracy" and each.attack is not None), None)
    worst = headline(record)
    if single is None or worst is None or single.count is None or worst.count is None or single.count == worst.count:
        return None
    gap = single.count - worst.count
    low, high = stats.wilson(gap, worst.n)
    points = numbers.share(gap / worst.n, worst.n).replace("%", "pp")
    told = f"{single.attack} alone would overstate robustness by {points}"
    return Bullet(f"{told} ({numbers.interval_of(low, high, worst.n)})", "RCV-F03", "threat", "low")


def _stands_at_large_eps(record: Record) -> Bullet | None:
    worst = [each for each in record.metrics if each.name == "robust_accuracy" and each.attack is None]
    if not worst or not record.data:
        return None
    last = max(worst, key=lambda metric: metric.eps or 0)
    chance = 1 / len(record.data.class_names)
    if last.low is None or last.low <= chance:
        return None
    where = numbers.threat(last.eps or 0, last.norm or "linf")
    return Bullet(
        f"{numbers.percent(last)} ({numbers.interval(last)}) still stand at {where}, more than chance: try larger eps, "
        "or distrust the attack",
        "RCV-F04",
        "curve",
        "high",
    )


def _overconfident(record: Record) -> Bullet | None:
    filled = [each for each in record.calibration if each.n]
    error = record.metric("calibration_error")
    if error is None or error.low is None or error.low < 0.05 or not filled:
        return None
    over = sum(each.confidence * each.n for each in filled) > sum(each.correct for each in filled)
    word = "over" if over else "under"
    told = f"{word}confident: calibration error {numbers.percent(error)} ({numbers.interval(error)})"
    return Bullet(told, "RCV-F05", "calibration", "medium")


def _incomplete_maps(record: Record) -> Bullet | None:
    for result in record.explanations:
        if result.median_error is not None and result.median_error > 0.25:
            return Bullet(
                f"{result.method}: maps are off by {100 * result.median_error:.0f} % (median); use more samples",
                "RCV-F09",
                "explanations",
                "medium",
            )
        gap = result.median_gap
        if gap is not None and gap > 0.05:
            return Bullet(
                f"{result.method}: maps miss {100 * gap:.0f} % of the logit's change (median); use more steps",
                "RCV-F06",
                "explanations",
                "medium",
            )
    return None


def _traded(record: Record) -> Bullet | None:
    if record.comparison is None:
        return None
    clean = record.comparison.paired[0]
    ends = numbers.between(clean.low, clean.high)
    figure = f"{numbers.points(clean.difference)} (95{numbers.NBSP}% CI {ends}, {numbers.p_value(clean.p_value)})"
    if clean.low <= 0 <= clean.high:
        return Bullet(
            f"Clean accuracies cannot be told apart: {figure}",
            "RCV-F07",
            "paired",
            "low",
        )
    word = "gained" if clean.difference > 0 else "lost"
    return Bullet(
        f"Clean accuracy {word}: {figure}",
        "RCV-F07",
        "paired",
        "low" if word == "gained" else "medium",
    )


def _gates_not_passed(record: Record) -> Bullet | None:
    told = [gate_sentence(record, gate) for gate in record.gates if gate.outcome != "passed"]
    return Bullet(f"{'. '.join(told)}.", "RCV-F10", "curve" if record.attacks else "", "high") if told else None


def _found_without_gradients(record: Record) -> Bullet | None:
    found = record.agreement
    if found is None:
        return None
    alone = [(name, n) for name, n in zip(found.attacks, found.only, strict=True) if name in GRADIENT_FREE and n]
    if not alone:
        return None
    told = " and ".join(f"{name} alone breaks {n:,} of {found.n:,} images" for name, n in alone)
    return Bullet(f"{told} that no gradient finds: a sign of masked gradients", "RCV-F11", "agreement", "high")


def _worse_than_on_validation(record: Record) -> Bullet | None:
    """Hold the test images against the validation split of training: they should be of one kind."""
    clean, made = record.metric("clean_accuracy"), record.training
    if clean is None or clean.high is None or made is None:
        return None
    kept = next((epoch for epoch in made.epochs if epoch.epoch == made.selected_epoch), None)
    if kept is None or not kept.validation_n:
        return None
    low, high = stats.wilson(kept.validation_correct, kept.validation_n)
    if low <= clean.high:
        return None
    n = kept.validation_n
    there = f"{numbers.share(kept.validation_correct / n, n)} ({numbers.interval_of(low, high, n)})"
    told = f"Right on {numbers.percent(clean)} of these images ({numbers.interval(clean)}), and on {there} of the "
    return Bullet(f"{told}validation split of training: they are not of one kind", "RCV-F12", "training", "high")


def _shortcuts(record: Record) -> Bullet | None:
    raised = [row for row in record.focus if row.alarm]
    if not raised:
        return None
    first = max(raised, key=lambda row: row.share)
    told = f"Shortcut alarm on {len(raised)} of {len(record.focus)} mean maps, most on class {first.name!r}: "
    told += f"{100 * first.share:.0f} % of what {first.method.replace('_', ' ')} finds lies in one place"
    return Bullet(told, "RCV-F13", "focus", "high")


def _no_better_than_edges(record: Record) -> Bullet | None:
    judged = [result for result in record.measures if result.beats is not None]
    methods = dict.fromkeys(result.method for result in judged)
    lost = [name for name in methods if any(each.method == name and not each.beats for each in judged)]
    if not lost:
        return None
    told = ", ".join(name.replace("_", " ") for name in lost)
    text = f"{len(lost)} of {len(methods)} methods do not beat an edge filter on some measure: {told}"
    return Bullet(text, "RCV-F14", "league", "low")


def _unmeasured(record: Record) -> list[str]:
    measured = {threat.name for threat in record.others} | ({"corruptions"} if record.corruptions else set())
    names = {"patch": "patches", "spatial": "rotations and shifts", "corruptions": "corruptions"}
    return [text for name, text in names.items() if name not in measured]


_RULES = (
    _left_out, _weakest_class, _one_step_flatters, _stands_at_large_eps, _overconfident, _incomplete_maps, _traded,
    _gates_not_passed, _found_without_gradients, _worse_than_on_validation, _shortcuts, _no_better_than_edges,
)  # fmt: skip


def _of_the_split(record: Record) -> str:
    """Give the interval as a statement about this split alone; the page's own are about all images like these."""
    robust, data = headline(record), record.data
    if robust is None or robust.count is None or data is None or robust.n != data.n:
        return ""
    low, high = stats.finite_population(robust.count, data.n, data.total)
    ends = f"{100 * low:.1f}–{100 * high:.1f}{numbers.NBSP}%"
    return f"; robust accuracy on all {data.total:,} of them: {ends} (the page's own intervals are about new images)"


def _limits_of_maps(record: Record) -> Section:
    items = [
        "that the model is right, or robust: `robustcv audit` measures both",
        "what the answer would be without a region: a map follows the fill or baseline that its method hides with",
        "that what a map points at is the reason: methods differ, and `--measures` tells how far to trust each",
    ]
    if record.data and record.data.n < record.data.total:
        items.append(f"the other {record.data.total - record.data.n:,} images of the split")
    blocks = (Bullets(tuple(Bullet(text) for text in items)),)
    return Section("limits", "What this does not show", "", blocks, place="side")


def limits(record: Record, files: Files) -> Section | None:
    """Say what the figures do not show."""
    if record.verb == "explain":
        return _limits_of_maps(record)
    if not (record.attacks or record.comparison):
        return None
    norms = {each.norm for each in (record.comparison.b.attacks if record.comparison else record.attacks)}
    others = [name for key, name in numbers.NORM_NAMES.items() if key not in norms]
    items = [
        f"other threats: {', '.join([*others, *_unmeasured(record)])}",
        "attacks adapted by hand to this model",
        "a guarantee: robust accuracy is an upper bound",
    ]
    if record.data and record.data.n < record.data.total:
        items.append(f"the other {record.data.total - record.data.n:,} images of the split{_of_the_split(record)}")
    where = f"under {' and '.join(numbers.NORM_NAMES[norm] for norm in sorted(norms))} only"
    blocks = (Bullets(tuple(Bullet(text) for text in items)),)
    return Section("limits", "What this does not show", where, blocks, place="side")

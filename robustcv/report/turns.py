"""What still stood after each attack of the plan in turn, at each eps, from the records of the attacks."""

from robustcv import stats
from robustcv.records import AttackResult, Metric, Record

MOST = 4  # lines beside the worst case


def after_each(record: Record) -> dict[str, list[Metric]]:
    """Give robust accuracy over eps after each attack but those that changed nothing; empty where it is not known.

    In a plan an attack meets only what those before it left, and an eps only what the eps before it left open (see
    `evaluation.worst_case`): from the headline up, the images that stood at the next smaller eps; below it, those that
    fell at the next larger.
    """
    clean, headline = record.metric("clean_accuracy"), record.headline_eps
    planned: dict[float, list[AttackResult]] = {}
    for each in record.attacks:
        if each.reason == "plan":
            planned.setdefault(each.eps, []).append(each)
    if clean is None or headline not in planned or record.verdict == "INCOMPLETE":
        return {}
    stood: dict[float, list[int]] = {}
    for eps in sorted(each for each in planned if each >= headline):
        stood[eps] = _left(planned[eps], planned[eps][0].attempted)
    for eps in sorted((each for each in planned if each < headline), reverse=True):
        larger = min(each for each in planned if each > eps)
        stood[eps] = _left(planned[eps], stood[larger][-1] + planned[eps][0].attempted)
    worst = {each.eps: each for each in record.metrics if each.name == "robust_accuracy" and each.attack is None}
    lines: dict[str, list[Metric]] = {}
    last: list[int] = []
    for place, attack in enumerate(planned[headline]):
        known = [eps for eps in sorted(stood) if eps in worst and place < len(stood[eps])]
        # a failure that could not be replayed is withdrawn from the worst case, and stands here too
        counts = [max(stood[eps][place], worst[eps].count or 0) for eps in known]
        if counts == last or counts == [worst[eps].count for eps in known]:
            continue
        last = counts
        name = f"after {attack.name}"
        name = name if name not in lines else f"{name} ({place + 1})"
        lines[name] = [
            clean,
            *(_metric(worst[eps], count, attack.name) for eps, count in zip(known, counts, strict=True)),
        ]
    return dict(list(lines.items())[:MOST])


def _left(attacks: list[AttackResult], standing: int) -> list[int]:
    """Count what each attack in turn left of so many."""
    left = []
    for attack in attacks:
        standing -= attack.broken
        left.append(standing)
    return left


def _metric(worst: Metric, count: int, attack: str) -> Metric:
    low, high = stats.wilson(count, worst.n)
    return worst.model_copy(update={"count": count, "low": low, "high": high, "attack": attack})

"""What still stood after each attack of the plan in turn, up to the headline eps, from the records of the attacks."""

from collections import Counter

from robustcv import stats
from robustcv.records import AttackResult, Metric, Record


def after_each(record: Record) -> dict[str, list[Metric]]:
    """Give robust accuracy over eps after each attack but those that changed nothing; empty where it is not known.

    In a plan an attack meets only what those before it left. Below the headline an eps meets what fell at the next
    larger one, and what broke an image there with a change that is small enough counts without another attempt (see
    `evaluation.worst_case`). Beyond the headline nobody knows: what one attack broke there was met by no other.
    """
    clean, headline = record.metric("clean_accuracy"), record.headline_eps
    planned: dict[float, list[AttackResult]] = {}
    for each in record.attacks:
        if each.reason == "plan":
            planned.setdefault(each.eps, []).append(each)
    if clean is None or headline not in planned or record.verdict == "INCOMPLETE":
        return {}
    worst = {each.eps: each.count or 0 for each in _worst(record)}
    stood: dict[float, list[int]] = {}
    larger: list[int] = []
    for eps in sorted((each for each in planned if each <= headline), reverse=True):
        attacks = planned[eps]
        standing = attacks[0].attempted + sum(each.carried for each in attacks) + (larger[-1] if larger else 0)
        if standing != clean.count:  # made before what is carried was counted, or by another order of eps
            break
        stood[eps] = larger = _left(attacks, standing)
    # one that could not be replayed is withdrawn from the worst case; which attack's it was, the records do not tell
    known = {eps: [max(count, worst[eps]) for count in counts] for eps, counts in sorted(stood.items()) if eps in worst}
    metrics = {each.eps: each for each in _worst(record)}
    lines: dict[str, list[Metric]] = {}
    last, seen = [clean.count] * len(known), Counter[str]()
    for place, attack in enumerate(planned[headline]):
        seen[attack.name] += 1
        counts = [each[place] for each in known.values()]
        if counts == last or counts == [worst[eps] for eps in known]:
            continue
        last = list(counts)
        again = f" ({seen[attack.name]})" if seen[attack.name] > 1 else ""
        points = [_metric(metrics[eps], count, attack.name) for eps, count in zip(known, counts, strict=True)]
        lines[f"after {attack.name}{again}"] = [clean, *points]
    return lines


def _worst(record: Record) -> list[Metric]:
    return [each for each in record.metrics if each.name == "robust_accuracy" and each.attack is None]


def _left(attacks: list[AttackResult], standing: int) -> list[int]:
    """Count what each attack in turn left of so many."""
    left = []
    for attack in attacks:
        standing -= attack.broken + attack.carried
        left.append(standing)
    return left


def _metric(worst: Metric, count: int, attack: str) -> Metric:
    low, high = stats.wilson(count, worst.n)
    return worst.model_copy(update={"count": count, "low": low, "high": high, "attack": attack})

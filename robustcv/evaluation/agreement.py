"""Which attacks break the same images: each attack of a plan alone, on images that none of the others has thinned."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from robustcv import draws, stopping
from robustcv.evaluation.job import Job, Planned
from robustcv.evaluation.worst_case import WorstCase, merge, worst_case
from robustcv.records import Agreement


class Agreed(NamedTuple):
    """The worst case with whatever was broken by the way, and which images each pair of attacks breaks both."""

    outcome: WorstCase
    table: Agreement | None


def agreement(job: Job, plan: Sequence[Planned], outcome: WorstCase, count: int) -> Agreed:
    """Run each attack of a plan alone at the headline eps, on images drawn from those that are right.

    In the plan an attack meets only what those before it left, so its own strength does not show there.

    Parameters
    ----------
    count
        How many images; 0 runs nothing.
    """
    right = job.predictions.correct
    rows = draws.drawn_rows(job.seed, job.images.hashes, "agreement", count, right.nonzero().squeeze(1).tolist())
    if not rows:
        return Agreed(outcome, None)
    sample = torch.zeros(len(right), dtype=torch.bool)
    sample[rows] = True
    names: list[str] = []
    met: Counter[str] = Counter()
    broken: list[Tensor] = []
    alone = replace(job, remember=torch.zeros_like(sample))
    for planned in (replace(each, reach=0.0) for each in plan):  # none is spared what another found far away
        met[planned.name] += 1
        name = planned.name if met[planned.name] == 1 else f"{planned.name} ({met[planned.name]})"
        found = worst_case(alone, [planned], eps=outcome.headline, among=sample, reason="alone", tag=f"-alone-{name}")
        stopping.at_boundary()  # one that did not run has broken nothing
        names.append(name)
        broken.append(sample & ~found.robust(outcome.headline))
        outcome = merge(outcome, found)
    hits = torch.stack(broken).long()
    by_one = hits.sum(0) == 1
    told = Agreement(
        attacks=tuple(names),
        norm=job.norm,
        eps=outcome.headline,
        n=len(rows),
        both=tuple(tuple(row) for row in (hits @ hits.T).tolist()),
        only=tuple((hits * by_one).sum(1).tolist()),
    )
    return Agreed(outcome, told)

"""Which coalitions tell most of the Shapley values: pairs chosen one after the other, each for what it would settle."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from robustcv.explainers.coalitions import Masks, draw, require_countable, with_complements
from robustcv.explainers.odd_process import tables

MOST = 1024  # pairs that are chosen; the choice of more would take longer than the passes that it saves
AMONG = 12  # regions but one, of which every pair can be chosen; of more, 2**AMONG pairs at random
TOGETHER = 2.4  # rho times players: at any number of them, interactions then have a variance of about 2 or 3 in all
FREE = 100.0  # variance of each main effect: next to nothing is known of it


def choose(regions: int, budget: int, seed: int) -> Masks:
    """Choose the coalitions after which least is unknown of the Shapley values.

    Under the prior of `odd_process` what each pair would take off the summed variance of the Shapley values is known
    before anything is asked (A-optimal design, chosen greedily). First come the empty and the full coalition, then
    about half of all at a time, as unlike one another as can be, then single regions. With 8 to 16 regions it halves
    the error of the same number of coalitions drawn by size (`benchmarks/explain.py`). The prior treats all regions
    alike, so that one design serves every image, its regions shuffled by the seed.

    Parameters
    ----------
    regions
        Players.
    budget
        Coalitions at most; at least the empty and the full one. Drawn by size, as by `coalitions.draw`, are those of
        small budgets (fewer pairs than five for four regions), of more than 2,048, and of more than half of all.
    seed
        Of this image.

    Raises
    ------
    ValueError
        If there are more than 500 regions.
    """
    require_countable(regions)
    pairs = max(1, budget // 2)
    few = 4 * pairs < 5 * regions  # too few to tell all regions apart, as the design would
    if few or pairs > MOST or 4 * pairs > 1 << regions:  # of nearly all, the rest would be of one size
        return draw(regions, budget, seed)
    order = np.random.default_rng(seed % (1 << 63)).permutation(regions)
    return with_complements(_designed(regions, pairs)[:, order])


@lru_cache(maxsize=16)
def _designed(regions: int, pairs: int) -> NDArray[np.bool_]:
    """Choose one coalition of each pair, the empty one first."""
    masks = _candidates(regions)
    z = np.where(masks, 1.0, -1.0)
    kernel, by_positive, _ = tables(regions, TOGETHER / regions)
    positive = (z > 0).sum(1, keepdims=True) - (z > 0)  # shown ones among the others
    # given the chosen: variance of what each pair would say, its covariance with the values; and Cholesky's factor
    unknown = np.full(len(z), kernel[-1] + FREE * regions)
    reach = z * (by_positive[positive] + 2 * FREE)
    told = np.zeros((pairs, len(z)))
    chosen: list[int] = []
    for step, row in enumerate(told):
        settled = np.einsum("ij,ij->i", reach, reach) / unknown
        settled[chosen] = -1
        ties = settled >= settled.max() * (1 - 1e-9)  # by symmetry there are many; rounding must not choose among them
        best = int(ties.argmax()) if chosen else 0
        alike = z @ z[best]
        before = told[:step].T @ told[:step, best]
        row[:] = (kernel[((alike + regions) / 2).astype(int)] + FREE * alike - before) / np.sqrt(unknown[best])
        reach -= np.outer(row, reach[best] / np.sqrt(unknown[best]))
        unknown = np.maximum(unknown - row * row, 1e-9 * unknown[0])
        chosen.append(best)
    designed: NDArray[np.bool_] = masks[chosen]
    return designed


def _candidates(regions: int) -> NDArray[np.bool_]:
    """List one coalition of every pair, or the single regions and others of every size; the empty one first."""
    generator, most = np.random.default_rng(0), 1 << AMONG
    if regions - 1 <= AMONG:
        every = np.arange(1 << (regions - 1))
        masks = (every[:, None] >> np.arange(regions) & 1).astype(bool)
    else:
        sizes = generator.integers(2, regions // 2 + 1, (most, 1))
        drawn = generator.random((most, regions)).argsort(1) < sizes
        masks = np.concatenate([np.zeros((1, regions), bool), np.eye(regions, dtype=bool), drawn])
        masks = np.unique(np.where(masks[:, -1:], ~masks, masks), axis=0)  # sorted: the empty one stays first
    return np.concatenate([masks[:1], generator.permutation(masks[1:])])

"""Learning rates as pure functions of progress, so that a resumed run needs no state."""

import math


def one_cycle(progress: float) -> float:
    """Rise linearly from 0.04 to 1 over the first 30 %, then fall to 0 along a cosine (Smith and Topin 2018).

    Parameters
    ----------
    progress
        Share of all steps done, in [0, 1].
    """
    if progress < 0.3:
        return 0.04 + 0.96 * progress / 0.3
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.3) / 0.7))


def cosine(progress: float) -> float:
    """Fall from 1 to 0 along a cosine (Loshchilov and Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def slow_start(progress: float) -> float:
    """Rise linearly from 0.1 to 1 over the first 40 %, then fall as exp(-5 t): for fine-tuning (Jeddi et al. 2020).

    The slow start keeps what the network knows; the fast decay keeps it from overfitting to the attack.
    """
    if progress < 0.4:
        return 0.1 + 0.9 * progress / 0.4
    return math.exp(-5 * (progress - 0.4) / 0.6)


SCHEDULES = {"one-cycle": one_cycle, "cosine": cosine, "slow-start": slow_start}

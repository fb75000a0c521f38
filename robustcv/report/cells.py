"""Cells of tables that hold a share: heat-coloured or not, each with what it is a share of and its interval."""

import dataclasses

from robustcv import stats
from robustcv.records import Metric
from robustcv.report import numbers
from robustcv.report.blocks import Cell, Told
from robustcv.report.images import cividis


def share(name: str, count: float, n: int, note: str = "") -> Cell:
    """Make a cell of count out of n, with Wilson's interval behind it; ``name`` is the metric's."""
    return Cell(numbers.share(count / n, n), note, number=True, value=count / n, told=told(name, count, n))


def share_within(name: str, count: int, n: int, before: str = "") -> Cell:
    """Make a cell as `share` does, with the ends of its interval beside it, after ``before``."""
    return with_ends(share(name, count, n), before)


def with_ends(cell: Cell, before: str = "") -> Cell:
    """Set the ends of a cell's interval beside it, after ``before``."""
    assert cell.told is not None
    return dataclasses.replace(cell, note=before + numbers.ends(cell.told.low, cell.told.high, cell.told.n))


def heat(name: str, count: float, n: int) -> Cell:
    """Make a cell as `share` does, coloured on the cividis scale."""
    background, colour = cividis(count / n)
    return dataclasses.replace(share(name, count, n), background=background, colour=colour)


def metric(found: Metric | None) -> Cell:
    """Make a cell of a metric and its interval; ``not run`` where there is none."""
    if found is None:
        return Cell("not run")
    value = found.value if found.count is None else found.count / found.n
    return Cell(numbers.percent(found), numbers.interval(found), number=True, value=value, told=told_of(found))


def told(name: str, count: float, n: int) -> Told:
    """Say what a share is of, and its 95 % interval (Wilson)."""
    return Told(name, n, *stats.wilson(count, n))


def told_of(found: Metric | None) -> Told | None:
    """Say what a metric is of, and its interval, where it has one."""
    if found is None or found.low is None or found.high is None:
        return None
    return Told(found.name, found.n, found.low, found.high)

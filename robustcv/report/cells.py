"""Cells of tables that hold a share: heat-coloured or not, each with what it is a share of and its interval."""

from robustcv import stats
from robustcv.records import Metric
from robustcv.report import numbers
from robustcv.report.blocks import Cell, Told
from robustcv.report.images import cividis


def share(name: str, count: int, n: int, note: str = "", link: str = "") -> Cell:
    """Make a cell of count out of n, with Wilson's interval behind it; ``name`` is the metric's."""
    return Cell(numbers.share(count / n, n), note, number=True, link=link, value=count / n, told=told(name, count, n))


def heat(name: str, count: int, n: int) -> Cell:
    """Make a cell as `share` does, coloured on the cividis scale."""
    background, colour = cividis(count / n)
    text, shown = numbers.share(count / n, n), told(name, count, n)
    return Cell(text, number=True, background=background, colour=colour, value=count / n, told=shown)


def metric(found: Metric | None) -> Cell:
    """Make a cell of a metric and its interval; ``not run`` where there is none."""
    if found is None:
        return Cell("not run")
    return Cell(numbers.percent(found), numbers.interval(found), number=True, told=told_of(found))


def told(name: str, count: int, n: int) -> Told:
    """Say what a share is of, and its 95 % interval (Wilson)."""
    return Told(name, n, *stats.wilson(count, n))


def told_of(found: Metric | None) -> Told | None:
    """Say what a metric is of, and its interval, where it has one."""
    if found is None or found.low is None or found.high is None:
        return None
    return Told(found.name, found.n, found.low, found.high)

"""How numbers are written: the only place where counts become percentages."""

from robustcv.records import Metric

NBSP = "\u00a0"
NORM_NAMES = {"linf": "L-inf", "l2": "L2", "l1": "L1", "l0": "L0"}


def share(value: float, n: int) -> str:
    """Write a share as a percentage: one decimal, none below 100 images."""
    return f"{100 * value:.{1 if n >= 100 else 0}f}{NBSP}%"


def percent(metric: Metric | None) -> str:
    """Write a metric's value; ``not run`` where there is none."""
    if metric is None:
        return "not run"
    if metric.count is not None:
        return share(metric.count / metric.n, metric.n)
    return "not run" if metric.value is None else share(metric.value, metric.n)


def interval(metric: Metric) -> str:
    """Write a metric's interval and n."""
    if metric.low is None or metric.high is None:
        return f"n{NBSP}={NBSP}{metric.n:,}"
    return interval_of(metric.low, metric.high, metric.n, metric.level)


def interval_of(low: float, high: float, n: int, level: float = 0.95) -> str:
    """Write a share's interval with its level and n."""
    return f"{100 * level:.0f}{NBSP}% CI {ends(low, high, n)}; n{NBSP}={NBSP}{n:,}"


def ends(low: float, high: float, n: int) -> str:
    """Write the ends of a share's interval, in percent."""
    digits = 1 if n >= 100 else 0
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"


def eps_short(eps: float, norm: str | None = "linf") -> str:
    """Write an eps as k/255 where it is one (L-inf), else as a decimal."""
    steps = eps * 255
    if norm == "linf" and abs(steps - round(steps, 1)) < 1e-6:
        return f"{steps:g}/255" if abs(steps - round(steps)) > 1e-6 else f"{round(steps)}/255"
    return f"{eps:.4g}"


def eps_long(eps: float, norm: str) -> str:
    """Write an eps with its norm, both ways."""
    short, decimal = eps_short(eps, norm), f"{eps:.4f}"
    both = short if "/" not in short else f"{short} ({decimal})"
    return f"{NORM_NAMES.get(norm, norm)} {both}, pixels in [0, 1]"


def threat(eps: float, norm: str) -> str:
    """Name a threat model shortly."""
    return f"{NORM_NAMES.get(norm, norm)} {eps_short(eps, norm)}"


def points(difference: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    return f"{signed(100 * difference) if difference else '0.0'}{NBSP}pp"


def signed(value: float) -> str:
    """Write a number with one decimal and its sign, a real minus where it is below 0."""
    return f"{value:+.1f}".replace("-", "−")


def between(low: float, high: float) -> str:
    """Write the ends of a difference's interval, in percentage points."""
    return f"{signed(100 * low)} to {signed(100 * high)}"


def arrow(difference: float) -> str:
    """Give the direction of a difference as a sign that needs no colour."""
    return "▲" if difference > 0 else "▼" if difference < 0 else "="


def p_value(value: float) -> str:
    """Write a p-value."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def duration(seconds: float) -> str:
    """Write a time span as a person would."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def plain(value: object) -> str:
    """Write any option value for a table."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(each) for each in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)

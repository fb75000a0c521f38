"""Charts: plain rows of numbers to SVG text, by Altair and vl-convert; colours are the page's own variables."""

import html
import re
from collections.abc import Sequence
from typing import Any

from robustcv.report.text import shown, shown_json

Row = dict[str, Any]

COLOURS = ["var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--text)"]
DASHES = [[1, 0], [6, 3], [2, 3], [8, 3, 2, 3], [1, 0]]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross"]

_FONT = 'system-ui, -apple-system, "Segoe UI", sans-serif'
_AXIS = {
    "labelColor": "var(--muted)",
    "titleColor": "var(--text)",
    "gridColor": "var(--grid)",
    "tickColor": "var(--muted)",
    "domainColor": "var(--muted)",
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "labelFont": _FONT,
    "titleFont": _FONT,
}
_CONFIG = {
    "background": "transparent",
    "view": {"stroke": None},
    "axis": _AXIS,
    "header": {"labelColor": "var(--text)", "labelFontSize": 12, "labelFont": _FONT},
    "legend": {
        "symbolOpacity": 1,
        "symbolStrokeWidth": 0,  # else it is drawn dashed as its line is, and looks torn
        "labelColor": "var(--text)",
        "titleColor": "var(--text)",
        "labelFontSize": 12,
        "labelFont": _FONT,
    },
}


def to_svg(chart: Any, label: str) -> str:
    """Render an Altair chart; ``label`` is the sentence a screen reader says, the takeaway and not the type."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(shown_json({**chart.to_dict(), "config": _CONFIG}))
    svg = _slim(re.sub(r'<a xlink:href="[^"#]*#', '<a href="#', svg))  # Vega makes a link within the page absolute
    # what lies inside an img is not told, and its links could not be reached
    role = "group" if "<a " in svg else "img"
    head = f'<svg role="{role}" aria-label="{html.escape(shown(label), quote=True)}" style="max-width:100%;height:auto"'
    return svg.replace("<svg", head, 1)


def _slim(svg: str) -> str:
    """Leave out what Vega writes and nobody sees or hears: unpainted frames, unnamed containers, third decimals."""
    svg = re.sub(r'<path class="(?:back|fore)ground"(?![^>]*(?:fill|stroke)=)[^>]*/>', "", svg)
    svg = re.sub(r' role="graphics-object" aria-roledescription="[^"]* container"(?! aria-label)', "", svg)
    placed = re.compile(r' (?:d|transform)="[^"]*"')
    return placed.sub(lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)


def _scales(alt: Any, names: list[str]) -> tuple[Any, Any, Any]:
    k = len(names)
    return (
        alt.Scale(domain=names, range=[COLOURS[i % 5] for i in range(k)]),
        alt.Scale(domain=names, range=[DASHES[i % 5] for i in range(k)]),
        alt.Scale(domain=names, range=[SHAPES[i % 5] for i in range(k)]),
    )


def robustness_curve(
    rows: list[Row],
    *,
    chance: float | None,
    x_title: str,
    label: str,
    bars: Sequence[Row] = (),
    decimals_of: float = 1,
) -> str:
    """Draw robust accuracy over eps, one line a series, with its interval as a band and chance as a dotted line.

    Parameters
    ----------
    rows
        ``series``, ``eps`` (as shown on the axis), ``share``, ``low``, ``high``; where cases show what is behind a
        point, ``link`` leads to them, and ``told`` says where to; ``thin`` where it is a line without a band.
    bars
        ``eps`` and ``bar`` of each gate: how high the curve must be there.
    decimals_of
        What an eps on the axis is a multiple of the inverse of, such as 255: its value stands below it.
    """
    import altair as alt

    names = list(dict.fromkeys(row["series"] for row in reversed(rows)))  # what is drawn last is told first
    colour, dash, shape = _scales(alt, names)
    ticks = sorted({row["eps"] for row in rows})
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "eps:Q",
            title=x_title,
            axis=alt.Axis(values=_spread(ticks), labelExpr=_eps_labels(ticks, decimals_of), labelOverlap=False),
        ),
        color=alt.Color(
            "series:N",
            scale=colour,
            sort=names,
            legend=alt.Legend(title=None, orient="top", columnPadding=28),
        ),
    )
    title = "accuracy under attack"
    share = alt.Y("share:Q", title=title, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%"))
    bold = base.transform_filter("!datum.thin")
    band = bold.mark_area(opacity=0.16, aria=False).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
    dashes = alt.StrokeDash("series:N", scale=dash, sort=names, legend=None)
    shapes = alt.Shape("series:N", scale=shape, sort=names, legend=None)
    line = bold.mark_line(strokeWidth=2.5).encode(y=share, strokeDash=dashes)
    point = bold.mark_point(filled=True, size=55, opacity=1).encode(y=share, shape=shapes)
    linked = [row for row in rows if "link" in row]
    if linked:
        here = point.properties(data=alt.Data(values=linked)).encode(
            href="link:N", description="told:N", size=alt.value(120)
        )
        point = point.transform_filter("!datum.link") + here
    if any("thin" in row for row in rows):
        thin = base.transform_filter("datum.thin")
        line = thin.mark_line(strokeWidth=1).encode(y=share, strokeDash=dashes) + line
        point = thin.mark_point(filled=True, size=28, opacity=1).encode(y=share, shape=shapes) + point
    drawn = band + line + point
    if chance is not None:
        level = alt.Chart(alt.Data(values=[{"share": chance}]))
        drawn += level.mark_rule(strokeDash=[2, 4], stroke="var(--muted)").encode(y="share:Q")
    if bars:
        gates = alt.Chart(alt.Data(values=list(bars)))
        drawn += gates.mark_tick(orient="horizontal", thickness=4, size=26, opacity=1, color="var(--text)").encode(
            x="eps:Q", y="bar:Q"
        )
    return to_svg(drawn.properties(width=620, height=300), label)


def _eps_labels(ticks: list[float], decimals_of: float) -> str:
    """Write Vega's expression of a label: the eps as shown, and below it as a decimal, where there is room for that."""
    if decimals_of == 1:
        return "datum.value"
    roomy = [tick for tick in _spread(ticks, 12) if tick]
    told = f"[datum.value, format(datum.value / {decimals_of:g}, '.3f')]"
    return f"indexof({roomy}, datum.value) < 0 ? datum.value : {told}"


def _spread(ticks: list[float], most: int = 18) -> list[float]:
    """Drop ticks that would overlap their left neighbour, where so many fit."""
    kept: list[float] = []
    gap = (ticks[-1] - ticks[0]) / most if len(ticks) > 1 else 0
    for tick in ticks:
        if not kept or tick - kept[-1] >= gap:
            kept.append(tick)
    return kept


def reliability(rows: list[Row], *, label: str) -> str:
    """Draw accuracy against confidence per bin; the diagonal is perfect calibration, the area of a point its images.

    Parameters
    ----------
    rows
        ``series``, ``confidence``, ``accuracy``, ``n`` of each bin that is not empty.
    """
    import altair as alt

    names = list(dict.fromkeys(row["series"] for row in rows))
    colour, dash, shape = _scales(alt, names)

    diagonal = (
        alt.Chart(alt.Data(values=[{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]))
        .mark_line(strokeDash=[2, 4], stroke="var(--muted)", strokeWidth=1.5)
        .encode(x="confidence:Q", y="accuracy:Q")
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("confidence:Q", title="mean confidence", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%")),
        y=alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%")),
        color=alt.Color("series:N", scale=colour, sort=names, legend=alt.Legend(title=None, orient="top")),
    )
    line = base.mark_line(strokeWidth=1.5).encode(
        strokeDash=alt.StrokeDash("series:N", scale=dash, sort=names, legend=None)
    )
    point = base.mark_point(filled=True, opacity=0.9).encode(
        size=alt.Size("n:Q", scale=alt.Scale(range=[25, 500], zero=True), legend=None),
        shape=alt.Shape("series:N", scale=shape, sort=names, legend=None),
    )
    return to_svg((diagonal + line + point).properties(width=300, height=260), label)


def trade_off(rows: list[Row], *, label: str) -> str:
    """Draw clean against robust accuracy, one point a trial, and a line through those that none beats in both.

    Parameters
    ----------
    rows
        ``trial``, ``series``, ``clean``, ``robust``.
    """
    import altair as alt

    names = list(dict.fromkeys(row["series"] for row in rows))
    colour, _, shape = _scales(alt, names)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("clean:Q", title="clean accuracy", scale=alt.Scale(zero=False), axis=alt.Axis(format=".0%")),
        y=alt.Y("robust:Q", title="accuracy under attack", scale=alt.Scale(zero=False), axis=alt.Axis(format=".0%")),
        color=alt.Color(
            "series:N",
            scale=colour,
            sort=names,
            legend=alt.Legend(title=None, orient="top", labelLimit=0, columnPadding=28),
        ),
    )
    point = base.mark_point(filled=True, size=60, opacity=1).encode(
        shape=alt.Shape("series:N", scale=shape, sort=names, legend=None)
    )
    leading = alt.Data(values=sorted((r for r in rows if r["series"] == "best trade-offs"), key=lambda r: r["clean"]))
    line = alt.Chart(leading).mark_line(stroke="var(--muted)", strokeDash=[4, 3]).encode(x="clean:Q", y="robust:Q")
    return to_svg((line + point).properties(width=620, height=300), label)


def training_curve(rows: list[Row], *, selected: float, over_time: bool, label: str) -> str:
    """Draw accuracy over epochs or minutes, one line a series, with a rule at the epoch that was kept.

    Parameters
    ----------
    rows
        ``series``, ``x`` (the epoch or the minute), ``share``.
    """
    import altair as alt

    names = list(dict.fromkeys(row["series"] for row in rows))
    colour, dash, shape = _scales(alt, names)
    last = max(row["x"] for row in rows)
    epochs = alt.X(
        "x:Q",
        title="epoch",
        scale=alt.Scale(domain=[1, max(2, last)], nice=False),
        axis=alt.Axis(tickMinStep=1, format="d", tickCount=min(last, 12)),
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("x:Q", title="minutes of fine-tuning", axis=alt.Axis(tickCount=8)) if over_time else epochs,
        y=alt.Y("share:Q", title="accuracy", scale=alt.Scale(zero=False), axis=alt.Axis(format=".0%")),
        color=alt.Color(
            "series:N",
            scale=colour,
            sort=names,
            legend=alt.Legend(title=None, orient="top", labelLimit=0, columnPadding=28),
        ),
    )
    line = base.mark_line(strokeWidth=2.5).encode(
        strokeDash=alt.StrokeDash("series:N", scale=dash, sort=names, legend=None)
    )
    point = base.mark_point(filled=True, size=45, opacity=1).encode(
        shape=alt.Shape("series:N", scale=shape, sort=names, legend=None)
    )
    rule = (
        alt.Chart(alt.Data(values=[{"x": selected}]))
        .mark_rule(strokeDash=[2, 4], stroke="var(--muted)")
        .encode(x="x:Q")
    )
    return to_svg((line + point + rule).properties(width=620, height=260), label)


def stability(rows: list[Row], *, x_title: str, label: str) -> str:
    """Draw the rank correlation of maps over eps, a panel a method and a line a kind of change, with intervals.

    Parameters
    ----------
    rows
        ``method``, ``series``, ``eps`` (as shown on the axis), ``mean``, ``low``, ``high``.
    """
    import altair as alt

    names = list(dict.fromkeys(row["series"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colour, dash, shape = _scales(alt, names)
    ticks = sorted({row["eps"] for row in rows})
    one = ticks[0] == ticks[-1]  # which stands in the middle
    within = {"domain": [0, 2 * ticks[0]], "nice": False} if one else {"nice": False, "padding": 8}
    base = alt.Chart().encode(
        x=alt.X("eps:Q", title=x_title, scale=alt.Scale(**within), axis=alt.Axis(values=_spread(ticks))),
        color=alt.Color(
            "series:N",
            scale=colour,
            sort=names,
            legend=alt.Legend(title=None, orient="top", columns=2, labelLimit=0, columnPadding=28),
        ),
    )
    y = alt.Y("mean:Q", title="rank correlation", scale=alt.Scale(domainMax=1, zero=False))
    line = base.mark_line(strokeWidth=2).encode(
        y=y, strokeDash=alt.StrokeDash("series:N", scale=dash, sort=names, legend=None)
    )
    point = base.mark_point(filled=True, size=40, opacity=1).encode(
        y=y, shape=alt.Shape("series:N", scale=shape, sort=names, legend=None)
    )
    bar = base.mark_rule(opacity=0.5, aria=False).encode(y="low:Q", y2="high:Q")
    columns = min(3, len(methods))
    panel = alt.layer(bar, line, point).properties(width=540 // columns, height=180)
    drawn = panel.facet(
        facet=alt.Facet("method:N", sort=methods, title=None), columns=columns, data=alt.Data(values=rows)
    )
    return to_svg(drawn, label)


def proved_and_broken(rows: list[Row], *, x_title: str, label: str) -> str:
    """Draw for each eps what was proved, what was broken, and what lies between, as one bar.

    Parameters
    ----------
    rows
        ``eps`` (as shown on the axis), ``state`` (proved, open, broken or wrong) and its ``share``.
    """
    import altair as alt

    states = ["proved", "open", "broken or wrong"]
    scale = alt.Scale(domain=states, range=["var(--s1)", "var(--grid)", "var(--s2)"])
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(stroke="var(--muted)", strokeWidth=0.5)
        .encode(
            y=alt.Y("eps:N", title=x_title, sort=None),
            x=alt.X("share:Q", title="share of images", stack="zero", axis=alt.Axis(format="%")),
            color=alt.Color(
                "state:N",
                title=None,
                scale=scale,
                legend=alt.Legend(orient="top", labelLimit=300, symbolStrokeWidth=1.5),
            ),
            order=alt.Order("place:Q"),
        )
        .properties(width=520, height=26 * len({row["eps"] for row in rows}))
    )
    return to_svg(chart, label)


def only_found(rows: list[Row], *, label: str) -> str:
    """Draw how many images each attack breaks that no other one does, as bars.

    Parameters
    ----------
    rows
        ``attack``, ``images``, and ``kind``: with or without gradients.
    """
    import altair as alt

    kinds = ["with gradients", "without gradients"]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(height=14)
        .encode(
            y=alt.Y("attack:N", title=None, sort=None),
            x=alt.X("images:Q", title="images that only this attack breaks", axis=alt.Axis(tickMinStep=1, format="d")),
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=kinds, range=["var(--s1)", "var(--s2)"]),
                legend=alt.Legend(title=None, orient="top", labelLimit=0, columnPadding=28),
            ),
        )
        .properties(width=520, height=26 * len(rows))
    )
    return to_svg(chart, label)


def alluvial(rows: list[Row], nodes: list[Row], *, height: float, label: str) -> str:
    """Draw bands from classes on the left to classes on the right, each as wide as the images it carries.

    Parameters
    ----------
    rows
        Of each band ``ribbon`` (a name of its own), ``kind`` (stands or broken), ``told`` and, where cases show it,
        ``link``; and where it starts and ends: ``left``, ``left_end``, ``right``, ``right_end``, in images from the
        top.
    nodes
        ``side`` (0 or 1), ``start`` and ``end``, and the ``text`` beside it; what is too long loses its end.
    """
    import altair as alt

    bent = [  # level, then steep, then level: drawn as a curve by monotone interpolation
        {**row, "x": x, "from": row[side], "to": row[f"{side}_end"]}
        for row in rows
        for x, side in ((0.02, "left"), (0.2, "left"), (0.8, "right"), (0.98, "right"))
    ]
    across = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.18, 1.18]))
    down = alt.Scale(reverse=True, nice=False)
    kinds = ["stands", "broken"]
    bands = alt.Chart().mark_area(interpolate="monotone", opacity=0.85)
    bands = bands.encode(
        x=across,
        y=alt.Y("from:Q", axis=None, scale=down),
        y2="to:Q",
        detail="ribbon:N",
        color=alt.Color(
            "kind:N",
            scale=alt.Scale(domain=kinds, range=["var(--s1)", "var(--s2)"]),
            legend=alt.Legend(title=None, orient="top", columnPadding=28),
        ),
        description="told:N",
    )
    ends = alt.Chart(alt.Data(values=nodes)).transform_calculate(x="datum.side ? 0.98 : 0", x2="datum.x + 0.02")
    bars = ends.mark_rect(color="var(--text)", aria=False).encode(x="x:Q", x2="x2:Q", y="start:Q", y2="end:Q")
    drawn = bars
    for linked in (True, False):
        own = [row for row in bent if bool(row.get("link")) == linked]
        if own:
            layer = bands.encode(href="link:N") if linked else bands
            drawn = layer.properties(data=alt.Data(values=own)) + drawn
    for side in (0, 1):
        named = alt.Chart(alt.Data(values=[node for node in nodes if node["side"] == side]))
        named = named.transform_calculate(x=f"{1.01 if side else -0.01}", y="(datum.start + datum.end) / 2")
        drawn += named.mark_text(
            align="left" if side else "right",
            baseline="middle",
            color="var(--text)",
            font=_FONT,
            fontSize=12,
            limit=104,  # pixels between the bars and the edge
        ).encode(x="x:Q", y="y:Q", text="text:N")
    return to_svg(drawn.properties(width=860, height=height), label)

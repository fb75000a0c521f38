"""A summary in Markdown, for a pull request."""

import re
from collections.abc import Mapping

from robustcv.errors import printable
from robustcv.records import Record
from robustcv.report import numbers, summary
from robustcv.report.blocks import Bullets
from robustcv.report.sections.findings import findings, limits
from robustcv.report.tiles import tiles


def markdown(record: Record, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Write summary.md: verdict, figures, checks that were raised, findings, and what the figures do not show."""
    lines = [f"## {summary.GLYPHS[record.verdict]} {record.verdict}", "", plain(summary.sentence(record)), ""]
    if figures := tiles(record):
        lines += ["| | | |", "| --- | ---: | --- |"]
        for t in figures:
            moved = f" {plain(f'{t.delta} {t.delta_note}')}" if t.delta else ""
            lines.append(f"| {plain(t.label)} | **{plain(t.value)}**{moved} | {plain(t.note)} |")
        lines.append("")
    for section in (findings(record, files), limits(record, files)):
        if section is not None:
            lines += [f"### {section.title}", ""]
            for block in section.blocks:
                items = block.items if isinstance(block, Bullets) else ()
                lines += [f"- {plain(item.text)}" for item in items]
            lines.append("")
    passed = sum(check.status == "pass" for check in record.checks)
    raised = sum(check.status == "raised" for check in record.checks)
    if record.checks:
        lines += [f"{passed} checks passed, {raised} raised, {len(record.checks) - passed - raised} not run.", ""]
    kicker = plain(summary.kicker(record))
    lines.append(f"<sub>{kicker} · robustcv {plain(record.version)}</sub>")
    return {"summary.md": ("\n".join(lines) + "\n").encode()}


def plain(text: str) -> str:
    """Make text safe inside a line or a table of Markdown: no markup of its own, no line breaks."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", printable(text.replace(numbers.NBSP, " ")))

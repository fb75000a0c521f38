"""What is shown: a record and its evidence files to one offline HTML page. Imports no torch."""

import base64
import contextlib
import hashlib
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from robustcv import runs
from robustcv.errors import UserError, unknown_name
from robustcv.records import Record
from robustcv.report import summary
from robustcv.report.blocks import Page, Section
from robustcv.report.formats import FORMATS
from robustcv.report.sections import SECTIONS, printed
from robustcv.report.text import shown
from robustcv.report.thinning import PREVIEWS, cases_in, with_cases, with_previews
from robustcv.report.tiles import tiles

_HERE = Path(__file__).parent
_FORCED = {
    "images": "The two runs were made on different images. The paired differences are of the images in common; the "
    "curve, the classes and the intervals of the tiles are of each run's own images.",
    "attacks": "The two runs were attacked in different ways: a difference between the models is mixed with one "
    "between the attacks.",
}
_UNCHECKED = (
    "The checks before the attacks were left out (--skip-preflight) but for two: a mistake in feeding the model, or in "
    "its labels, would not have been noticed."
)

__all__ = ["FORMATS", "SECTIONS", "as_a_mistake", "notebook", "render", "require_formats", "write", "write_formats"]


def render(record: Record, files: Mapping[str, bytes], most_mb: float | None = None) -> str:
    """Render the page: a pure function of the record and its files, byte for byte.

    The page is sealed by a Content-Security-Policy that allows its own script, its own styles, and nothing from
    anywhere else.

    Parameters
    ----------
    most_mb
        Size in MB (10**6 bytes) beyond which pictures become previews and cases are left out, as the page then says;
        by default what the run was given.
    """
    most_mb = record.options.get("max_report_mb") if most_mb is None else most_mb
    page = _drawn(record, _sections(record, files), _banner(record))
    return page if most_mb is None or _fits(page, most_mb) else _held(record, files, most_mb)


def _fits(page: str, most_mb: float) -> bool:
    return len(page.encode()) <= most_mb * 10**6


def _sections(record: Record, files: Mapping[str, bytes]) -> list[Section]:
    return [section for make in SECTIONS.values() if (section := make(record, files)) is not None]


def _held(record: Record, files: Mapping[str, bytes], most_mb: float) -> str:
    """Render with previews, and with as many cases as fit; the banner says what the page gave up."""
    every = cases_in(record)

    def thinned(k: int, largest: int = PREVIEWS[-1]) -> str:
        fewer = with_cases(record, k) if k < every else record
        told = [f"pictures are previews of at most {largest} pixels"] if k else []
        told += [f"{k} of {every} cases are shown"] if k < every else []
        held = f"This page is held to {most_mb:g} MB (--max-report-mb): {', '.join(told)}. The rest is in evidence/."
        sections = with_previews(_sections(fewer, files), largest)
        page = _drawn(fewer, sections, " ".join(filter(None, [_banner(record), held if told else ""])))
        if k > 0 or _fits(page, most_mb):
            return page
        size = f"{len(page.encode()) / 10**6:.2f} MB, more than the {most_mb:g} asked for (--max-report-mb)"
        alone = f"Without {'cases' if every else 'anything to leave out'}, this page takes {size}."
        return _drawn(fewer, sections, " ".join(filter(None, [_banner(record), alone])))

    for largest in PREVIEWS:
        if _fits(whole := thinned(every, largest), most_mb):
            return whole
    fits, too_many = 0, every
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if _fits(thinned(middle), most_mb) else (fits, middle)
    return thinned(fits)


def _banner(record: Record) -> str:
    """Give the line above everything, where there is something that a reader must know first."""
    if record.comparison is not None and record.comparison.forced:
        return " ".join(_FORCED[each] for each in record.comparison.differs or ("images",))
    return _UNCHECKED if record.options.get("skip_preflight") else ""


def _drawn(record: Record, sections: Sequence[Section], banner: str) -> str:
    page = Page(
        title=f"{summary.name_of(record)} · robustcv {record.verb}",
        kicker=summary.kicker(record),
        verdict=record.verdict,
        verdict_kind=summary.KINDS[record.verdict],
        glyph=summary.GLYPHS[record.verdict],
        sentence=summary.sentence(record),
        tiles=tiles(record),
        checks=summary.checks(record),
        strip=summary.strip(record),
        sections=tuple(section for section in sections if section.place == "full"),
        verb=record.verb,
        version=record.version,
        threat=summary.threat(record),
        made=summary.made(record),
        identity=re.sub(r"[^0-9a-z ·]", "", summary.identity(record)),  # for the style sheet
        printed=printed(record.verb),
        top=tuple(section for section in sections if section.place != "full"),
        banner=banner,
    )
    script = (_HERE / "report.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    css = (_HERE / "report.css").read_text()
    return str(_template().render(page=page, css=css, script=script, digest=digest))


def write(folder: Path | str, most_mb: float | None = None) -> Path:
    """Render the page of a run folder from its report.json and evidence; gives the page's path."""
    folder = Path(folder)
    path = folder / "report.html"
    runs.write_atomic(path, render(runs.load(folder), runs.load_files(folder), most_mb).encode())
    return path


def require_formats(names: Sequence[str]) -> None:
    """Refuse a form of the report that is unknown.

    Raises
    ------
    UserError
        If one is.
    """
    for name in names:
        if name not in FORMATS and name != "html":
            raise unknown_name("format", name, ["html", *FORMATS])


def write_formats(folder: Path | str, names: Sequence[str], most_mb: float | None = None) -> list[Path]:
    """Write other forms of a run's report beside its page; ``html`` is the page itself. Gives their paths.

    Raises
    ------
    UserError
        If a form is unknown.
    """
    require_formats(names)
    folder, paths = Path(folder), []
    record, files = runs.load(folder), runs.load_files(folder)
    for name in dict.fromkeys(names):
        if name == "html":
            paths.append(write(folder, most_mb))
        else:
            for place, data in FORMATS[name](record, files).items():
                runs.write_atomic(folder / place, data)
                paths.append(folder / place)
    return paths


@contextlib.contextmanager
def as_a_mistake(folder: Path | str) -> Iterator[None]:
    """Tell that a report.json fits its schema and yet makes no page: it was edited, or another tool wrote it.

    Raises
    ------
    UserError
        If so.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # charts, templates, pictures and tensors raise kinds of their own
        raise UserError(
            "RCV-E117",
            f"{folder}/report.json or its evidence does not hold together",
            f"{type(error).__name__}: {error}",
            "restore the folder as the run left it, or run the verb again",
        ) from error


def notebook(record: Record, files: Mapping[str, bytes]) -> str:
    """Wrap the page for a notebook cell: an isolated frame."""
    page = html.escape(render(record, files), quote=True)
    style = "width:100%;height:640px;border:0"
    return f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" style="{style}"></iframe>'


def _code(text: str) -> Any:
    """Set what stands between backticks as code; all of it is escaped."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(shown(text)))))


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters["code"] = _code
    return environment.get_template("page.html.j2")

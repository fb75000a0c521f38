"""What a section is made of: plain values that the template knows how to draw."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Told:
    """What stands behind a percentage: the metric, how many images it is of, and its interval, as shares."""

    metric: str
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Tile:
    """One figure of the first screen."""

    label: str
    value: str
    note: str
    delta: str = ""
    delta_note: str = ""
    better: bool | None = None
    told: Told | None = None


@dataclass(frozen=True)
class Picture:
    """One panel of a case; ``shows`` is clean, attacked or change (amplified by ``factor``) where it is compared."""

    uri: str
    alt: str
    caption: str = ""
    strong: str = ""
    bad: bool = False
    shows: str = ""
    factor: int = 0


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, a smaller remark, for heat-map cells the colours, and what it is sorted by."""

    text: str
    note: str = ""
    number: bool = False
    background: str = ""
    colour: str = ""
    link: str = ""
    value: float | None = None
    told: Told | None = None
    pictures: tuple[Picture, ...] = ()
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table; ``folded`` puts it behind a summary line of that text, ``matrix`` centres its cells.

    A ``sortable`` one can be sorted by any column, and searched.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    folded: str = ""
    matrix: bool = False
    sortable: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Chart:
    """An SVG chart with the data behind it."""

    svg: str
    table: Table | None = None
    kind: str = "chart"


@dataclass(frozen=True)
class Bullet:
    """One line of a list, with the rule that wrote it, how much it weighs, and the section it points to."""

    text: str
    rule: str = ""
    link: str = ""
    severity: Literal["", "high", "medium", "low"] = ""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[Bullet, ...]
    kind: str = "bullets"


@dataclass(frozen=True)
class Strip:
    """The panels of one case for one model."""

    pictures: tuple[Picture, ...]
    label: str = ""


@dataclass(frozen=True)
class Item:
    """One case, with the tags it is filtered by."""

    title: str
    strips: tuple[Strip, ...]
    meta: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """Cases, each a card that opens enlarged; ``scale`` tells what the ends of the colours of heat maps stand for."""

    items: tuple[Item, ...]
    pixelated: bool = True
    columns: int = 5
    scale: str = ""
    kind: str = "gallery"

    def filters(self) -> dict[str, tuple[str, ...]]:
        """Give the tags that tell cases apart, as not all have the same one or have one, with their values in order."""
        names = ("class", "attack", "eps", "outcome")
        found = {name: sorted({item.tags[name] for item in self.items if name in item.tags}) for name in names}
        partial = {name for name in names if any(name not in item.tags for item in self.items)}
        return {name: tuple(values) for name, values in found.items() if len(values) > (0 if name in partial else 1)}


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


Block = Table | Chart | Bullets | Gallery | Text


@dataclass(frozen=True)
class Section:
    """One section of the page: ``place`` is main or side (beside it) near the top, or full width below."""

    id: str
    title: str
    subtitle: str
    blocks: tuple[Block, ...]
    nav: str = ""
    place: str = "full"


@dataclass(frozen=True)
class Page:
    """Everything the template draws."""

    title: str
    kicker: str
    verdict: str
    verdict_kind: str
    glyph: str
    sentence: str
    tiles: tuple[Tile, ...]
    checks: tuple[tuple[str, str, str], ...]
    strip: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    verb: str
    version: str
    identity: str
    threat: str
    made: str
    printed: frozenset[str]
    banner: str = ""
    top: tuple[Section, ...] = field(default=())

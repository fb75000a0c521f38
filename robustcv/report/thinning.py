"""What a page gives up where it must not exceed a size: first the sharpness of its pictures, then its last cases."""

import dataclasses
from collections.abc import Sequence

from robustcv.records import Record
from robustcv.report import images
from robustcv.report.blocks import Gallery, Picture, Section

PREVIEWS = (112, 64)  # pixels, tried in this order


def cases_in(record: Record) -> int:
    """Count the cases that a page shows, or of a comparison what it draws them from."""
    both = record.comparison
    return len(record.cases) if both is None else len(both.a.cases) + len(both.moved)


def with_cases(record: Record, k: int) -> Record:
    """Keep the first k cases alone, so that all the page says and links to is about those; of 0, no picture at all."""
    both = record.comparison
    if both is None:
        bare = record.corruptions if k else tuple(row.model_copy(update={"file": None}) for row in record.corruptions)
        return record.model_copy(update={"cases": record.cases[:k], "corruptions": bare})
    a = both.a.model_copy(update={"cases": both.a.cases[:k]})
    kept = {"a": a, "moved": both.moved[: max(0, k - len(both.a.cases))]}
    return record.model_copy(update={"comparison": both.model_copy(update=kept)})


def with_previews(sections: Sequence[Section], largest: int) -> list[Section]:
    """Make every picture a preview of at most ``largest`` pixels, where that is smaller."""
    made = []
    for section in sections:
        blocks = tuple(_previews(block, largest) if isinstance(block, Gallery) else block for block in section.blocks)
        made.append(dataclasses.replace(section, blocks=blocks))
    return made


def _previews(gallery: Gallery, largest: int) -> Gallery:
    items = []
    for item in gallery.items:
        strips = tuple(
            dataclasses.replace(strip, pictures=tuple(_preview(each, largest) for each in strip.pictures))
            for strip in item.strips
        )
        items.append(dataclasses.replace(item, strips=strips))
    return dataclasses.replace(gallery, items=tuple(items))


def _preview(picture: Picture, largest: int) -> Picture:
    smaller = images.preview(picture.uri, largest)
    return dataclasses.replace(picture, uri=min(smaller, picture.uri, key=len))

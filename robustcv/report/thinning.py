"""What a page gives up where it must not exceed a size: first the sharpness of its pictures, then its last cases."""

import dataclasses
from collections.abc import Callable, Sequence

from robustcv.report import images
from robustcv.report.blocks import Gallery, Item, Picture, Section

PREVIEW = 64  # pixels


def thinned(sections: Sequence[Section], over: int) -> tuple[list[Section], str]:
    """Take at least ``over`` bytes out of a page, or all that there is to take; gives the line that tells what went."""
    before = _weight(sections)
    sections = [_mapped(section, lambda gallery: _previews(gallery)) for section in sections]
    told = f"pictures are previews of at most {PREVIEW} pixels"
    over -= before - _weight(sections)
    if over > 0:
        cases = sum(len(block.items) for section in sections for block in _galleries(section) if section.id == "cases")
        kept = 0

        def shorten(gallery: Gallery) -> Gallery:
            nonlocal kept
            items = _without_last(gallery.items, over)
            kept = len(items)
            return dataclasses.replace(gallery, items=items)

        sections = [_mapped(section, shorten) if section.id == "cases" else section for section in sections]
        told += f"; {kept} of {cases} cases are shown"
    return list(sections), told


def _galleries(section: Section) -> list[Gallery]:
    return [block for block in section.blocks if isinstance(block, Gallery)]


def _mapped(section: Section, change: Callable[[Gallery], Gallery]) -> Section:
    blocks = tuple(change(block) if isinstance(block, Gallery) else block for block in section.blocks)
    return dataclasses.replace(section, blocks=blocks)


def _weight(sections: Sequence[Section]) -> int:
    return sum(_bytes(item) for section in sections for block in _galleries(section) for item in block.items)


def _bytes(item: Item) -> int:
    """Count what an item adds to the page: its pictures, about 250 bytes of text for each, and 400 of its own."""
    return 400 + sum(250 + len(picture.uri) for strip in item.strips for picture in strip.pictures)


def _without_last(items: tuple[Item, ...], over: int) -> tuple[Item, ...]:
    left = list(items)
    while left and over > 0:
        over -= _bytes(left.pop())
    return tuple(left)


def _previews(gallery: Gallery) -> Gallery:
    items = []
    for item in gallery.items:
        strips = tuple(
            dataclasses.replace(strip, pictures=tuple(_preview(each) for each in strip.pictures))
            for strip in item.strips
        )
        items.append(dataclasses.replace(item, strips=strips))
    return dataclasses.replace(gallery, items=tuple(items))


def _preview(picture: Picture) -> Picture:
    smaller = images.preview(picture.uri, PREVIEW)
    return dataclasses.replace(picture, uri=min(smaller, picture.uri, key=len))

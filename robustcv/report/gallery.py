"""The cases as cards: clean, attacked, what changed, and the heat maps of both on one scale."""

from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from robustcv import runs
from robustcv.records import Case, Comparison, Data, HeatmapRef, Moved, Neighbour, Record
from robustcv.report import images, numbers
from robustcv.report.blocks import Gallery, Item, Picture, Strip
from robustcv.report.text import shown

_SCALE = "in units of the logit; s is told with each map"
Files = Mapping[str, bytes]
Pixels = NDArray[np.float32]


def case_gallery(record: Record, files: Files) -> tuple[Gallery, str]:
    """Make the cards of one run; gives them with the line that says what is shown and how it was chosen."""
    assert record.data is not None
    maps = _arrays(files, "evidence/heatmaps.safetensors")
    exact = _arrays(files, "evidence/cases.safetensors")
    items = []
    for number, case in enumerate(record.cases):
        strips = _strips(number, case, record.data, files, maps, exact)
        items.append(Item(_title(case, record.data), strips, _meta(case, maps), _tags(case, record.data)))
    chosen = list(dict.fromkeys(case.selection for case in record.cases))
    counts = ", ".join(f"{sum(case.selection == each for case in record.cases)} {each}" for each in chosen)
    shown = (
        "clean · attacked · change, amplified · heat maps before and after" if record.attacks else "image · heat maps"
    )
    small = max(record.data.shape[1:]) <= images.LOSSLESS_UP_TO
    preview = "" if small else " · previews; the exact pixels are in evidence/"
    scale = "on one scale per image and method (blue against the class named, orange for it)"
    subtitle = f"{shown}, {scale} · chosen: {counts}{preview}"
    columns = max((len(strip.pictures) for item in items for strip in item.strips), default=1)
    return Gallery(tuple(items), pixelated=small, columns=columns, scale=_SCALE if maps else ""), subtitle


def paired_gallery(comparison: Comparison, files: Files) -> tuple[Gallery, str]:
    """Make the cards of the images that both runs show: the sample drawn before any attack."""
    sides = (comparison.a, comparison.b)
    places = [{case.image: number for number, case in enumerate(side.cases)} for side in sides]
    data = Data(
        name="", split="", n=1, total=1, class_names=tuple(row.name for row in comparison.b.classes), shape=(3, 1, 1),
        sha256="", selection="",
    )  # fmt: skip
    items = []
    size = 0
    shared = [image for image in places[0] if image in places[1]]
    shared.sort(key=lambda image: sides[0].cases[places[0][image]].outcome == sides[1].cases[places[1][image]].outcome)
    for image in shared:
        number = places[0][image]
        strips: list[Strip] = []
        for side, letter, at in ((sides[0], "a", number), (sides[1], "b", places[1][image])):
            maps = _arrays(files, f"evidence/{letter}/heatmaps.safetensors")
            exact = _arrays(files, f"evidence/{letter}/cases.safetensors")
            case = side.cases[at]
            made = _strips(at, case, data, files, maps, exact, label=f"{side.name}: {_outcome(case)}")
            strips += made[:1]
            size = max(exact[f"{at:03d}-clean"].shape[1:])
        first, second = sides[0].cases[number], sides[1].cases[places[1][image]]
        tags = {"class": _name(data, first.label), "outcome": f"{first.outcome} → {second.outcome}"}
        fell = next((case for case in (second, first) if case.outcome == "broken" and case.attack), None)
        tags |= {"attack": fell.attack} if fell is not None and fell.attack is not None else {}
        items.append(Item(_title(first, data), tuple(strips), f"image {first.index} · chosen: {first.selection}", tags))
    subtitle = (
        "clean · attacked · change, amplified · heat maps before and after, one scale per row (blue against the class "
        "named, orange for it) · every image that both audits show, those with different outcomes first"
    )
    pixels = _arrays(files, "evidence/moved.safetensors")
    others = [(k, each) for k, each in enumerate(comparison.moved) if each.image not in shared]
    for k, each in others:
        clean, attacked = (images.unit(pixels[f"{k:02d}-{kind}"]) for kind in ("clean", "adversarial"))
        items.append(_moved_item(each, comparison, data, clean, attacked))
        size = max(size, *clean.shape[1:])
    if others:
        counts = " and ".join(f"{sum(each.moved == word for _, each in others)} {word}" for word in ("won", "lost"))
        subtitle += f"; then {counts} of the others, drawn by their hashes"
    explained = any(case.heatmaps for side in sides for case in side.cases)
    small = size <= images.LOSSLESS_UP_TO
    return Gallery(tuple(items), pixelated=small, scale=_SCALE if explained else ""), subtitle


def _moved_item(each: Moved, comparison: Comparison, data: Data, clean: Pixels, attacked: Pixels) -> Item:
    """Make the card of an image won or lost: what broke the model that fell, and that the other stood."""
    fell, stood = (comparison.a, comparison.b) if each.moved == "won" else (comparison.b, comparison.a)
    true, fooled = _name(data, each.label), _name(data, each.prediction)
    where = numbers.threat(each.eps, each.norm)
    pictures = (
        Picture(
            images.data_uri(images.plain(clean)), f"Clean image {each.index}, class {true}", "", true, shows="clean"
        ),
        Picture(
            images.data_uri(images.plain(attacked)),
            f"Attacked image {each.index}, predicted {fooled} by {fell.name}",
            "",
            fooled,
            bad=True,
            shows="attacked",
        ),
        _change(clean, attacked),
    )
    strip = Strip(pictures, f"{fell.name}: broken by {each.attack} at {where}; {stood.name} stood")
    outcomes = "broken → survived" if each.moved == "won" else "survived → broken"
    tags = {"class": true, "outcome": outcomes, "attack": each.attack}
    meta = f"image {each.index} · one of those {each.moved}, drawn by its hash"
    return Item(f"Image {each.index}, true class {true}", (strip,), meta, tags)


def _change(clean: Pixels, attacked: Pixels) -> Picture:
    """Make the panel of what an attack changed."""
    change, factor = images.perturbation(clean, attacked)
    told = f"Change, amplified {factor} times"
    return Picture(images.data_uri(change), told, f"change ×{factor}", shows="change", factor=factor)


def _arrays(files: Files, name: str) -> runs.Arrays:
    return runs.unpack_arrays(files[name]) if name in files else {}


def _name(data: Data, label: int | None) -> str:
    if label is None:
        return "not known"
    return data.class_names[label] if 0 <= label < len(data.class_names) else str(label)


def _title(case: Case, data: Data) -> str:
    return f"Image {case.index}, true class {_name(data, case.label)}"


def _tags(case: Case, data: Data) -> dict[str, str]:
    """Give what a case is filtered by."""
    tags = {"class": _name(data, case.label), "outcome": case.outcome}
    if case.attack is not None and case.outcome == "broken":
        tags |= {"attack": case.attack, "as": _name(data, case.adversarial_prediction)}
        tags["eps"] = numbers.eps_short(case.eps or 0.0, case.norm)
    return tags


def cases_of(record: Record) -> Counter[tuple[str, str]]:
    """Count the cases shown of each class, and of each class taken for another: what tables link to."""
    assert record.data is not None
    found = [_tags(case, record.data) for case in record.cases]
    return Counter((tags["class"], tags.get("as", "")) for tags in found)


def link_to(**tags: str) -> str:
    """Write the address of some cases on the page; ``class_`` stands for class, ``as_`` for what they are taken for."""
    return urlencode({name.rstrip("_"): shown(value) for name, value in tags.items()})


def _outcome(case: Case) -> str:
    if case.attack is None or case.eps is None:
        return case.outcome
    where = numbers.threat(case.eps, case.norm or "linf")
    return f"broken by {case.attack} at {where}" if case.outcome == "broken" else f"stood {case.attack} at {where}"


def top_shared(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Compute the intersection over union of the tenth of the pixels ``h w`` with the largest magnitude in two maps."""
    tops = []
    for each in (a, b):
        magnitudes = np.abs(np.asarray(each, dtype=float).sum(axis=0)).ravel()
        top = np.zeros(magnitudes.shape, dtype=bool)
        top[np.argsort(-magnitudes, kind="stable")[: max(1, magnitudes.size // 10)]] = True
        tops.append(top)
    return float((tops[0] & tops[1]).sum() / (tops[0] | tops[1]).sum())


def _meta(case: Case, maps: runs.Arrays) -> str:
    parts = [f"image {case.index}", _outcome(case)]
    if case.linf is not None and case.l2 is not None:
        changed = "" if case.l0 is None else f", L0 {case.l0:,}"
        parts.append(f"L-inf {case.linf:.4f}, L2 {case.l2:.3f}{changed}")
    if case.logit is not None:
        parts.append(f"logit explained {case.logit:.2f}")
    if case.outcome == "broken":
        parts.append("8-bit PNG fools too" if case.exact_8bit else "only the exact floats fool")
    first = {ref.image: ref for ref in reversed(case.heatmaps) if ref.method == case.heatmaps[0].method}
    if len(first) == 2 and not any(ref.zero for ref in first.values()):
        shared = top_shared(*(maps[first[kind].file] for kind in ("clean", "adversarial")))
        parts.append(f"maps: IoU {shared:.2f} of their top 10 % of pixels")
    return " · ".join(parts)


def _strips(
    number: int, case: Case, data: Data, files: Files, maps: runs.Arrays, exact: runs.Arrays, label: str = ""
) -> tuple[Strip, ...]:
    """Make the panels of a case: one strip a method, the first with the pictures themselves."""
    true, said = _name(data, case.label), _name(data, case.prediction)
    wrong = case.label is not None and case.prediction != case.label
    pictures = [
        Picture(
            images.data_uri(images.decode(files[case.files["clean"]])),
            f"Clean image {case.index}, true class {true}, predicted {said} {case.confidence:.2f}",
            f"{case.confidence:.2f}",
            said,
            wrong,
            shows="clean",
        )
    ]
    attacked = "adversarial" in case.files
    if attacked and case.adversarial_prediction is not None:
        fooled = _name(data, case.adversarial_prediction)
        sure = case.adversarial_confidence or 0.0
        pictures.append(
            Picture(
                images.data_uri(images.decode(files[case.files["adversarial"]])),
                f"Attacked image {case.index}, predicted {fooled} {sure:.2f}",
                f"{sure:.2f}",
                fooled,
                case.adversarial_prediction != case.label,
                shows="attacked",
            )
        )
        pictures.append(_change(exact[f"{number:03d}-clean"], exact[f"{number:03d}-adversarial"]))
    methods = list(dict.fromkeys(ref.method for ref in case.heatmaps))
    others: list[Picture] = []
    for place, method in enumerate(methods):
        refs = [ref for ref in case.heatmaps if ref.method == method]
        coloured, scale = images.heatmap_pair([np.asarray(maps[ref.file]) for ref in refs])
        for ref, picture in zip(refs, coloured, strict=True):
            panel = _heatmap_panel(
                ref,
                picture,
                _name(data, ref.target),
                scale,
                first=place == 0 and (attacked or len(methods) == 1),
                alone=not attacked and len(methods) > 1,
            )
            (pictures if place == 0 or not attacked else others).append(panel)
    if not attacked and len(methods) > 1:
        label = label or f"why {_name(data, case.heatmaps[0].target)}"
    strips = [Strip(tuple(pictures), label)]
    if others:
        strips.append(Strip(tuple(others), "the same, by other methods"))
    if case.neighbours:
        strips.append(Strip(tuple(_neighbour(near, files) for near in case.neighbours), "nearest in feature space"))
    return tuple(strips)


def _neighbour(near: Neighbour, files: Files) -> Picture:
    alt = f"Training image {near.index}, class {near.label}, distance {near.distance:.3f}"
    return Picture(images.data_uri(images.decode(files[near.file])), alt, f"{near.distance:.3f}", near.label)


def _heatmap_panel(
    ref: HeatmapRef, picture: NDArray[np.uint8], target: str, scale: float, *, first: bool, alone: bool
) -> Picture:
    """Make the panel of one heat map: method, image, class explained and error, in alt text and caption."""
    method = ref.method.replace("_", " ")
    gap = "" if ref.gap is None else f", completeness gap {100 * ref.gap:.1f} %"
    error = "" if not ref.error else f", relative error {100 * ref.error:.1f} %"
    if ref.margin:
        error += f", 95 % intervals of ±{100 * ref.margin:.1f} % of the largest value (median)"
    caption = f"why {target}" if first else f"{method}: why {target}"
    if alone:
        caption = method
    if ref.zero:
        caption += " · zero: nothing here changes this logit"
    elif ref.error:
        caption += f" · error {100 * ref.error:.{0 if ref.error > 0.095 else 1}f} %"
    caption += ", attacked" if not first and ref.image == "adversarial" else ""
    caption += f" · ±{scale:#.2g}".rstrip(".")
    alt = f"{method} heat map of the {ref.image} image for class {target}, from −{scale:.2g} to {scale:.2g}{error}{gap}"
    return Picture(images.data_uri(picture), alt, caption)

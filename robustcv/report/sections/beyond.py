"""Beyond norm balls: accuracy under corruptions, rotations and shifts, and patches."""

from collections.abc import Mapping

from robustcv.records import CorruptionRow, OtherThreat, Record
from robustcv.report import cells, images, numbers
from robustcv.report.blocks import Block, Cell, Gallery, Item, Picture, Section, Strip, Table

Files = Mapping[str, bytes]


def beyond(record: Record, files: Files) -> Section | None:
    """Tabulate what other threats did; each is a threat model of its own, and none enters the worst case."""
    blocks: list[Block] = []
    if record.others:
        blocks.append(_threats(record))
    blocks += [_patch(threat, files) for threat in record.others if threat.file and threat.file in files]
    if record.corruptions:
        blocks.append(_corruptions(record.corruptions, files))
    if not blocks:
        return None
    error = record.metric("mean_corruption_error")
    parts = ["never mixed with the worst case above"]
    parts += ["corruptions are statistical evidence (ISO/IEC TR 24029-1), the others empirical"] if error else []
    if error is not None:
        told = f"mean corruption error {numbers.percent(error)} ({numbers.interval(error)})"
        parts.append(f"{told}, not scaled by that of a reference model")
    return Section("beyond", "Beyond norm balls", " · ".join(parts), tuple(blocks), "Other threats")


def _threats(record: Record) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for threat in record.others:
        metric = record.metric(f"{threat.name}_accuracy")
        control = "" if threat.control_broken is None else f"{threat.control}: {threat.control_broken:,} broken"
        rows.append(
            (
                Cell(threat.name, numbers.plain(threat.options) if threat.options else ""),
                cells.metric(metric),
                Cell(f"{threat.broken:,} of {threat.attempted:,}", control, number=True),
                Cell(f"{threat.forward:,}", number=True),
                Cell(f"{threat.backward:,}", number=True),
                Cell(numbers.duration(threat.seconds), number=True),
            )
        )
        if threat.aimed is not None and threat.reached is not None:
            rows.append(_aimed(record, threat, threat.aimed, threat.reached))
    headers = ("threat", "right under it (upper bound)", "broken", "forward passes", "backward passes", "time")
    return Table(headers, tuple(rows), caption="Rotations, shifts and patches")


def _aimed(record: Record, threat: OtherThreat, aimed: int, reached: int) -> tuple[Cell, ...]:
    """Tell how many images of other classes a patch with a target turns into that target."""
    assert record.data is not None and threat.target is not None
    target = record.data.class_names[threat.target]
    rate = record.metric("patch_target_rate")
    told = f": {numbers.percent(rate)} ({numbers.interval(rate)}), at least" if rate else ""
    grey = f"{threat.control}: {threat.control_reached:,}"
    empty = Cell("")
    return (
        Cell(f"taken for {target}", f"of other classes{told}"),
        empty,
        Cell(f"{reached:,} of {aimed:,}", grey, number=True),
        empty,
        empty,
        empty,
    )


def _patch(threat: OtherThreat, files: Files) -> Gallery:
    assert threat.file is not None
    uri = images.data_uri(images.decode(files[threat.file]))
    picture = Picture(uri, "the trained patch", "evidence/patch.png in the folder of the run, to print")
    return Gallery((Item("The patch", (Strip((picture,)),), ""),), columns=3)


def _corruptions(found: tuple[CorruptionRow, ...], files: Files) -> Table:
    names = list(dict.fromkeys(each.name for each in found))
    severities = sorted({each.severity for each in found})
    shown = {each: picture for each in found if (picture := _picture(each, files)) is not None}
    rows = []
    for name in names:
        own = {each.severity: each for each in found if each.name == name}
        heat = [cells.heat("corruption_accuracy", own[k].correct, own[k].n) for k in severities]
        mean = sum(each.correct for each in own.values()) / len(own)  # as `stats.wilson` takes sums of shares
        average = cells.share("corruption_accuracy", mean, own[severities[0]].n)
        pictures = tuple(shown[own[k]] for k in severities if own[k] in shown)
        rows.append((Cell(name.replace("_", " ")), *heat, average, *([Cell("", pictures=pictures)] if shown else [])))
    headers = ("right under", *(f"severity {severity}" for severity in severities), "mean")
    if shown:
        headers += (f"an image at {', '.join(map(str, sorted({each.severity for each in shown})))}",)
    return Table(headers, tuple(rows), caption="Common corruptions", matrix=True)


def _picture(row: CorruptionRow, files: Files) -> Picture | None:
    """Make the small picture of a corruption, where there is one."""
    if row.file is None or row.file not in files:
        return None
    pixels = images.decode(files[row.file])
    uri = images.data_uri(pixels)
    small = uri if max(pixels.shape[:2]) <= images.LOSSLESS_UP_TO else images.preview(uri, images.LOSSLESS_UP_TO)
    return Picture(small, f"an image under {row.name.replace('_', ' ')}, severity {row.severity}")

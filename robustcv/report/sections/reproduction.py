"""How to repeat the run, what its numbers mean, and what to do next."""

import hashlib
from collections.abc import Mapping

from robustcv.records import Record, Side
from robustcv.report import numbers
from robustcv.report.blocks import Cell, Section, Table, Text
from robustcv.report.sections.robustness import under_corruptions

Files = Mapping[str, bytes]


_CODE = ("command", "weights SHA-256", "images SHA-256", "evidence SHA-256")
_SEEDED = (
    "each random number belongs to the seed and to an image; on a GPU cuDNN is held to deterministic algorithms, and "
    "TF32 is off"
)


def reproduce(record: Record, files: Files) -> Section | None:
    """Give what is needed to repeat the run."""
    environment = record.environment
    called = ("command", environment.command)
    if environment.command == "python":
        called = ("called from", f"Python, as robustcv.{record.verb}; config.toml holds the options")
    threads = f"{environment.threads} thread{'s' * (environment.threads != 1)}"
    identity = [called, ("robustcv", record.version), ("started (UTC)", environment.started)]
    identity += [("took", numbers.duration(environment.seconds)), ("device", environment.device)]
    identity += [
        (
            "platform",
            f"{environment.platform}, Python {environment.python}, {threads}",
        )
    ]
    identity += [("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items()))]
    if record.model:
        identity += [("model", f"{record.model.source}, {record.model.parameters:,} parameters")]
        identity += [("weights SHA-256", record.model.sha256)]
        if asked := record.model.class_map:
            told = ", ".join(f"{here}: {there}" for here, there in asked.items())
            identity += [("classes of the model asked about", told)]
    if record.comparison:
        for side in (record.comparison.a, record.comparison.b):
            identity += [(side.name, f"{side.run}, weights SHA-256 {side.model.sha256[:16]}")]
    if (data := record.data) is not None:
        identity += [
            (
                "images",
                f"{data.name}, {data.split}, {data.n:,} of {data.total:,}, {data.selection}",
            )
        ]
        identity += [("images SHA-256", data.sha256)]
        if data.skipped:
            identity += [("left out", f"{data.skipped:,} files that could not be decoded (--skip-bad)")]
    if (kept := record.evidence) is not None:
        told = f"{kept.failures:,} failures, at any eps; {kept.eight_bit:,} as 8-bit images"
        told += f", {kept.only_float:,} that no 8-bit image shows, as floats" if kept.only_float else ""
        told += f"; {kept.withdrawn:,} withdrawn, which the image alone did not repeat" if kept.withdrawn else ""
        identity += [("evidence", told), ("replay it", "robustcv verify, with this folder")]
    identity += [("determinism", _SEEDED)]
    if "evidence/SHA256SUMS" in files:
        identity += [("evidence SHA-256", hashlib.sha256(files["evidence/SHA256SUMS"]).hexdigest())]
    identity += [("note", text) for text in environment.notes]
    if record.passes.forward:
        told = f"{record.passes.forward:,} forward, {record.passes.backward:,} backward"
        if (own := record.passes.per_image) is not None:
            told += f"; attacks on one image: median {own.median_forward:,.0f} and {own.median_backward:,.0f}, "
            told += f"at most {own.most_forward:,} and {own.most_backward:,} (n = {own.n:,}; each image's own counts "
            told += "are in evidence/verdicts.safetensors)"
        identity += [("passes", told)]
    facts = Table(("", ""), tuple((Cell(name), Cell(text, code=name in _CODE)) for name, text in identity))
    known = bool(record.origins)
    options = tuple(
        (Cell(name), Cell(numbers.plain(value)), *((Cell(record.origins.get(name, "")),) if known else ()))
        for name, value in record.options.items()
    )
    headers = ("option", "value", *(("from",) if known else ()))
    folded = Table(headers, options, folded="Options, all of them")
    subtitle = "same seed, same machine, same result"
    return Section("reproduce", "Reproduce", subtitle, (facts, folded), "Reproduce")


_CLEAN = "right answers / images, nothing changed"
_ROBUST = "images right when clean that no attack broke / images; an upper bound: a better attack could break more"
_EPS = "largest change allowed: of one value (L-inf), of the length (L2), of the sum (L1), in values changed (L0)"
_ECE = "sum over 15 confidence bins of share of images × |accuracy − mean confidence| (Guo et al. 2017)"
_GAP = "|sum of the map − (logit of the image − logit of the baseline)| / |that difference|"
_ERROR = "estimated length of (the map − the map without limits on steps or samples) / length of the map"
_MEASURES = {
    "deletion": "area under the probability of the class as pixels are hidden, most relevant first",
    "insertion": "area under the probability of the class as pixels are shown, most relevant first",
    "road": "mean of (probability without the least − without the most relevant pixels) / 2, holes imputed",
    "infidelity": "share of the logit's change under noise that the map, times the best factor, does not foretell",
    "max sensitivity": "largest relative change of the map when every pixel moves by at most 0.02",
    "randomisation smooth": "rank correlation with the map of the same model with weights drawn anew from the top down",
    "randomisation efficient": "relative rise of the map's entropy when all weights are drawn anew",
    "relevance mass": "share of the positive relevance inside the object",
    "relevance rank": "share of the object's pixels among as many most relevant ones",
    "pointing": "share of images whose most relevant pixel lies inside the object",
    "average precision": "of the map as a detector of the object's pixels",
    "sparseness": "Gini index of the magnitudes: 0 even, 1 on one pixel",
}
_CI = (
    "shares: Wilson, (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), z = 1.96; differences: Newcombe's paired "
    "interval, made of both; means: percentiles of 1,000 bootstrap resamples of the images; calibration error: the "
    "same, less its bias (the resamples' mean minus the figure); medians: order statistics"
)
_CORRUPTION = (
    "mean over 15 corruptions × 5 severities of wrong answers / images (Hendrycks and Dietterich 2019, unscaled); "
    "corruption accuracy: 1 − that"
)
_CERTIFIED = "images right when clean of which it is proved that no change within eps alters the answer / images"
_AGREE = "images that both attacks break / images that the attack of the row breaks, each attack alone"
_MCNEMAR = "p: 2 · P(X ≤ min(won, lost)), at most 1, X binomial of won + lost images with probability 1/2 (exact)"
_STABLE = (
    "between the map of an image and that of the changed image: rank correlation (Spearman), 1 − 6 Σd² / (m³ − m) over "
    "the ranks of m pixels where none are tied; shared top pixels; mass moved: half the sum of |a − b| over "
    "both maps' shares of magnitude; centre moved: distance of their centres of mass, over the diagonal"
)
_VALIDATION = (
    "right answers / images of a split that was held out of training to choose the epoch; attacked: by the attack "
    "named, at the eps of training"
)
_COST = "forward passes of one image, a backward pass counted as two, mean over the maps"
_FISHER = "p: chance of as few right answers in the class, all right answers dealt out at random (exact, two-sided)"
_SPLIT = "figures of the whole split that would show this sample with more than 2.5 % chance on either side (exact)"
_ALARM = (
    "raised where the heaviest 64th of the image holds more of a class's mean map than in 99 % of means of as many "
    "maps drawn from all classes, and over 8 %; or where less lies inside the object than an even spread would have"
)
_IOU = "pixels in the top 10 % of both maps / pixels in the top 10 % of either"
_HOLM = "smallest p × number of tests, the next × one fewer, and so on; never below the one before (Holm 1979)"


def glossary(record: Record, files: Files) -> Section | None:
    """Define every number of the first screen."""
    both = record.comparison is not None
    attacked = bool(record.attacks) or both or bool(record.overview)
    sides: list[Record | Side] = [record]
    sides += [] if record.comparison is None else [record.comparison.a, record.comparison.b]
    measured = {result.measure.replace("_", " ") for side in sides for result in side.measures}
    tested = any(row.p_value is not None for side in sides for row in side.classes)
    validated = record.training is not None or record.tuning is not None
    cost = record.verb == "explain"
    terms = [
        ("clean accuracy", _CLEAN, True),
        ("robust accuracy", _ROBUST, attacked),
        ("eps", _EPS, attacked or bool(record.stability)),
        ("calibration error", _ECE, record.metric("calibration_error") is not None or both or bool(record.overview)),
        ("relative error of a map", _ERROR, bool(record.explanations) or both),
        ("completeness gap", _GAP, bool(record.explanations) or both),
        *((measure, text, measure in measured) for measure, text in _MEASURES.items()),
        ("validation accuracy", _VALIDATION, validated),
        ("cost of a map", _COST, cost),
        ("mean corruption error", _CORRUPTION, under_corruptions(record)),
        ("certified accuracy", _CERTIFIED, bool(record.certified)),
        ("agreement", _AGREE, record.agreement is not None),
        ("McNemar", _MCNEMAR, both or bool(record.overview) or bool(record.paired)),
        ("Fisher's test", _FISHER, tested),
        ("interval of the split", _SPLIT, attacked and record.data is not None and record.data.n < record.data.total),
        ("stability of maps", _STABLE, any(side.stability for side in sides)),
        ("shortcut alarm", _ALARM, bool(record.focus)),
        ("IoU of maps", _IOU, any(len(case.heatmaps) > 1 for side in sides for case in side.cases)),
        ("Holm", _HOLM, bool(record.overview) or tested),
        ("95 % CI", _CI, True),
    ]
    rows = tuple((Cell(name), Cell(text)) for name, text, used in terms if used)
    return Section("glossary", "What the numbers mean", "", (Table(("", ""), rows),))


def next_step(record: Record, files: Files) -> Section | None:
    """Say in words what a page without attacks rests on."""
    if record.verb not in ("train", "harden", "tune") or record.comparison is not None:
        return None
    text = "Training does not measure how easily a model is broken, or what it looks at: `robustcv audit` does."
    return Section("next", "What next", "", (Text(text),), place="full")

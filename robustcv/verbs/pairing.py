"""Two audits image by image: which rows belong together, who stands where, and the paired test."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcv import records, runs, stats
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.job import Planned


@dataclass(frozen=True)
class Saved:
    """An audit: its record, its files, and what to call it."""

    name: str
    record: records.Record
    files: Mapping[str, bytes]

    @property
    def title(self) -> str:
        """The folder's own name."""
        return Path(self.name).resolve().name or self.name

    @classmethod
    def read(cls, folder: Path) -> "Saved":
        """Read the folder of an audit.

        Raises
        ------
        UserError
            If it is not one.
        """
        record = runs.load(folder)
        if record.verb != "audit":
            raise UserError(
                "RCV-E082",
                f"{folder} is the run of `{record.verb}`, not of `audit`",
                "only audits hold verdicts image by image",
                f"audit the model first: robustcv audit --model {folder} ...",
            )
        if record.verdict == "INCOMPLETE":
            raise UserError(
                "RCV-E082",
                f"{folder} holds an audit that was interrupted",
                "images that no attack has met would count as standing",
                "finish it first: the same command with --resume",
            )
        return cls(str(folder), record, runs.load_files(folder))


def verdicts_of(run: Saved) -> runs.Arrays:
    """Read every image's verdict.

    Raises
    ------
    UserError
        If the file that holds them is lost.
    """
    try:
        return runs.unpack_arrays(run.files["evidence/verdicts.safetensors"])
    except Exception as error:  # lost, or not what it was
        raise UserError(
            "RCV-E083", f"{run.name} has lost evidence/verdicts.safetensors", "it holds the verdicts", "audit again"
        ) from error


def match(a: runs.Arrays, b: runs.Arrays) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Match the rows of two runs by image hash and label, each row once; says whether all of them match."""
    places: dict[tuple[bytes, int], list[int]] = {}
    for row, key in enumerate(_keys(b)):
        places.setdefault(key, []).append(row)
    both = [(row, places[key].pop(0)) for row, key in enumerate(_keys(a)) if places.get(key)]
    rows = np.array(both, dtype=np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1], len(both) == len(a["label"]) == len(b["label"])


def _keys(verdicts: runs.Arrays) -> list[tuple[bytes, int]]:
    return [(row.tobytes(), int(label)) for row, label in zip(verdicts["hash"], verdicts["label"], strict=True)]


def hashes_and_labels(images: ImageSet) -> runs.Arrays:
    """Give what verdicts are matched by, before there are any."""
    hashes = np.frombuffer(bytes.fromhex("".join(images.hashes)), np.uint8).reshape(len(images), -1)
    return {"hash": hashes, "label": images.labels.numpy()}


def require_same_images(baseline: Saved, now: runs.Arrays) -> None:
    """Refuse a baseline that was made on other images.

    Raises
    ------
    UserError
        If it was.
    """
    rows, _, same = match(verdicts_of(baseline), now)
    if not same:
        raise UserError(
            "RCV-E080",
            f"{baseline.name} was made on different images ({len(rows)} in common)",
            "a difference could come from the images",
            "audit the baseline on the same --data, -n and --seed",
        )


def pairs_with(
    baseline: Saved, now: runs.Arrays, norm: str, eps: float | None = None
) -> tuple[records.PairedMetric, ...]:
    """Pair clean accuracy, and robust accuracy at eps where the baseline was attacked there, with a baseline's."""
    before = verdicts_of(baseline)
    rows_before, rows_now, _ = match(before, now)
    pairs = [paired("clean_accuracy", before["correct"][rows_before], now["correct"][rows_now])]
    tried = [each.eps for each in baseline.record.attacks if each.norm == norm and eps is not None]
    if (theirs := next((each for each in tried if equal_eps(each, eps or 0.0)), None)) is not None and eps is not None:
        masks = stands(before, norm, theirs)[rows_before], stands(now, norm, eps)[rows_now]
        pairs.append(paired("robust_accuracy", *masks, norm=norm, eps=eps))
    return tuple(pairs)


def common_threats(a: records.Record, b: records.Record) -> list[tuple[str, float, float]]:
    """List the threat models that both runs attacked under: norm, and eps as each wrote it (8/255, 0.03137)."""
    left, right = (sorted({(each.norm, each.eps) for each in record.attacks}) for record in (a, b))
    return [(norm, eps, other) for norm, eps in left for same, other in right if norm == same and equal_eps(eps, other)]


def equal_eps(eps: float, other: float) -> bool:
    """Tell whether two eps are meant to be the same: 8/255 and 0.03137."""
    return math.isclose(eps, other, rel_tol=1e-4)


def stands(verdicts: runs.Arrays, norm: str, eps: float) -> NDArray[np.bool_]:
    """Tell which images no attack of this norm broke at or below eps."""
    standing: NDArray[np.bool_] = verdicts[f"broken_at/{norm}"] > eps * (1 + 1e-9)
    return standing


def paired(
    name: str, a: NDArray[np.bool_], b: NDArray[np.bool_], *, norm: str | None = None, eps: float | None = None
) -> records.PairedMetric:
    """Compare two masks over the same images: b minus a."""
    counts = {
        "both": int((a & b).sum()),
        "only_a": int((a & ~b).sum()),
        "only_b": int((~a & b).sum()),
        "neither": int((~a & ~b).sum()),
    }
    test = stats.paired(**counts)
    return records.PairedMetric(name=name, norm=norm, eps=eps, **counts, **test._asdict())


def threat_of(record: records.Record) -> tuple[str, float]:
    """Give the headline's threat model."""
    return next((each.norm for each in record.attacks), "none"), record.headline_eps or 0.0


def plan_told(record: records.Record) -> list[str]:
    """Name the attacks that were planned and how they were judged; probes and escalations answer to what was found."""
    planned = [(each.name, each.options) for each in record.attacks if each.reason == "plan"]
    return _told(record.options, planned)


def attacked_alike(
    baseline: records.Record, options: Mapping[str, Any], plan: Sequence[Planned], headline: float
) -> bool:
    """Tell whether an audit with these options and this plan answers to the threat of a baseline, in the same way."""
    norm, eps = threat_of(baseline)
    now = _told(options, [(each.name, each.recorded) for each in plan])
    return norm == options["norm"] and equal_eps(eps, headline) and plan_told(baseline) == now


def escalated(attacks: Sequence[records.AttackResult]) -> bool:
    """Tell whether a raised check brought more attacks than were planned."""
    return any(each.reason == "escalation" for each in attacks)


def _told(options: Mapping[str, Any], attacks: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    how = [f"{name} {options.get(name)}" for name in ("eight_bit", "eot")]
    how += [f"{name} {options.get(name, least)}" for name, least in (("seeds", 1), ("agreement", 0))]  # break more, too
    how.append(f"precision {options.get('precision', 'float32')}")  # audits of before had no other
    return [*how, *sorted({f"{name} {json.dumps(own, sort_keys=True)}" for name, own in attacks})]

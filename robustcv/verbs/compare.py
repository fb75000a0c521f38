"""compare: two audits of the same images, image by image."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustcv import records, runs, stats
from robustcv.errors import UserError
from robustcv.verbs.prepare import Clock, Result, version


@dataclass(frozen=True)
class Saved:
    """An audit: its record, its files, and what to call it."""

    name: str
    record: records.Record
    files: Mapping[str, bytes]

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
        return cls(str(folder), record, runs.load_files(folder))


def compare(run_a: Saved, run_b: Saved, *, names: tuple[str, str] | None, force: bool) -> Result:
    """Compare two audits, a the baseline; see `robustcv.compare`."""
    clock = Clock()
    record_a, record_b = run_a.record, run_b.record
    verdicts_a, verdicts_b = _verdicts(run_a), _verdicts(run_b)
    rows_a, rows_b, same = _pair(verdicts_a, verdicts_b)
    if not same and not force:
        raise UserError(
            "RCV-E080",
            f"{run_a.name} and {run_b.name} were made on different images ({len(rows_a)} in common)",
            "a difference between models would be mixed with a difference between images",
            "audit both on the same --data, -n and --seed; --force compares the images in common",
        )
    if len(rows_a) == 0:
        raise UserError("RCV-E081", "the two runs share no image", "nothing can be compared", "audit the same data")
    pairs = [_paired("clean_accuracy", verdicts_a["correct"][rows_a], verdicts_b["correct"][rows_b])]
    (norm_a, eps_a), (norm_b, eps_b) = _threat(record_a), _threat(record_b)
    if norm_a != norm_b or not _equal(eps_a, eps_b):
        raise UserError(
            "RCV-E085",
            f"{run_a.name} and {run_b.name} answer to different threat models",
            f"{norm_a} {eps_a:.6g} against {norm_b} {eps_b:.6g}: their robust accuracies mean different things",
            "audit both with the same --norm and --eps",
        )
    same_plan = _plan(record_a) == _plan(record_b)
    if not same_plan and not force:
        raise UserError(
            "RCV-E085",
            f"{run_a.name} and {run_b.name} were attacked in different ways",
            "a difference between models would be mixed with a difference between attacks",
            "audit both with the same --effort, --attacks and --set; --force compares the worst cases as they are",
        )
    for norm, mine, other in _common_threats(record_a, record_b):
        stands = [_stands(verdicts_a, norm, mine)[rows_a], _stands(verdicts_b, norm, other)[rows_b]]
        pairs.append(_paired("robust_accuracy", *stands, norm=norm, eps=other))
    label_a, label_b = names or _names(run_a, run_b)
    raised = any(check.status == "raised" for record in (record_a, record_b) for check in record.checks)
    files: dict[str, bytes] = {}
    side_a, side_b = _side(run_a, label_a, "a", files), _side(run_b, label_b, "b", files)
    record = records.Record(
        verb="compare",
        version=version(),
        verdict="INCONCLUSIVE" if raised else "NO GATE",
        data=record_b.data,
        comparison=records.Comparison(
            a=side_a,
            b=side_b,
            paired=tuple(pairs),
            options_changed=_changed(record_a, record_b),
            forced=not (same and same_plan),
        ),
        environment=clock.environment(torch.device("cpu")),
        options={"run_a": run_a.name, "run_b": run_b.name, "force": force},
        headline_eps=record_b.headline_eps,
    )
    return Result(record, files)


def _verdicts(run: Saved) -> runs.Arrays:
    try:
        return runs.unpack_arrays(run.files["evidence/verdicts.safetensors"])
    except KeyError as error:
        raise UserError(
            "RCV-E083", f"{run.name} has lost evidence/verdicts.safetensors", "it holds the verdicts", "audit again"
        ) from error


def _pair(a: runs.Arrays, b: runs.Arrays) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Match the rows of two runs by image hash and label, each row once; says whether all of them match."""
    places: dict[tuple[bytes, int], list[int]] = {}
    for row, key in enumerate(_keys(b)):
        places.setdefault(key, []).append(row)
    both = [(row, places[key].pop(0)) for row, key in enumerate(_keys(a)) if places.get(key)]
    rows = np.array(both, dtype=np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1], len(both) == len(a["label"]) == len(b["label"])


def _keys(verdicts: runs.Arrays) -> list[tuple[bytes, int]]:
    return [(row.tobytes(), int(label)) for row, label in zip(verdicts["hash"], verdicts["label"], strict=True)]


def _common_threats(a: records.Record, b: records.Record) -> list[tuple[str, float, float]]:
    """List the threat models that both runs attacked under: norm, and eps as each wrote it (8/255, 0.03137)."""
    left, right = (sorted({(each.norm, each.eps) for each in record.attacks}) for record in (a, b))
    return [(norm, eps, other) for norm, eps in left for same, other in right if norm == same and _equal(eps, other)]


def _equal(eps: float, other: float) -> bool:
    return math.isclose(eps, other, rel_tol=1e-4)


def _threat(record: records.Record) -> tuple[str, float]:
    """Give the headline's threat model."""
    return next((each.norm for each in record.attacks), "none"), record.headline_eps or 0.0


def _plan(record: records.Record) -> list[str]:
    """Name the attacks that were planned and how they were judged; probes and escalations answer to what was found."""
    how = [f"{name} {record.options.get(name)}" for name in ("eight_bit", "eot")]
    return [*how, *sorted({f"{each.name} {each.options}" for each in record.attacks if each.reason == "plan"})]


def _stands(verdicts: runs.Arrays, norm: str, eps: float) -> NDArray[np.bool_]:
    """Tell which images no attack of this norm broke at or below eps."""
    stands: NDArray[np.bool_] = verdicts[f"broken_at/{norm}"] > eps * (1 + 1e-9)
    return stands


def _paired(
    name: str, a: NDArray[np.bool_], b: NDArray[np.bool_], *, norm: str | None = None, eps: float | None = None
) -> records.PairedMetric:
    counts = {
        "both": int((a & b).sum()),
        "only_a": int((a & ~b).sum()),
        "only_b": int((~a & b).sum()),
        "neither": int((~a & ~b).sum()),
    }
    test = stats.paired(**counts)
    return records.PairedMetric(name=name, norm=norm, eps=eps, **counts, **test._asdict())


def _names(a: Saved, b: Saved) -> tuple[str, str]:
    """Name the runs by how their models were made where that differs, else by folder."""
    made = [run.record.training.objective if run.record.training else None for run in (a, b)]
    return (str(made[0]), str(made[1])) if None not in made and made[0] != made[1] else (_folder(a), _folder(b))


def _folder(run: Saved) -> str:
    return Path(run.name).name


def _side(run: Saved, name: str, prefix: str, files: dict[str, bytes]) -> records.Side:
    """Take over what the page shows of one run; evidence is copied, so that the comparison stands alone."""
    record, source = run.record, run.files
    assert record.model is not None
    for file in source:
        if file.startswith("evidence/") and not file.endswith(("SHA256SUMS", "verdicts.safetensors")):
            files[f"evidence/{prefix}/{file.removeprefix('evidence/')}"] = source[file]
    cases = tuple(
        case.model_copy(
            update={
                "files": {
                    kind: f"evidence/{prefix}/{path.removeprefix('evidence/')}" for kind, path in case.files.items()
                }
            }
        )
        for case in record.cases
    )
    return records.Side(
        name=name,
        run=_folder(run),
        model=record.model,
        metrics=record.metrics,
        attacks=record.attacks,
        classes=record.classes,
        passes=record.passes,
        preflight=record.checks,
        explanations=record.explanations,
        measures=record.measures,
        stability=record.stability,
        cases=cases,
    )


def _changed(a: records.Record, b: records.Record) -> dict[str, tuple[str, str]]:
    """Give the options in which the runs differ, and how their models were made."""

    def flat(record: records.Record) -> dict[str, Any]:
        made = record.training
        trained = {f"training.{key}": value for key, value in (made.options if made else {}).items()}
        own = {key: value for key, value in record.options.items() if key not in ("model", "out")}
        return {**own, **trained, "training.objective": made.objective if made else None}

    left, right = flat(a), flat(b)
    keys = [key for key in {**left, **right} if left.get(key) != right.get(key)]
    return {key: (str(left.get(key, "not set")), str(right.get(key, "not set"))) for key in keys}

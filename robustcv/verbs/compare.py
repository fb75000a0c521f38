"""compare: two audits of the same images, image by image."""

from pathlib import Path
from typing import Any

import torch

from robustcv import records, runs
from robustcv.errors import UserError
from robustcv.verbs.evidence import ARCHIVE, FLOATS
from robustcv.verbs.moved import moved
from robustcv.verbs.pairing import (
    Saved,
    common_threats,
    equal_eps,
    match,
    paired,
    plan_told,
    stands,
    threat_of,
    verdicts_of,
)
from robustcv.verbs.prepare import Clock, Result, version

MOVED = "evidence/moved.safetensors"
_STAYS = ("evidence/SHA256SUMS", "evidence/verdicts.safetensors", ARCHIVE, FLOATS)  # large, and not shown


def compare(run_a: Saved, run_b: Saved, *, names: tuple[str, str] | None, force: bool) -> Result:
    """Compare two audits, a the baseline; see `robustcv.compare`."""
    clock = Clock()
    record_a, record_b = run_a.record, run_b.record
    verdicts_a, verdicts_b = verdicts_of(run_a), verdicts_of(run_b)
    rows_a, rows_b, same = match(verdicts_a, verdicts_b)
    if not same and not force:
        raise UserError(
            "RCV-E080",
            f"{run_a.name} and {run_b.name} were made on different images ({len(rows_a)} in common)",
            "a difference between models would be mixed with a difference between images",
            "audit both on the same --data, -n and --seed; --force compares the images in common",
        )
    if len(rows_a) == 0:
        raise UserError("RCV-E081", "the two runs share no image", "nothing can be compared", "audit the same data")
    pairs = [paired("clean_accuracy", verdicts_a["correct"][rows_a], verdicts_b["correct"][rows_b])]
    (norm_a, eps_a), (norm_b, eps_b) = threat_of(record_a), threat_of(record_b)
    if norm_a != norm_b or not equal_eps(eps_a, eps_b):
        raise UserError(
            "RCV-E085",
            f"{run_a.name} and {run_b.name} answer to different threat models",
            f"{norm_a} {eps_a:.6g} against {norm_b} {eps_b:.6g}: their robust accuracies mean different things",
            "audit both with the same --norm and --eps",
        )
    same_plan = plan_told(record_a) == plan_told(record_b)
    if not same_plan and not force:
        raise UserError(
            "RCV-E085",
            f"{run_a.name} and {run_b.name} were attacked in different ways",
            "a difference between models would be mixed with a difference between attacks",
            "audit both with the same --effort, --attacks and --set; --force compares the worst cases as they are",
        )
    for norm, mine, other in common_threats(record_a, record_b):
        standing = [stands(verdicts_a, norm, mine)[rows_a], stands(verdicts_b, norm, other)[rows_b]]
        pairs.append(paired("robust_accuracy", *standing, norm=norm, eps=other))
    hashes = [row.tobytes().hex() for row in verdicts_b["hash"][rows_b]]
    stood_a, stood_b = stands(verdicts_a, norm_a, eps_a)[rows_a], stands(verdicts_b, norm_b, eps_b)[rows_b]
    won, lost = stood_b & ~stood_a & verdicts_a["correct"][rows_a], stood_a & ~stood_b & verdicts_b["correct"][rows_b]
    won_and_lost, pixels = moved(run_a, run_b, hashes, won, lost)
    label_a, label_b = names or _names(run_a, run_b)
    raised = any(check.status == "raised" for record in (record_a, record_b) for check in record.checks)
    files = {MOVED: runs.pack_arrays(pixels)} if pixels else {}
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
            differs=(*(() if same else ("images",)), *(() if same_plan else ("attacks",))),
            moved=won_and_lost,
        ),
        environment=clock.environment(torch.device("cpu")),
        options={"run_a": run_a.name, "run_b": run_b.name, "force": force},
        headline_eps=record_b.headline_eps,
    )
    return Result(record, files)


def _names(a: Saved, b: Saved) -> tuple[str, str]:
    """Name the runs by how their models were made where that differs, else by folder."""
    made = [run.record.training.objective if run.record.training else None for run in (a, b)]
    return (str(made[0]), str(made[1])) if None not in made and made[0] != made[1] else (_folder(a), _folder(b))


def _folder(run: Saved) -> str:
    return Path(run.name).name


def _side(run: Saved, name: str, prefix: str, files: dict[str, bytes]) -> records.Side:
    """Take over what the page shows of one run, with its evidence, so that the comparison stands alone."""
    record, source = run.record, run.files
    assert record.model is not None
    for file in source:
        if file.startswith("evidence/") and file not in _STAYS:
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
        cost=record.cost,
        device=record.environment.device,
        cases=cases,
        options=record.options,
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
    return {key: (_written(left.get(key)), _written(right.get(key))) for key in keys}


def _written(value: Any) -> str:
    """Write an option's value as a person would."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value)) or "none"
    return (
        {None: "not set", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
    )

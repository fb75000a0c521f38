"""compare, of more than two runs: one line each, and against the first where the images and the threat are the same."""

from collections.abc import Sequence
from pathlib import Path

import torch

from robustcv import records, runs, stats
from robustcv.errors import UserError
from robustcv.verbs.pairing import Saved, equal_eps, match, paired, plan_told, stands, threat_of, verdicts_of
from robustcv.verbs.prepare import Clock, Result, version


def audits_in(folder: Path) -> list[Saved]:
    """Read the finished audits in a folder of runs, in the order of their names; what is hidden is left out.

    Raises
    ------
    UserError
        If there are fewer than two.
    """
    found = []
    for path in sorted(folder.rglob("report.json")):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") for part in inside) or path.is_symlink():
            continue
        record = runs.load(path.parent)
        if record.verb == "audit" and record.verdict != "INCOMPLETE":
            found.append(Saved(str(path.parent), record, runs.load_files(path.parent)))
    if len(found) < 2:
        raise UserError(
            "RCV-E084",
            f"{folder} holds {len(found)} finished audits",
            "a comparison needs two",
            "give a folder of audits, or the folders of two or more: robustcv compare RUN_A RUN_B",
        )
    return found


def overview(saved: Sequence[Saved], names: Sequence[str] | None) -> Result:
    """Put many audits side by side, the first the baseline; see `robustcv.compare`."""
    clock = Clock()
    labels = list(names) if names else _short([Path(run.name) for run in saved])
    base = saved[0]
    base_verdicts = verdicts_of(base)
    rows = []
    for run, name in zip(saved, labels, strict=True):
        record = run.record
        assert record.model is not None and record.data is not None
        pair, why = None, "the baseline"
        if run is not base:
            pair, why = _against(base, base_verdicts, run)
        norm, eps = threat_of(record)
        rows.append(
            records.OverviewRow(
                name=name,
                architecture=record.model.architecture,
                model=record.model.sha256,
                data=record.data.name,
                images=record.data.sha256,
                n=record.data.n,
                norm=norm,
                eps=eps,
                metrics=record.metrics,
                verdict=record.verdict,
                raised=sum(check.status == "raised" for check in record.checks),
                started=record.environment.started,
                paired=pair,
                why=why,
            )
        )
    rows = _adjusted(rows)
    result = records.Record(
        verb="compare",
        version=version(),
        verdict="INCONCLUSIVE" if any(row.raised for row in rows) else "NO GATE",
        overview=tuple(rows),
        environment=clock.environment(torch.device("cpu")),
        options={"runs": [run.name for run in saved]},
        headline_eps=base.record.headline_eps,
    )
    return Result(result, {})


def _against(base: Saved, base_verdicts: runs.Arrays, run: Saved) -> tuple[records.PairedMetric | None, str]:
    """Compare a run's robust accuracy with the baseline's image by image, or say why that would mean nothing."""
    (norm, eps), (other_norm, other_eps) = threat_of(base.record), threat_of(run.record)
    if norm != other_norm or not equal_eps(eps, other_eps):
        return None, "another threat model"
    verdicts = verdicts_of(run)
    rows, other_rows, same = match(base_verdicts, verdicts)
    if not same:
        return None, "other images"
    if plan_told(base.record) != plan_told(run.record):
        return None, "attacked in another way"
    standing = stands(base_verdicts, norm, eps)[rows], stands(verdicts, norm, other_eps)[other_rows]
    return paired("robust_accuracy", *standing, norm=norm, eps=eps), ""


def _adjusted(rows: list[records.OverviewRow]) -> list[records.OverviewRow]:
    """Adjust the p-values for how many comparisons the table makes (Holm)."""
    tested = [row.paired.p_value for row in rows if row.paired is not None]
    left = iter(stats.holm(tested))
    return [row if row.paired is None else row.model_copy(update={"p_value": next(left)}) for row in rows]


def _short(folders: Sequence[Path]) -> list[str]:
    """Name runs by as much of their folders' paths as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for kept in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-kept:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]  # the same folder twice

"""The search: every trial, and the trade-off between clean and robust accuracy."""

from collections.abc import Mapping

from robustcv.records import Record, TuningTrial
from robustcv.report import cells, charts, numbers
from robustcv.report.blocks import Block, Cell, Chart, Section, Table

Files = Mapping[str, bytes]


def tuning(record: Record, files: Files) -> Section | None:
    """Draw clean against robust accuracy of every finished trial, and tabulate them."""
    made = record.tuning
    if made is None:
        return None
    table = _table(made.trials, made.best, made.validation_n)
    done = [trial for trial in made.trials if trial.clean is not None]
    blocks: tuple[Block, ...] = (table,)
    if any(trial.robust is not None for trial in done):
        rows = [
            {"trial": f"trial {trial.number}", "clean": trial.clean, "robust": trial.robust,
             "series": "best trade-offs" if trial.front else "beaten by another in both"}
            for trial in done if trial.robust is not None
        ]  # fmt: skip
        label = f"Clean against robust accuracy of {len(rows)} trials; {sum(t.front for t in done)} are beaten by none"
        blocks = (Chart(charts.trade_off(rows, label=label), None), table)
    given_up = sum(trial.state != "finished" for trial in made.trials)
    subtitle = f"{len(made.trials)} trials, {given_up} given up or diverged · best.toml holds trial {made.best}"
    return Section("tuning", "Search", f"{subtitle} · `robustcv train --config best.toml` trains it", blocks, "Search")


def _table(trials: tuple[TuningTrial, ...], best: int, n: int) -> Table:
    ranked = sorted(trials, key=lambda trial: (trial.clean is None, -((trial.clean or 0) + (trial.robust or 0))))
    rows = tuple(
        (
            Cell(f"{trial.number}", "best" if trial.number == best else "trade-off" if trial.front else ""),
            Cell(trial.state),
            Cell("not reached", number=True) if trial.clean is None else cells.share("validation", trial.clean * n, n),
            Cell("not run", number=True) if trial.robust is None else cells.share("validation", trial.robust * n, n),
            Cell(numbers.plain(trial.options)),
            Cell(f"{trial.epochs}", number=True),
            Cell(numbers.duration(trial.seconds), number=True),
        )
        for trial in ranked
    )
    headers = ("trial", "state", "validation, clean", "validation, attacked", "options", "epochs", "time")
    return Table(headers, rows)

"""Cases with heat maps, calibration and learning curves."""

from collections.abc import Mapping

from robustcv.records import CalibrationBin, Record
from robustcv.report import cells, charts, numbers
from robustcv.report.blocks import Cell, Chart, Section, Table
from robustcv.report.gallery import case_gallery, paired_gallery

Files = Mapping[str, bytes]


def cases(record: Record, files: Files) -> Section | None:
    """Show the cases with their heat maps."""
    if record.comparison is not None:
        gallery, subtitle = paired_gallery(record.comparison, files)
        title = "The same images, both models"
    elif record.cases:
        gallery, subtitle = case_gallery(record, files)
        title = "Cases" if record.verb == "audit" else "Heat maps"
    else:
        return None
    return Section("cases", title, subtitle, (gallery,), title) if gallery.items else None


def calibration(record: Record, files: Files) -> Section | None:
    """Draw the reliability diagram: of the clean images, and of what the attacks left of them."""
    error, misled = record.metric("calibration_error"), record.metric("calibration_error_attacked")
    series = {"clean": _filled(record.calibration), "attacked": _filled(record.calibration_attacked)}
    series = {name: bins for name, bins in series.items() if bins}
    if error is None or not series:
        return None
    rows = [
        {"series": name, "confidence": each.confidence, "accuracy": each.correct / each.n, "n": each.n}
        for name, bins in series.items()
        for each in bins
    ]
    told = f"expected calibration error {numbers.percent(error)} ({numbers.interval(error)})"
    label = f"Accuracy against confidence; {told}"
    if misled is not None:
        where = numbers.threat(misled.eps or 0.0, misled.norm or "linf")
        told += f", {numbers.percent(misled)} ({numbers.interval(misled)}) at {where}: "
        told += "fallen images with their answer under attack, the others with their clean one"
        label += f"; under attack {numbers.percent(misled)}"
    table = Table(
        ("images", "confidence", "mean confidence", "accuracy", "n"),
        tuple(
            (
                Cell(name),
                Cell(f"{each.low:.2f}–{each.high:.2f}"),
                Cell(numbers.share(each.confidence, 100), number=True),
                cells.share("accuracy", each.correct, each.n),
                Cell(f"{each.n:,}", number=True),
            )
            for name, bins in series.items()
            for each in bins
        ),
        folded="Data table",
    )
    chart = Chart(charts.reliability(rows, label=label), table)
    return Section("calibration", "Calibration", f"{told} · {error.method} · 15 bins", (chart,), "Calibration")


def _filled(bins: tuple[CalibrationBin, ...]) -> list[CalibrationBin]:
    return [each for each in bins if each.n]


def training(record: Record, files: Files) -> Section | None:
    """Draw the learning curves, of the run itself or of the model that was audited; of hardening over the minutes."""
    made = record.training
    if made is None:
        return None
    rows: list[charts.Row] = []
    minutes, kept_at = 0.0, 0.0
    over_time = made.epochs[0].epoch == 0  # fine-tuning: what is bought for what time
    for epoch in made.epochs:
        minutes += epoch.seconds / 60 if epoch.epoch else 0.0
        x = minutes if over_time else float(epoch.epoch)
        kept_at = x if epoch.epoch == made.selected_epoch else kept_at
        seen = "training images, as trained on" if made.objective == "standard" else "training images, attacked"
        if epoch.n:
            rows.append({"series": seen, "x": x, "share": epoch.correct / epoch.n})
        right = epoch.validation_correct / epoch.validation_n
        rows.append({"series": "validation, clean", "x": x, "share": right})
        if epoch.validation_robust is not None and epoch.validation_robust_n:
            robust = epoch.validation_robust / epoch.validation_robust_n
            rows.append({"series": "validation, attacked", "x": x, "share": robust})
    label = f"Accuracy over {made.epochs[-1].epoch} epochs; epoch {made.selected_epoch} was kept"
    drawn = charts.training_curve(rows, selected=kept_at, over_time=over_time, label=label)
    subtitle = f"{made.objective} · kept: epoch {made.selected_epoch}, by {made.selected_by}"
    if made.stopped:
        subtitle += f" · ended early: {made.stopped}"
    if again := [str(epoch.epoch) for epoch in made.epochs if epoch.recovered]:
        subtitle += f" · collapsed and done again with a stronger attack: epoch {', '.join(again)}"
    return Section("training", "Training", subtitle, (Chart(drawn, _epoch_table(record)),), "Training")


def _epoch_table(record: Record) -> Table:
    assert record.training is not None
    rows = tuple(
        (
            Cell(str(epoch.epoch)),
            Cell(f"{epoch.loss:.3f}" if epoch.n else "not trained yet", number=True),
            cells.share("training", epoch.correct, epoch.n) if epoch.n else Cell("not trained yet", number=True),
            cells.share("validation", epoch.validation_correct, epoch.validation_n),
            Cell("not run", number=True)
            if epoch.validation_robust is None
            else cells.share("validation, attacked", epoch.validation_robust, epoch.validation_n),
            Cell(numbers.duration(epoch.seconds), number=True),
        )
        for epoch in record.training.epochs
    )
    headers = ("epoch", "loss", "training", "validation, clean", "validation, attacked", "time")
    return Table(headers, rows, folded="Data table")

"""How a verb runs: its folder is opened, the verb is called, and what it gives is written."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcv import __version__, launch, runs, stopping
from robustcv.errors import INTERRUPTED, UserError, of_a_path
from robustcv.options import defaults_of, require_counts, require_text
from robustcv.records import Record

if TYPE_CHECKING:
    from torch import nn

    from robustcv.verbs.prepare import Result


@dataclass(frozen=True)
class Run:
    """A finished run: its record, its files, and where they were written.

    The record's fields are the run's own: ``run.metrics``, ``run.passes.forward``. In a notebook the run shows its
    page.
    """

    record: Record
    files: Mapping[str, bytes] = field(repr=False)
    folder: Path | None = None
    classifier: "nn.Module | None" = field(default=None, repr=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "record":
            raise AttributeError(name)
        return getattr(self.record, name)

    @property
    def page(self) -> Path | None:
        """The HTML page; None for a run that was not written."""
        return None if self.folder is None else self.folder / "report.html"

    def save(self, folder: Path | str) -> Path:
        """Write the run to an empty folder; gives the path of its page."""
        runs.open_folder(Path(folder), resume=False, fingerprint="")
        try:
            return _write(Path(folder), self.record, self.files)
        finally:
            runs.release(folder)

    def _repr_html_(self) -> str:
        from robustcv import report

        return report.notebook(self.record, self.files)


def run(verb: Callable[..., Run], options: dict[str, Any], out: Path | str | None, *rest: Any) -> Run:
    """Run a verb of `robustcv.api` in its folder; the one path all verbs share."""
    with leaving(out):
        return _run_in(verb.__name__, defaults_of(verb), options, out, *rest)


@contextlib.contextmanager
def leaving(out: Path | str | None) -> Iterator[None]:
    """Let go of a run folder however the work in it ends; a mistake of the user's leaves no empty one behind."""
    try:
        yield
    except (UserError, OSError, ValueError, RuntimeError) as error:
        mistake = error if isinstance(error, UserError) else of_a_path(error)
        if mistake is not None and out is not None and not launch.one_of_several():
            runs.discard_if_unused(out)
        if mistake is None or mistake is error:
            raise
        raise mistake from error
    finally:
        if out is not None:
            runs.release(out)


def _run_in(
    verb: str,
    defaults: Mapping[str, Any],
    options: dict[str, Any],
    out: Path | str | None,
    resume: bool,
    quiet: bool,
    classifier: Any,
    images: Any,
    labels: Any,
    call: "Callable[..., Result]",
) -> Run:
    """Open the folder, run the verb, write what it gives."""
    from robustcv import processes
    from robustcv.models.class_map import read_class_map
    from robustcv.runtime import progress_for
    from robustcv.verbs.prepare import noting

    quiet = quiet or not processes.is_first()
    require_counts(options)
    state = runs.State(None)
    shown = {
        name: value if isinstance(value, str) else None if value is None else type(value).__name__
        for name, value in (("model", classifier), ("data", images))
    }
    for value in (*shown.values(), out):
        require_text(str(value))
    kept = {name: value for name, value in options.items() if name != "labels"}
    if out is not None:
        # where, how long, and what is made of the result: not what the work is
        places = {"device", "data_dir", "format", "max_report_mb"}
        if verb in ("train", "harden", "tune"):
            places |= {"trials", "storage", "effort", "n", "audits", "export"}
        scientific = {name: value for name, value in kept.items() if name not in places}
        if scientific.get("class_map") is not None:  # what it says, not where it lies
            scientific["class_map"] = read_class_map(scientific["class_map"])
        key = runs.fingerprint(__version__, runs.STATE_FORMAT, verb, shown, scientific)
        state = processes.by_first(lambda: runs.open_folder(Path(out), resume=resume, fingerprint=key))
        if resume and verb != "tune" and _finished(Path(out)):  # but for, perhaps, its page
            _require_same_model(Path(out), classifier, options)
            if not processes.is_first():
                return Run(runs.load(out), runs.load_files(out))
            from robustcv import report

            report.write_formats(out, ["html", *options.get("format", ())], options.get("max_report_mb"))
            return Run(runs.load(out), runs.load_files(out), Path(out))
    try:
        with noting(state):
            result = call(
                classifier, images, labels, options={**options}, state=state, progress=progress_for(quiet=quiet)
            )
    except stopping.Interrupted:
        if out is None or not processes.is_first():
            raise
        result = _nothing_yet(verb)
    given = [name for name, value in kept.items() if value != defaults.get(name)]
    given += [name for name, value in shown.items() if value != defaults.get(name)]
    origins = runs.origins_of({**shown, **kept}, given)
    taken = {name: "the run" for name, value in result.record.options.items() if value != {**shown, **kept}.get(name)}
    files = {**result.files, "config.toml": runs.to_toml({**shown, **kept}, origins)}
    told = {"options": {**shown, **result.record.options}, "origins": origins | taken}
    record = result.record.model_copy(update=told)
    if stopping.asked():
        record = record.model_copy(update={"verdict": "INCOMPLETE", "exit_code": INTERRUPTED})
    if not processes.is_first():
        return Run(record, files, classifier=result.classifier)
    run = finish(type(result)(record, files, result.classifier), out, options.get("format", ()))
    if not stopping.asked():
        state.clear()
    return run


def _finished(folder: Path) -> bool:
    return (folder / "report.json").exists() and runs.load(folder).verdict != "INCOMPLETE"


def _nothing_yet(verb: Any) -> "Result":
    """Make the record of a run that was stopped before it had a figure."""
    import torch

    from robustcv.verbs.prepare import Clock, Result, version

    environment = Clock().environment(torch.device("cpu"))
    return Result(Record(verb=verb, version=version(), verdict="INCOMPLETE", environment=environment))


def leave_incomplete(verb: str, folder: Path) -> None:
    """Write a page marked INCOMPLETE where a run was stopped that has none yet, if there is a folder at all."""
    if folder.is_dir() and not (folder / "report.json").exists():
        result = _nothing_yet(verb)
        _write(folder, result.record.model_copy(update={"exit_code": INTERRUPTED}), result.files)


def _require_same_model(folder: Path, classifier: Any, options: Mapping[str, Any]) -> None:
    """Refuse to hand out a finished run as that of another model."""
    record = runs.load(folder)
    if record.verb not in ("audit", "explain", "harden") or record.model is None:
        return
    from robustcv.models import checkpoint, load

    known = record.training.begun_with if record.verb == "harden" and record.training else record.model.sha256
    if checkpoint.sha256_of(load(classifier, options.get("weights")).classifier) != known:
        raise UserError(
            "RCV-E021",
            f"{folder} holds the finished run of another model",
            "its weights differ from those given now",
            "choose another -o",
        )


def finish(result: "Result", out: Path | str | None, formats: Sequence[str] = ()) -> Run:
    """Write what a verb gave, if it is to be written, and make its run."""
    folder = None if out is None else Path(out)
    if folder is not None:
        _write(folder, result.record, result.files)
        if others := [name for name in formats if name != "html"]:
            from robustcv import report

            report.write_formats(folder, others)
    return Run(result.record, result.files, folder, result.classifier)


def _write(folder: Path, record: Record, files: Mapping[str, bytes]) -> Path:
    from robustcv import report

    runs.save(folder, record, files)
    return report.write(folder)

"""The command line: argv and TOML to one function call per verb, made from the functions' own signatures."""

import contextlib
import functools
import inspect
import json
import os
import re
import signal
import sys
import tomllib
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from robustcv import __version__, api, errors, launch, runs, stopping
from robustcv.errors import UserError, first_line
from robustcv.options import require_counts
from robustcv.running import Run, leave_incomplete

CONFIG_HELP = "Read options from a TOML file with the same keys; the command line wins."
DEVICES_HELP = "Work in this many processes, one a GPU or a share of the cores each; torchrun starts them."
JSON_HELP = "Print report.json on stdout instead of the page's path."
OUT_HELP = "The run folder itself; by default reports/VERB-TIME-NAME."

SHARED = ("train", "audit", "harden", "explain")  # verbs whose work several processes can share
_SHORT = {"n": "-n", "out": "-o", "quiet": "-q", "method": "--methods", "files": "--images"}
_COMMAS = ("format", "attacks", "also", "certify", "against", "export", "explain", "method", "measures", "augment")
_WORDS = ("eps", "set", "fail_under", "max_drop", "names", "files")


def _shown(value: Any) -> str:
    return ", ".join(map(str, value or ())) or "none"


def _split_commas(type_: Any, tokens: Sequence[cyclopts.Token]) -> tuple[str, ...]:
    return tuple(part for token in tokens for part in token.value.split(",") if part)


def _annotation(name: str, annotation: Any, default: Any) -> Any:
    """Give the command line's type of a verb's parameter; an option that may be left out keeps its None."""
    short = (_SHORT[name],) if name in _SHORT else ()
    long = f"--{name.replace('_', '-')}"
    words: Any = tuple[str, ...] if default is not None else tuple[str, ...] | None
    text: Any = str if default is not None else str | None
    commas = name in _COMMAS or (name == "objective" and isinstance(default, tuple))
    if commas or name in _WORDS:
        split = _split_commas if commas else None
        return Annotated[words, Parameter(name=(long, *short), converter=split, consume_multiple=True, negative="",
                                          show_default=_shown)]  # fmt: skip
    if name == "images":
        return Annotated[text, Parameter(name="--data")]
    if name == "out":
        return Annotated[Path | None, Parameter(name=(long, *short), help=OUT_HELP)]
    if name in ("model", "classifier"):
        return Annotated[text, Parameter(name="--model")]
    if name == "targets":
        return Annotated[int | None, Parameter(name=long)]
    if name in ("sweep", "audits"):
        return Annotated[annotation, Parameter(name=long)]
    return Annotated[annotation, Parameter(name=(long, *short), negative="")]


def _command(verb: Callable[..., Any], call: Callable[[Callable[..., Any], dict[str, Any]], int]) -> Any:
    """Make a command from a verb: same options and docstring; what Python passes by position has a name here."""
    hints = typing.get_type_hints(verb)
    parameters = []
    for name, parameter in inspect.signature(verb).parameters.items():
        if name == "labels":  # tensors, which a command line has not
            continue
        default = parameter.default
        if name in (*_COMMAS, *_WORDS) and default is not None:
            default = (default,) if isinstance(default, str) else tuple(default)
        if name in ("run", "folders"):
            kind = parameter.POSITIONAL_ONLY if name == "run" else parameter.VAR_POSITIONAL
            parameters.append(parameter.replace(kind=kind, annotation=Path))
            continue
        annotation = _annotation(name, hints.get(name, str), default)
        parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    config = Annotated[Path | None, Parameter(name="--config", help=CONFIG_HELP)]
    as_json = Annotated[bool, Parameter(name="--json", help=JSON_HELP, negative="")]
    devices = Annotated[int, Parameter(name="--devices", help=DEVICES_HELP)]
    extras: list[tuple[str, Any, Any]] = [("config", config, None), ("as_json", as_json, False)]
    if verb.__name__ in SHARED:
        extras.append(("devices", devices, 1))
    for extra, annotation, default in extras:
        parameters.append(
            inspect.Parameter(extra, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    def command(*args: Any, **kwargs: Any) -> int:
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return call(verb, {"folders": args, **kwargs})
        named = dict(zip([p.name for p in parameters if p.kind is p.POSITIONAL_ONLY], args, strict=False))
        return call(verb, {**named, **kwargs})

    required = [p for p in parameters if p.default is inspect.Parameter.empty or p.kind is p.POSITIONAL_ONLY]
    rest = [p for p in parameters if p not in required]
    command.__signature__ = inspect.Signature([*required, *rest])  # type: ignore[attr-defined]
    command.__doc__ = verb.__doc__
    command.__name__ = verb.__name__
    return command


class Origins:
    """Notes the command line, and which options came from it and which from the config file."""

    def __init__(self, config: Path | None, arguments: Sequence[str]) -> None:
        self.config = config
        self.arguments = arguments
        self.origin: dict[str, str] = {}

    def __call__(self, app: cyclopts.App, commands: tuple[str, ...], arguments: Any) -> None:
        for argument in arguments:
            if argument.tokens:
                self.origin[argument.field_info.name] = "command line"
        if self.config is None:
            return
        try:
            tomllib.loads(self.config.read_text())
        except (OSError, ValueError, RecursionError) as error:
            what = f"{self.config} does not exist" if isinstance(error, OSError) else f"{self.config} is not valid TOML"
            raise UserError("RCV-E007", what, first_line(error), "check --config") from error
        cyclopts.config.Toml(self.config, use_commands_as_keys=False)(app, commands, arguments)
        for argument in arguments:
            if argument.tokens:
                self.origin.setdefault(argument.field_info.name, f"config {self.config}")


def _execute(verb: Callable[..., Run], given: dict[str, Any], origins: Origins) -> int:
    """Run a verb as a command: default folder, page's path on stdout, exit code from the verdict."""
    given.pop("config", None)
    as_json = given.pop("as_json", False)
    devices = given.pop("devices", 1)
    if given.get("out") is None:
        slug = str(given.get("classifier") or given.get("model") or given.get("images") or "run")
        given["out"] = _common(runs.default_folder(verb.__name__, Path(slug).name.replace(":", "-")))
    if devices < 1:
        raise UserError("RCV-E006", f"--devices {devices} is below 1", "nothing would be done", "raise it")
    if launch.one_of_several() and verb.__name__ not in SHARED:
        raise UserError(
            "RCV-E006", f"{verb.__name__} is no work to share", "torchrun started several", "run it without torchrun"
        )
    if devices > 1 and not launch.one_of_several():
        folder = Path(given["out"])
        try:
            return launch.start(_without_devices(origins.arguments, folder), devices, folder)
        except KeyboardInterrupt:
            _remember_folder(folder)
            leave_incomplete(verb.__name__, folder)
            raise
    _remember_folder(Path(given["out"]))
    renamed = {"images": "data", "classifier": "model"}
    with runs.telling_origins({renamed.get(name, name): text for name, text in origins.origin.items()}):
        run = verb(*given.pop("folders", ()), **given)
    if run.folder is None:  # one of several processes, and not the first
        return errors.DONE
    if run.record.verdict == "INCOMPLETE":
        print(f"interrupted; go on with the same command, -o {run.folder} and --resume", file=sys.stderr)
    print(runs.to_json(run.record).decode() if as_json else run.page)
    return int(run.record.exit_code)


def _without_devices(arguments: Sequence[str], folder: Path) -> list[str]:
    """Give the command line for each of several processes: without their number, with the folder they share."""
    kept = list(arguments)
    for place, word in enumerate(kept):
        if word == "--devices":
            del kept[place : place + 2]
            break
        if word.startswith("--devices="):
            del kept[place]
            break
    named = any(word in ("-o", "--out") or word.startswith(("--out=", "-o")) for word in kept)
    return kept if named else [*kept, "-o", str(folder)]


def _common(folder: Path) -> Path:
    """Let all of several processes use the folder that the first one named."""
    if not launch.one_of_several():
        return folder
    from robustcv import processes

    return Path(processes.agreed(str(folder)))


def report(
    run: Path,
    /,
    *,
    format: Annotated[tuple[str, ...], Parameter(name="--format", converter=_split_commas, negative="")] = ("html",),
    max_report_mb: float | None = None,
) -> int:
    """Render the page of a run again from its report.json and evidence, or write it in other forms; no computing.

    Parameters
    ----------
    run
        The run folder.
    format
        html, md (a summary for a pull request), junit, card (a model card), csv (the raw numbers).
    max_report_mb
        Hold the page to this many MB: pictures become previews, then cases are left out, and the page says so.
    """
    require_counts({"max_report_mb": max_report_mb})
    from robustcv import report as report_package

    with report_package.as_a_mistake(run):
        for path in report_package.write_formats(run, format, max_report_mb):
            print(path)
    return errors.DONE


def demo(
    *,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    data: str = "digits",
    eps: str = "16/255",
    n: Annotated[int, Parameter(name=("--n", "-n"))] = 300,
    epochs: int = 10,
    seed: int = 0,
    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"), negative="")] = False,
) -> int:
    """Train, audit, harden, audit again, explain both, and compare: the whole story on real digits, in a minute.

    Parameters
    ----------
    out
        Folder for the runs; by default reports/demo-TIME-DATA.
    data
        Data set.
    eps
        Radius to attack and to harden against.
    n
        Test images to audit.
    epochs
        Epochs of training, and of hardening.
    seed
        Seed of every random choice.
    quiet
        Say nothing on stderr.
    """
    from robustcv import demo as tour

    folder = runs.default_folder("demo", data) if out is None else out
    print(tour.run(folder, data=data, eps=eps, n=n, epochs=epochs, seed=seed, quiet=quiet))
    return errors.DONE


def _examine(verb: Callable[..., Any], given: dict[str, Any], raised: int) -> int:
    """Run a verb that checks, and print its checks with their figures on stdout; gives the exit code.

    Parameters
    ----------
    raised
        The exit code where a check is raised.
    """
    given.pop("config", None)
    as_json = given.pop("as_json", False)
    checks = verb(**given)
    if as_json:
        print(json.dumps([check.model_dump(exclude_none=True) for check in checks], indent=1))
    else:
        signs = {"pass": "ok", "raised": "RAISED", "not run": "-"}
        for check in checks:
            print(f"{signs[check.status]:<7} {errors.printable(f'{check.check}: {check.figure}')}")
            if check.fix:
                print(f"{'':<7}   fix: {errors.printable(check.fix)}")
    return raised if any(check.status == "raised" for check in checks) else errors.DONE


def list_names(kind: str | None = None, /) -> int:
    """Show what there is: attacks, corruptions, certificates, explainers, measures, data sets, architectures, ...

    Parameters
    ----------
    kind
        One of these; all of them where not given.
    """
    from robustcv.attacks import ATTACKS
    from robustcv.attacks.corruptions import CORRUPTIONS
    from robustcv.certificates import CERTIFICATES
    from robustcv.data import DATASETS
    from robustcv.explainers import EXPLAINERS
    from robustcv.measures import MEASURES
    from robustcv.models import ARCHITECTURES
    from robustcv.training import OBJECTIVES

    every: dict[str, dict[str, Any]] = {
        "attacks": ATTACKS,
        "corruptions": CORRUPTIONS,
        "certificates": CERTIFICATES,
        "explainers": EXPLAINERS,
        "measures": {name: measure.function for name, measure in MEASURES.items()},
        "datasets": DATASETS,
        "architectures": ARCHITECTURES,
        "objectives": OBJECTIVES,
    }
    if kind is not None and kind not in every:
        raise errors.unknown_name("kind", kind, every)
    for name, registry in every.items():
        if kind in (None, name):
            print(f"{name}:")
            for key, function in registry.items():
                print(f"  {key:<22} {(function.__doc__ or '').splitlines()[0]}")
    return errors.DONE


def build(config: Path | None, arguments: Sequence[str]) -> cyclopts.App:
    """Build the app; the config file must be known before the arguments are bound."""
    origins = Origins(config, arguments)
    app = cyclopts.App(
        name="robustcv",
        help="How often is an image classifier right, how easily is it broken, and what does it look at?",
        version=__version__,
        help_format="markdown",
        config=origins,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for verb in (api.train, api.audit, api.harden, api.tune, api.explain, api.compare):
        app.command(_command(verb, lambda verb, given: _execute(verb, given, origins)), name=verb.__name__)
    for checking, raised in ((api.doctor, errors.INCONCLUSIVE), (api.verify, errors.GATE_FAILED)):
        app.command(_command(checking, functools.partial(_examine, raised=raised)), name=checking.__name__)
    app.command(report)
    app.command(list_names, name="list")
    app.command(demo)
    return app


_folder: list[Path] = []


def _remember_folder(folder: Path) -> None:
    _folder[:] = [folder]


def _terminated(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)


def _named_config(arguments: Sequence[str]) -> Path | None:
    """Find the config file before the arguments are parsed: ``--config FILE`` or ``--config=FILE``."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--config" and following:
            return Path(following)
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit status says how it went."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _terminated)
    if launch.one_of_several():  # several would have to agree where to stop
        launch.report_in()
    else:
        stopping.listen()
    code = _run(arguments)
    launch.leave(code)
    # torchrun would report a code as a crash; whoever started it reads the file
    sys.exit(errors.DONE if os.environ.get(launch.EXIT_FILE) else code)


def _run(arguments: Sequence[str]) -> int:
    """Run one command; gives its exit code."""
    config = _named_config(arguments)
    try:
        with _joined():
            code = build(config, arguments)(arguments, exit_on_error=False, print_error=False)
        return code if isinstance(code, int) else errors.DONE
    except UserError as error:
        if os.environ.get("ROBUSTCV_DEBUG"):
            raise
        if launch.is_first() or not _told_by_all(error):
            print(error, file=sys.stderr)
        return errors.BAD_INPUT
    except (OSError, ValueError, RuntimeError) as error:
        if (mistake := errors.of_a_path(error)) is None:
            raise
        print(mistake, file=sys.stderr)
        return errors.BAD_INPUT
    except cyclopts.CycloptsError as error:
        if launch.is_first():
            print(_unusable(error), file=sys.stderr)
        return errors.BAD_INPUT
    except KeyboardInterrupt:
        where = f"; go on with the same command, -o {_folder[0]} and --resume" if _folder else ""
        if not os.environ.get(launch.EXIT_FILE):  # whoever started it tells
            print(f"\ninterrupted{where}", file=sys.stderr)
        return errors.INTERRUPTED


def _unusable(error: cyclopts.CycloptsError) -> UserError:
    """Tell what is wrong with the command line in our three lines."""
    told = errors.first_line(error)
    at = re.search(r"\. (?=Did you mean |Available commands: |Choose from: )", told)
    what, hint = (told, "") if at is None else (told[: at.start()], told[at.end() :])
    see = " ".join(["robustcv", *(error.command_chain or ())[:1], "--help"])
    why = "this command cannot be run as it is written"
    return UserError("RCV-E118", what.rstrip("."), why, f"{hint} {see}".strip())


def _told_by_all(error: UserError) -> bool:
    """Tell whether every process meets the same mistake: all but a file that only one of them reads."""
    return error.code not in ("RCV-E048", "RCV-E049")


def _joined() -> contextlib.AbstractContextManager[None]:
    """Join the processes that torchrun started; nothing to join where it did not."""
    if not launch.one_of_several():
        return contextlib.nullcontext()
    from robustcv import processes

    return processes.together()


if __name__ == "__main__":
    main()

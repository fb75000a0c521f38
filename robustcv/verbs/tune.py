"""tune: search for training options, and show the trade-off between clean and robust accuracy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from robustcv import records, runs, stopping
from robustcv.errors import UserError, unknown_name
from robustcv.runtime import Progress, pick_device
from robustcv.training import OBJECTIVES
from robustcv.training.search import Report, Scores, finished, front, open_study, search, suggest
from robustcv.verbs.prepare import Clock, Result, describe_data, identity, version
from robustcv.verbs.threats import training_threats
from robustcv.verbs.train import default_augment, fit_once, untrained
from robustcv.verbs.training_sets import TrainingSets


def tune(
    images: Any, labels: Any, *, options: Mapping[str, Any], defaults: Mapping[str, Any], state: runs.State,
    progress: Progress,
) -> Result:  # fmt: skip
    """Search; ``options`` are the keyword arguments of `robustcv.tune`, ``defaults`` those of `robustcv.train`."""
    clock = Clock()
    objectives = [options["objective"]] if isinstance(options["objective"], str) else list(options["objective"])
    for name in objectives:
        if name not in OBJECTIVES:
            raise unknown_name("objective", name, OBJECTIVES)
    common = {**defaults, **{name: value for name, value in options.items() if name in defaults}}
    for name in objectives:
        training_threats({**common, "objective": name})
    sets = TrainingSets(images, labels, options, progress, split_seed=options["seed"])
    device = pick_device(options["device"])
    own = "+".join(default_augment(sets.train, None))
    fixed = ("model", "epochs", "eps", "norm", "steps", "batch_size", "resize")
    key = runs.fingerprint(identity(sets.train), {name: common[name] for name in fixed}, objectives)
    shared = options["storage"] is not None
    study = open_study(options["storage"] or _beside(state), options["seed"], identity=key, shared=shared)
    attacked = [name for name in objectives if name != "standard"]
    judge = training_threats({**common, "objective": attacked[0]}).validate_with if attacked else None
    before = len(finished(study))

    def evaluate(drawn: dict[str, Any], report: Report) -> Scores:
        made = {**common, **drawn}
        loaded = untrained(made, sets.train, Progress(quiet=True))
        loaded.classifier.to(device).to(memory_format=torch.channels_last)

        def after(content: dict[str, Any]) -> None:
            last = content["history"][-1]
            report(last["epoch"], _scores(last).value)

        threats = replace(training_threats(made), validate_with=judge)  # one attack judges all, standard ones too
        fitted = fit_once(
            loaded.classifier, sets, made, after, threats=threats, advance=lambda _: stopping.at_boundary()
        )
        return _scores(vars(next(each for each in fitted.epochs if each.epoch == fitted.selected_epoch)))

    with progress.stage(f"search, {options['trials']} trials", options["trials"]) as advance:
        advance(before)
        augmentations = (own, f"{own}+cutout", "trivial", "none")
        trials = search(
            study, options["trials"], lambda trial: suggest(trial, objectives, augmentations), evaluate,
            lambda: advance(1),
        )  # fmt: skip
    best = [trial for trial in trials if trial.clean is not None]
    if not best:
        stopping.at_boundary()
        raise UserError(
            "RCV-E097",
            f"not one of {len(trials)} trials was finished",
            "each diverged or was given up",
            "raise --trials",
        )
    leaders = {trial.number for trial in front(trials)}
    chosen = max(best, key=lambda trial: (Scores(trial.clean or 0, trial.robust).value, -trial.number))
    tuning = records.Tuning(
        trials=tuple(records.TuningTrial(**vars(trial), front=trial.number in leaders) for trial in trials),
        best=chosen.number,
        validation_n=len(sets.validation),
        shared=bool(options["storage"]),
    )
    shown = {name: common[name] for name in (*fixed, "seed", "skip_bad", "data_dir")}
    best_options = {**shown, "data": sets.spec, **chosen.options}
    toml = runs.to_toml(best_options, runs.origins_of(best_options, list(chosen.options)))
    record = records.Record(
        verb="tune",
        version=version(),
        data=describe_data(sets.validation, len(sets.train) + len(sets.validation), "held out for validation"),
        tuning=tuning,
        environment=clock.environment(device),
        options=dict(options),
    )
    return Result(record, {"best.toml": toml})


def _beside(state: runs.State) -> str | None:
    """Keep the study in the run folder; a run that writes nothing keeps it in memory."""
    return None if state.folder is None else f"sqlite:///{state.folder.parent / 'study.db'}"


def _scores(epoch: Mapping[str, Any]) -> Scores:
    robust, n = epoch["validation_robust"], epoch["validation_n"]
    return Scores(epoch["validation_correct"] / n, None if robust is None else robust / n)

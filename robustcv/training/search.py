"""Search for good training options with Optuna: a study in a database, that processes and machines can share."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustcv import stopping
from robustcv.errors import UserError, first_line, missing_extra

STUDY = "robustcv"


class Pruned(Exception):
    """A trial that was given up, as others were better by this epoch."""


Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Scores:
    """What a trial reached on the validation split, as shares; ``robust`` is None where nothing was attacked."""

    clean: float
    robust: float | None

    @property
    def value(self) -> float:
        """What the search raises: the mean of clean and robust accuracy, so that it looks along their trade-off."""
        return self.clean if self.robust is None else (self.clean + self.robust) / 2


@dataclass(frozen=True)
class Trial:
    """One set of options that was tried."""

    number: int
    state: str
    options: Mapping[str, Any]
    clean: float | None
    robust: float | None
    epochs: int
    seconds: float


def open_study(storage: str | None, seed: int, *, identity: str | None = None, shared: bool = False) -> Any:
    """Open the study in a database (created where there is none), or a new one in memory.

    Parameters
    ----------
    identity
        What makes trials comparable; a study of another identity is refused. None takes any.
    shared
        Others may draw at the same moment, and must draw something else.

    Raises
    ------
    UserError
        If Optuna is not installed, or the database cannot be opened.
    """
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("optuna", "the search is done by it", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    for attempt in range(5):  # two processes that make one database at the same moment get in each other's way
        try:
            study = optuna.create_study(
                storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True, pruner=pruner
            )
            break
        except Exception as error:  # the database's driver raises what it likes
            if attempt < 4:
                time.sleep(0.3 * 2**attempt)
                continue
            raise UserError(
                "RCV-E096",
                f"the study at {storage} cannot be opened",
                first_line(error, 160),
                "check --storage: sqlite:///FILE.db, or the address of a database that every process can reach",
            ) from error
    # a process that joins or resumes must not draw what another drew before it
    others = os.getpid() if shared else 0
    sampler_seed = (seed + 1009 * len(study.trials) + 7919 * others) % 2**32
    study.sampler = optuna.samplers.TPESampler(seed=sampler_seed, n_startup_trials=6)
    if identity is not None and study.user_attrs.get("identity", identity) != identity:
        raise UserError(
            "RCV-E096",
            f"the study at {storage} searches for something else",
            "its data, network, objectives or threat model are others, so its trials cannot be compared with these",
            "name another --storage",
        )
    if identity is not None:
        study.set_user_attr("identity", identity)
    return study


def suggest(trial: Any, objectives: Sequence[str], augmentations: Sequence[str]) -> dict[str, Any]:
    """Draw the options of one trial.

    Learning rate (log, 3e-4 to 1e-2), weight decay (log, 1e-6 to 1e-2), augmentation, label smoothing (0 to 0.2), the
    objective and, for TRADES, its weight (log, 1 to 12).
    """
    drawn: dict[str, Any] = {
        "objective": trial.suggest_categorical("objective", list(objectives)),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
        "augment": trial.suggest_categorical("augment", list(augmentations)).split("+"),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.2),
    }
    if drawn["objective"] == "trades":
        drawn["set"] = [f"trades.beta={trial.suggest_float('trades_beta', 1.0, 12.0, log=True):.3f}"]
    return drawn


def search(
    study: Any,
    trials: int,
    suggestion: Callable[[Any], dict[str, Any]],
    evaluate: Callable[[dict[str, Any], Report], Scores],
    after: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """Try options until the study holds ``trials`` finished ones, whoever ran them.

    Parameters
    ----------
    evaluate
        Trains with the options; calls the report with (epoch, value) after each epoch, which raises `Pruned` for a
        trial that is not worth going on with.
    after
        Called after each trial.

    Returns
    -------
    list of Trial
        All finished trials of the study, by number.
    """
    with contextlib.suppress(stopping.Interrupted):  # the trial at work is dropped; those that ended stand
        while len(finished(study)) < trials:
            _try_one(study, suggestion, evaluate)
            after()
    return finished(study)


def _try_one(
    study: Any, suggestion: Callable[[Any], dict[str, Any]], evaluate: Callable[[dict[str, Any], Report], Scores]
) -> None:
    import optuna

    trial = study.ask()
    options = suggestion(trial)
    trial.set_user_attr("options", options)

    def report(epoch: int, value: float) -> None:
        trial.set_user_attr("epochs", epoch)
        trial.report(value, epoch)
        if trial.should_prune():
            raise Pruned

    try:
        scores = evaluate(options, report)
    except Pruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except ArithmeticError:  # the loss was no number: nothing to learn from but to stay away
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        stopping.at_boundary()  # half a trial would count as a whole one
        trial.set_user_attr("clean", scores.clean)
        trial.set_user_attr("robust", scores.robust)
        study.tell(trial, scores.value)


def finished(study: Any) -> list[Trial]:
    """List the trials of a study that have ended, by number."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            seconds = (trial.datetime_complete - trial.datetime_start).total_seconds()
            attributes = trial.user_attrs
            found.append(
                Trial(
                    trial.number,
                    {"COMPLETE": "finished", "PRUNED": "given up", "FAIL": "diverged"}[trial.state.name],
                    attributes.get("options", {}),
                    attributes.get("clean"),
                    attributes.get("robust"),
                    attributes.get("epochs", 0),
                    seconds,
                )
            )
    return found


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Give the trials that no other equals or beats in both clean and robust accuracy, by falling clean accuracy."""
    done = [trial for trial in trials if trial.clean is not None]
    leading: list[Trial] = []
    for trial in sorted(done, key=lambda each: (-(each.clean or 0), -(each.robust or 0), each.number)):
        if not leading or (trial.robust or 0) > (leading[-1].robust or 0):
            leading.append(trial)
    return leading

"""The maps of some images, the same for every model: how good they are, and whether they stand an attack."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from robustcv import records, runtime, stopping
from robustcv.errors import UserError
from robustcv.evaluation.accuracy import Predictions
from robustcv.evaluation.job import Job
from robustcv.measures import MEASURES
from robustcv.runtime import Progress
from robustcv.verbs.cases import draw_sample
from robustcv.verbs.explained import Explained
from robustcv.verbs.parse import names_of
from robustcv.verbs.prepare import is_black_box

FOLLOWED = 32  # images


class Followed(NamedTuple):
    """How good the maps are by each measure, and how far they move."""

    measures: tuple[records.MeasureResult, ...] = ()
    stability: tuple[records.StabilityRow, ...] = ()


def measures_of(given: str | Sequence[str]) -> list[str]:
    """Read names of measures, ``all`` among them, as `names_of` does."""
    names = names_of("measure", given, (*MEASURES, "all"))
    return list(MEASURES) if "all" in names else list(dict.fromkeys(names))


def require_maps(methods: Sequence[str], measures: Sequence[str], also: Sequence[str]) -> None:
    """Refuse to judge or to follow the maps of no method.

    Raises
    ------
    UserError
        If that is asked for.
    """
    option = "--measures" if measures else "--also maps" if "maps" in also else None
    if option and not methods:
        raise UserError(
            "RCV-E109", f"{option} has no maps", "no explanation method is asked for", "--explain integrated_gradients"
        )


def follow(
    job: Job,
    predictions: Predictions,
    methods: Sequence[str],
    method_options: Mapping[str, Mapping[str, Any]],
    measures: Sequence[str],
    radii: Sequence[float],
    progress: Progress,
) -> Followed:
    """Judge the maps of some images by measures, and follow them under noise and attack at some eps.

    Raises
    ------
    UserError
        If they are to be followed, and the model gives no gradients to attack it by.
    """
    if not (measures or radii):
        return Followed()
    if radii and is_black_box(job.classifier):
        raise UserError(
            "RCV-E094", "--also maps attacks by gradients", "this model gives none", "leave maps out of --also"
        )
    rows = draw_sample(job.images, FOLLOWED, job.seed)
    some, seen = job.images.take(rows.nonzero().squeeze(1)), predictions.classes[rows]
    run = (job.seed, job.batch_size, job.device)
    explained = Explained(job.classifier, some, seen, seen, methods, method_options, *run)
    judged: tuple[records.MeasureResult, ...] = ()
    if measures:
        explained.run(progress)
        stopping.at_boundary()
        judged = explained.judge(measures, progress)
        if not judged:
            runtime.note(f"{', '.join(measures)} cannot be had here: no method promises a sum, or there are no masks")
    return Followed(judged, explained.attack(radii, job.norm, progress) if radii else ())

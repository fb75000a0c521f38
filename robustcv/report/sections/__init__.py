"""The sections of the page, in order: each a function from the record to a section, or None where it has nothing."""

from collections.abc import Callable, Mapping

from robustcv.records import Record
from robustcv.report.blocks import Section
from robustcv.report.sections.agreement import agreement
from robustcv.report.sections.beyond import beyond
from robustcv.report.sections.certified import certified
from robustcv.report.sections.comparison import changes, paired
from robustcv.report.sections.cost import cost
from robustcv.report.sections.evidence import calibration, cases, training
from robustcv.report.sections.explanations import explanations, focus, league, stability
from robustcv.report.sections.findings import findings, limits
from robustcv.report.sections.flows import flows
from robustcv.report.sections.overview import overview
from robustcv.report.sections.reproduction import glossary, next_step, reproduce
from robustcv.report.sections.robustness import classes, curve, threat_model
from robustcv.report.sections.tuning import tuning

SECTIONS: dict[str, Callable[[Record, Mapping[str, bytes]], Section | None]] = {
    "curve": curve,
    "limits": limits,
    "findings": findings,
    "overview": overview,
    "paired": paired,
    "agreement": agreement,
    "classes": classes,
    "flows": flows,
    "certified": certified,
    "beyond": beyond,
    "cases": cases,
    "explanations": explanations,
    "league": league,
    "stability": stability,
    "focus": focus,
    "calibration": calibration,
    "training": training,
    "tuning": tuning,
    "cost": cost,
    "next": next_step,
    "threat": threat_model,
    "changes": changes,
    "reproduce": reproduce,
    "glossary": glossary,
}
# what stands on paper where only the summary is printed: four A4 pages at most
_PRINTED = {
    "overview",
    "curve",
    "findings",
    "limits",
    "paired",
    "classes",
    "certified",
    "beyond",
    "threat",
    "reproduce",
}
_PRINTED_OF = {
    "explain": {"explanations", "league", "stability"},
    "train": {"training"},
    "harden": {"training"},
    "tune": {"tuning"},
}


def printed(verb: str) -> frozenset[str]:
    """Name the sections of a verb's page that stand on paper where only the summary is printed."""
    return frozenset(_PRINTED | _PRINTED_OF.get(verb, set()))

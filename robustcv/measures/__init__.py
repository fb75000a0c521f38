"""How good is a heat map? Functions from maps to one number per image, by name in `MEASURES`."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from robustcv.measures.completeness import completeness
from robustcv.measures.controls import centre, random_map, sobel
from robustcv.measures.deletion import deletion, insertion
from robustcv.measures.infidelity import infidelity
from robustcv.measures.localisation import average_precision, pointing, relevance_mass, relevance_rank
from robustcv.measures.randomisation import randomisation_efficient, randomisation_smooth
from robustcv.measures.road import road
from robustcv.measures.sensitivity import max_sensitivity
from robustcv.measures.sparseness import sparseness


class Measure(NamedTuple):
    """A measure, which way is better, and what it needs beside the maps."""

    function: Callable[..., Tensor]
    better: Literal["higher", "lower"]
    needs: Literal["", "explain", "masks", "baseline"] = ""


MEASURES: dict[str, Measure] = {
    "deletion": Measure(deletion, "lower"),
    "insertion": Measure(insertion, "higher"),
    "road": Measure(road, "higher"),
    "infidelity": Measure(infidelity, "lower"),
    "sparseness": Measure(sparseness, "higher"),
    "completeness": Measure(completeness, "lower", "baseline"),
    "max_sensitivity": Measure(max_sensitivity, "lower", "explain"),
    "randomisation_smooth": Measure(randomisation_smooth, "lower", "explain"),
    "randomisation_efficient": Measure(randomisation_efficient, "higher", "explain"),
    "relevance_mass": Measure(relevance_mass, "higher", "masks"),
    "relevance_rank": Measure(relevance_rank, "higher", "masks"),
    "pointing": Measure(pointing, "higher", "masks"),
    "average_precision": Measure(average_precision, "higher", "masks"),
}
CONTROLS: dict[str, Callable[..., Tensor]] = {"random": random_map, "sobel": sobel, "centre": centre}

__all__ = ["CONTROLS", "MEASURES", "Measure"]

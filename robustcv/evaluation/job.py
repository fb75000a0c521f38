"""What is to be run: attacks with their options, and the classifier and images they are run on."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from robustcv import runs
from robustcv.data import ImageSet
from robustcv.evaluation.accuracy import Predictions
from robustcv.runtime import Advance

Reason = Literal["plan", "probe", "escalation", "seed", "alone"]


@dataclass(frozen=True)
class Planned:
    """An attack with the options it runs with.

    Parameters
    ----------
    reach
        Leave out images whose margin no attack before has brought down by this share of the clean one: 0 takes all.
    """

    name: str
    attack: Callable[..., Tensor]
    options: Mapping[str, Any]
    reach: float = 0.0

    @property
    def recorded(self) -> dict[str, Any]:
        """The options as the record tells them."""
        return {**self.options, **({"reach": self.reach} if self.reach else {})}

    @property
    def weight(self) -> int:
        """Estimate the passes an image costs, for the time left: steps or queries, times restarts or classes.

        An attack with a ``reach`` meets few of the images, the fewer the farther it is.
        """
        known = inspect.signature(self.attack).parameters
        values = {name: self.options.get(name, parameter.default) for name, parameter in known.items()}
        steps = int(values.get("steps", 1) or 300) + int(values.get("directions", 0))
        length = int(values["queries"]) if "queries" in values else 3 * steps
        runs = int(values.get("restarts", 1)) * int(values.get("classes", 1))
        return round(length * runs * (1 - self.reach)) + 3


@dataclass(frozen=True)
class Job:
    """What every part of a worst case needs: the classifier (frozen, on ``device``), the images, and how to run.

    Parameters
    ----------
    fast
        The same function in fewer operations, for attacks to ask; what they find is judged by ``classifier``.
    reduced
        Nearly the same function in lower precision, for attacks that take gradients; ``classifier`` is asked at once
        about each success.
    remember
        Images whose best candidate is kept even where it did not succeed.
    eight_bit
        Count a candidate only after rounding it to 8 bits, as a file would hold it.
    advance
        Called with the number of images after each block and attack.
    black_box
        The classifier gives no gradients.
    """

    classifier: nn.Module
    images: ImageSet
    predictions: Predictions
    norm: str
    seed: int
    batch_size: int
    device: torch.device
    state: runs.State
    fast: nn.Module | None = None
    reduced: nn.Module | None = None
    remember: Bool[Tensor, " n"] | None = None
    eight_bit: bool = False
    advance: Advance = field(default=lambda _: None)
    black_box: bool = False

    @property
    def samples(self) -> int:
        """Passes that one query costs: more than one for a classifier that averages over its randomness."""
        return int(getattr(self.classifier, "samples", 1))

    @property
    def asked(self) -> nn.Module:
        """What attacks ask in full precision."""
        return self.classifier if self.fast is None else self.fast

    def kept(self) -> Bool[Tensor, " n"]:
        """Mark the images to remember."""
        none = torch.zeros(len(self.images), dtype=torch.bool)
        return none if self.remember is None else self.remember

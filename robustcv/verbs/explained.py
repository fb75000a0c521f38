"""A set of images, several methods, and what is asked about their maps; for explain, and for an audit's own maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustcv import records, runs, stopping
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.attribution import explain_images
from robustcv.evaluation.faithfulness import judge_maps
from robustcv.evaluation.stability import stability
from robustcv.explainers import EXPLAINERS, Explanation
from robustcv.measures import CONTROLS, MEASURES
from robustcv.runtime import Progress


@dataclass
class Explained:
    """A set of images and the maps of all methods; what is asked about them."""

    classifier: nn.Module
    images: ImageSet
    predictions: Tensor
    targets: Tensor
    methods: Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    seed: int
    batch_size: int
    device: torch.device
    maps: dict[str, Explanation] = field(default_factory=dict)
    results: list[records.ExplainerResult] = field(default_factory=list)

    def _explain(
        self,
        methods: Sequence[str],
        classifier: nn.Module,
        images: Tensor,
        targets: Tensor,
        **progressing: Any,
    ) -> dict[str, tuple[Explanation, records.ExplainerResult]]:
        return explain_images(
            classifier,
            images,
            targets,
            self.images.hashes,
            methods={name: EXPLAINERS[name] for name in methods},
            options=self.options,
            seed=self.seed,
            batch_size=self.batch_size,
            device=self.device,
            **progressing,
        )

    @property
    def pixels(self) -> Tensor:
        return next(self.images.batches(len(self.images)))[0]

    def run(self, progress: Progress, state: runs.State | None = None) -> int:
        """Explain all images by all methods; gives how many were explained before the user asked to stop, if so.

        Raises
        ------
        Interrupted
            If the user asked to stop before there was a map.
        """
        with progress.stage("explain", len(self.images) * len(self.methods), stops=False) as advance:
            found = self._explain(
                self.methods,
                self.classifier,
                self.pixels,
                self.targets,
                advance=advance,
                state=state,
                stopped=stopping.asked,
            )
        for name, (made, result) in found.items():
            self.maps[name] = made
            self.results.append(result)
        return self.results[0].images

    def again(self, name: str) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        """Give a method as the measures take one: the same options and draws, on another model or other images."""

        def maps(classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            made, _ = self._explain([name], classifier, images, targets)[name]
            return made.heatmaps.to(images.device)

        return maps

    def judge(self, measures: Sequence[str], progress: Progress) -> tuple[records.MeasureResult, ...]:
        """Measure all maps, beside the controls; measures that cannot be had are left out."""
        made = self.maps
        with progress.stage("measures", len(measures) * (len(made) + len(CONTROLS))) as advance:
            return judge_maps(
                self.classifier,
                self.pixels.to(self.device),
                self.targets.to(self.device),
                self.images.hashes,
                maps={name: each.heatmaps for name, each in made.items()},
                explain={name: self.again(name) for name in made},
                measures=measures,
                forwards={name: int(each.forwards.median()) for name, each in made.items()},
                gaps={name: each.gap for name, each in made.items() if each.gap is not None},
                masks=None if self.images.masks is None else self.images.masks.to(self.device),
                seed=self.seed,
                rows=self.batch_size,
                advance=advance,
            )

    def attack(self, radii: Sequence[float], norm: Any, progress: Progress) -> tuple[records.StabilityRow, ...]:
        """Follow the maps under noise and attack."""
        with progress.stage("stability", 4 * len(radii)) as advance:
            return stability(
                self.classifier,
                self.pixels.to(self.device),
                self.targets.to(self.device),
                self.images.hashes,
                predictions=self.predictions.to(self.device),
                rows=self.batch_size,
                explain={name: self.again(name) for name in self.methods},
                eps=radii,
                norm=norm,
                seed=self.seed,
                advance=advance,
            )


def require_masks(measures: Sequence[str], images: ImageSet) -> None:
    """Refuse measures that all need masks where there are none.

    Raises
    ------
    UserError
        If it is so.
    """
    if measures and images.masks is None and all(MEASURES[name].needs == "masks" for name in measures):
        raise none_of(measures)


def none_of(measures: Sequence[str]) -> UserError:
    """Make the error of measures none of which can be had."""
    return UserError(
        "RCV-E109",
        f"{', '.join(measures)} cannot be had here",
        "localisation needs images with masks, completeness a method that promises a sum",
        "choose other measures, or data with masks, such as shapes",
    )

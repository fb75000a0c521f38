"""What a classifier says of drawn coalitions of each image's regions: what kernel_shap, lime and shapley begin with."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcv import draws
from robustcv.explainers.coalitions import Masks, draw, every_other
from robustcv.explainers.explanation import half_error
from robustcv.explainers.pool import Game, Pool, at_targets
from robustcv.explainers.references import Reference, describe
from robustcv.explainers.regions import Regions, painted

Solve = Callable[[Masks, NDArray[np.float64]], NDArray[np.float64]]
Draw = Callable[[int, int, int], Masks]  # regions, budget, seed


@dataclass(frozen=True)
class Sampled:
    """The coalitions of each image, the target's logit under each, and how to say what was done."""

    game: Game
    drawn: list[Masks]
    values: list[NDArray[np.float64]]
    details: dict[str, str | int | float]

    @property
    def places(self) -> Int64[Tensor, "n h w"]:
        """Give the region of each pixel."""
        return self.game.regions.cpu()

    @property
    def forwards(self) -> Int64[Tensor, " n"]:
        """Give what each image's map takes."""
        return torch.tensor([len(own) * len(self.game.fills) for own in self.values])

    @property
    def change(self) -> Float[Tensor, " n"]:
        """Give the change of each logit from all hidden to all shown."""
        return torch.tensor([own[1] - own[0] for own in self.values])

    def solved(self, solve: Solve) -> tuple[Float[Tensor, "n 1 h w"], Float[Tensor, " n"]]:
        """Solve for each image's values; gives maps and their relative error, 0 where every coalition was asked."""
        maps, halves = [], []
        for each, own, where in zip(self.drawn, self.values, self.places, strict=True):
            maps.append(painted(torch.from_numpy(solve(each, own)), where))
            parts = [solve(*every_other(each, own, k)) for k in (0, 1)]
            halves.append(torch.stack([painted(torch.from_numpy(part), where) for part in parts]))
        pair = torch.stack(halves)
        whole = torch.tensor([len(own) == 2**k for own, k in zip(self.values, self.game.counts, strict=True)])
        return torch.stack(maps), half_error(pair[:, 0], pair[:, 1]).masked_fill(whole, 0.0)


def sample(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    *,
    seeds: Int64[Tensor, " n"] | None,
    samples: int,
    regions: Regions,
    fill: Reference,
    rows: int | None,
    pool: Pool | None,
    drawing: Draw = draw,
) -> Sampled:
    """Draw coalitions of each image and ask about them, through the pool where there is one."""
    game = (pool or Pool(classifier, images, rows=rows)).game(regions, fill)
    seeds = draws.fresh_seeds(len(images)) if seeds is None else seeds
    drawn = [drawing(k, samples, seed) for k, seed in zip(game.counts, seeds.tolist(), strict=True)]
    asked = at_targets(game.logits(drawn), targets)
    values = [_settled(own, torch.finfo(images.dtype).eps) for own in asked]
    details: dict[str, str | int | float] = {
        "target": "logit",
        "baseline": describe(fill),
        "regions": regions if isinstance(regions, str) else "given",
        "samples": samples,
    }
    return Sampled(game, drawn, values, details)


def _settled(values: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """Call all values the first where they differ by rounding alone, which is other at each place of a batch."""
    constant = np.ptp(values) <= 16 * eps * np.abs(values).max()
    return np.full_like(values, values[0]) if constant else values

"""Single-step training that goes on where the epoch before ended: PGI, with a memory for every training image."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn
from torch.nn import functional

from robustcv import draws, processes
from robustcv.training.objectives import Perturb, cross_entropy

UNSEEN = 2  # of an image that no epoch had yet


@dataclass(kw_only=True, eq=False)
class Pgi:
    """Compute cross-entropy after one L-inf step from where the epoch before ended, tied to the logits at its start.

    The prior-guided initialisation FGSM-EP of Jia et al. 2022: each image's perturbation is kept and is the start of
    its next step, so that single steps add up, and the mean squared change of the logits from start to end is held
    small. As in the authors' code, what augmentation does to an image is not done to its perturbation. That is
    -1, 0 or 1 times eps in each pixel: the memory takes a byte a pixel value, on the device of the images, and grows
    with an eps that rises.

    Parameters
    ----------
    eps
        Radius of the L-inf ball, in units of [0, 1].
    weight
        Of the mean squared change of the logits.
    """

    eps: float
    weight: float = 10.0
    kept: Int8[Tensor, "n c h w"] | None = field(init=False, default=None)
    own: list[Tensor] = field(init=False, default_factory=list)  # rows that this process moved since `share`

    def at(self, rows: Int64[Tensor, " n"], of: int, strength: float) -> Callable[..., tuple[Tensor, Tensor]]:
        """Give the objective of the images in these rows of all ``of``, at a share of eps; it takes what others take.

        It may be computed more than once for a step: each time it begins where the epoch before ended.
        """
        before = None if self.kept is None else self.kept[rows]
        return functools.partial(self._loss, rows=rows, of=of, before=before, eps=self.eps * strength)

    def _loss(
        self,
        classifier: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        *,
        rows: Int64[Tensor, " n"],
        of: int,
        before: Int8[Tensor, "n c h w"] | None,
        eps: float,
        perturb: Perturb | None = None,
        seeds: Int64[Tensor, " n"] | None = None,
        targets: Float[Tensor, "n k"] | None = None,
    ) -> tuple[Tensor, Float[Tensor, "n k"]]:
        begun = _begun(before, images, seeds)
        here = (images + eps * begun).clamp(0, 1)
        begun = begun.where(here != images, 0)  # a black pixel cannot get darker: the next step begins where it is
        here.requires_grad_()
        start = classifier(here)
        (slope,) = torch.autograd.grad(cross_entropy(start, labels, targets), here, retain_graph=True)
        moved = (begun + slope.sign()).clamp(-1, 1)
        self._keep(rows, moved, of)
        logits = classifier((images + eps * moved).clamp(0, 1))
        change = functional.mse_loss(logits.float(), start.float())
        return cross_entropy(logits, labels, targets) + self.weight * change, logits

    def _keep(self, rows: Tensor, moved: Tensor, of: int) -> None:
        if self.kept is None:
            self.kept = torch.full((of, *moved.shape[1:]), UNSEEN, dtype=torch.int8, device=moved.device)
        self.kept[rows] = moved.to(torch.int8)
        self.own.append(rows)

    def share(self, device: torch.device) -> None:
        """Give every process what each has kept since this was called last; an image was moved by one of them."""
        if processes.size() > 1 and (shape := processes.agreed(self.kept is not None and tuple(self.kept.shape))):
            ours = torch.zeros(shape, dtype=torch.int8, device=device)  # shifted by 2: 0 where nobody moved
            if self.kept is None:
                self.kept = torch.full_like(ours, UNSEEN)
            for rows in self.own:
                ours[rows] = self.kept[rows] + 2
            processes.mean_over([ours], 1)
            self.kept = torch.where(ours > 0, ours - 2, self.kept)
        self.own.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Give the memory, for a run that is to be resumed."""
        return {} if self.kept is None else {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up the memory that `state_dict` gave."""
        self.kept = state.get("kept")
        self.own.clear()


def _begun(before: Tensor | None, images: Tensor, seeds: Tensor | None) -> Tensor:
    """Give where each image's step begins: where the epoch before ended, or at random signs."""
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    signs = draws.uniform(seeds, tuple(images.shape[1:])).to(images).sub(0.5).sign()
    return signs if before is None else torch.where(before == UNSEEN, signs, before.to(images))

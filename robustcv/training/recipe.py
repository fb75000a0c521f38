"""What a training run is made with: every option of the loop, checked nowhere else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustcv.training.averaging import Average
from robustcv.training.layers import Layers
from robustcv.training.objectives import Perturb, Precision

Augment = Callable[[Tensor, torch.Generator], Tensor]
Mix = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Guard:
    """What notices catastrophic overfitting, and what the epoch is repeated with.

    A network that is trained with one step can learn to fool that step and lose all robustness within an epoch (Wong
    et al. 2020, section 5). It then withstands ``quick`` and falls to the attack that validates.
    """

    quick: Perturb
    recover: Perturb

    def collapsed(self, quick: int, robust: int, n: int) -> bool:
        """Tell a collapse from the images right under one step and under many: half, and a tenth of all, are lost."""
        return robust < 0.5 * quick and quick - robust > 0.1 * n


@dataclass(frozen=True)
class Recipe:
    """Options of `fit`.

    Parameters
    ----------
    epochs, batch_size
        Passes over the training images; images a step.
    optimizer
        ``adam`` (decoupled weight decay) or ``sgd`` (Nesterov momentum 0.9).
    learning_rate, weight_decay, schedule
        Highest learning rate; decay of the weights; a name in `SCHEDULES`.
    augment
        Random changes of a batch of images, in this order.
    mix
        Mixes the images of a batch: gives images, and class probabilities `n k` from one-hot labels.
    label_smoothing
        Share of the probability that is spread over all classes.
    eps_warmup
        Share of training over which the attack rises to its full size; see `fit`'s ``attack_at``.
    awp
        Size of adversarial weight perturbations (0: none); see `weight_attack`.
    average, decay
        Which average of the weights is validated and kept; see `averaging`.
    layers
        Stages that learn at rates of their own, or not yet; None: all weights alike.
    minutes
        Stop after this long, with the schedule brought to its end by then; None: only the epochs count.
    patience
        Stop when this many epochs in a row were no better on the validation split, once eps has risen; None: never.
    precision
        ``bf16`` computes the forward passes of training, and of the attack that validates, in bfloat16 where that is
        safe (autocast); answers on the validation split are judged in float32.
    seed
        Seed of the order, the augmentation and the attacks.
    """

    epochs: int
    batch_size: int = 128
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    augment: tuple[Augment, ...] = ()
    mix: Mix | None = None
    label_smoothing: float = 0.0
    eps_warmup: float = 0.0
    awp: float = 0.0
    average: Average = "none"
    decay: float = 0.999
    layers: Layers | None = None
    minutes: float | None = None
    patience: int | None = None
    precision: Precision = "float32"
    seed: int = 0

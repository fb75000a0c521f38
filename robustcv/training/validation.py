"""How training is judged as it goes: right answers on images that it does not learn from."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustcv import processes
from robustcv.classifier import frozen
from robustcv.classifier import right as is_right
from robustcv.training.objectives import Perturb, Precision, without_batch_norm


@runtime_checkable
class Batches(Protocol):
    """What the loop needs of a data set."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]: ...


class Diverged(ArithmeticError):
    """The loss is no longer a finite number."""


def validate(
    classifier: nn.Module,
    validation: Batches,
    batch_size: int,
    device: torch.device,
    attack: Perturb | None,
    precision: Precision = "float32",
) -> tuple[int, int | None]:
    """Count right answers on the validation split, clean and (with an attack) attacked.

    ``precision`` is that of the attack's passes; answers are always judged in float32.

    Raises
    ------
    Diverged
        If not one image has logits that are numbers.
    """
    right = robust = finite = 0
    parts = torch.arange(len(validation)).split(batch_size)
    mine = processes.own(parts)
    with frozen(classifier):
        batches = validation.batches(batch_size, processes.own_share(parts)) if mine else iter(())
        for rows, (images, labels) in zip(mine, batches, strict=True):
            images = images.to(device).contiguous(memory_format=torch.channels_last)
            labels = labels.to(device)
            with torch.no_grad():
                logits = classifier(images)
                clean = is_right(logits, labels)
            finite += int(logits.isfinite().all(1).sum())
            right += int(clean.sum())
            if attack is not None and clean.any():
                seeds = rows.to(device)[clean]  # an image's own, whoever is right
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    fast = without_batch_norm(classifier, images)
                    attacked = attack(fast, images[clean], labels[clean], seeds=seeds)
                with torch.no_grad():
                    logits = classifier(attacked)
                robust += int(is_right(logits, labels[clean]).sum())
    right, robust, finite = (round(total) for total in processes.summed([right, robust, finite]))
    if finite == 0:
        raise Diverged("every validation image has logits that are no numbers")
    return right, None if attack is None else robust

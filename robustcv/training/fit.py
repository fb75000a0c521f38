"""The one training loop: epochs over batches, best epoch by validation, state after each epoch."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustcv.classifier import frozen
from robustcv.runtime import Advance
from robustcv.training.objectives import Perturb
from robustcv.training.schedules import SCHEDULES


@runtime_checkable
class Batches(Protocol):
    """What the loop needs of a data set."""

    def __len__(self) -> int: ...
    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]: ...


Augment = Callable[[Tensor, torch.Generator], Tensor]
Objective = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EpochResult:
    """Counts of one epoch; the fields of `robustcv.records.Epoch`."""

    epoch: int
    loss: float
    correct: int
    n: int
    validation_correct: int
    validation_n: int
    validation_robust: int | None
    validation_robust_n: int | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Fitted:
    """What training gives: the epochs, and which one the classifier now holds."""

    epochs: list[EpochResult]
    selected_epoch: int


def fit(
    classifier: nn.Module,
    train: Batches,
    validation: Batches,
    *,
    objective: Objective,
    perturb: Perturb | None = None,
    validate_with: Perturb | None = None,
    epochs: int,
    batch_size: int = 128,
    optimizer: str = "adam",
    learning_rate: float = 2e-3,
    weight_decay: float = 0.0,
    schedule: str = "one-cycle",
    augment: tuple[Augment, ...] = (),
    seed: int = 0,
    state: dict[str, Any] | None = None,
    save_state: Callable[[dict[str, Any]], None] = lambda _: None,
    advance: Advance = lambda _: None,
) -> Fitted:
    """Train a classifier in place and leave it with the weights of its best validation epoch.

    Every epoch draws its order and its augmentation from (seed, epoch), so that a run that is stopped and resumed ends
    with the weights of one that was not.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; on the device where it is to be trained.
    train, validation
        Sets of images; they must not share any.
    objective
        ``objective(classifier, images, labels, perturb=..., seeds=...)`` gives loss and logits.
    perturb
        Attack used by the objective.
    validate_with
        Attack used on the validation split; the best epoch is then the one with most images right under attack
        (ties: most right when clean). None selects on clean images.
    optimizer
        ``adam`` (decoupled weight decay) or ``sgd`` (Nesterov momentum 0.9).
    schedule
        ``one-cycle`` or ``cosine``.
    state
        What ``save_state`` was given after the last finished epoch, to go on from there.
    save_state
        Called after each epoch with everything needed to go on.
    advance
        Called with the number of images after each batch.
    """
    device = next(classifier.parameters()).device
    stepper = _optimizer(optimizer, classifier, learning_rate, weight_decay)
    history: list[EpochResult] = []
    best: dict[str, Tensor] = {}
    best_score, selected = (-1, -1), 0
    if state is not None:
        classifier.load_state_dict(state["model"])
        stepper.load_state_dict(state["optimizer"])
        history = [EpochResult(**epoch) for epoch in state["history"]]
        best, best_score, selected = state["best"], tuple(state["best_score"]), state["selected"]
    for epoch in range(len(history), epochs):
        start = time.monotonic()
        totals = _train_epoch(
            classifier,
            train,
            stepper,
            objective=objective,
            perturb=perturb,
            batch_size=batch_size,
            rate=partial(_rate, schedule=schedule, highest=learning_rate, epoch=epoch, epochs=epochs),
            augment=augment,
            generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch),
            device=device,
            advance=advance,
        )
        right, robust = _validate(classifier, validation, batch_size, device, validate_with)
        result = EpochResult(
            epoch=epoch + 1,
            loss=totals[0],
            correct=totals[1],
            n=totals[2],
            validation_correct=right,
            validation_n=len(validation),
            validation_robust=robust,
            validation_robust_n=None if robust is None else len(validation),
            learning_rate=stepper.param_groups[0]["lr"],
            seconds=time.monotonic() - start,
        )
        history.append(result)
        score = (right, 0) if robust is None else (robust, right)
        if score > best_score:
            best_score, selected = score, epoch + 1
            best = {name: tensor.detach().clone() for name, tensor in classifier.state_dict().items()}
        save_state(
            {
                "model": classifier.state_dict(),
                "optimizer": stepper.state_dict(),
                "history": [asdict(each) for each in history],
                "best": best,
                "best_score": list(best_score),
                "selected": selected,
            }
        )
    if best:
        classifier.load_state_dict(best)
    return Fitted(history, selected)


def _rate(done: float, *, schedule: str, highest: float, epoch: int, epochs: int) -> float:
    return highest * SCHEDULES[schedule]((epoch + done) / epochs)


def _optimizer(name: str, classifier: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.AdamW(classifier.parameters(), rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(classifier.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=decay, fused=True)


def _train_epoch(
    classifier: nn.Module,
    train: Batches,
    stepper: torch.optim.Optimizer,
    *,
    objective: Objective,
    perturb: Perturb | None,
    batch_size: int,
    rate: Callable[[float], float],
    augment: tuple[Augment, ...],
    generator: torch.Generator,
    device: torch.device,
    advance: Advance,
) -> tuple[float, int, int]:
    """Go over the training images once; gives mean loss, right answers on the batches as trained on, and n."""
    classifier.train()
    order = torch.randperm(len(train), generator=generator)
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    done = 0
    for images, labels in train.batches(batch_size, order):
        for group in stepper.param_groups:
            group["lr"] = rate(done / len(train))
        images, labels = images.to(device), labels.to(device)
        for change in augment:
            images = change(images, generator)
        images = images.contiguous(memory_format=torch.channels_last)  # fastest for convolutions, on CPUs and GPUs
        seeds = torch.randint(-(1 << 62), 1 << 62, (len(labels),), generator=generator).to(device)
        loss, logits = objective(classifier, images, labels, perturb=perturb, seeds=seeds)
        stepper.zero_grad(set_to_none=True)
        loss.backward()
        stepper.step()
        done += len(labels)
        loss_sum += loss.detach() * len(labels)  # summed on the device: reading it each step would stall a GPU
        correct += (logits.detach().argmax(1) == labels).sum()
        advance(len(labels))
    return float(loss_sum / done), int(correct), done


def _validate(
    classifier: nn.Module, validation: Batches, batch_size: int, device: torch.device, attack: Perturb | None
) -> tuple[int, int | None]:
    """Count right answers on the validation split, clean and (with an attack) attacked."""
    right = robust = done = 0
    with frozen(classifier):
        for images, labels in validation.batches(batch_size):
            images = images.to(device).contiguous(memory_format=torch.channels_last)
            labels = labels.to(device)
            with torch.no_grad():
                clean = classifier(images).argmax(1) == labels
            right += int(clean.sum())
            if attack is not None and clean.any():
                seeds = torch.arange(done, done + len(labels), device=device)[clean]  # an image's own, whoever is right
                attacked = attack(classifier, images[clean], labels[clean], seeds=seeds)
                with torch.no_grad():
                    robust += int((classifier(attacked).argmax(1) == labels[clean]).sum())
            done += len(labels)
    return right, None if attack is None else robust

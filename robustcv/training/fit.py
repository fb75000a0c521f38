"""The one training loop: epochs over batches, best epoch by validation, state after each epoch."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustcv import processes, stopping
from robustcv.classifier import has_batch_norm
from robustcv.folding import forget
from robustcv.runtime import Advance
from robustcv.training.averaging import averaged, begins
from robustcv.training.objectives import Perturb, Remembering, pgd_at
from robustcv.training.recipe import Guard, Recipe
from robustcv.training.schedules import SCHEDULES
from robustcv.training.validation import Batches, Diverged, validate
from robustcv.training.weight_attack import Replayed, adversarial_weights, buffers_kept

Objective = Callable[..., tuple[Tensor, Tensor]]
AttackAt = Callable[[float], Perturb]


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
    recovered: bool = False


@dataclass(frozen=True)
class Fitted:
    """What training gives: the epochs, which one the classifier now holds, and why it ended early if it did."""

    epochs: list[EpochResult]
    selected_epoch: int
    stopped: str | None = None


@dataclass
class _Best:
    """The best epoch so far and its weights."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    score: tuple[int, int] = (-1, -1)
    epoch: int = 0

    def offer(self, result: EpochResult, module: nn.Module) -> None:
        robust = result.validation_robust
        score = (result.validation_correct, 0) if robust is None else (robust, result.validation_correct)
        if score > self.score:
            self.score, self.epoch = score, result.epoch
            self.weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def fit(
    classifier: nn.Module,
    train: Batches,
    validation: Batches,
    *,
    objective: Objective | Remembering,
    recipe: Recipe,
    attack_at: AttackAt | None = None,
    validate_with: Perturb | None = None,
    guard: Guard | None = None,
    redraw: Callable[[int], Batches] | None = None,
    begun: bool = False,
    state: dict[str, Any] | None = None,
    save_state: Callable[[dict[str, Any]], None] = lambda _: None,
    advance: Advance = lambda _: None,
) -> Fitted:
    """Train a classifier in place and leave it with the weights of its best validation epoch.

    Every epoch draws its order and its augmentation from (seed, epoch), so that a run that is stopped and resumed ends
    with the weights of one that was not (with ``minutes``, the clock decides too).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; on the device where it is to be trained.
    train, validation
        Sets of images; they must not share any.
    objective
        ``objective(classifier, images, labels, perturb=..., seeds=..., targets=...)`` gives loss and logits; or a
        `Remembering` one, whose ``at`` gives such a function.
    recipe
        Everything else that shapes the weights.
    attack_at
        Gives the attack of the objective, its eps scaled by a number in (0, 1].
    validate_with
        Attack used on the validation split; the best epoch is then the one with most images right under attack
        (ties: most right when clean). None selects on clean images.
    guard
        Notices catastrophic overfitting after each epoch; the epoch is then done again from where it began, with the
        guard's stronger attack.
    redraw
        Gives the training images of an epoch from a seed: the same rows, cropped anew as they are decoded. None uses
        ``train`` in every epoch.
    begun
        The classifier is trained already: it is validated as epoch 0, and kept where no epoch is better.
    state
        What ``save_state`` was given after the last finished epoch, to go on from there.
    save_state
        Called after each epoch with everything needed to go on.
    advance
        Called with the number of images after each batch.

    Raises
    ------
    Diverged
        If the loss stops being a number in the first epoch. Later, training ends with the best weights so far.
    """
    run = _Run(classifier, train, validation, objective, recipe, attack_at, validate_with, guard, redraw, advance)
    if state is not None:
        run.restore(state)
    elif begun:
        run.accept(run.untrained())
    stopped = run.over()
    while run.trained < recipe.epochs and stopped is None:
        try:
            result = run.epoch(run.trained)
        except stopping.Interrupted:
            if not run.best.weights:
                raise
            stopped = "the user asked to stop"
            break
        except Diverged as error:
            if not run.best.weights:
                raise
            stopped = f"{error}; try a lower --learning-rate"
            break
        run.accept(result)
        save_state(run.state())
        stopped = run.over()
    if run.best.weights:
        classifier.load_state_dict(run.best.weights)
    forget(classifier)
    for parameter in classifier.parameters():
        parameter.requires_grad_(True)
    classifier.eval()
    return Fitted(run.history, run.best.epoch, stopped)


class _Run:
    """The moving parts of one training run."""

    def __init__(
        self,
        classifier: nn.Module,
        train: Batches,
        validation: Batches,
        objective: Objective | Remembering,
        recipe: Recipe,
        attack_at: AttackAt | None,
        validate_with: Perturb | None,
        guard: Guard | None,
        redraw: Callable[[int], Batches] | None,
        advance: Advance,
    ) -> None:
        self.classifier, self.train, self.validation = classifier, train, validation
        self.objective, self.recipe, self.attack_at = objective, recipe, attack_at
        self.validate_with, self.guard, self.redraw, self.advance = validate_with, guard, redraw, advance
        self.device = next(classifier.parameters()).device
        self.stepper = _optimizer(recipe, classifier)
        self.mean: AveragedModel | None = averaged(classifier, recipe.average, recipe.decay)
        self.history: list[EpochResult] = []
        self.best = _Best()
        self.validation_seconds = 0.0
        self.used: set[int] = set()
        self.couples = has_batch_norm(classifier)

    @property
    def judged(self) -> nn.Module:
        """The weights that are validated and kept: the average where there is one by now."""
        mean = self.mean
        return self.classifier if mean is None or int(mean.n_averaged) == 0 else mean.module

    @property
    def trained(self) -> int:
        """The number of epochs done."""
        return self.history[-1].epoch if self.history else 0

    def accept(self, result: EpochResult) -> None:
        """Write an epoch down, and keep its weights if they are the best so far."""
        self.history.append(result)
        self.best.offer(result, self.judged)

    def untrained(self) -> EpochResult:
        """Validate the classifier as it came, as epoch 0."""
        start = time.monotonic()
        return self._validated(0, 0.0, 0, 0, start)

    def state(self) -> dict[str, Any]:
        """Give everything needed to go on."""
        return {
            "model": self.classifier.state_dict(),
            "optimizer": self.stepper.state_dict(),
            "average": None if self.mean is None else self.mean.state_dict(),
            "objective": self.objective.state_dict() if isinstance(self.objective, Remembering) else None,
            "history": [asdict(each) for each in self.history],
            "best": self.best.weights,
            "best_score": list(self.best.score),
            "selected": self.best.epoch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._weights_from(state)
        self.history = [EpochResult(**epoch) for epoch in state["history"]]
        self.best = _Best(state["best"], tuple(state["best_score"]), state["selected"])

    def _weights_from(self, state: dict[str, Any]) -> None:
        self.classifier.load_state_dict(state["model"])
        self.stepper.load_state_dict(state["optimizer"])
        if self.mean is not None:
            self.mean.load_state_dict(state["average"])
        if isinstance(self.objective, Remembering):
            self.objective.load_state_dict(state["objective"])

    def epoch(self, epoch: int) -> EpochResult:
        """Train and validate one epoch; where the guard sees a collapse, do it again with the stronger attack."""
        start = time.monotonic()
        before = None if self.guard is None else _copied(self.state())
        result = self._attempt(epoch, start)
        if self.guard is None or before is None or result.validation_robust is None:
            return result
        quick, robust = self._count_right(self.guard.quick), result.validation_robust
        if self.judged is not self.classifier:  # an average shows a collapse of the weights only epochs later
            robust = self._count_right(self.validate_with)
        if not self.guard.collapsed(quick, robust, len(self.validation)):
            return result
        self._weights_from(before)
        kept = self.attack_at, self.objective
        recover = self.guard.recover
        try:
            self.attack_at, self.objective = (lambda _: recover), pgd_at
            result = self._attempt(epoch, start)
        finally:
            self.attack_at, self.objective = kept
        return replace(result, recovered=True)

    def _attempt(self, epoch: int, start: float) -> EpochResult:
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            loss, correct, n = self._train_epoch(epoch, start)
        return self._validated(epoch + 1, loss, correct, n, start)

    def _validated(self, epoch: int, loss: float, correct: int, n: int, start: float) -> EpochResult:
        validating = time.monotonic()
        right, robust = self._right(self.judged, self.validate_with)
        self.validation_seconds, seconds = processes.agreed((time.monotonic() - validating, time.monotonic() - start))
        return EpochResult(
            epoch=epoch,
            loss=loss,
            correct=correct,
            n=n,
            validation_correct=right,
            validation_n=len(self.validation),
            validation_robust=robust,
            validation_robust_n=None if robust is None else len(self.validation),
            learning_rate=self.stepper.param_groups[-1]["lr"],
            seconds=seconds,
        )

    def _count_right(self, attack: Perturb | None) -> int:
        _, robust = self._right(self.classifier, attack)
        return robust or 0

    def _right(self, classifier: nn.Module, attack: Perturb | None) -> tuple[int, int | None]:
        recipe = self.recipe
        return validate(classifier, self.validation, recipe.batch_size, self.device, attack, recipe.precision)

    def _train_epoch(self, epoch: int, start: float) -> tuple[float, int, int]:
        """Go over the training images once; gives mean loss, right answers on the batches as trained on, and n."""
        recipe, classifier = self.recipe, self.classifier
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
        torch.manual_seed((recipe.seed * 1_000_003 + epoch) * 4099 + processes.rank())  # what dropout draws from
        classifier.train()
        for module in (classifier, self.judged):
            forget(module)
        if recipe.layers is not None:
            recipe.layers.hold(epoch)
        order = torch.randperm(len(self.train), generator=generator)
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        augmenting = generator
        self.used = set()  # layers may have thawed
        if processes.size() > 1:  # each draws for its own images; the attacks' seeds are common
            augmenting = torch.Generator().manual_seed((recipe.seed * 1_000_003 + epoch) * 4099 + processes.rank() + 1)
        done = step = 0
        source = self.train if self.redraw is None else self.redraw(recipe.seed * 1_000_003 + epoch)
        for whole, rows, images, labels in self._batches(source, order):
            progress = self._progress(epoch, done, start)
            if progress >= 1 and done:
                break
            if whole == 1 and self.couples and recipe.batch_size > 1 and done:
                continue  # batch norm has no variance of one image; another is left over in the next epoch
            self._set_rate(progress)
            ready = self._prepared(images, labels, augmenting) if len(labels) else None
            seeds = torch.randint(-(1 << 62), 1 << 62, (whole,), generator=generator)
            if ready is not None:
                images, labels, targets = ready
                seeds = seeds[processes.rank() :: processes.size()].to(self.device)
                objective = self._objective(rows, progress)
                computed = functools.partial(objective, self.classifier, images, labels, seeds=seeds, targets=targets)
                loss, logits = self._step(computed, progress, len(labels) / whole)
                loss_sum += loss.detach() * len(labels)  # summed on the device: reading it would stall a GPU
                correct += (logits.detach().argmax(1) == labels).sum()
            else:
                self._idle_step(progress)
            done, step = done + whole, step + 1
            if step % 64 == 0:
                _require_finite(loss_sum, epoch)
            self.advance(whole)
        _require_finite(loss_sum, epoch)
        if isinstance(self.objective, Remembering):
            self.objective.share(self.device)
        for module in (classifier, *([] if self.mean is None else [self.mean.module])):
            processes.mean_over([b for b in module.buffers() if b.is_floating_point()], 1 / processes.size())
        totals = processes.summed([float(loss_sum), float(correct)])
        return totals[0] / done, round(totals[1]), done

    def _batches(self, source: Batches, order: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield each batch's size, and this process's share of its rows, images and labels."""
        batches = order.split(self.recipe.batch_size)
        parts = [rows[processes.rank() :: processes.size()] for rows in batches]
        own = source.batches(max(len(parts[0]), 1), torch.cat(parts))
        empty = torch.empty(0)
        for rows, part in zip(batches, parts, strict=True):
            images, labels = next(own) if len(part) else (empty, empty)
            yield len(rows), part, images, labels

    def _strength(self, progress: float) -> float:
        """Give the share of eps that is trained against by now."""
        warmup = self.recipe.eps_warmup
        return 1.0 if warmup == 0 else min(1.0, (progress + 1e-3) / warmup)

    def _objective(self, rows: Tensor, progress: float) -> Objective:
        if isinstance(self.objective, Remembering):
            return self.objective.at(rows, len(self.train), self._strength(progress))
        return self.objective

    def _prepared(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Move a batch to the device, augment it, and give soft targets where something asks for them."""
        recipe = self.recipe
        images, labels = images.to(self.device), labels.to(self.device)
        for change in recipe.augment:
            images = change(images, generator)
        targets = None
        if recipe.mix is not None or recipe.label_smoothing > 0:
            classes = len(self.train.class_names)
            targets = nn.functional.one_hot(labels, classes).float()
            if recipe.mix is not None:
                images, targets = recipe.mix(images, targets, generator)
                labels = targets.argmax(1)
            targets = (1 - recipe.label_smoothing) * targets + recipe.label_smoothing / classes
        return images.contiguous(memory_format=torch.channels_last), labels, targets  # fastest for convolutions

    def _step(self, computed: Objective, progress: float, share: float) -> tuple[Tensor, Tensor]:
        """Compute the loss of (a share of) a batch, its gradients, and move the weights."""
        recipe = self.recipe
        perturb = None if self.attack_at is None else self.attack_at(self._strength(progress))
        replayed = None if perturb is None or recipe.awp == 0 else Replayed(perturb)

        def loss_now() -> tuple[Tensor, Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                return computed(perturb=replayed or perturb)

        self.stepper.zero_grad(set_to_none=True)
        if recipe.awp > 0:
            with buffers_kept(self.classifier):
                first, _ = loss_now()
            if replayed is not None:
                replayed.rewind()
            with adversarial_weights(self.classifier, first, recipe.awp):
                loss, logits = loss_now()
                loss.backward()
        else:
            loss, logits = loss_now()
            loss.backward()
        if processes.size() > 1 and not self.used:  # a layer that takes no part has no gradient to share
            self.used = {k for k, p in enumerate(self.classifier.parameters()) if p.grad is not None}
        self._move(progress, share)
        return loss, logits

    def _idle_step(self, progress: float) -> None:
        """Take the step of a batch of which this process has no image."""
        for place, parameter in enumerate(self.classifier.parameters()):
            if place in self.used:
                parameter.grad = torch.zeros_like(parameter)
        self._move(progress, 0.0)

    def _move(self, progress: float, share: float) -> None:
        """Average the gradients over processes, and take the optimiser's step."""
        if processes.size() > 1:
            parameters = list(self.classifier.parameters())
            processes.mean_over([each for k in sorted(self.used) if (each := parameters[k].grad) is not None], share)
        self.stepper.step()
        if self.mean is not None and begins(self.recipe.average, progress):
            self.mean.update_parameters(self.classifier)

    def _progress(self, epoch: int, done: int, start: float) -> float:
        """Give the share of training that is done: of the epochs or of the minutes, whichever is more."""
        by_epochs = (epoch + done / len(self.train)) / self.recipe.epochs
        if self.recipe.minutes is None:
            return by_epochs
        spent = sum(each.seconds for each in self.history) + time.monotonic() - start
        by_clock = spent / max(1e-9, 60 * self.recipe.minutes - self.validation_seconds)
        return max(by_epochs, float(processes.agreed(by_clock)))

    def over(self) -> str | None:
        """Say why training ends before its last epoch; None while it does not."""
        patience = self.recipe.patience
        if self.trained < self.recipe.eps_warmup * self.recipe.epochs:
            patience = None  # while eps still rises, the validation attack is not yet the one trained against
        if patience is not None and self.trained - self.best.epoch >= patience and self.trained < self.recipe.epochs:
            return f"no better on the validation split for {patience} epochs"
        if self.recipe.minutes is None or self.trained == self.recipe.epochs:
            return None
        spent = sum(each.seconds for each in self.history)
        late = spent + self.validation_seconds >= 60 * self.recipe.minutes
        return f"the {self.recipe.minutes:g} minutes were used up" if late else None

    def _set_rate(self, progress: float) -> None:
        rate = self.recipe.learning_rate * SCHEDULES[self.recipe.schedule](min(progress, 1.0))
        for group in self.stepper.param_groups:
            group["lr"] = rate * group.get("share", 1.0)


def _copied(value: Any) -> Any:
    """Copy the tensors of a state, so that training on does not change it."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _require_finite(loss_sum: Tensor, epoch: int) -> None:
    """Stop in all processes where the loss of one is no number; the others would wait for it."""
    if not math.isfinite(processes.summed([float(loss_sum)])[0]):
        raise Diverged(f"the loss was not a number in epoch {epoch + 1}")


def _optimizer(recipe: Recipe, classifier: nn.Module) -> torch.optim.Optimizer:
    groups: Any = classifier.parameters() if recipe.layers is None else recipe.layers.groups()
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.AdamW(groups, rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True, weight_decay=decay, fused=True)

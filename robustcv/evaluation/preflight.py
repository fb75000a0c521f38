"""Checks before an audit: what would make every number meaningless stops it, what would make one doubtful is raised."""

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.accuracy import Predictions
from robustcv.records import Check

ROWS = 16


def require_some_right(predictions: Predictions) -> None:
    """Stop where not one image is classified correctly: there is nothing to break.

    Raises
    ------
    UserError
        If no image is right.
    """
    if not predictions.correct.any():
        raise UserError(
            "RCV-E071",
            f"the model classifies none of the {len(predictions.labels)} images correctly",
            "there is nothing for an attack to break; labels or preprocessing are probably wrong",
            "check the class order, and that the normalisation is inside the model",
        )


def preflight(
    classifier: nn.Module,
    images: ImageSet,
    predictions: Predictions,
    *,
    was_training: bool,
    trained_on: tuple[str, ...] | None,
    device: torch.device,
    black_box: bool = False,
) -> tuple[Check, ...]:
    """Check a frozen classifier on a few images; each check gives its figure and what to do when raised.

    Parameters
    ----------
    was_training
        Whether the classifier came in training mode (it is judged in eval mode either way).
    trained_on
        The classes the classifier was trained on, in order, where that is known.
    black_box
        The classifier gives no gradients, and is known to.
    """
    batch, labels = next(images.take(torch.arange(min(ROWS, len(images)))).batches(ROWS))
    with torch.no_grad():
        first, second = classifier(batch.to(device)), classifier(batch.to(device))
    return (
        _mode(was_training),
        _logits(predictions.logits),
        _finite(predictions.logits),
        _beats_majority(predictions),
        _class_names(trained_on, images.class_names),
        _deterministic(first, second),
        _alone(classifier, batch.to(device), first, second),
        _dynamic(classifier, batch.to(device)),
        _black_box() if black_box else _gradients(classifier, batch.to(device), labels.to(device)),
    )


def _black_box() -> Check:
    figure = "none: a black box, attacked by its answers alone"
    fix = "audit the PyTorch model itself; with gradients, attacks break more"
    return _check("usable gradients", False, figure, fix)


def _check(name: str, fine: bool, figure: str, fix: str) -> Check:
    return Check(check=name, status="pass" if fine else "raised", figure=figure, fix=None if fine else fix)


def _mode(was_training: bool) -> Check:
    figure = "came in training mode; judged in eval mode" if was_training else "eval"
    return _check("eval mode", not was_training, figure, "call model.eval() before the audit")


def _logits(logits: Tensor) -> Check:
    sums = logits.sum(1)
    probabilities = bool((logits >= 0).all() and ((sums - 1).abs() < 1e-4).all())
    figure = (
        "rows sum to 1 and none is negative"
        if probabilities
        else f"outputs from {logits.min():.3g} to {logits.max():.3g}"
    )
    fix = "remove the softmax at the end: on probabilities, gradient attacks saturate and report too much robustness"
    return _check("logits", not probabilities, figure, fix)


def _finite(logits: Tensor) -> Check:
    bad = int((~logits.isfinite().all(1)).sum())
    return _check("finite outputs", bad == 0, f"{bad} of {len(logits)} images give NaN or inf", "find where they arise")


def _beats_majority(predictions: Predictions) -> Check:
    n = len(predictions.labels)
    majority = int(predictions.labels.bincount().max())
    right = int(predictions.correct.sum())
    figure = f"{right} of {n} right; always naming the commonest class gives {majority}"
    return _check("better than the majority class", right > majority, figure, "check class order and preprocessing")


def _class_names(trained_on: tuple[str, ...] | None, names: tuple[str, ...]) -> Check:
    if trained_on is None:
        return Check(check="class order", status="not run", figure="the model does not name its classes")
    other = [f"{a!r} against {b!r}" for a, b in zip_longest(trained_on, names) if a != b]
    figure = "the same names" if not other else f"{len(other)} differ: {other[0]}"
    return _check("class order", not other, figure, "judge the model on the classes it was trained on, in that order")


def _deterministic(first: Tensor, second: Tensor) -> Check:
    gap = float((first - second).abs().max())
    fix = "average over the model's randomness, with --eot 20; without that the figures are too high"
    return _check(
        "deterministic", gap <= 1e-4 * max(1.0, float(first.abs().max())), f"two passes differ by {gap:.2g}", fix
    )


def _alone(classifier: nn.Module, batch: Tensor, together: Tensor, again: Tensor) -> Check:
    if not torch.equal(together, again):
        return Check(check="images apart", status="not run", figure="two passes over the same batch differ anyway")
    with torch.no_grad():
        alone = torch.cat([classifier(image[None]) for image in batch])
    gap = float((together - alone).abs().max())
    fix = "an image's answer depends on the others in its batch: use batch norm's running averages (model.eval())"
    fine = gap <= 1e-3 * max(1.0, float(together.abs().max()))
    return _check("images apart", fine, f"logits alone and in a batch differ by {gap:.2g}", fix)


class _Watch(TorchFunctionMode):
    """Notices whether autograd is called."""

    def __init__(self) -> None:
        super().__init__()
        self.called = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called |= func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        return func(*args, **(kwargs or {}))


def _dynamic(classifier: nn.Module, batch: Tensor) -> Check:
    with _Watch() as watch:
        classifier(batch)
    fix = "the model optimises at test time: an attack must be adapted to it, the figures here are too high"
    return _check("no optimisation inside", not watch.called, "autograd called" if watch.called else "none", fix)


def _gradients(classifier: nn.Module, batch: Tensor, labels: Tensor) -> Check:
    inputs = batch.clone().requires_grad_()
    loss = nn.functional.cross_entropy(classifier(inputs), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else (None,)
    if gradient is None:
        raise UserError(
            "RCV-E073",
            "the model gives no gradient with respect to its images",
            "every attack there is needs one; an audit without an attack would call the model robust",
            "remove no_grad, detach or numpy from its forward pass",
        )
    size = gradient.flatten(1).abs().amax(1)
    dead = int((~size.isfinite() | (size == 0)).sum())
    fix = "gradient attacks cannot work here, so the robust accuracy is too high; try --set pgd.loss=margin"
    return _check("usable gradients", dead == 0, f"zero or not finite for {dead} of {len(batch)} images", fix)

"""Checks before an audit: what would make every number meaningless stops it, what would make one doubtful is raised."""

import functools
import math
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustcv import runtime
from robustcv.attacks import norms_of
from robustcv.attacks.pgd import pgd
from robustcv.attacks.square import square
from robustcv.classifier import Counted, frozen
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.accuracy import Predictions
from robustcv.evaluation.wiring import better_order, feeding, fewer, reading
from robustcv.records import Check

ROWS = 16
REPEATS, SAME = 5, 1e-4  # passes over the same images, and how far apart they may lie, of the largest logit


class Overlap(NamedTuple):
    """How many images are training images too, and what was compared."""

    found: int
    by: Literal["pixels", "bytes"]


def require_some_right(predictions: Predictions) -> None:
    """Stop where not one image is classified correctly: there is nothing to break.

    Raises
    ------
    UserError
        If no image is right, or there is but one class.
    """
    if predictions.logits.shape[1] < 2:
        raise UserError(
            "RCV-E119", "the model knows one class", "its answer could never be wrong", "audit a model of two or more"
        )
    if not predictions.correct.any():
        found = better_order(predictions)
        why = "there is nothing for an attack to break; labels or preprocessing are probably wrong"
        if found is not None:
            why = (
                f"{found[1]} of {found[3]} would be right {found[0]}; as it is there is nothing for an attack to break"
            )
        raise UserError(
            "RCV-E071",
            f"the model classifies none of the {len(predictions.labels)} images correctly",
            why,
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
    norm: str = "linf",
    eps: float | None = None,
    overlap: Overlap | None = None,
    black_box: bool = False,
    whole: nn.Module | None = None,
) -> tuple[Check, ...]:
    """Check a frozen classifier on a few images; each check gives its figure, its cost, and what to do when raised.

    Parameters
    ----------
    was_training
        Whether the classifier came in training mode (it is judged in eval mode either way).
    trained_on
        The classes the classifier was trained on, in order, where that is known.
    norm, eps
        The threat model, for checks of its size and of a trial attack; None runs neither.
    overlap
        Images that are training images too, where that is known.
    black_box
        The classifier gives no gradients, and is known to.
    whole
        What gives all of the answers, where the classifier is asked about some of its classes alone.
    """
    batch, labels = _few(images, device)
    ask = Counted(classifier).eval()
    ask_whole = None if whole is None else Counted(whole).eval()
    answers: list[Tensor] = []
    checks: list[Callable[[], Check]] = [
        lambda: _mode(was_training),
        lambda: _logits(predictions.logits if ask_whole is None else _all_answers(ask_whole, batch)),
        lambda: _finite(predictions.logits),
        lambda: _pixels(batch),
        lambda: feeding(classifier, ask, images, device),
        lambda: _beats_majority(predictions),
        lambda: _class_names(trained_on, images.class_names) if whole is None else _BY_MAP,
        lambda: reading(predictions),
        lambda: _overlap(overlap, len(images)),
        lambda: _repeated(ask, batch, answers),
        lambda: _alone(ask, batch, answers),
        lambda: _bearable(lambda some, _: _dynamic(ask, some), batch, labels),
        lambda: _black_box() if black_box else _bearable(functools.partial(_gradients, ask), batch, labels),
    ]
    if eps is not None:
        checks.append(lambda: _plausible(eps, norm, images.shape))
        checks.append(lambda: _bearable(lambda x, y: _trial(ask, x, y, eps, norm, black_box), batch, labels))
    asked = (ask,) if ask_whole is None else (ask, ask_whole)
    return tuple(_counting(asked, check) for check in checks)


def indispensable(classifier: nn.Module, images: ImageSet, device: torch.device) -> tuple[Check, ...]:
    """Look for random answers and optimisation inside, which mislead attacks: also where no preflight is asked for."""
    batch, labels = _few(images, device)
    ask = Counted(classifier).eval()
    return (
        _counting((ask,), lambda: _repeated(ask, batch, [])),
        _counting((ask,), lambda: _bearable(lambda some, _: _dynamic(ask, some), batch, labels)),
    )


def _few(images: ImageSet, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = fewer(ROWS, images.shape, least=4)
    batch, labels = next(images.take(_spread(len(images), rows)).batches(rows))
    return batch.to(device), labels.to(device)


def _counting(asked: tuple[Counted, ...], check: Callable[[], Check]) -> Check:
    """Run a check and write down the passes it took through those it may ask."""

    def passes() -> tuple[int, int]:
        return sum(each.forwards for each in asked), sum(each.backwards for each in asked)

    forward, backward = passes()
    made = check()
    now = passes()
    return made.model_copy(update={"forward": now[0] - forward, "backward": now[1] - backward})


def _bearable(check: Callable[[Tensor, Tensor], Check], batch: Tensor, labels: Tensor) -> Check:
    return runtime.on_fewer(lambda n: check(batch[:n], labels[:n]), len(batch))


def _spread(n: int, wanted: int) -> Tensor:
    """Choose rows evenly over a set, which may be sorted by class."""
    return torch.linspace(0, n - 1, min(n, wanted)).long()


def _pixels(batch: Tensor) -> Check:
    low, high = float(batch.min()), float(batch.max())
    fix = "scale the images to [0, 1] once; these were probably divided by 255 twice"
    return Check.of("pixel range", high - low > 0.05, f"pixels from {low:.3g} to {high:.3g}", fix)


def _overlap(overlap: Overlap | None, n: int) -> Check:
    name = "apart from training images"
    if overlap is None:
        return Check(check=name, status="not run", figure="the training images are not at hand")
    figure = f"{overlap.found} of {n} images are training images too" if overlap.found else "none in common"
    if overlap.by == "bytes":
        figure += "; files compared byte for byte: an image that was encoded anew is not known again"
    return Check.of(name, overlap.found == 0, figure, "remove them from the test split: every figure here is too good")


def _plausible(eps: float, norm: str, shape: tuple[int, int, int]) -> Check:
    """Tell an eps at which every image may become grey, or that no 8-bit image can show."""
    size = math.prod(shape)
    grey = {"linf": 0.5, "l2": 0.5 * math.sqrt(size), "l1": 0.5 * size, "l0": float(size)}[norm]
    if eps >= grey:
        figure = f"at eps {eps:.4g} in {norm} every image may become plain grey"
        return Check.of("plausible eps", False, figure, "choose a smaller eps, such as 8/255 in linf")
    small = eps < 1e-6
    figure = f"eps {eps:.4g}; all grey from {grey:.4g} on"
    return Check.of("plausible eps", not small, figure, "choose a larger eps: such changes drown in float32's rounding")


def _trial(ask: nn.Module, batch: Tensor, labels: Tensor, eps: float, norm: str, black_box: bool) -> Check:
    """Attack a few images and measure the change in float64, by another formula than the attack's own."""
    name = "trial attack within eps"
    attack: Callable[..., Tensor] = functools.partial(pgd, steps=3)
    if black_box:
        attack = functools.partial(square, queries=10)
    if black_box and norm not in norms_of(square):
        return Check(check=name, status="not run", figure=f"no attack without gradients knows {norm}")
    seeds = torch.arange(len(batch), device=batch.device)
    attacked = attack(ask, batch, labels, eps=eps, norm=norm, seeds=seeds).detach()
    change = (attacked.double() - batch.double()).flatten(1)
    order = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    largest = float(torch.linalg.vector_norm(change, order, dim=1).max())
    fine = largest <= eps * (1 + 1e-6) + 1e-6 and bool(((attacked >= 0) & (attacked <= 1)).all())
    return Check.of(
        name, fine, f"largest change {largest:.6g} at eps {eps:.6g}", "please report this: it is our mistake"
    )


def _black_box() -> Check:
    figure = "none: a black box, attacked by its answers alone"
    fix = "audit a model that gives gradients (no detach, no_grad or numpy inside): with them, attacks break more"
    return Check.of("usable gradients", False, figure, fix)


def _mode(was_training: bool) -> Check:
    figure = "came in training mode; judged in eval mode" if was_training else "eval"
    return Check.of("eval mode", not was_training, figure, "call model.eval() before the audit")


_BY_MAP = Check(check="class order", status="not run", figure="the class map says which class is which")


def _all_answers(whole: Counted, batch: Tensor) -> Tensor:
    with frozen(whole), torch.no_grad():
        logits: Tensor = whole(batch)
    return logits


def _logits(logits: Tensor) -> Check:
    sums = logits.sum(1)
    probabilities = bool((logits >= 0).all() and ((sums - 1).abs() < 1e-4).all())
    figure = (
        "rows sum to 1 and none is negative"
        if probabilities
        else f"outputs from {logits.min():.3g} to {logits.max():.3g}"
    )
    fix = "remove the softmax at the end: on probabilities, gradient attacks saturate and report too much robustness"
    return Check.of("logits", not probabilities, figure, fix)


def _finite(logits: Tensor) -> Check:
    bad = int((~logits.isfinite().all(1)).sum())
    return Check.of(
        "finite outputs", bad == 0, f"{bad} of {len(logits)} images give NaN or inf", "find where they arise"
    )


def _beats_majority(predictions: Predictions) -> Check:
    n = len(predictions.labels)
    majority = int(predictions.labels.bincount().max())
    right = int(predictions.correct.sum())
    figure = f"{right} of {n} right; always naming the commonest class gives {majority}"
    return Check.of("better than the majority class", right > majority, figure, "check class order and preprocessing")


def _class_names(trained_on: tuple[str, ...] | None, names: tuple[str, ...]) -> Check:
    if trained_on is None:
        return Check(check="class order", status="not run", figure="the model does not name its classes")
    other = [f"{a!r} against {b!r}" for a, b in zip_longest(trained_on, names) if a != b]
    figure = "the same names" if not other else f"{len(other)} differ: {other[0]}"
    return Check.of("class order", not other, figure, "judge the model on the classes it was trained on, in that order")


def _repeated(classifier: nn.Module, batch: Tensor, answers: list[Tensor]) -> Check:
    """Ask several times about the same batch; ``answers`` takes what was said."""
    with torch.no_grad():
        answers.extend(classifier(batch) for _ in range(REPEATS))
    gap = max(float((answers[0] - each).abs().max()) for each in answers[1:])
    fix = "average over the model's randomness, with --eot 20; without that the figures are too high"
    most = SAME * float(answers[0].abs().max())
    return Check.of(
        "deterministic",
        gap <= most,
        f"{REPEATS} passes differ by {gap:.2g}",
        fix,
        threshold=f"{SAME:g} of the largest logit",
        source="Athalye et al. 2018; Croce et al. 2022",
    )


def _alone(classifier: nn.Module, batch: Tensor, answers: list[Tensor]) -> Check:
    together = answers[0]
    if not all(torch.equal(together, again) for again in answers[1:]):
        return Check(check="images apart", status="not run", figure="passes over the same batch differ anyway")
    with torch.no_grad():
        alone = torch.cat([classifier(image[None]) for image in batch])
    gap = float((together - alone).abs().max())
    fix = "an image's answer depends on the others in its batch: use batch norm's running averages (model.eval())"
    fine = gap <= 1e-3 * max(1.0, float(together.abs().max()))
    return Check.of("images apart", fine, f"logits alone and in a batch differ by {gap:.2g}", fix)


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
    told = "autograd called" if watch.called else "none"
    source = "Croce et al. 2022"
    return Check.of("no optimisation inside", not watch.called, told, fix, threshold="none", source=source)


def _gradients(classifier: nn.Module, batch: Tensor, labels: Tensor) -> Check:
    inputs = batch.clone().requires_grad_()
    loss = nn.functional.cross_entropy(classifier(inputs), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else (None,)
    if gradient is None:
        return _black_box()
    size = gradient.flatten(1).abs().amax(1)
    dead = int((~size.isfinite() | (size == 0)).sum())
    fix = "gradient attacks cannot work here, so the robust accuracy is too high; try --set pgd.loss=margin"
    return Check.of("usable gradients", dead == 0, f"zero or not finite for {dead} of {len(batch)} images", fix)

"""Lower bounds of margins over a ball: intervals, and linear relaxations carried backwards (CROWN)."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustcv.attacks.norms import NormName
from robustcv.certificates.graph import Operation, operations_of, require_same

Interval = tuple[Tensor, Tensor]
CHUNK = 256  # linear forms carried backwards at a time
ROUNDING = 1e-6  # of the logits' size: what the model itself, in float32, may lose on the way
_DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def bounds(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: float,
    norm: NormName = "linf",
    inner: int = 600,
) -> Bool[Tensor, " n"]:
    """Prove for images that no change within the ball and [0, 1] makes the label lose; True where that succeeds.

    Intermediate values lie in intervals (Gowal et al. 2018), tightened by linear relaxations where a layer has few
    enough of them; margins are bounded by linear relaxations carried back to the image (Zhang et al. 2018, CROWN, with
    the adaptive lower slope), and by intervals, whichever is better.

    Parameters
    ----------
    classifier
        Frozen; sequential or residual, of convolutions, linear layers, batch norm, ReLU, pooling and sums.
    images, labels
        Clean images in [0, 1] and their true classes.
    eps, norm
        The ball: ``linf``, ``l2`` or ``l1``.
    inner
        Tighten the intervals of layers with at most this many values before a ReLU or a max pooling.

    Raises
    ------
    UserError
        For an operation that cannot be bounded.
    """
    return lower_margins(classifier, images, labels, eps=eps, norm=norm, inner=inner).amin(1) > 0


def lower_margins(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: float,
    norm: NormName = "linf",
    inner: int = 600,
) -> Float[Tensor, "n k_1"]:
    """Bound from below how far the label's logit stays above each other one, over the ball and [0, 1]; see `bounds`."""
    operations = operations_of(classifier, tuple(int(each) for each in images.shape[1:]))  # type: ignore[arg-type]
    require_same(operations, classifier, images[:2])
    ball = _Ball(images.double(), eps, norm)
    intervals: list[Interval] = []
    for place, operation in enumerate(operations):
        intervals.append(_interval(operation, intervals, ball))
        follows = any(other.kind in ("relu", "max") and place in other.inputs for other in operations)
        if follows and place > 1 and intervals[place][0][0].numel() <= inner:
            intervals[place] = _tightened(operations, intervals, place, ball)
    k = int(intervals[-1][0].shape[1])
    forms = _margin_forms(labels, k).double()
    crown = ball.least(*_backward(operations, intervals, len(operations) - 1, forms))
    low, high = intervals[-1]
    plain = (forms.clamp_min(0) * low[:, None] + forms.clamp_max(0) * high[:, None]).sum(2)
    slack = ROUNDING * torch.maximum(low.abs(), high.abs()).amax(1, keepdim=True)
    return torch.maximum(crown, plain) - slack


def _margin_forms(labels: Tensor, k: int) -> Float[Tensor, "n k_1 k"]:
    """Give for each image the forms ``z_label - z_other``, one for each other class."""
    eye = torch.eye(k, device=labels.device)
    others = torch.stack([torch.cat([torch.arange(y), torch.arange(y + 1, k)]) for y in labels.tolist()])
    return eye[labels][:, None] - eye[others.to(labels.device)]


class _Ball:
    """The set of images an attacker may choose from: a norm ball cut by [0, 1]."""

    def __init__(self, images: Float[Tensor, "n c h w"], eps: float, norm: NormName) -> None:
        self.images, self.eps, self.norm = images, eps, norm
        self.low, self.high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)

    def least(self, forms: Float[Tensor, "n s c h w"], constant: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
        """Give the least value of linear forms over the ball, and not below that over the box around it."""
        flat = forms.flatten(2)
        centre, radius = (self.low + self.high) / 2, (self.high - self.low) / 2
        boxed = torch.einsum("nsd,nd->ns", flat, centre.flatten(1))
        boxed = boxed - torch.einsum("nsd,nd->ns", flat.abs(), radius.flatten(1))
        if self.norm == "linf":
            return boxed + constant
        reach = self.eps * torch.linalg.vector_norm(flat, _DUAL[self.norm], dim=2)
        round_ball = torch.einsum("nsd,nd->ns", flat, self.images.flatten(1)) - reach
        return torch.maximum(boxed, round_ball) + constant


def _interval(operation: Operation, intervals: list[Interval], ball: _Ball) -> Interval:
    """Carry intervals through one operation."""
    if operation.kind == "input":
        return ball.low, ball.high
    given = [intervals[place] for place in operation.inputs]
    if operation.kind != "affine":
        return operation.call(*(low for low, _ in given)), operation.call(*(high for _, high in given))
    assert operation.spread is not None
    (low, high), *_ = given
    centre, radius = operation.call((low + high) / 2), operation.spread((high - low) / 2)
    return centre - radius, centre + radius


def _tightened(operations: list[Operation], intervals: list[Interval], place: int, ball: _Ball) -> Interval:
    """Narrow the intervals of one layer by carrying each of its values back to the image."""
    low, high = intervals[place]
    size = low[0].numel()
    eye = torch.eye(size, dtype=low.dtype, device=low.device)
    found_low, found_high = [], []
    for rows in eye.split(CHUNK):
        forms = rows.reshape(1, len(rows), *low.shape[1:]).expand(len(low), -1, *low.shape[1:])
        found_low.append(ball.least(*_backward(operations, intervals, place, forms)))
        found_high.append(-ball.least(*_backward(operations, intervals, place, -forms)))
    return (
        torch.maximum(low, torch.cat(found_low, 1).reshape_as(low)),
        torch.minimum(high, torch.cat(found_high, 1).reshape_as(high)),
    )


def _backward(
    operations: list[Operation], intervals: list[Interval], target: int, forms: Float[Tensor, "n s ..."]
) -> tuple[Float[Tensor, "n s c h w"], Float[Tensor, "n s"]]:
    """Carry linear forms of one operation's values back to the image, never above what they were."""
    n, s = forms.shape[:2]
    waiting: dict[int, Tensor] = {target: forms}
    constant = forms.new_zeros(n, s)
    for place in range(target, 0, -1):
        form = waiting.pop(place, None)
        if form is None:
            continue
        operation = operations[place]
        before = operation.inputs[0]
        if operation.kind == "add":
            for each in operation.inputs:
                waiting[each] = waiting[each] + form if each in waiting else form
            continue
        if operation.kind == "relu":
            back, more = _through_relu(form, *intervals[before])
        elif operation.kind == "max":
            back, more = _through_max(operation, form, *intervals[before])
        else:
            back, more = _through_linear(operation, form, intervals[before][0])
        constant = constant + more
        waiting[before] = waiting[before] + back if before in waiting else back
    return waiting[0], constant


def _through_linear(operation: Operation, form: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply forms with the matrix of an affine operation, from the left."""
    n, s = form.shape[:2]
    if operation.back is not None:
        offset = operation.call(torch.zeros(1, *like.shape[1:], dtype=like.dtype, device=like.device))
        back = operation.back(form.flatten(0, 1), (n * s, *like.shape[1:]))
        return back.reshape(n, s, *like.shape[1:]), torch.einsum("nsd,d->ns", form.flatten(2), offset.flatten())
    zeros = torch.zeros(n * s, *like.shape[1:], dtype=like.dtype, device=like.device)
    with torch.enable_grad():
        zeros.requires_grad_()
        offset = operation.call(zeros)
        (back,) = torch.autograd.grad(offset, zeros, form.reshape(n * s, *offset.shape[1:]))
    more = (form.flatten(2) * offset.detach().reshape(n, s, -1)).sum(2)
    return back.reshape(n, s, *like.shape[1:]), more


def _through_relu(form: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Replace ReLU by lines above and below it: the chord, and 0 or the identity, whichever leaves less room."""
    open_ = (low < 0) & (high > 0)
    chord = torch.where(open_, high / (high - low).clamp_min(1e-300), (low >= 0).to(low))
    offset = torch.where(open_, -chord * low, 0.0)
    under = torch.where(open_, (high > -low).to(low), (low >= 0).to(low))
    positive, negative = form.clamp_min(0), form.clamp_max(0)
    back = positive * under[:, None] + negative * chord[:, None]
    return back, (negative * offset[:, None]).flatten(2).sum(2)


def _through_max(operation: Operation, form: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Replace max pooling: below it the value with the highest lower end, above it that one where it surely wins."""
    n, s = form.shape[:2]
    best, index = operation.call(low, return_indices=True)
    top = operation.call(high)
    own = high.flatten(2).gather(2, index.flatten(2)).reshape_as(best)
    above = (operation.call(high, windows=True) > best[..., None]).sum(-1) - (own > best).long()
    sure = above == 0  # no other value of the window can be larger
    flat, places = form.flatten(3), index.flatten(2)[:, None].expand(n, s, -1, -1)
    picked = torch.where(sure.flatten(2)[:, None], flat, flat.clamp_min(0))
    back = form.new_zeros(n, s, *low.shape[1:]).flatten(3).scatter_add(3, places, picked)
    more = torch.where(sure.flatten(2)[:, None], 0.0, flat.clamp_max(0) * top.flatten(2)[:, None])
    return back.reshape(n, s, *low.shape[1:]), more.flatten(2).sum(2)

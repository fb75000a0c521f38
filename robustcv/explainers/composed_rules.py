"""DeepLIFT's rules for functions that are more than one value at a time: pooling, normalisation, softmax, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from robustcv.errors import UserError

if TYPE_CHECKING:
    from robustcv.explainers.multipliers import Rules

Function = Callable[..., Any]


def divided(rules: Rules, a: Any, b: Any, **kwargs: Any) -> Tensor:
    """Divide; by a live tensor it is a product with the reciprocal."""
    if not (isinstance(b, Tensor) and b.requires_grad) and not kwargs.get("rounding_mode"):
        return torch.div(a, b)
    return rules.product(torch.mul, a, rules.elementwise("reciprocal", torch.reciprocal, b))


def power(rules: Rules, x: Tensor, exponent: Any) -> Tensor:
    """Raise to a number."""
    if isinstance(exponent, Tensor):
        raise refused("pow with a tensor for exponent")
    name = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}.get(exponent, "pow")
    return rules.elementwise(name, lambda value: value**exponent, x)


def dropout(rules: Rules, x: Tensor, p: float = 0.5, training: bool = True, **kwargs: Any) -> Tensor:
    """Leave out nothing: a model is explained in eval mode."""
    if training and p > 0:
        raise refused("dropout that is active (call model.eval())")
    return x


def max_pool2d(rules: Rules, x: Tensor, *args: Any, return_indices: bool = False, **kwargs: Any) -> Tensor:
    """Take maxima: the place that holds the larger of the two maxima has all of the difference."""
    return _pooled(rules, x, lambda value: functional.max_pool2d(value, *args, return_indices=True, **kwargs))


def adaptive_max_pool2d(rules: Rules, x: Tensor, *args: Any, return_indices: bool = False, **kwargs: Any) -> Tensor:
    """Take maxima over windows that follow from the output's size."""
    return _pooled(rules, x, lambda value: functional.adaptive_max_pool2d(value, *args, return_indices=True, **kwargs))


def _pooled(rules: Rules, x: Tensor, pool: Function) -> Tensor:
    x0 = rules.reference("max_pool2d", x)
    if x0 is None:
        return pool(x)[0]  # type: ignore[no-any-return]
    with torch.no_grad():
        value, place = pool(x.detach())
        value0, place0 = pool(x0)  # of one image, where all share it
        place = torch.where(value >= value0, place, place0).flatten(2)
        moved = _at(x.detach(), place).sub_(_at(x0.expand_as(x), place))
        slope = (value - value0).flatten(2).div_(moved).nan_to_num_(1.0)  # at most 1, and 0/0 where nothing moved
    return _Picked.apply(x, (value, place, slope))  # type: ignore[no-any-return]


def _at(x: Tensor, place: Tensor) -> Tensor:
    """Give the value at a place of each plane, laid out in memory as the places are."""
    return torch.gather(x.flatten(2), 2, place, out=torch.empty_like(place, dtype=x.dtype))


class _Picked(torch.autograd.Function):
    """Has the values given; what comes back goes, times a slope, to one place of each plane.

    They come as a tuple: an input that is given back would be a view, which the model could not change in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        value, place, slope = given
        ctx.save_for_backward(place, slope)
        ctx.shape, ctx.last = x.shape, x.is_contiguous(memory_format=torch.channels_last)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        place, slope = ctx.saved_tensors
        share = slope.mul_(gradients[0].flatten(2))  # used once
        layout = torch.channels_last if ctx.last else torch.contiguous_format
        planes = torch.empty(ctx.shape, dtype=share.dtype, device=share.device, memory_format=layout).zero_()
        planes.view(*ctx.shape[:2], -1).scatter_add_(2, place, share)
        return planes, None


def softmax(rules: Rules, x: Tensor, dim: int = -1, *args: Any, **kwargs: Any) -> Tensor:
    """Normalise exponentials: exp, sum, reciprocal and product by their rules, shifted by a common maximum."""
    x0 = rules.reference("softmax", x)
    value = functional.softmax(x, dim)
    if x0 is None:
        return value
    with torch.no_grad():
        top = torch.maximum(x.detach(), x0).amax(dim, keepdim=True)
        e, e0 = (x.detach() - top).exp(), (x0 - top).exp()
        moved = x.detach() - x0
        slope = torch.where(
            moved.abs() > 1e-3, (e - e0) / moved, e0 * (1 + moved / 2 * (1 + moved / 3 * (1 + moved / 4)))
        )
        q, q0 = 1 / e.sum(dim, keepdim=True), 1 / e0.sum(dim, keepdim=True)
    rise = slope * x
    linear = rise * ((q + q0) / 2) - (e + e0) / 2 * (q * q0) * rise.sum(dim, keepdim=True)
    return valued(linear, value.detach())


def normalised(rules: Rules, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Subtract the mean and divide by the standard deviation over some axes of each image."""
    return scaled(rules, x - x.mean(axes, keepdim=True), axes, eps)


def scaled(rules: Rules, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Multiply by r = rsqrt(mean of squares + eps).

    A product, but with harmonic weights in place of halves: x has the multiplier 2 r r0 / (r + r0), r has
    (y + y0) / (r + r0). That sums as exactly, and does not cancel where the reference is constant and r0 huge.
    """
    x0 = rules.reference("scaled", x)
    r = (x.detach().square().mean(axes, keepdim=True) + eps).rsqrt()
    if x0 is None:
        return x * (x.square().mean(axes, keepdim=True) + eps).rsqrt()
    with torch.no_grad():
        r0 = (x0.square().mean(axes, keepdim=True) + eps).rsqrt()
        both = r + r0
    length = (x * (x.detach() + x0)).mean(axes, keepdim=True)
    linear = x * (2 * r * r0 / both) - (x.detach() * r + x0 * r0) / both * ((r * r0).square() / both) * length
    return valued(linear, x.detach() * r)


def unit(rules: Rules, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **rest: Any) -> Tensor:
    """Divide by the length along one axis."""
    if p != 2.0:
        raise refused(f"normalize with p={p:g}")
    return scaled(rules, x, (dim,), eps**2 / x.shape[dim]) / math.sqrt(x.shape[dim])


def einsum(rules: Rules, equation: str, *factors: Any) -> Tensor:
    """Multiply two tensors and sum as the equation says."""
    factors = tuple(factors[0]) if len(factors) == 1 else factors
    if len(factors) != 2:
        raise refused("einsum of other than two")
    return rules.product(lambda a, b: torch.einsum(equation, a, b), *factors)


def layer_norm(
    rules: Rules, x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any
) -> Tensor:
    """Normalise over the last axes."""
    scaled = normalised(rules, x, tuple(range(-len(shape), 0)), eps)
    return (scaled if weight is None else scaled * weight) + (0 if bias is None else bias)


def group_norm(
    rules: Rules, x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any
) -> Tensor:
    """Normalise over groups of channels and all places."""
    scaled = normalised(rules, x.reshape(len(x), groups, -1), (2,), eps).reshape(x.shape)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (scaled if weight is None else scaled * weight.reshape(shape)) + (0 if bias is None else bias.reshape(shape))


def instance_norm(
    rules: Rules,
    x: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel over its places."""
    if not use_input_stats:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    return group_norm(rules, x, x.shape[1], weight, bias, eps)


def batch_norm(
    rules: Rules,
    x: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *rest: Any,
) -> Tensor:
    """Normalise by stored statistics, which is linear."""
    if training:
        raise refused("batch_norm in training mode (call model.eval())")
    return functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)


def attention(
    rules: Rules,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **kwargs: Any,
) -> Tensor:
    """Attend: two products and a softmax."""
    scores = rules.product(
        torch.matmul, q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale), k.transpose(-2, -1)
    )
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -1e30) if attn_mask.dtype == torch.bool else scores + attn_mask
    return rules.product(torch.matmul, softmax(rules, scores, -1), v)


def multi_head_attention(
    rules: Rules,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    weight: Any,
    bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_weight: Tensor,
    out_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as nn.MultiheadAttention does (length first), with packed weights and without extra keys."""
    if use_separate_proj_weight or bias_k is not None or add_zero_attn or key_padding_mask is not None:
        raise refused("multi_head_attention_forward with separate weights, extra keys or padding")
    length, n, _ = query.shape
    weights, biases = weight.chunk(3), (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = (
        functional.linear(each, w, b).reshape(len(each), n * heads, width // heads).transpose(0, 1)
        for each, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    together = attention(rules, q, k, v, attn_mask).transpose(0, 1).reshape(length, n, width)
    return functional.linear(together, out_weight, out_bias), None


COMPOSED: dict[str, Function] = {
    "div": divided,
    "rtruediv": lambda rules, x, number: rules.elementwise("reciprocal", torch.reciprocal, x) * number,
    "pow": power,
    "dropout": dropout,
    "max_pool2d": max_pool2d,
    "adaptive_max_pool2d": adaptive_max_pool2d,
    "softmax": softmax,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "batch_norm": batch_norm,
    "scaled_dot_product_attention": attention,
    "normalize": unit,
    "einsum": einsum,
    "multi_head_attention_forward": multi_head_attention,
}


def refused(what: str) -> UserError:
    """Refuse a function that has no rule, by name."""
    return UserError(
        "RCV-E101",
        f"deep_lift has no rule for {what}",
        "it is not linear, so its share of the logit would be left out and the map would be wrong",
        "explain this model by integrated_gradients, which needs no rules",
    )


def valued(linear: Tensor, value: Tensor) -> Tensor:
    """Give a tensor with the value of one and the gradient of another."""
    return _Valued.apply(linear, value)  # type: ignore[no-any-return]


class _Valued(torch.autograd.Function):
    """Has the value of one tensor and the gradient of another."""

    @staticmethod
    def forward(ctx: Any, linear: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def tiny(x: Tensor) -> float:
    """Give the difference below which two inputs count as the same."""
    return 1e-12 if x.dtype == torch.float64 else 1e-6

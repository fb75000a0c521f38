"""DeepLIFT's rules at function level: every nonlinear function gets the slope between two inputs as its gradient.

A pass over the reference images is recorded; a pass over the images, under the same rules, then gives each nonlinear
function the gradient (output - reference output) / (input - reference input). Functions are met where they are called,
so functional, in-place and reused activations are all seen. What is neither linear nor has a rule is refused by name.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from robustcv.errors import UserError
from robustcv.explainers.composed_rules import COMPOSED, refused, tiny, valued

Function = Callable[..., Any]

ELEMENTWISE = frozenset(
    """abs celu clamp clamp_max clamp_min clip cos elu erf exp gelu hardshrink hardsigmoid hardswish hardtanh
    leaky_relu log log1p logsigmoid mish reciprocal relu relu6 rsqrt selu sigmoid silu sin softplus softshrink
    softsign sqrt square tanh tanhshrink threshold""".split()
)
LINEAR = frozenset(
    """adaptive_avg_pool1d adaptive_avg_pool2d add alias avg_pool1d avg_pool2d cat channel_shuffle chunk clone
    concat concatenate contiguous conv1d conv2d conv3d conv_transpose2d copy cumsum diagonal double expand
    expand_as flatten flip float fold gather getitem index_select interpolate iter linear masked_fill mean
    moveaxis movedim narrow neg pad permute pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape
    reshape_as roll rsub select split squeeze stack sub subtract sum swapaxes t tensor_split tile to transpose
    type_as unbind unflatten unfold unsqueeze upsample view view_as where""".split()
)
LOOKS = frozenset(
    """dim get get_device is_contiguous is_floating_point len ndimension new_empty new_full new_ones new_zeros
    numel ones_like register_hook requires_grad size stride zeros_like""".split()
)
MULTILINEAR = frozenset("addmm baddbmm bilinear".split())  # linear where one factor alone depends on the image
PRODUCTS: dict[str, Function] = {
    "mul": torch.mul,
    "multiply": torch.mul,
    "matmul": torch.matmul,
    "bmm": torch.bmm,
    "mm": torch.mm,
}
OPERATORS = dict(
    pair.split(":")
    for pair in """iadd:add radd:add isub:sub imul:mul rmul:mul itruediv:div truediv:div true_divide:div divide:div
    rdiv:rtruediv rmatmul:matmul ipow:pow native_channel_shuffle:channel_shuffle dropout1d:dropout
    dropout2d:dropout dropout3d:dropout alpha_dropout:dropout feature_alpha_dropout:dropout""".split()
)

SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (f(a) - f(b)) / (a - b), free of cancellation
    "square": lambda a, b: a + b,
    "reciprocal": lambda a, b: -1 / (a * b),
    "rsqrt": lambda a, b: -1 / (a.sqrt() * b.sqrt() * (a.sqrt() + b.sqrt())),
    "sqrt": lambda a, b: 1 / (a.sqrt() + b.sqrt()),
}


class Rules(TorchFunctionMode):
    """Within this context nonlinear functions have DeepLIFT's multipliers for gradients.

    Parameters
    ----------
    tape
        The inputs of nonlinear functions in an earlier pass over the reference images; None: this is that pass.

    Raises
    ------
    UserError
        At the first function that depends on the image and has no rule.
    """

    def __init__(self, tape: list[tuple[str, Tensor]] | None = None) -> None:
        super().__init__()
        self.recording = tape is None
        self.tape = [] if tape is None else tape
        self.position = 0

    def __torch_function__(
        self, func: Function, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Treat one call."""
        kwargs = dict(kwargs or {})
        name = _name(func)
        live = [each for each in _tensors((args, kwargs)) if each.requires_grad]
        if not live or name in LOOKS or name in LINEAR:
            return func(*args, **kwargs)
        in_place = kwargs.pop("inplace", False) or _is_in_place(func)
        result = self._nonlinear(name, len(live), func, args, kwargs)
        return args[0].copy_(result) if in_place else result

    def _nonlinear(self, name: str, live: int, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in ELEMENTWISE:
            plain = _out_of_place(func, name)
            return self.elementwise(name, lambda x: plain(x, *args[1:], **kwargs), args[0])
        if name in PRODUCTS:
            return self.product(PRODUCTS[name], args[0], args[1])
        if name in COMPOSED:
            return COMPOSED[name](self, *args, **kwargs)
        if name in MULTILINEAR and live == 1:
            return func(*args, **kwargs)
        raise refused(name)

    def reference(self, name: str, value: Tensor) -> Tensor | None:
        """Record a value, or give the one recorded at this point of the reference pass.

        Raises
        ------
        UserError
            If the reference pass called something else here.
        """
        if self.recording:
            self.tape.append((name, value.detach().clone()))  # it may be changed in place later
            return None
        recorded = self.tape[self.position] if self.position < len(self.tape) else ("nothing", value)
        self.position += 1
        found = _fitted(recorded[1], value) if recorded[0] == name else None
        if found is None:
            raise UserError(
                "RCV-E101",
                f"the model calls {name} for the image where it calls {recorded[0]} for the reference",
                "what it computes depends on what it sees, so the two cannot be compared step by step",
                "explain this model by integrated_gradients, which needs no rules",
            )
        return found

    def elementwise(self, name: str, function: Function, x: Tensor) -> Tensor:
        """Apply a function of each value alone; its multiplier is the slope between the two values."""
        x0 = self.reference(name, x)
        if x0 is None:
            return function(x)  # type: ignore[no-any-return]
        with torch.no_grad():
            own = x.detach()
            value: Tensor = function(own)
            slope = SLOPES[name](own, x0) if name in SLOPES else _slope(name, function, own, x0, value)
        return _Sloped.apply(x, (value, slope))  # type: ignore[no-any-return]

    def product(self, function: Function, a: Any, b: Any) -> Tensor:
        """Multiply two live tensors: each one's multiplier is the mean of the other over image and reference."""
        if not all(isinstance(each, Tensor) and each.requires_grad for each in (a, b)):
            return function(a, b)  # type: ignore[no-any-return]
        a0, b0 = self.reference("left factor", a), self.reference("right factor", b)
        if a0 is None or b0 is None:
            return function(a, b)  # type: ignore[no-any-return]
        linear = function(a, (b.detach() + b0) / 2) + function((a.detach() + a0) / 2, b)
        return valued(linear, function(a.detach(), b.detach()))


class _Sloped(torch.autograd.Function):
    """Has the values of one tensor, and the slope given as its gradient.

    They come as a tuple: an input that is given back would be a view, which the model could not change in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, given: tuple[Tensor, Tensor]) -> Tensor:
        value, slope = given
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (slope,) = ctx.saved_tensors
        return slope.mul_(gradients[0]), None  # used once; its layout suits the net


def _slope(name: str, function: Function, x: Tensor, x0: Tensor, value: Tensor) -> Tensor:
    """Compute (f(x) - f(x0)) / (x - x0), and f' where the two meet; in place, for this is most of what a map costs."""
    if name == "relu":
        return _relu_slope(x, x0)
    moved = x - x0
    slope: Tensor = (value - function(x0)).div_(moved)
    met = moved.abs_() <= tiny(x)
    if not bool(met.any()):
        return slope
    with torch.enable_grad():
        inputs = x.clone().requires_grad_()
        (own,) = torch.autograd.grad(function(inputs).sum(), inputs)
    return torch.where(met, own, slope)


def _relu_slope(x: Tensor, x0: Tensor) -> Tensor:
    """Compute max(x, x0) / |x - x0| between 0 and 1: exact however near the two are, 1 where they meet above 0."""
    below = -min(torch.finfo(x.dtype).tiny, 1e-7)  # float16's least normal number is as large as what networks compute
    x0 = torch.where(x0 == 0, below, x0)  # of 0 and 0 the slope is 0, and not 0/0
    return torch.maximum(x, x0).div_((x - x0).abs_()).clamp_(0, 1)


def _fitted(recorded: Tensor, value: Tensor) -> Tensor | None:
    """Make a recorded tensor of one reference, perhaps folded with heads or windows, as large as that of the images."""
    if recorded.ndim != value.ndim:
        return None
    ratios = [1 if have == 1 else want // have for have, want in zip(recorded.shape, value.shape, strict=True)]
    tiled = recorded.repeat(ratios) if max(ratios) > 1 else recorded
    return tiled if all(have in (1, want) for have, want in zip(tiled.shape, value.shape, strict=True)) else None


def _name(func: Function) -> str:
    """Name a function without underscores, operators by what they do."""
    name = getattr(func, "__name__", str(func)).strip("_")
    name = name.removesuffix("_with_indices").removeprefix("boolean_dispatch")
    return OPERATORS.get(name, name)


def _is_in_place(func: Function) -> bool:
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in (
        "__iadd__",
        "__isub__",
        "__imul__",
        "__itruediv__",
        "__ipow__",
    )


def _out_of_place(func: Function, name: str) -> Function:
    if not _is_in_place(func):
        return func
    return getattr(Tensor, name, None) or getattr(functional, name)  # type: ignore[no-any-return]


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, dict):
        yield from _tensors(tuple(given.values()))
    elif isinstance(given, list | tuple):
        for each in given:
            yield from _tensors(each)

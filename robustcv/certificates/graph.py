"""A network as a list of operations that bounds know: affine, monotone linear, sums, ReLU and max pooling."""

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from robustcv.classifier import Classifier
from robustcv.errors import UserError, first_line

Call = Callable[..., Tensor]
Kind = Literal["input", "affine", "monotone", "add", "relu", "max"]


@dataclass(frozen=True)
class Operation:
    """One operation of a network.

    Parameters
    ----------
    kind
        ``affine`` has weights of both signs; ``monotone`` is linear with weights that are never negative.
    inputs
        Places of its arguments in the list.
    call
        The operation on a batch.
    spread
        For ``affine``: the operation with the magnitudes of its weights and without its bias.
    back
        The transposed operation, ``back(form, shape of the argument)``, where it is known; else autograd finds it.
    """

    kind: Kind
    inputs: tuple[int, ...] = ()
    call: Call = lambda x: x
    spread: Call | None = None
    back: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None


def operations_of(classifier: nn.Module, shape: tuple[int, int, int]) -> list[Operation]:
    """List the operations of a frozen classifier, in float64; the last one gives the logits.

    Parameters
    ----------
    shape
        Channels, height and width of the images.

    Raises
    ------
    UserError
        For an operation without a rule here, or a network that torch.fx cannot follow.
    """
    made = [Operation("input")]
    network = copy.deepcopy(classifier).double().eval()
    if isinstance(network, Classifier):
        if network.size not in (None, tuple(shape[1:])):
            raise _no_rule(f"resizing images of {shape[2]}x{shape[1]} pixels")
        mean, std = network.mean, network.std
        made.append(Operation("affine", (0,), lambda x: (x - mean) / std, lambda r: r / std.abs()))
        network = network.network
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # torch.fx raises whatever the model's own code does with a stand-in for a tensor
        raise _no_rule(f"control flow ({first_line(error, 80)})") from error
    places: dict[fx.Node, int] = {}
    modules = dict(network.named_modules())
    for node in graph.nodes:
        if node.op == "placeholder":
            places[node] = len(made) - 1
        elif node.op == "output":
            return _until(made, places[node.args[0]])
        else:
            found = _operation(node, modules, places)
            if isinstance(found, Operation):
                made.append(found)
            places[node] = len(made) - 1 if isinstance(found, Operation) else found
    raise AssertionError("a traced graph has an output")


AGREEMENT = 1e-3  # largest difference of logits, in units of the largest: float32 against float64


def require_same(operations: list[Operation], classifier: nn.Module, images: Tensor) -> None:
    """Hold a list of operations against the classifier it was made of, on images and on noise.

    Raises
    ------
    UserError
        If they differ: the trace has missed something, and a proof about it would be about another function.
    """
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    points = torch.cat([images, noise])
    values: list[Tensor] = []
    for operation in operations:
        given = [values[place] for place in operation.inputs]
        values.append(operation.call(*given) if given else points.double())
    with torch.no_grad():
        logits = classifier(points).double()
    if not bool((values[-1] - logits).abs().max() <= AGREEMENT * logits.abs().max().clamp_min(1e-30)):
        raise _no_rule("what this model does: its operations, one by one, do not give its logits")


def _until(made: list[Operation], last: int) -> list[Operation]:
    return made[: last + 1]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return bool(m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential))


def _no_rule(what: str) -> UserError:
    return UserError(
        "RCV-E110",
        f"there is no rule to bound {what}",
        "bounds are for networks of convolutions, linear layers, batch norm, ReLU, pooling and sums",
        "leave bounds out of --certify; smoothing works on any classifier",
    )


_MONOTONE_MODULES = (nn.Flatten, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_MONOTONE_CALLS = (torch.flatten, functional.adaptive_avg_pool2d, functional.avg_pool2d, operator.getitem, torch.mean)
_SAME = (nn.Identity, nn.Dropout, nn.Dropout2d)


def _operation(node: fx.Node, modules: dict[str, nn.Module], places: dict[fx.Node, int]) -> Operation | int:
    """Give the operation of one node, or the place of its argument where it changes nothing."""
    tensors = [each for each in node.args if isinstance(each, fx.Node)]
    inputs = tuple(places[each] for each in tensors)
    if node.op == "call_module":
        module = modules[str(node.target)]
        _refuse_in_place(node, bool(getattr(module, "inplace", False)))
        if module._forward_hooks or module._forward_pre_hooks:
            raise _no_rule(f"the hooks of {type(module).__name__}")
        return _of_module(module, inputs)
    if node.op == "call_function":
        if node.target in (operator.add, torch.add, operator.iadd) and len(inputs) == 2 and not node.kwargs:
            return Operation("add", inputs, torch.add)
        if node.target in (functional.relu, torch.relu):
            _refuse_in_place(node, bool(node.kwargs.get("inplace")))
            return Operation("relu", inputs, functional.relu)
        if node.target is functional.dropout and node.kwargs.get("training") is False:
            return inputs[0]
        if len(inputs) == 1 and (node.target in _MONOTONE_CALLS or _is_zero_padding(node)):
            return Operation("monotone", inputs, _bound_to(node.target, node))
        if node.target is functional.max_pool2d and len(inputs) == 1:
            return Operation("max", inputs, _pool(*node.args[1:], **node.kwargs))
    if node.op == "call_method" and len(inputs) == 1:
        if node.target == "relu":
            return Operation("relu", inputs, functional.relu)
        if node.target in ("flatten", "mean"):
            return Operation("monotone", inputs, _bound_to(getattr(torch.Tensor, str(node.target)), node))
    raise _no_rule(f"{getattr(node.target, '__name__', node.target)}")


def _refuse_in_place(node: fx.Node, in_place: bool) -> None:
    """Refuse an operation that changes a value which others read: the trace shows them the old one."""
    argument = node.args[0]
    if in_place and (not node.users or (isinstance(argument, fx.Node) and len(argument.users) > 1)):
        raise _no_rule("an in-place ReLU whose argument is used again")


def _is_zero_padding(node: fx.Node) -> bool:
    plain = node.target is functional.pad and len(node.args) < 3
    return bool(plain and node.kwargs.get("mode", "constant") == "constant" and not node.kwargs.get("value"))


def _bound_to(function: Any, node: fx.Node) -> Call:
    rest, keywords = node.args[1:], dict(node.kwargs)
    return lambda x: function(x, *rest, **keywords)


def _of_module(module: nn.Module, inputs: tuple[int, ...]) -> Operation | int:
    if isinstance(module, _SAME):
        return inputs[0]
    if isinstance(module, nn.ReLU):
        return Operation("relu", inputs, functional.relu)
    if isinstance(module, nn.MaxPool2d) and module.dilation in (1, (1, 1)) and not module.ceil_mode:
        return Operation("max", inputs, _pool(module.kernel_size, module.stride, module.padding))
    if isinstance(module, _MONOTONE_MODULES):
        return Operation("monotone", inputs, module)
    if isinstance(module, nn.Linear):
        matrix = module.weight
        return Operation(
            "affine", inputs, module, lambda r: functional.linear(r, matrix.abs()), lambda form, _: form @ matrix
        )
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
        weight, keywords = module.weight, (module.stride, module.padding, module.dilation, module.groups)
        return Operation(
            "affine",
            inputs,
            module,
            lambda r: module._conv_forward(r, weight.abs(), None),
            None
            if isinstance(module.padding, str)
            else lambda form, shape: conv2d_input(shape, weight, form, *keywords),
        )
    if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_var is not None:
        variance = module.running_var
        scale = (variance + module.eps).rsqrt() * (1 if module.weight is None else module.weight.abs())
        return Operation("affine", inputs, module, lambda r: r * scale.reshape(1, -1, *[1] * (r.ndim - 2)))
    raise _no_rule(type(module).__name__)


def _pool(kernel: Any, stride: Any = None, padding: Any = 0, **rest: Any) -> Call:
    if rest.get("ceil_mode") or rest.get("return_indices") or rest.get("dilation", 1) not in (1, (1, 1)):
        raise _no_rule("max pooling with dilation or ceil_mode")

    size, step, rim = _pair(kernel), _pair(kernel if stride is None else stride), _pair(padding)

    def pool(x: Tensor, *, return_indices: bool = False, windows: bool = False) -> Any:
        if not windows:
            kept: Any = functional.max_pool2d_with_indices(x, size, step, rim)
            return kept if return_indices else kept[0]
        padded = functional.pad(x, (rim[1], rim[1], rim[0], rim[0]), value=-torch.inf)
        n, c = x.shape[:2]
        parts = padded.unfold(2, size[0], step[0]).unfold(3, size[1], step[1])  # n c p q kernel kernel
        return parts.reshape(n, c, *parts.shape[2:4], -1)

    return pool


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))

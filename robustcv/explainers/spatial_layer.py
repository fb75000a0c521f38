"""The layer that a class activation map is drawn from: found by running the model, and named."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv.errors import UserError, unknown_name

Layout = Literal["nchw", "nhwc", "tokens", "class token first"]


@dataclass(frozen=True)
class Layer:
    """A module, how its output is laid out, and the forward-equivalents that finding it took."""

    name: str
    layout: Layout
    grid: tuple[int, int]
    cost: int

    @property
    def described(self) -> dict[str, str | int | float]:
        """Give the details for a result."""
        return {"layer": self.name, "resolution": f"{self.grid[0]}x{self.grid[1]}"}


def find_layer(classifier: nn.Module, image: Float[Tensor, "1 c h w"], target: Int64[Tensor, " 1"], name: str) -> Layer:
    """Find the last module whose output is spatial and whose places the logit still depends on.

    In a vision transformer the head reads the class token alone, so that the last block's places have no gradient: the
    search goes back until they have one.

    Raises
    ------
    UserError
        If no module has that name, or none is spatial.
    """
    modules = {each: module for each, module in classifier.named_modules() if each}
    if name != "auto" and name not in modules:
        raise unknown_name("layer", name, modules)
    outputs: list[tuple[str, Tensor]] = []
    token_counts: set[int] = set()

    def keep(module: nn.Module, given: Any, output: Any, *, label: str) -> None:
        if isinstance(output, Tensor) and output.ndim == 3:
            token_counts.add(output.shape[1])
        if isinstance(output, Tensor) and output.requires_grad and _layout(output, image) is not None:
            outputs.append((label, output))

    wanted = modules if name == "auto" else {name: modules[name]}
    with _Hooks(wanted, keep), torch.enable_grad():
        logits = classifier(image.clone().requires_grad_())
    outputs = [(label, each) for label, each in outputs if not _is_attention(each, token_counts)]
    if not outputs or not logits.requires_grad:
        raise UserError(
            "RCV-E102",
            "no layer of this model has a spatial output" if name == "auto" else f"the output of {name} is not spatial",
            "a class activation map is a layer's feature map, enlarged",
            "explain it by another method: integrated_gradients, shapley",
        )
    gradients = torch.autograd.grad(logits[0, target[0]], [output for _, output in outputs], allow_unused=True)
    for (label, output), gradient in reversed(list(zip(outputs, gradients, strict=True))):
        layout = _layout(output, image)
        assert layout is not None
        if gradient is not None and bool(_as_map(gradient, *layout).any()):
            return Layer(label, *layout, cost=2)
    label, output = outputs[-1]  # a constant logit: any layer gives the zero map
    return Layer(label, *(_layout(output, image) or ("nchw", (1, 1))), cost=2)


def features_at(
    classifier: nn.Module, images: Float[Tensor, "n c h w"], targets: Int64[Tensor, " n"], layer: Layer
) -> tuple[Float[Tensor, "n d gh gw"], Float[Tensor, "n d gh gw"]]:
    """Give the layer's features and the gradient of the target's logit there; the backward pass goes no further."""
    kept: list[Tensor] = []

    def cut(module: nn.Module, given: Any, output: Tensor, *, label: str) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1] * 1  # not a leaf, so that what follows may change it in place

    module = dict(classifier.named_modules())[layer.name]
    with _Hooks({layer.name: module}, cut), torch.enable_grad():
        logits = classifier(images)
    if not logits.requires_grad:
        raise UserError(
            "RCV-E102", f"the logits do not depend on {layer.name}", "so it has no gradient", "name another layer"
        )
    features = kept[-1]
    (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), features, allow_unused=True)
    gradient = torch.zeros_like(features) if gradient is None else gradient
    return _as_map(features.detach(), layer.layout, layer.grid), _as_map(gradient, layer.layout, layer.grid)


class _Hooks:
    """Forward hooks on some modules, taken off again whatever happens."""

    def __init__(self, modules: dict[str, nn.Module], hook: Any) -> None:
        self.modules, self.hook = modules, hook
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for label, module in self.modules.items():
            self.handles.append(
                module.register_forward_hook(lambda m, i, o, label=label: self.hook(m, i, o, label=label))
            )

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def _layout(output: Tensor, image: Tensor) -> tuple[Layout, tuple[int, int]] | None:
    """Tell how places lie in an output; None where there are fewer than 2 x 2 of them, or it is none."""
    h, w = image.shape[2:]
    if output.ndim == 4:
        _, a, b, c = output.shape
        fits_last, fits_first = _same_shape(b, c, h, w), _same_shape(a, b, h, w)
        if fits_last and min(b, c) > 1:
            return "nchw", (b, c)
        return ("nhwc", (a, b)) if fits_first and min(a, b) > 1 else None
    if output.ndim == 3 and len(output) == 1:
        for extra, layout in ((1, "class token first"), (0, "tokens")):
            grid = _grid(output.shape[1] - extra, h, w)
            if grid is not None:
                return layout, grid  # type: ignore[return-value]
    return None


def _is_attention(output: Tensor, token_counts: set[int]) -> bool:
    """Tell whether an output is a matrix of tokens (with or without a class token), which looks like a picture."""
    square = output.ndim == 4 and output.shape[2] == output.shape[3]
    return square and not token_counts.isdisjoint({output.shape[2], output.shape[2] - 1})


def _same_shape(a: int, b: int, h: int, w: int) -> bool:
    """Tell whether a grid has the image's proportions, up to a cell."""
    return abs(a * w - b * h) <= max(h, w)


def _grid(places: int, h: int, w: int) -> tuple[int, int] | None:
    rows = round(math.sqrt(places * h / w)) if places > 0 else 0
    return (
        (rows, places // rows)
        if rows > 1 and places % rows == 0 and places // rows > 1 and _same_shape(rows, places // rows, h, w)
        else None
    )


def _as_map(output: Tensor, layout: Layout, grid: tuple[int, int]) -> Float[Tensor, "n d gh gw"]:
    if layout == "nchw":
        return output
    if layout == "nhwc":
        return output.permute(0, 3, 1, 2)
    places = output[:, 1:] if layout == "class token first" else output
    found: Tensor = places.transpose(1, 2).unflatten(2, grid)
    return found

"""The fast path: the same function with fewer operations, taken only where it gives the same logits."""

import copy
import weakref
from collections import Counter
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robustcv import runtime
from robustcv.classifier import Classifier, logits_and_slope

SLOPES = 0.05  # largest difference of input gradients, as a share: rounding may switch a few ReLUs
AGREEMENT = 1e-4  # largest difference of logits, in units of the largest logit


def folded(classifier: nn.Module, images: Float[Tensor, "n c h w"]) -> nn.Module:
    """Fold batch norm and normalisation into the convolutions before and after them.

    Attacks ask the folded classifier; what they find is judged by the plain one.

    Parameters
    ----------
    classifier
        Frozen, in eval mode.
    images
        A few images on which both must agree: logits to 1e-4 of the largest, input gradients to 5 %.

    Returns
    -------
    Module
        A folded copy; the classifier itself where it cannot be traced, has nothing to fold, or disagrees.
    """
    network = _network(classifier)
    has_norm = any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())
    if not (has_norm or _absorbing(classifier, network)):
        return classifier
    try:
        fast = fuse(copy.deepcopy(network)) if has_norm else copy.deepcopy(network)
        if type(classifier) is Classifier:
            fast = _renormalised(classifier, fast)
        fast.eval().requires_grad_(False)
        fast.to(memory_format=torch.channels_last)
        return fast if agree(classifier, fast, images) else classifier
    except Exception:  # a module that torch.fx cannot trace, or whose parts cannot be replaced, runs as it is
        return classifier


def agree(
    classifier: nn.Module,
    fast: nn.Module,
    images: Float[Tensor, "n c h w"],
    *,
    logits: float = AGREEMENT,
    slopes: float = SLOPES,
) -> bool:
    """Compare logits and input gradients: a trace forgets `no_grad`, and with it what a stand-in gradient is for.

    ``logits`` is the largest difference of logits, in units of the largest, ``slopes`` that of the gradients, as a
    share of their length.
    """
    (given, slope), (fast_given, fast_slope) = (logits_and_slope(each, images) for each in (classifier, fast))
    near = (fast_given - given).abs().max() <= logits * given.abs().max().clamp_min(1e-30)
    return bool(near and (fast_slope - slope).norm() <= slopes * slope.norm())


def _absorbing(classifier: nn.Module, network: nn.Module) -> nn.Conv2d | None:
    """Give the first convolution where it can take in the normalisation exactly: no padding, which would be zeros."""
    first = next(iter(network.children()), None) if isinstance(network, nn.Sequential) else None
    if type(classifier) is not Classifier or classifier.size is not None:
        return None
    if not isinstance(first, nn.Conv2d) or first.groups != 1 or any(first.padding):
        return None
    return first


def _renormalised(classifier: Classifier, network: nn.Module) -> nn.Module:
    """Put a classifier's normalisation into its network's first convolution, or else around the network."""
    first = _absorbing(classifier, network)
    if first is None:
        return _around(classifier, network)
    with torch.no_grad():
        weight = first.weight / classifier.std
        shift = (weight * classifier.mean).sum((1, 2, 3))
        first.bias = nn.Parameter((first.bias if first.bias is not None else 0) - shift, requires_grad=False)
        first.weight = nn.Parameter(weight, requires_grad=False)
    return network


def _around(classifier: Classifier, network: nn.Module) -> Classifier:
    """Put a classifier's normalisation around another network."""
    mean, std = (values.flatten().tolist() for values in (classifier.mean, classifier.std))
    return Classifier(network, mean=mean, std=std, size=classifier.size).to(classifier.mean)


class Refolded:
    """The folded form of a classifier in training: traced once, and filled with the weights of the moment.

    Parameters
    ----------
    classifier
        In eval mode; not kept.

    Raises
    ------
    Exception
        Whatever torch.fx raises where it cannot trace the classifier.
    ValueError
        If a layer or a batch norm is used more than once: weights of the moment could not be told apart.
    """

    def __init__(self, classifier: nn.Module) -> None:
        network = _network(classifier)
        self.network = fuse(network).eval().requires_grad_(False)  # of a copy
        self.pairs = _pairs(network, self.network)
        self.network.to(memory_format=torch.channels_last)
        self.form: nn.Module = self.network
        if isinstance(classifier, Classifier) and network is not classifier:
            self.form = _around(classifier, self.network)
        self.device = next(network.parameters()).device
        self.layers = _layers(classifier)

    @torch.no_grad()
    def fill(self, classifier: nn.Module) -> nn.Module:
        """Take over the weights of the classifier it was made of, and give the folded form."""
        network = _network(classifier)
        if isinstance(self.form, Classifier) and isinstance(classifier, Classifier):
            self.form.size = classifier.size
            self.form.mean.copy_(classifier.mean)
            self.form.std.copy_(classifier.std)
        given = dict(network.state_dict())
        for layer, norm in self.pairs:
            weight, bias = f"{layer}.weight", f"{layer}.bias"
            mean, variance = given[f"{norm}.running_mean"], given[f"{norm}.running_var"]
            scale, shift = given.get(f"{norm}.weight"), given.get(f"{norm}.bias")
            eps = float(cast(Any, network.get_submodule(norm)).eps)
            given[weight], given[bias] = fuse_conv_bn_weights(
                given[weight], given.get(bias), mean, variance, eps, scale, shift
            )
        for name, held in self.network.state_dict().items():
            if name in given:  # constants of the trace are its own
                held.copy_(given[name])
        return self.form


_FOLLOWED: "weakref.WeakKeyDictionary[nn.Module, Refolded | None]" = weakref.WeakKeyDictionary()


def forget(classifier: nn.Module) -> None:
    """Trace and compare a classifier anew at its next `refolded`: so each epoch begins, a resumed one like any."""
    _FOLLOWED.pop(classifier, None)


def refolded(classifier: nn.Module, images: Float[Tensor, "n c h w"]) -> nn.Module:
    """Fold the batch norm of a classifier in training, for one attack: no more than a copy of its weights.

    Parameters
    ----------
    classifier
        Frozen, in eval mode.
    images
        A few images, on which both must agree as in `folded`, in float32, when the classifier is traced: at the first
        call, and at the first after `forget`.

    Returns
    -------
    Module
        The folded form, which the next call fills anew; the classifier itself where it cannot be folded, or disagrees.
    """
    followed = _FOLLOWED.get(classifier)
    if followed is None and classifier in _FOLLOWED:
        return classifier
    if followed is not None and followed.device == images.device and followed.layers == _layers(classifier):
        return followed.fill(classifier)
    try:
        followed = Refolded(classifier)
        form = followed.fill(classifier)
        with torch.autocast(images.device.type, enabled=False):
            fine = agree(classifier, form, images)
    except Exception as error:  # as in `folded`
        if runtime.out_of_memory(error):
            raise
        fine = False
    _FOLLOWED[classifier] = followed if fine else None
    return form if fine else classifier


def _layers(classifier: nn.Module) -> tuple[int, ...]:
    """Tell one make of a classifier from another, whose layers were exchanged."""
    return tuple(map(id, classifier.modules()))


def _network(classifier: nn.Module) -> nn.Module:
    return classifier.network if type(classifier) is Classifier else classifier


def _pairs(network: nn.Module, fused: nn.Module) -> list[tuple[str, str]]:
    """Name each layer that took in a batch norm, and that batch norm; each must be used once."""
    calls = [node for node in fx.symbolic_trace(network).graph.nodes if node.op == "call_module"]
    layers = [network.get_submodule(str(node.target)) for node in calls]
    used = Counter(map(id, layers))
    kept = {name for name, _ in fused.named_modules()}
    found = []
    for node, norm in zip(calls, layers, strict=True):
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        if used[id(norm)] > 1:  # one of its calls may be folded and another not
            raise ValueError(f"{node.target} is used more than once")
        if str(node.target) in kept:
            continue
        before = node.args[0]
        if not (isinstance(before, fx.Node) and before.op == "call_module"):
            raise ValueError(f"{node.target} follows no layer")
        layer = network.get_submodule(str(before.target))
        if used[id(layer)] > 1 or isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"{before.target} takes in more than one batch norm")
        found.append((str(before.target), str(node.target)))
    return found

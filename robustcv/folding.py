"""The fast path: the same function with fewer operations, taken only where it gives the same logits."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

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
    network = classifier.network if type(classifier) is Classifier else classifier
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
        mean, std = (values.flatten().tolist() for values in (classifier.mean, classifier.std))
        return Classifier(network, mean=mean, std=std, size=classifier.size).to(classifier.mean.device)
    with torch.no_grad():
        weight = first.weight / classifier.std
        shift = (weight * classifier.mean).sum((1, 2, 3))
        first.bias = nn.Parameter((first.bias if first.bias is not None else 0) - shift, requires_grad=False)
        first.weight = nn.Parameter(weight, requires_grad=False)
    return network

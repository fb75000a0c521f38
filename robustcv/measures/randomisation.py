"""Model randomisation: does the map change when the model's weights are thrown away? It must."""

import copy

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.errors import UserError
from robustcv.measures.ranking import relevance
from robustcv.measures.sensitivity import Explain


def randomisation_smooth(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    explain: Explain,
    stages: int = 4,
    samples: int = 4,
    noise: float = 0.02,
    seeds: Int64[Tensor, " n"] | None = None,
    seed: int = 0,
) -> Float[Tensor, " n"]:
    """Compute how alike the map stays while the weights are re-drawn from the top down (smooth MPRT).

    Adebayo et al. 2018, with maps averaged over noise as Hedstroem et al. 2024 advise: the mean, over the stages of the
    cascade, of |Spearman's correlation| between the map of the model and of the randomised one.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; a copy is randomised.
    images, targets, heatmaps
        What was explained, and the maps.
    explain
        ``explain(classifier, images, targets) -> heatmaps``: the method, with its options and seeds.
    stages
        Steps of the cascade; the last has all layers re-drawn.
    samples
        Noisy copies of each image that a map is averaged over.
    noise
        Standard deviation, in units of [0, 1].
    seeds
        One per image, for the noise; None uses the position in the batch.
    seed
        Of the new weights.

    Returns
    -------
    Tensor
        One correlation per image, 0 to 1; lower is better. NaN for a map that is the same everywhere.
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds

    def smoothed(model: nn.Module) -> Tensor:
        total = torch.zeros_like(heatmaps)
        for number in range(samples):
            shift = noise * draws.normal(seeds, tuple(images.shape[1:]), 90 + number).to(images)
            total += explain(model, (images + shift).clamp(0, 1), targets)
        return total / samples

    first = smoothed(classifier)
    alike = [spearman(first, smoothed(model)).abs() for model in cascade(classifier, stages, seed)]
    return torch.stack(alike).mean(0).where(_varies(first), torch.nan)


def randomisation_efficient(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    heatmaps: Float[Tensor, "n m h w"],
    *,
    explain: Explain,
    bins: int = 100,
    seed: int = 0,
) -> Float[Tensor, " n"]:
    """Compute the relative rise of the map's entropy when all weights are re-drawn (efficient MPRT; Hedstroem 2024).

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; a copy is randomised.
    images, targets, heatmaps
        What was explained, and the maps.
    explain
        ``explain(classifier, images, targets) -> heatmaps``: the method, with its options and seeds.
    bins
        Of the histogram of each map's values.
    seed
        Of the new weights.

    Returns
    -------
    Tensor
        One number per image; higher is better: a map that told something tells less of a random model. NaN for a map
        that is the same everywhere.
    """
    (random,) = cascade(classifier, 1, seed)
    before, after = _entropy(heatmaps, bins), _entropy(explain(random, images, targets), bins)
    return ((after - before) / before.clamp_min(1e-6)).where(_varies(heatmaps), torch.nan)


def cascade(classifier: nn.Module, stages: int, seed: int) -> list[nn.Module]:
    """Copy the classifier ``stages`` times, with more and more layers re-drawn, from the top down.

    What no layer can draw (class tokens, position embeddings) is shuffled in the last copy.

    Raises
    ------
    UserError
        If no layer knows how to draw its weights.
    """
    drawing = ("reset_parameters", "_reset_parameters")
    layers = [(name, each) for name, module in classifier.named_modules() for each in drawing if hasattr(module, each)]
    if not layers:
        raise UserError(
            "RCV-E109",
            "no layer of this model can draw its weights anew",
            "none has reset_parameters(), so its maps cannot be compared with those of a random model",
            "leave the randomisation measures out",
        )
    copies = []
    for stage in range(1, stages + 1):
        model = copy.deepcopy(classifier)
        modules = dict(model.named_modules())
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for name, draw in reversed(layers[len(layers) - -(-len(layers) * stage // stages) :]):
                getattr(modules[name], draw)()
            if stage == stages:
                _shuffle_unchanged(model, before)
        copies.append(model.requires_grad_(False))
    return copies


def _shuffle_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if parameter.numel() > 1 and torch.equal(parameter, before[name]):
            flat = parameter.detach().flatten()
            parameter.data = flat[torch.randperm(len(flat)).to(flat.device)].reshape(parameter.shape)


def spearman(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Compute Spearman's rank correlation of two maps' pixels, ties sharing their rank; 0 where one is constant."""
    first, second = (_mean_ranks(relevance(each).flatten(1)) for each in (a, b))
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    below = first.norm(dim=1) * second.norm(dim=1)
    share: Tensor = (first * second).sum(1) / below.clamp_min(1e-30)
    return share.where(below > 0, 0.0).float()


def _mean_ranks(values: Tensor) -> Tensor:
    order = values.argsort(dim=1)
    ordered = values.gather(1, order)
    new = torch.cat([torch.ones_like(order[:, :1], dtype=torch.bool), ordered[:, 1:] != ordered[:, :-1]], 1)
    group = new.long().cumsum(1) - 1
    places = torch.arange(values.shape[1], device=values.device, dtype=torch.float64).expand_as(values)
    total = torch.zeros_like(places).scatter_add_(1, group, places)
    count = torch.zeros_like(places).scatter_add_(1, group, torch.ones_like(places))
    mean = (total / count.clamp_min(1)).gather(1, group)
    return torch.empty_like(mean).scatter_(1, order, mean)


def _varies(heatmaps: Tensor) -> Tensor:
    flat = relevance(heatmaps).flatten(1)
    return flat.amax(1) > flat.amin(1)


def _entropy(heatmaps: Tensor, bins: int) -> Tensor:
    found = []
    for each in relevance(heatmaps).flatten(1):
        share = torch.histc(each.float().cpu(), bins) / each.numel()
        found.append(-(share * share.clamp_min(1e-30).log()).sum())
    return torch.stack(found).to(heatmaps.device)

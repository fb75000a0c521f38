"""Weather: brightness, snow, frost, fog and spatter."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from robustcv import draws
from robustcv.attacks.corruptions.filters import along_a_line, constants, gaussian, grey, zoomed


def brightness(
    images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Raise the value of hue, saturation and value; deterministic (Hendrycks and Dietterich 2019)."""
    more: float = constants(images, severity, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))
    if images.shape[1] == 1:
        return (images + more).clamp_(0, 1)
    value = images.amax(1, keepdim=True)
    raised = (value + more).clamp_max_(1)
    # hue and saturation stay when all channels keep their ratio to the value; black becomes grey
    out: Tensor = torch.where(value > 0, images * (raised / value.clamp_min(1e-12)), raised)
    return out


def snow(images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Let large flakes fall along a line, on a whitened picture (Hendrycks and Dietterich 2019)."""
    mean, spread, zoom, least, radius, sigma, kept = constants(
        images,
        severity,
        (
            (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
        ),
        (
            (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
            (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
            (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
        ),
    )
    noise = draws.fill(seeds, (1, *images.shape[-2:]), "normal").to(images)
    flakes = zoomed(noise.mul_(spread).add_(mean), zoom)
    flakes = flakes.masked_fill_(flakes < least, 0).clamp_(0, 1)
    degrees = 90 * draws.uniform(seeds, (1,), stream=1).squeeze(1) - 135
    flakes = (along_a_line(flakes, radius, sigma, degrees) * 255).round_().div_(255)
    white = torch.maximum(images, grey(images) * 1.5 + 0.5)
    out: Tensor = (kept * images + (1 - kept) * white + flakes + flakes.flip(2, 3)).clamp_(0, 1)
    return out


def frost(images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Look through a frosted pane (Hendrycks and Dietterich 2019); the pane is generated.

    The published generator crops photographs of frost, which are not ours to ship. Here ridges of fractal noise make
    crystals, bluish white, with the photographs' mean brightness; so this is like the published frost, not equal.
    """
    kept, pane = constants(
        images,
        severity,
        ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    )
    heights = plasma(seeds, _power_above(max(images.shape[-2:])), 1.8, images)[
        :, : images.shape[-2], : images.shape[-1]
    ]
    ridges = (1 - (2 * heights - 1).abs()).pow(4)
    fine = draws.fill(seeds, (*images.shape[-2:],), "uniform", stream=7).to(images)
    crystals = (0.32 + 0.55 * ridges + 0.3 * fine * heights)[:, None].clamp_(0, 1)
    tint = torch.tensor([0.9, 0.97, 1.0]).to(images)[:, None, None] if images.shape[1] == 3 else 1.0
    out: Tensor = (kept * images + pane * crystals * tint).clamp_(0, 1)
    return out


def _power_above(size: int) -> int:
    return 1 << (size - 1).bit_length()


def plasma(seeds: Int64[Tensor, " n"], size: int, decay: float, like: Tensor) -> Float[Tensor, "n s s"]:
    """Grow a fractal height map by diamond and square steps, from 0 to 1 (Fournier, Fussell and Carpenter 1982)."""
    heights = torch.zeros(len(seeds), size, size, dtype=like.dtype, device=like.device)
    drawn = draws.fill(seeds, (size * size,), "uniform", stream=3).to(like) * 2 - 1
    used, step, wobble = 0, size, 100.0

    def filled(total: Tensor) -> Tensor:
        nonlocal used
        fresh = drawn[:, used : used + total[0].numel()].reshape_as(total)
        used += total[0].numel()
        return total / 4 + wobble * wobble * fresh

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = filled(total + total.roll(-1, 2))
        middles, corners = heights[:, half::step, half::step], heights[:, ::step, ::step]
        beside = corners + corners.roll(-1, 1)
        above = middles + middles.roll(1, 2)
        heights[:, half::step, ::step] = filled(above + beside)
        beside, above = corners + corners.roll(-1, 2), middles + middles.roll(1, 1)
        heights[:, ::step, half::step] = filled(above + beside)
        step, wobble = half, wobble / decay
    heights -= heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True).clamp_min(1e-12)


def fog(images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Add a fractal cloud and scale back to the image's own brightest value (Hendrycks and Dietterich 2019)."""
    amount, decay = constants(
        images,
        severity,
        ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
        ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    )
    h, w = images.shape[-2:]
    cloud = plasma(seeds, _power_above(max(h, w)), decay, images)[:, None, :h, :w]
    brightest = images.amax((1, 2, 3), keepdim=True)
    out: Tensor = (images + amount * cloud).mul_(brightest / (brightest + amount)).clamp_(0, 1)
    return out


def spatter(images: Float[Tensor, "n c h w"], *, severity: int, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Splash water, or mud, on the picture (Hendrycks and Dietterich 2019, extra).

    Drops are thresholded smooth noise. Water's shading comes from the distance to the drops' edges; the published code
    finds edges with Canny, here they are where a drop ends.
    """
    mean, spread, sigma, least, strength, mud = constants(
        images,
        severity,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1.0, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        (
            (0.65, 0.3, 4.0, 0.69, 0.6, 0),
            (0.65, 0.3, 3.0, 0.68, 0.6, 0),
            (0.65, 0.3, 2.0, 0.68, 0.5, 0),
            (0.65, 0.3, 1.0, 0.65, 1.5, 1),
            (0.67, 0.4, 1.0, 0.65, 1.5, 1),
        ),
    )
    noise = draws.fill(seeds, (1, *images.shape[-2:]), "normal").to(images)
    liquid = gaussian(noise.mul_(spread).add_(mean), sigma)
    liquid = liquid.masked_fill_(liquid < least, 0)
    shade = (63 / 255, 42 / 255, 20 / 255) if mud else (175 / 255, 238 / 255, 238 / 255)
    colour = torch.tensor(shade).to(images)[:, None, None]
    colour = colour if images.shape[1] == 3 else grey(colour[None])[0]
    if mud:
        cover = gaussian((liquid > least).to(images), strength)
        cover = cover.masked_fill_(cover < 0.8, 0)
        return (images * (1 - cover) + colour * cover).clamp_(0, 1)
    film = liquid * _relief(liquid > 0)
    film = film / film.amax((1, 2, 3), keepdim=True).clamp_min(1e-12) * strength
    out: Tensor = (images + film * colour).clamp_(0, 1)
    return out


def _relief(drops: Tensor) -> Float[Tensor, "n 1 h w"]:
    """Shade drops by a directional derivative of the equalised distance to their edges, 20 pixels at most."""
    solid = drops.float()
    inner = -functional.max_pool2d(functional.pad(-solid, (1, 1, 1, 1), mode="replicate"), 3, 1)
    level = _truncated_distance(drops & (inner < 1), 20).round()
    level = functional.avg_pool2d(functional.pad(level, (1, 1, 1, 1), mode="reflect"), 3, 1).floor()
    counts = torch.stack([(level == k).sum((1, 2, 3)) for k in range(21)], 1).float()
    below = counts.cumsum(1)
    first = counts.gather(1, (counts > 0).float().argmax(1, keepdim=True))
    table = ((below - first) / (below[:, -1:] - first).clamp_min(1) * 255).round().clamp_min(0)
    equal = table.gather(1, level.flatten(1).long()).reshape_as(level)
    kernel = torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]], device=level.device)[None, None]
    edged = functional.conv2d(functional.pad(equal, (1, 1, 1, 1), mode="reflect"), kernel).clamp_(0, 255)
    return functional.avg_pool2d(functional.pad(edged, (1, 1, 1, 1), mode="reflect"), 3, 1)


def _truncated_distance(marks: Tensor, most: int) -> Float[Tensor, "n 1 h w"]:
    """Measure the Euclidean distance to the nearest mark, cut off: along rows, then along columns."""
    best = torch.where(marks, 0.0, float(most**2))
    for axis in (3, 2):
        size, start = best.shape[axis], best.clone()
        for offset in range(1, min(most, size - 1) + 1):
            onwards, back = best.narrow(axis, offset, size - offset), best.narrow(axis, 0, size - offset)
            ahead, behind = start.narrow(axis, offset, size - offset), start.narrow(axis, 0, size - offset)
            onwards.copy_(torch.minimum(onwards, behind + offset**2))
            back.copy_(torch.minimum(back, ahead + offset**2))
    return best.clamp_max(float(most**2)).sqrt()

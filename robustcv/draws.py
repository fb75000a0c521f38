"""Random numbers that belong to an image: counter-based, so that they depend on its seed alone.

A draw is a hash of (seed, stream, position). Batch size, batch mates, the number of processes and a resume cannot
change it, and no global generator is read or moved.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

IN_CACHE = 1 << 16  # numbers hashed at a time on a processor: half the time of all at once
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def image_seed(seed: int, image_hash: str, purpose: str) -> int:
    """Derive the seed of one image for one purpose (a method's name, a restart) from the run's seed."""
    digest = hashlib.blake2b(f"{seed}:{image_hash}:{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def image_seeds(seed: int, hashes: list[str], purpose: str) -> Int64[Tensor, " n"]:
    """Derive one seed per image; see `image_seed`."""
    return torch.tensor([image_seed(seed, name, purpose) for name in hashes], dtype=torch.int64)


def drawn_rows(seed: int, hashes: Sequence[str], purpose: str, k: int, rows: Iterable[int] | None = None) -> list[int]:
    """Draw k rows by (seed, pixels, purpose) alone: the same images whatever stands beside them.

    Parameters
    ----------
    hashes
        One for each row.
    rows
        Draw among these; None takes all.
    """
    among = range(len(hashes)) if rows is None else rows
    return sorted(among, key=lambda row: image_seed(seed, hashes[row], purpose))[:k]


def fresh_seeds(n: int) -> Int64[Tensor, " n"]:
    """Give seeds 0 to n-1, for a caller who passes none: the result is then a function of the position."""
    return torch.arange(n, dtype=torch.int64)


def _wrap(value: int) -> int:
    """Bring a Python integer to 64 bits with sign, as torch's arithmetic would."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts the sign in; a hash needs zeros


def _splitmix(value: Tensor) -> Tensor:
    """Mix 64 bits (Steele, Lea and Flood 2014, SplitMix64's finaliser) of a tensor of the caller's own, in place."""
    for bits, factor in ((30, _MIX_1), (27, _MIX_2)):
        value ^= _shift(value, bits)
        value *= factor  # integer overflow wraps, as it must
    value ^= _shift(value, 31)
    return value


def uniform(seeds: Int64[Tensor, " n"], shape: tuple[int, ...], stream: int = 0) -> Float[Tensor, "n ..."]:
    """Draw uniform numbers in [0, 1), ``shape`` of them for each image.

    Parameters
    ----------
    seeds
        One per image.
    shape
        Shape of one image's draw.
    stream
        A different stream gives independent numbers for the same seed.
    """
    return uniforms(seeds, shape, [stream])[0]


def uniforms(seeds: Int64[Tensor, " n"], shape: tuple[int, ...], streams: Iterable[int]) -> Float[Tensor, "s n ..."]:
    """Draw what `uniform` draws from each of many streams, at once."""
    offsets = torch.tensor([_wrap((stream + 1) * _GOLDEN) for stream in streams], device=seeds.device)
    start = _splitmix(seeds + offsets[:, None]).flatten()
    hashed = _hashed_on_processor if seeds.device.type == "cpu" else _hashed
    return hashed(start, math.prod(shape)).div_(1 << 24).reshape(len(offsets), len(seeds), *shape)


def _hashed(start: Int64[Tensor, " n"], size: int) -> Float[Tensor, "n size"]:
    """Give whole numbers below 2^24: the hash of each place from 1 on."""
    steps = torch.arange(1, size + 1, dtype=torch.int64, device=start.device) * _GOLDEN
    return _shift(_splitmix(start[:, None] + steps), 40).to(torch.float32)


def _hashed_on_processor(start: Int64[Tensor, " n"], size: int) -> Float[Tensor, "n size"]:
    """Give the same; numpy shifts without sign and in place, which takes half the time."""
    first = start.numpy().view(np.uint64)
    drawn = torch.empty(len(start), size, dtype=torch.float32)
    steps = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_GOLDEN % 2**64)
    rows = max(1, IN_CACHE // max(1, size))
    bits, shifted = np.empty((2, min(rows, len(start)), size), np.uint64)
    for at in range(0, len(start), rows):
        some = first[at : at + rows, None]
        value, other = bits[: len(some)], shifted[: len(some)]
        np.add(some, steps, out=value)
        for shift, factor in ((30, _MIX_1), (27, _MIX_2), (31, 1)):
            np.right_shift(value, np.uint64(shift), out=other)
            np.bitwise_xor(value, other, out=value)
            np.multiply(value, np.uint64(factor % 2**64), out=value)  # integer overflow wraps, as it must
        np.right_shift(value, np.uint64(40), out=value)
        drawn.numpy()[at : at + rows] = value.view(np.int64)
    return drawn


def normal(seeds: Int64[Tensor, " n"], shape: tuple[int, ...], stream: int = 0) -> Float[Tensor, "n ..."]:
    """Draw standard normal numbers, ``shape`` of them for each image (Box and Muller 1958)."""
    radius = torch.sqrt(-2 * torch.log1p(-uniform(seeds, shape, 2 * stream)))
    return radius * torch.cos(2 * math.pi * uniform(seeds, shape, 2 * stream + 1))


def fill(seeds: Int64[Tensor, " n"], shape: tuple[int, ...], kind: str, stream: int = 0) -> Float[Tensor, "n ..."]:
    """Draw many numbers for each image from a generator of its own: faster than counting, for whole pictures of noise.

    The numbers depend on the seed, the stream and the kind of device; not on the batch.

    Parameters
    ----------
    kind
        ``uniform`` on [0, 1) or ``normal``.
    """
    out = torch.empty(len(seeds), *shape, device=seeds.device)
    generator = torch.Generator(seeds.device)
    for picture, seed in zip(out, _splitmix(seeds + _wrap((stream + 1) * _GOLDEN)).tolist(), strict=True):
        generator.manual_seed(seed)
        if kind == "uniform":
            picture.uniform_(generator=generator)
        else:
            picture.normal_(generator=generator)
    return out

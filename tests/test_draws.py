"""Random numbers that belong to an image."""

import math

import torch
from scipy import stats as scipy_stats

from robustcv import draws

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(value: int) -> int:
    """SplitMix64's finaliser in Python integers, the slow second version."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def test_uniform_equals_python_integers() -> None:
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    drawn = draws.uniform(torch.tensor(seeds), (2, 3), stream=5)
    for row, seed in zip(drawn, seeds, strict=True):
        start = splitmix((seed + 6 * GOLDEN) & MASK)
        wanted = [(splitmix((start + k * GOLDEN) & MASK) >> 40) / (1 << 24) for k in range(1, 7)]
        assert row.flatten().tolist() == wanted


def test_every_device_hashes_alike() -> None:
    for n, size in ((0, 4), (1, 1), (5, 1000), (3, draws.IN_CACHE + 7), (2, 0)):
        start = torch.randint(-(1 << 62), 1 << 62, (n,), generator=torch.Generator().manual_seed(n))
        assert torch.equal(draws._hashed_on_processor(start, size), draws._hashed(start, size))


def test_a_draw_depends_on_its_seed_alone() -> None:
    seeds = torch.arange(50)
    whole = draws.uniform(seeds, (7,), 1)
    assert torch.equal(whole[13:14], draws.uniform(seeds[13:14], (7,), 1))
    assert torch.equal(whole.flip(0), draws.uniform(seeds.flip(0), (7,), 1))


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = torch.get_rng_state()
    first = draws.normal(torch.arange(3), (4,))
    torch.manual_seed(99)
    again = torch.get_rng_state()
    assert torch.equal(first, draws.normal(torch.arange(3), (4,)))
    assert torch.equal(torch.get_rng_state(), again)
    torch.set_rng_state(before)


def test_draws_have_the_distributions_they_claim() -> None:
    seeds = draws.image_seeds(0, [str(i) for i in range(200)], "test")
    uniform = draws.uniform(seeds, (100,)).flatten().numpy()
    normal = draws.normal(seeds, (100,)).flatten().numpy()
    assert scipy_stats.kstest(uniform, "uniform").pvalue > 0.01
    assert scipy_stats.kstest(normal, "norm").pvalue > 0.01
    other = draws.uniform(seeds, (100,), stream=1).flatten().numpy()
    assert abs(scipy_stats.pearsonr(uniform, other).statistic) < 4 / math.sqrt(len(uniform))


def test_image_seeds_differ_by_seed_image_and_purpose() -> None:
    seeds = {draws.image_seed(s, h, p) for s in (0, 1) for h in ("a", "b") for p in ("pgd", "fgsm")}
    assert len(seeds) == 8
    assert draws.image_seed(0, "a", "pgd") == draws.image_seed(0, "a", "pgd")

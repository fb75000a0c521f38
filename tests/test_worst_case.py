"""The worst case: exact where it can be, independent of batches, the same after a resume, not fooled by bad attacks."""

from pathlib import Path

import pytest
import torch
from conftest import Curved, make_images, make_linear
from torch import nn

from robustcv import runs
from robustcv.attacks import ATTACKS
from robustcv.classifier import frozen, rows_in_play
from robustcv.data import ImageSet
from robustcv.evaluation.worst_case import Planned, WorstCase, robust_metrics, worst_case

SWEEP = (0.004, 0.01, 0.03)


def image_set(model: nn.Module, n: int = 40, classes: int = 4, dtype=torch.float32) -> ImageSet:
    images = make_images(n, dtype=dtype)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:3] = (labels[:3] + 1) % classes  # wrong before any attack
    return ImageSet(images, labels, tuple("abcdefghij"[:classes]))


def run(model, images, *, attacks=("fgsm", "pgd"), sweep=SWEEP, batch_size=64, state=None, norm="linf") -> WorstCase:
    plan = [Planned(name, ATTACKS[name] if isinstance(name, str) else name, {}) for name in attacks]
    with frozen(model):
        with torch.no_grad():
            correct = model(images.images).argmax(1) == images.labels
        return worst_case(
            model, images, correct, plan, norm=norm, sweep=sweep, seed=0, batch_size=batch_size,
            device=torch.device("cpu"), state=state or runs.State(None),
        )  # fmt: skip


@pytest.fixture(scope="module")
def problem():
    model = make_linear(4, dtype=torch.float32)
    return model, image_set(model)


def test_robust_accuracy_of_a_binary_linear_model_is_exact() -> None:
    model = make_linear(2, dtype=torch.float32)
    images = image_set(model, 80, classes=2)
    logits = model(images.images).detach()
    margin = logits.gather(1, images.labels[:, None]).squeeze(1) - logits.gather(1, 1 - images.labels[:, None]).squeeze(
        1
    )
    nearest = margin / (model.weights[0] - model.weights[1]).detach().abs().sum()
    outcome = run(model, images)
    for eps in SWEEP:
        clear = (nearest - eps).abs() > 1e-4
        assert torch.equal(outcome.robust(eps)[clear], (nearest > eps)[clear])


def test_accuracy_falls_with_eps_and_the_union_is_below_each_attack(problem) -> None:
    outcome = run(*problem)
    clean = 37
    last = clean
    for eps in SWEEP:
        union = int(outcome.robust(eps).sum())
        assert union <= last
        assert union <= min(int(outcome.robust(eps, name).sum()) for name in ("fgsm", "pgd"))
        last = union
    by_name = {(m.eps, m.attack): m.count for m in robust_metrics(outcome)}
    assert by_name[SWEEP[0], None] == int(outcome.robust(SWEEP[0]).sum())
    assert len(by_name) == 9


def test_images_wrong_when_clean_are_never_attacked_and_never_robust(problem) -> None:
    outcome = run(*problem)
    assert outcome.results[0].attempted == 37
    assert not outcome.robust(SWEEP[0])[:3].any()
    assert outcome.breaker(0, SWEEP[-1]) is None


@pytest.mark.parametrize("batch_size", [1, 7])
def test_verdicts_do_not_depend_on_the_batch_and_candidates_hardly(batch_size: int) -> None:
    model = Curved()
    images = image_set(model)
    whole, parts = run(model, images), run(model, images, batch_size=batch_size)
    for name in whole.broken_at:
        assert torch.equal(whole.broken_at[name], parts.broken_at[name])
        for eps in SWEEP:
            (rows, best), (rows_2, best_2) = whole.candidates[name, eps], parts.candidates[name, eps]
            assert torch.equal(rows, rows_2)
            assert torch.allclose(best, best_2, atol=1e-5)


def test_the_same_batch_size_repeats_bit_for_bit(problem) -> None:
    first, second = run(*problem), run(*problem)
    for key, (rows, best) in first.candidates.items():
        assert torch.equal(rows, second.candidates[key][0]) and torch.equal(best, second.candidates[key][1])


def test_a_resumed_run_ends_with_the_same_numbers_and_repeats_no_block(problem, tmp_path: Path) -> None:
    model, images = problem
    straight = run(model, images, batch_size=16)
    asked = []

    def interrupted(classifier, images, labels, **options):
        asked.append(len(images))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return ATTACKS["pgd"](classifier, images, labels, **options)

    def counting(classifier, images, labels, **options):
        asked.append(len(images))
        return ATTACKS["pgd"](classifier, images, labels, **options)

    def go(attack):
        with frozen(model):
            correct = model(images.images).argmax(1) == images.labels
            return worst_case(
                model, images, correct, [Planned("pgd", attack, {})], norm="linf", sweep=SWEEP, seed=0, batch_size=16,
                device=torch.device("cpu"), state=runs.State(tmp_path),
            )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        go(interrupted)
    asked.clear()
    resumed = go(counting)
    assert len(asked) == 9 - 3  # three blocks at each of three eps, three of them done before the interruption
    assert torch.equal(resumed.broken_at["pgd"], straight.broken_at["pgd"])
    pgd_only = [result for result in straight.results if result.name == "pgd"]
    for a, b in zip(resumed.results, pgd_only, strict=True):
        assert (a.attempted, a.broken, a.forward, a.backward) == (b.attempted, b.broken, b.forward, b.backward)


def test_an_attack_that_leaves_the_ball_or_the_box_counts_for_nothing(problem) -> None:
    model, images = problem

    def cheat(classifier, images, labels, *, eps, norm, seeds):
        rows = rows_in_play(classifier, images)
        classifier(1 - images[rows])
        return 1 - images

    def outside(classifier, images, labels, *, eps, norm, seeds):
        return images + 3

    for attack in (cheat, outside):
        with frozen(model):
            correct = model(images.images).argmax(1) == images.labels
            outcome = worst_case(
                model, images, correct, [Planned("cheat", attack, {})], norm="linf", sweep=[0.01], seed=0,
                batch_size=64, device=torch.device("cpu"), state=runs.State(None),
            )  # fmt: skip
        assert int(outcome.robust(0.01).sum()) == 37
        assert outcome.results[0].broken == 0


def test_an_adversarial_that_was_returned_but_never_queried_is_found() -> None:
    """FGSM never queries what it returns; the caller must."""
    model = make_linear(2, dtype=torch.float32)
    images = image_set(model, 30, classes=2)
    outcome = run(model, images, attacks=("fgsm",), sweep=(0.2,))
    assert int(outcome.robust(0.2).sum()) == 0
    assert outcome.results[0].forward == 3 * outcome.results[0].attempted  # gradient, judging, second opinion
    assert outcome.results[0].backward == outcome.results[0].attempted


class Flickering(nn.Module):
    """Answers wrongly to a batch of more than one image, and rightly to one alone."""

    def forward(self, images):
        logits = torch.zeros(len(images), 2) + 0 * images.flatten(1).sum(1, keepdim=True)
        return logits + torch.tensor([1.0, 0.0] if len(images) != 3 else [0.0, 1.0])


def test_a_success_that_the_second_opinion_does_not_share_is_no_success() -> None:
    images = ImageSet(make_images(4, dtype=torch.float32), torch.zeros(4).long(), ("a", "b"))
    calls = []

    def attack(classifier, images, labels, **options):
        calls.append(len(rows_in_play(classifier, images)))
        classifier.in_play[0] = False  # three rows in play: the classifier then answers wrongly
        classifier(images[rows_in_play(classifier, images)])
        return images

    with frozen(Flickering()) as model:
        outcome = worst_case(
            model, images, torch.ones(4, dtype=torch.bool), [Planned("flicker", attack, {})], norm="linf", sweep=[0.1],
            seed=0, batch_size=4, device=torch.device("cpu"), state=runs.State(None),
        )  # fmt: skip
    assert calls == [4, 4]  # tried once more, with the doubtful rows back in play
    assert outcome.results[0].broken == 0


class NaNs(nn.Module):
    """Gives NaN to bright images."""

    def forward(self, images):
        logits = torch.stack([images.flatten(1).sum(1), -images.flatten(1).sum(1)], dim=1)
        return torch.where(images.flatten(1).mean(1, keepdim=True) > 0.51, torch.nan, logits)


def test_an_answer_that_is_not_a_number_counts_as_broken() -> None:
    model = NaNs()
    images = ImageSet(torch.linspace(0.46, 0.5, 16).reshape(4, 1, 2, 2), torch.zeros(4).long(), ("a", "b"))
    with frozen(model):
        outcome = worst_case(
            model, images, torch.ones(4, dtype=torch.bool), [Planned("pgd", ATTACKS["pgd"], {"random_start": True})],
            norm="linf", sweep=[0.2], seed=0, batch_size=4, device=torch.device("cpu"), state=runs.State(None),
        )  # fmt: skip
    assert (outcome.broken_at["pgd"][outcome.candidates["pgd", 0.2][0]] == 0.2).any()

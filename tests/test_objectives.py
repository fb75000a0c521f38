"""Objectives, averages, weight perturbations and layers against what they say they compute."""

import itertools
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Curved, make_images, make_linear
from torch import nn
from torch.nn import functional

from robustcv import draws
from robustcv.attacks import ATTACKS
from robustcv.attacks.noise_fgsm import noise_fgsm
from robustcv.classifier import Counted
from robustcv.data import ImageSet, load
from robustcv.data.mix import MIXES
from robustcv.models import build
from robustcv.models.sources import head_of
from robustcv.training import OBJECTIVES, Guard, Recipe, fit
from robustcv.training.averaging import averaged, begins
from robustcv.training.layers import layers_of
from robustcv.training.trades import Agreement
from robustcv.training.weight_attack import Replayed, adversarial_weights, buffers_kept

LABELS = torch.tensor([0, 1, 2, 3, 1])


def curved() -> tuple[nn.Module, torch.Tensor]:
    return Curved(4).train(), make_images(5, (3, 8, 8), dtype=torch.float32)


def test_trades_is_the_paper_s_sum() -> None:
    model, images = curved()
    moved = (images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    loss, logits = OBJECTIVES["trades"](model, images, LABELS, perturb=lambda c, x, y, seeds=None: moved, beta=3.0)
    p, q = model(images).softmax(1), model(moved).softmax(1)
    expected = functional.cross_entropy(model(images), LABELS) + 3 * (p * (p.log() - q.log())).sum(1).mean()
    assert torch.allclose(loss, expected, atol=1e-6) and torch.allclose(logits, model(moved), atol=1e-6)


def test_the_trades_attack_climbs_the_divergence_with_one_clean_pass() -> None:
    model, images = curved()
    p = model(images).softmax(1).detach()
    here = (images + 0.01).requires_grad_()
    divergence = functional.kl_div(model(here).log_softmax(1), p, reduction="sum")
    (expected,) = torch.autograd.grad(divergence, here)
    surrogate = functional.cross_entropy(Agreement(model, p)(here), torch.zeros_like(LABELS), reduction="none")
    (found,) = torch.autograd.grad(surrogate.sum(), here)
    cosine = functional.cosine_similarity(expected.flatten(1), found.flatten(1))
    assert torch.allclose(cosine, torch.ones(5), atol=1e-5)
    counted = Counted(model)
    attack = partial(ATTACKS["pgd"], eps=0.1, steps=3, keep="last")
    loss, _ = OBJECTIVES["trades"](counted, images, LABELS, perturb=attack, seeds=torch.arange(5))
    loss.backward()
    assert counted.forwards == 5 * (1 + 3 + 2)  # clean once, a pass a step, then both together
    assert counted.backwards == 5 * (3 + 2)


def test_pgi_goes_on_where_the_epoch_before_ended() -> None:
    """Against its formulas, image by image; the memory is whole numbers of an eps that rises."""
    model, images = curved()
    objective, kept = OBJECTIVES["fgsm-pgi"](eps=0.08, weight=3.0), None
    rows, seeds = torch.tensor([3, 0, 6, 2, 5]), torch.arange(5)
    for strength in (0.5, 1.0, 1.0):
        eps = 0.08 * strength
        loss, logits = objective.at(rows, 7, strength)(model, images, LABELS, seeds=seeds)
        starts = (draws.uniform(seeds, (3, 8, 8)) - 0.5).sign() if kept is None else kept
        kept, ends, tied = torch.empty_like(starts), [], []
        for k in range(5):
            here = (images[k] + eps * starts[k]).clamp(0, 1)[None].requires_grad_()
            before = model(here)
            (slope,) = torch.autograd.grad(functional.cross_entropy(before, LABELS[k : k + 1]), here, retain_graph=True)
            kept[k] = (starts[k] + slope[0].sign()).clamp(-1, 1)
            ends.append(model((images[k] + eps * kept[k]).clamp(0, 1)[None]))
            tied.append((ends[-1] - before).square().mean())
        wanted = functional.cross_entropy(torch.cat(ends), LABELS) + 3 * torch.stack(tied).mean()
        assert torch.allclose(loss, wanted, atol=1e-5) and torch.allclose(logits, torch.cat(ends), atol=1e-5)
        assert torch.equal(objective.kept[rows].float(), kept) and (objective.kept[[1, 4]] == 2).all()


def test_pgi_is_at_the_worst_of_a_linear_model_after_two_epochs() -> None:
    linear = make_linear(2, (3, 8, 8), dtype=torch.float32)
    images, labels = make_images(5, (3, 8, 8), dtype=torch.float32), torch.tensor([0, 1, 0, 1, 1])
    objective, rows = OBJECTIVES["fgsm-pgi"](eps=0.02), torch.arange(5)
    losses = [float(objective.at(rows, 5, 1.0)(linear, images, labels, seeds=rows)[0].detach()) for _ in range(3)]
    margin = (linear.weights[1] - linear.weights[0]).detach()
    away = torch.where(labels == 0, 1.0, -1.0)[:, None] * margin.sign()
    worst = functional.cross_entropy(linear(images + 0.02 * away.reshape(images.shape)), labels)
    assert losses[2] == pytest.approx(float(worst.detach()), rel=1e-5)  # nothing moves any more: the logits stay
    assert losses[1] > losses[2]  # tied to where they were


def test_pgi_begins_where_pixels_can_be() -> None:
    """A black pixel that should have got darker is black: one step later it is as bright as eps allows."""
    linear = make_linear(2, (3, 8, 8), dtype=torch.float32)
    images, rows = torch.zeros(4, 3, 8, 8), torch.arange(4)
    objective = OBJECTIVES["fgsm-pgi"](eps=0.1)
    objective.at(rows, 4, 1.0)(linear, images, torch.tensor([0, 1, 0, 1]), seeds=rows)
    margin = (linear.weights[1] - linear.weights[0]).detach().reshape(3, 8, 8)
    for kept, away in zip(objective.kept, (margin, -margin, margin, -margin), strict=True):
        assert (kept[away > 0] == 1).all() and (kept[away < 0] < 1).all()


def test_what_is_remembered_is_rolled_back_with_the_weights() -> None:
    """A guard that always sees a collapse: the epoch is done again with PGD, from the memory of before it."""
    images = digits()[1]
    classifier = build("small_cnn", classes=10, size=32)
    fit(classifier, images, images, objective=OBJECTIVES["standard"], recipe=Recipe(epochs=4, batch_size=32))
    one, none = partial(ATTACKS["pgd"], eps=0.01, steps=1, keep="last"), lambda _, x, y, seeds=None: x
    hopeless = partial(ATTACKS["pgd"], eps=1.0, steps=5, keep="last")
    objective = OBJECTIVES["fgsm-pgi"](eps=0.01)
    fitted = fit(
        classifier, images, images, objective=objective, validate_with=hopeless, attack_at=lambda _: one,
        guard=Guard(none, one), recipe=Recipe(epochs=1, batch_size=32, learning_rate=1e-4),
    )  # fmt: skip
    assert fitted.epochs[-1].recovered and objective.kept is None


def test_a_step_computed_twice_begins_at_one_place() -> None:
    model, images = curved()
    objective, rows = OBJECTIVES["fgsm-pgi"](eps=0.05), torch.arange(5)
    objective.at(rows, 5, 1.0)(model, images, LABELS, seeds=rows)
    again = objective.at(rows, 5, 1.0)
    first, second = (again(model, images, LABELS, seeds=rows)[0].detach() for _ in range(2))
    assert torch.equal(first, second)  # as weight perturbations compute it


def test_gradalign_is_silent_where_the_gradients_agree() -> None:
    linear = make_linear(2, (3, 8, 8), dtype=torch.float32)
    images = make_images(5, (3, 8, 8), dtype=torch.float32)
    labels, attack = torch.tensor([0, 1, 0, 1, 1]), partial(ATTACKS["fgsm"], eps=0.1)
    both = [
        OBJECTIVES["gradalign"](linear, images, labels, perturb=attack, seeds=torch.arange(5), eps=0.1, weight=w)[0]
        for w in (0.0, 5.0)
    ]
    assert torch.allclose(both[0], both[1], atol=1e-5)  # two classes: the direction of the gradient is one everywhere


def test_gradalign_measures_the_angle() -> None:
    model, images = curved()
    seeds, attack = torch.arange(5), partial(ATTACKS["fgsm"], eps=0.2)
    call = partial(OBJECTIVES["gradalign"], model, images, LABELS, perturb=attack, seeds=seeds, eps=0.2)
    seen = []
    inner = functional.cosine_similarity

    def spy(a, b, dim):
        seen.append((a, b))
        return inner(a, b, dim=dim)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(functional, "cosine_similarity", spy)
        loss, _ = call(weight=2.0)
    plain, _ = call(weight=0.0)
    here = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(functional.cross_entropy(model(here), LABELS, reduction="sum"), here)
    a, b = (part.detach() for part in seen[0])
    assert torch.allclose(a, slope.flatten(1)) and not torch.allclose(a, b)
    angle = 1 - (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    assert float((loss - plain).detach()) == pytest.approx(2 * float(angle.mean()), abs=1e-5)
    before = [p.detach().clone() for p in model.parameters()]
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters()) and before


def test_n_fgsm_steps_by_eps_from_noise_of_two_eps() -> None:
    linear = make_linear(3, (3, 6, 5), dtype=torch.float32)
    images, labels = make_images(200, (3, 6, 5), dtype=torch.float32), torch.arange(200) % 3
    moved = noise_fgsm(linear, images, labels, eps=0.03, seeds=torch.arange(200)) - images
    here = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(functional.cross_entropy(linear(here), labels), here)
    noise = moved - 0.03 * slope.sign()
    inside = noise.abs() <= 0.06 + 1e-6
    assert inside.float().mean() > 0.9  # the slope at the noisy image differs in sign here and there
    assert float(noise[inside].abs().mean()) == pytest.approx(0.03, abs=0.001)  # uniform on [-0.06, 0.06]
    assert float(moved.abs().max()) > 0.085  # not brought back to the ball


def test_weights_move_by_gamma_of_their_norm_and_come_back_bit_for_bit() -> None:
    model, images = curved()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = functional.cross_entropy(model(images), LABELS)
    slopes = dict(zip(before, torch.autograd.grad(loss, list(model.parameters()), retain_graph=True), strict=True))
    with pytest.raises(RuntimeError, match="stop"), adversarial_weights(model, loss, 0.02):
        for name, parameter in model.named_parameters():
            moved = parameter.detach() - before[name]
            if parameter.ndim > 1:
                assert float(moved.norm()) == pytest.approx(0.02 * float(before[name].norm()), rel=1e-3)
                assert float((moved * slopes[name]).sum() / moved.norm() / slopes[name].norm()) > 0.999
            else:
                assert not moved.any()
        assert functional.cross_entropy(model(images), LABELS) > loss
        raise RuntimeError("stop")
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_step_with_moved_weights_uses_the_same_attacked_images_and_batch_statistics_once() -> None:
    calls = []

    def attack(classifier, images, labels, *, seeds=None):
        calls.append(len(images))
        return images + 0.01

    tape = Replayed(attack)
    labels = torch.zeros(3).long()
    first = tape(nn.Identity(), torch.zeros(3, 1, 2, 2), labels)
    tape.rewind()
    assert tape(nn.Identity(), torch.ones(3, 1, 2, 2), labels) is first and calls == [3]
    norm = nn.BatchNorm2d(3)
    with buffers_kept(norm):
        norm(torch.rand(4, 3, 2, 2))
    assert not norm.running_mean.any() and int(norm.num_batches_tracked) == 0


def test_averages_are_those_of_a_loop() -> None:
    model = nn.Linear(2, 1, bias=False)
    ema, swa = averaged(model, "ema", 0.6), averaged(model, "swa", 0.0)
    mean, values = torch.zeros(1, 2), []
    for step in range(8):
        with torch.no_grad():
            model.weight.copy_(torch.randn(1, 2, generator=torch.Generator().manual_seed(step)))
        for each in (ema, swa):
            each.update_parameters(model)
        values.append(model.weight.detach().clone())
        keep = min(0.6, (1 + step) / (10 + step))
        mean = values[0] if step == 0 else keep * mean + (1 - keep) * values[-1]
    assert torch.allclose(ema.module.weight, mean, atol=1e-6)
    assert torch.allclose(swa.module.weight, torch.stack(values).mean(0), atol=1e-6)
    assert averaged(model, "none", 0.9) is None
    assert begins("ema", 0.0) and not begins("swa", 0.7) and begins("swa", 0.75)


def test_mixes_are_what_their_targets_say() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.arange(1.0, 65)[:, None, None, None].expand(64, 1, 16, 16).contiguous()
    targets = torch.eye(64)
    for name, mix in MIXES.items():
        mixed, soft = mix(images, targets, generator)
        assert torch.allclose(soft.sum(1), torch.ones(64), atol=1e-5), name
        assert (soft.argmax(1) == torch.arange(64)).all() and float(soft.max(1).values.min()) >= 0.5 - 1e-6
        expected = soft @ torch.arange(1.0, 65)  # each image has one value, so its mean shows what is in it
        assert torch.allclose(mixed.mean((1, 2, 3)), expected, atol=1e-3), name
    assert len(mixed.unique()) <= 64 and len(mixed[0].unique()) <= 2  # cutmix pastes, it does not blend


def test_stages_hold_every_weight_once_and_end_with_the_head() -> None:
    for name, fewest in (("resnet18", 11), ("small_cnn", 5), ("mobilenet_v3_small", 14), ("vit_b_16", 14)):
        with torch.device("meta"):
            classifier = build(name, classes=5, size=224)
        head = head_of(classifier)
        layers = layers_of(classifier, head, backbone_rate=0.1, frozen_epochs=0, gradual=False)
        inside = [id(parameter) for group in layers.groups() for parameter in group["params"]]
        assert sorted(inside) == sorted(map(id, classifier.parameters())), name
        assert len(layers.stages) >= fewest and layers.stages[-1] is classifier.get_submodule(head), name


def test_frozen_stages_learn_nothing_and_thaw_from_the_head_down() -> None:
    torch.manual_seed(0)
    classifier = build("resnet18", classes=10, size=32)
    layers = layers_of(classifier, head_of(classifier), backbone_rate=0.01, frozen_epochs=1, gradual=True)
    stages = layers.stages
    assert [len(layers.frozen(epoch)) for epoch in range(4)] == [len(stages) - k for k in (1, 2, 3, 4)]
    shares = [group["share"] for group in layers.groups()]
    assert shares[0] == pytest.approx(0.01) and shares[-1] == 1
    assert np.allclose(np.diff(np.log(shares)), -np.log(0.01) / (len(stages) - 1))
    images = load("digits", split="train").take(torch.arange(24)).in_memory()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    fit(classifier, images, images, objective=OBJECTIVES["standard"], begun=True,
        recipe=Recipe(epochs=1, batch_size=8, layers=layers, learning_rate=0.1))  # fmt: skip
    changed = {name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"network.fc.weight", "network.fc.bias"}
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def digits() -> tuple[ImageSet, ImageSet]:
    images = load("digits", split="train").in_memory()
    return images.take(torch.arange(1000)), images.take(torch.arange(1000, 1198))


@pytest.mark.slow
def test_the_guard_notices_a_collapse_within_the_epoch_and_goes_on() -> None:
    """One step of 48/255 without random start overfits for good; redone with PGD, robustness is learnt."""
    eps = 48 / 255
    one, many = (partial(ATTACKS["fgsm"], eps=eps), partial(ATTACKS["pgd"], eps=eps, steps=7, keep="last"))
    outcomes = {}
    for guard in (None, Guard(one, many)):
        torch.manual_seed(0)
        classifier = build("small_cnn", classes=10, size=32)
        outcomes[guard] = fit(
            classifier, *digits(), objective=OBJECTIVES["pgd-at"], attack_at=lambda _: one, validate_with=many,
            guard=guard, recipe=Recipe(epochs=6, batch_size=64, learning_rate=3e-3),
        )  # fmt: skip
    collapsed, guarded = (fitted.epochs for fitted in outcomes.values())
    assert collapsed[-1].correct / collapsed[-1].n > 0.5 and collapsed[-1].validation_robust <= 2
    assert any(epoch.recovered for epoch in guarded) and not any(epoch.recovered for epoch in collapsed)
    assert guarded[-1].validation_robust > 40


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_best_weights() -> None:
    images = digits()[0].take(torch.arange(64))
    torch.manual_seed(0)
    classifier, calls = build("small_cnn", classes=10, size=32), []

    def breaks(model, images, labels, **rest):
        loss, logits = OBJECTIVES["standard"](model, images, labels)
        calls.append(1)
        return (loss * float("nan") if len(calls) > 8 else loss), logits

    fitted = fit(classifier, images, images, objective=breaks, recipe=Recipe(epochs=5, batch_size=16))
    assert fitted.stopped.startswith("the loss was not a number in epoch 3; try") and len(fitted.epochs) == 2
    assert all(torch.isfinite(parameter).all() for parameter in classifier.parameters())


def test_minutes_end_the_run_with_its_schedule_at_the_end(monkeypatch) -> None:
    """On a clock that moves by a hundredth of a second whenever it is read, however busy the machine is."""
    clock = itertools.count()
    monkeypatch.setattr(sys.modules[fit.__module__], "time", SimpleNamespace(monotonic=lambda: next(clock) / 100))
    images = digits()[0]
    classifier = build("small_cnn", classes=10, size=32)
    fitted = fit(classifier, images, images.take(torch.arange(50)), objective=OBJECTIVES["standard"],
                 recipe=Recipe(epochs=10_000, minutes=0.02, batch_size=64))  # fmt: skip
    assert fitted.stopped == "the 0.02 minutes were used up" and fitted.epochs[-1].learning_rate < 0.3 * 2e-3


def test_a_trained_model_is_validated_first_and_kept_where_nothing_is_better() -> None:
    images = digits()[1]
    classifier = build("small_cnn", classes=10, size=32)
    fit(classifier, images, images, objective=OBJECTIVES["standard"], recipe=Recipe(epochs=8, batch_size=32))
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    ruined = fit(classifier, images, images, objective=OBJECTIVES["standard"], begun=True,
                 recipe=Recipe(epochs=1, optimizer="sgd", learning_rate=3.0, batch_size=32))  # fmt: skip
    assert ruined.selected_epoch == 0 and ruined.epochs[0].n == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())

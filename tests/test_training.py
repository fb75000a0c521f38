"""The loop: it learns, it repeats, it resumes to the same weights, and it keeps the best validation epoch."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import make_images
from test_data import Known
from torch import nn

import robustcv as rc
from robustcv.attacks import ATTACKS
from robustcv.data import ImageSet, as_images, load
from robustcv.data.mix import MIXES
from robustcv.models import build, checkpoint
from robustcv.training import OBJECTIVES, SCHEDULES, Guard, Recipe, fit


def small(n: int = 32, seed: int = 0) -> ImageSet:
    return load("digits", split="train").take(torch.arange(n) + seed).in_memory()


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("small_cnn", classes=10, size=32)


def test_it_can_overfit_32_images() -> None:
    classifier, images = network(), small()
    fitted = fit(classifier, images, images, objective=OBJECTIVES["standard"], recipe=Recipe(epochs=40, batch_size=8))
    assert max(epoch.validation_correct for epoch in fitted.epochs) == 32
    assert fitted.epochs[-1].loss < 0.02


def test_one_epoch_equals_a_loop_written_out() -> None:
    classifier, images = network(), small()
    other = copy.deepcopy(classifier)
    recipe = Recipe(epochs=1, batch_size=10, optimizer="sgd", learning_rate=0.1, weight_decay=0.01, schedule="cosine",
                    seed=3)  # fmt: skip
    fit(classifier, images, small(8, 40), objective=OBJECTIVES["standard"], recipe=recipe)
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    order = torch.randperm(32, generator=generator)
    velocity = [torch.zeros_like(parameter) for parameter in other.parameters()]
    for start in (0, 10, 20, 30):
        rows = order[start : start + 10]
        loss = nn.functional.cross_entropy(other(images.images[rows].float() / 255), images.labels[rows])
        gradients = torch.autograd.grad(loss, list(other.parameters()))
        rate = 0.1 * SCHEDULES["cosine"](start / 32)
        with torch.no_grad():
            for parameter, gradient, v in zip(other.parameters(), gradients, velocity, strict=True):
                gradient = gradient + 0.01 * parameter
                v.mul_(0.9).add_(gradient)
                parameter -= rate * (gradient + 0.9 * v)
    for a, b in zip(classifier.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def bound(objective: str):
    made, needs_eps = OBJECTIVES[objective], {"eps": 0.03} if objective in ("fgsm-pgi", "gradalign") else {}
    return made(**needs_eps) if isinstance(made, type) else partial(made, **needs_eps)


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        *((name, {}) for name in OBJECTIVES),
        ("standard", {"optimizer": "sgd"}),
        ("trades", {"optimizer": "sgd", "awp": 0.01, "eps_warmup": 0.5}),
        ("pgd-at", {"average": "ema", "mix": MIXES["cutmix"], "label_smoothing": 0.1}),
        ("standard", {"average": "swa", "schedule": "slow-start"}),
    ],
)
def test_a_resumed_run_ends_with_the_weights_of_a_straight_one(objective: str, more: dict) -> None:
    attack = partial(ATTACKS["pgd"], eps=0.03, steps=2, keep="last")
    recipe = Recipe(**{"epochs": 3, "batch_size": 12, "learning_rate": 0.01, **more})
    options = {"objective": bound(objective), "attack_at": lambda s: partial(attack, eps=0.03 * s),
               "validate_with": attack, "recipe": recipe, "guard": Guard(attack, attack)}  # fmt: skip
    straight, resumed = network(), network()
    states = []
    whole = fit(straight, small(), small(8, 40), save_state=lambda s: states.append(copy.deepcopy(s)), **options)
    rest = fit(resumed, small(), small(8, 40), state=states[0], **options)
    assert len(states) == 3
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [e.loss for e in whole.epochs] == [e.loss for e in rest.epochs]
    assert whole.selected_epoch == rest.selected_epoch


def test_what_remembers_each_image_wants_them_in_memory() -> None:
    images = Known(torch.rand(30, 3, 32, 32), torch.arange(30) % 2)
    with pytest.raises(rc.UserError, match="do not fit in memory"):
        rc.train(as_images(images, memory_limit=100), objective="fgsm-pgi", epochs=1, quiet=True)


def test_the_best_validation_epoch_is_kept() -> None:
    kept = []
    classifier = network()
    fitted = fit(classifier, small(64), small(64, 200), objective=OBJECTIVES["standard"],
                 recipe=Recipe(epochs=6, learning_rate=0.02),
                 save_state=lambda s: kept.append({k: v.clone() for k, v in s["model"].items()}))  # fmt: skip
    counts = [epoch.validation_correct for epoch in fitted.epochs]
    assert fitted.selected_epoch == counts.index(max(counts)) + 1
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, kept[fitted.selected_epoch - 1][name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pixels_kept_on_a_gpu_are_the_same() -> None:
    images = as_images(make_images(40), torch.arange(40) % 10)
    near = images.near(torch.device("cuda"))
    assert near.images.is_cuda and images.near(torch.device("cpu")) is images
    order = torch.randperm(40)
    for (own, labels), (there, same) in zip(images.batches(16, order), near.batches(16, order), strict=True):
        assert torch.equal(own, there.cpu()) and torch.equal(labels, same)


def test_attack_passes_compute_no_weight_gradients_and_leave_batch_norm_alone() -> None:
    classifier = build("cifar_resnet20", classes=10, size=32)
    images, labels = make_images(4, (3, 32, 32), dtype=torch.float32), torch.arange(4)
    seen = []

    def spy(inner, x, y, *, seeds=None):
        seen.append([p.requires_grad for p in inner.parameters()] + [m.training for m in inner.modules()])
        seen.append([p.requires_grad for p in classifier.parameters()] + [m.training for m in classifier.modules()])
        before = classifier.network[1].running_mean.clone()
        assert torch.allclose(inner(x), classifier(x), atol=1e-4)  # the same function, batch norm folded
        out = ATTACKS["pgd"](inner, x, y, eps=0.02, steps=2, seeds=seeds, keep="last")
        assert torch.equal(classifier.network[1].running_mean, before)
        assert all(p.grad is None for p in (*inner.parameters(), *classifier.parameters()))
        return out

    classifier.train()
    loss, logits = OBJECTIVES["pgd-at"](classifier, images, labels, perturb=spy, seeds=torch.arange(4))
    assert not any(map(any, seen)) and classifier.training
    loss.backward()
    assert all(p.grad is not None for p in classifier.parameters())
    assert logits.shape == (4, 10)


def test_pgd_at_is_the_loss_on_the_attacked_images() -> None:
    classifier, images, labels = network().eval(), torch.rand(4, 3, 32, 32), torch.arange(4)
    loss, _ = OBJECTIVES["pgd-at"](classifier, images, labels, perturb=lambda c, x, y, seeds=None: x * 0.5)
    assert torch.equal(loss, nn.functional.cross_entropy(classifier(images * 0.5), labels))
    with pytest.raises(ValueError, match="an attack is needed"):
        OBJECTIVES["pgd-at"](classifier, images, labels)


def test_schedules_start_peak_and_end_where_they_say() -> None:
    cycle = [SCHEDULES["one-cycle"](i / 1000) for i in range(1001)]
    assert cycle[0] == 0.04 and max(cycle) == pytest.approx(1) and cycle.index(max(cycle)) == 300
    assert cycle[-1] == pytest.approx(0, abs=1e-9)
    assert [SCHEDULES["cosine"](x) for x in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_training_repeats_with_its_seed_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    runs = [rc.train("digits", epochs=1, seed=seed, quiet=True) for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), before)
    hashes = [checkpoint.sha256_of(run.classifier) for run in runs]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_splits_share_no_image(trained: Path) -> None:
    import robustcv.verbs.train as verb
    from robustcv.runtime import Progress

    options = {"data_dir": None, "resize": None, "skip_bad": False}
    sets = verb.TrainingSets("digits", None, options, Progress(quiet=True), split_seed=0)
    parts = [set(part.in_memory().hashes) for part in (sets.train, sets.validation, sets.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 1797
    assert rc_record(trained).metric("clean_accuracy").n == 599


def rc_record(folder: Path):
    from robustcv import runs

    return runs.load(folder)


def test_the_test_split_is_read_once_after_training(monkeypatch) -> None:
    import robustcv.verbs.training_sets as verb
    from robustcv.data import ImageSet

    reads: list[str] = []
    inner = ImageSet.batches

    def counting(self, batch_size, order=None):
        reads.append(self.split if order is None else f"{self.split}, shuffled")
        return inner(self, batch_size, order)

    monkeypatch.setattr(ImageSet, "batches", counting)
    rc.train("digits", epochs=2, quiet=True)
    assert reads == ["train, shuffled", "train", "train, shuffled", "train", "test"]  # "train" is the held-out part
    assert verb.VALIDATION_SHARE == 0.1


def test_a_val_folder_is_the_validation_split_and_never_the_test_split(tmp_path: Path) -> None:
    from test_data import layout, png

    import robustcv.verbs.train as verb
    from robustcv.runtime import Progress

    names = [(split, label, i) for split in ("train", "val") for label in "ab" for i in range(3)]
    source = layout(tmp_path, {f"{s}/{c}/{i}.png": png(hash((s, c, i)) % 10**6, (32, 32)) for s, c, i in names})
    options = {"data_dir": None, "resize": None, "skip_bad": False}
    sets = verb.TrainingSets(str(source), None, options, Progress(quiet=True), split_seed=0)
    assert (len(sets.train), len(sets.validation), sets.test) == (6, 6, None)
    assert sets.validation.split == "val"


def test_hardening_holds_out_what_training_held_out(tmp_path: Path) -> None:
    import json

    rc.train("digits", epochs=1, seed=3, out=tmp_path / "train", quiet=True)
    rc.harden(str(tmp_path / "train"), epochs=1, steps=1, audits=False, out=tmp_path / "harden", quiet=True)
    made, hardened = (json.loads((tmp_path / name / "model.json").read_text())["data"] for name in ("train", "harden"))
    assert made["train_sha256"] == hardened["train_sha256"] and hardened["split_seed"] == 3


@pytest.mark.parametrize(("shape", "message"), [((3, 32, 40), "40x32"), ((3, 12, 12), "18 pixels or more")])
def test_images_that_no_architecture_takes_are_refused(shape, message) -> None:
    with pytest.raises(rc.UserError, match=message):
        rc.train(torch.rand(40, *shape), torch.arange(40) % 2, epochs=1, quiet=True)


@pytest.mark.slow
def test_hardening_raises_robust_accuracy_by_more_than_chance(trained: Path, tmp_path: Path) -> None:
    rc.harden(str(trained), eps="16/255", epochs=4, audits=False, out=tmp_path / "harden", quiet=True)
    audits = [
        rc.audit(str(folder), "digits", n=200, eps="16/255", sweep=False, explain=(), out=tmp_path / name, quiet=True)
        for folder, name in ((trained, "a"), (tmp_path / "harden", "b"))
    ]
    pair = rc.compare(tmp_path / "a", tmp_path / "b").comparison.paired[-1]
    assert pair.low > 0.05 and pair.p_value < 0.001
    assert all(audit.data.sha256 == audits[0].data.sha256 for audit in audits)

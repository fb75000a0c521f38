"""The verbs train and harden: threats, weights to begin with, any source of a model, audits before and after."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robustcv as rc
from robustcv import models, runs
from robustcv.errors import UserError
from robustcv.models import build, checkpoint
from robustcv.models.transfer import begin_with, source_weights
from robustcv.verbs.threats import HELD_OUT, mixed, parse_threats, training_threats

OPTIONS = {"objective": "pgd-at", "eps": "8/255", "norm": "linf", "steps": 2, "against": []}
FAST = {"epochs": 1, "steps": 1, "quiet": True, "n": 12}  # maps under attack take a second an image


def threats(**changed):
    return training_threats({**OPTIONS, **changed})


def test_threats_are_read_and_refused() -> None:
    read = parse_threats({**OPTIONS, "against": ["linf:4/255", "l2:0.5", "gaussian:0.3", "patch"]})
    assert [(each.kind, round(each.size, 4)) for each in read] == [
        ("linf", 0.0157), ("l2", 0.5), ("gaussian", 0.3), ("patch", 0.0),
    ]  # fmt: skip
    assert parse_threats(OPTIONS)[0].size == 8 / 255
    for changed, message in (
        ({"against": ["linfx:3"]}, "threat called 'linfx'"),
        ({"against": ["gaussian:3"]}, "noise of 3"),
        ({"objective": "standard", "against": ["patch"]}, "trains on clean images"),
        ({"objective": "fast", "against": ["patch"]}, "takes one step"),
        ({"objective": "fast", "against": ["linf:8/255", "l2:1"]}, "takes one step"),
        ({"objective": "fgsm-pgi", "norm": "l2", "eps": 0.5}, "made for L-inf"),
        ({"eps": 8}, "outside"),
        ({"eps": 0}, "outside"),
    ):
        with pytest.raises(UserError, match=message):
            threats(**changed)


def test_every_threat_changes_images_as_it_says() -> None:
    classifier = build("small_cnn", classes=4, size=32).eval()
    images, labels = torch.rand(12, 3, 32, 32), torch.arange(12) % 4
    seeds = torch.arange(12)
    for text in ("linf:0.1", "l2:0.5", "gaussian:0.25", "corruptions", "patch", "spatial"):
        attack = threats(against=[text]).attack_at(0.5)
        moved = attack(classifier, images, labels, seeds=seeds) - images
        assert moved.abs().amax((1, 2, 3)).min() > 0 or text == "spatial", text
        again = attack(classifier, images[3:5], labels[3:5], seeds=seeds[3:5])
        assert torch.allclose(again - images[3:5], moved[3:5], atol=1e-5), text  # an image's own draws
        if text == "linf:0.1":
            assert float(moved.abs().max()) <= 0.05 + 1e-6  # scaled by a half
        if text == "gaussian:0.25":
            assert float(moved.std()) == pytest.approx(0.125, rel=0.02)
        if text == "patch":
            assert float((moved != 0).any(1).float().mean((1, 2)).max()) < 0.2
    assert not {"gaussian_noise", "fog"} & set(HELD_OUT)


def test_a_list_of_threats_gives_each_image_one_of_them() -> None:
    def add(k: int):
        return lambda classifier, images, labels, *, seeds=None: images + k

    moved = mixed([add(1), add(2), add(3)])(
        nn.Identity(), torch.zeros(3000, 1, 1, 1), torch.zeros(3000).long(), seeds=torch.arange(3000)
    )
    counts = [int((moved == k).sum()) for k in (1, 2, 3)]
    assert sum(counts) == 3000 and min(counts) > 900


def test_while_eps_rises_so_do_the_steps_and_none_is_longer_than_at_the_end() -> None:
    made = threats(eps="0.1", steps=5)
    for strength, steps in ((0.01, 1), (0.3, 2), (0.6, 3), (0.61, 4), (1.0, 5)):
        options = made.attack_at(strength).keywords
        assert options["eps"] == pytest.approx(0.1 * strength) and options["steps"] == steps
        assert options["eps"] / options["steps"] <= 0.1 / 5 + 1e-12
    assert made.validate_with.keywords["steps"] == 5 and made.validate_with.keywords["eps"] == 0.1


def test_a_single_step_objective_is_validated_by_many_steps_and_guarded() -> None:
    made = threats(objective="fast", steps=3)
    assert made.described == "PGD-10" and made.validate_with.keywords["steps"] == 10
    assert made.guard.recover.keywords["steps"] == 7 and made.guard.quick.func.__name__ == "fgsm"
    assert threats().guard is None and threats(objective="standard").validate_with is None
    assert not made.guard.collapsed(quick=60, robust=31, n=100) and made.guard.collapsed(quick=60, robust=29, n=100)
    assert not made.guard.collapsed(quick=9, robust=0, n=100)


def test_the_head_is_made_new_and_keeps_the_classes_of_the_same_name() -> None:
    torch.manual_seed(0)
    old, new = build("resnet18", classes=4, size=32), build("resnet18", classes=3, size=32)
    fresh = copy.deepcopy(new.network.fc.weight)
    copied = begin_with(
        new,
        checkpoint.load_weights(save(old)),
        "file",
        classes_there=("a", "b", "c", "d"),
        classes_here=("x", "d", "b"),
    )
    assert copied == 2
    assert torch.equal(new.network.layer4[1].conv2.weight, old.network.layer4[1].conv2.weight)
    assert torch.equal(new.network.fc.weight[1:], old.network.fc.weight[[3, 1]])
    assert torch.equal(new.network.fc.weight[0], fresh[0])
    plain = dict(old.network.state_dict())  # as other tools save it
    assert begin_with(build("resnet18", classes=4, size=32), plain, "file") == 4
    grey = build("resnet18", classes=3, size=32, channels=1)
    begin_with(grey, plain, "file")
    assert torch.equal(grey.network[1].conv1.weight, old.network.conv1.weight)
    with pytest.raises(UserError, match="do not fit"):
        begin_with(new, {**plain, "conv1.weight": torch.zeros(1)}, "file")


def save(classifier: nn.Module) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "w.safetensors"
    path.write_bytes(checkpoint.to_bytes(classifier))
    return path


def test_training_begins_with_weights_of_a_run_or_a_file(trained: Path, tmp_path: Path) -> None:
    source = source_weights(str(trained), "small_cnn")
    weights = source.weights
    assert source.class_names == tuple("0123456789") and "network.0.weight" in weights
    with pytest.raises(UserError, match="not a resnet18"):
        source_weights(str(trained), "resnet18")
    shapes = {"images": "shapes:32", "init": str(trained), "epochs": 1, "frozen_epochs": 1, "quiet": True}
    run = rc.train(**shapes, out=tmp_path / "transfer")
    assert run.training.epochs[0].epoch == 0  # judged before it learns
    own = dict(run.classifier.named_parameters())
    assert torch.equal(own["network.0.weight"], weights["network.0.weight"])
    loaded = models.load(tmp_path / "transfer")
    assert checkpoint.sha256_of(loaded.classifier) == checkpoint.sha256_of(run.classifier)
    with pytest.raises(UserError, match="--init"):
        rc.train("shapes:32", frozen_epochs=1, epochs=1, quiet=True)


def test_hardening_shows_what_it_changed_on_one_page(trained: Path, tmp_path: Path) -> None:
    run = rc.harden(str(trained), eps="16/255", **{**FAST, "epochs": 2}, out=tmp_path / "harden")
    assert run.comparison is not None and run.training.epochs[0].epoch == 0
    assert run.comparison.a.model.sha256 == checkpoint.sha256_of(rc.load_classifier(str(trained)))
    assert run.comparison.b.model.sha256 == checkpoint.sha256_of(run.classifier)
    assert {pair.name for pair in run.comparison.paired} == {"clean_accuracy", "robust_accuracy"}
    before, after = (runs.load(tmp_path / "harden" / name) for name in ("before", "after"))
    assert before.data.sha256 == after.data.sha256 == run.data.sha256 and before.data.n == 12
    assert before.headline_eps == after.headline_eps == run.headline_eps == pytest.approx(16 / 255)
    page = run.page.read_text()
    assert "minutes of fine-tuning" in page and "Images won and lost" in page and "None" not in page
    again = rc.compare(tmp_path / "harden" / "before", tmp_path / "harden" / "after")
    assert again.comparison.paired == run.comparison.paired
    hardened = rc.audit(str(tmp_path / "harden"), "digits", n=10, attacks=["fgsm"], sweep=False, explain=(), quiet=True)
    assert hardened.model.sha256 == run.comparison.b.model.sha256


def test_an_interrupted_hardening_goes_on(trained: Path, tmp_path: Path, monkeypatch) -> None:
    import robustcv.verbs.harden as verb

    inner, calls = verb.audit, []

    def stops(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(*args, **kwargs)

    monkeypatch.setattr(verb, "audit", stops)
    with pytest.raises(KeyboardInterrupt):
        rc.harden(str(trained), **FAST, out=tmp_path / "harden")
    run = rc.harden(str(trained), **FAST, out=tmp_path / "harden", resume=True)
    straight = rc.harden(str(trained), **FAST)
    assert run.comparison.paired == straight.comparison.paired
    assert checkpoint.sha256_of(run.classifier) == checkpoint.sha256_of(straight.classifier)


def test_a_module_from_python_is_hardened_in_a_copy(trained: Path, tmp_path: Path) -> None:
    module = rc.load_classifier(str(trained))
    before = checkpoint.sha256_of(module)
    run = rc.harden(module, "digits", **FAST, out=tmp_path / "harden")
    assert checkpoint.sha256_of(module) == before == run.comparison.a.model.sha256
    assert checkpoint.sha256_of(run.classifier) == run.comparison.b.model.sha256
    with pytest.raises(UserError, match="whose code is not in it"):
        models.load(tmp_path / "harden")


def test_a_model_from_a_file_is_hardened_and_loaded_with_its_code(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))\n"
    )
    run = rc.harden(f"py:{path}:make", "digits", **FAST, out=tmp_path / "harden")
    weights = str(tmp_path / "harden" / "model.safetensors")
    again = rc.load_classifier(f"py:{path}:make", weights)
    assert checkpoint.sha256_of(again) == run.comparison.b.model.sha256
    three = tmp_path / "three.py"
    three.write_text(path.read_text().replace("10)", "3)"))
    with pytest.raises(UserError, match="gives 3 classes but the data has 10"):
        rc.harden(f"py:{three}:make", "digits", **FAST)


def test_published_networks_are_hardened_by_name(tmp_path: Path) -> None:
    import torchvision

    network = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    images, labels = torch.rand(24, 3, 64, 64), torch.arange(24) % 10
    run = rc.harden("torchvision:shufflenet_v2_x0_5", images, labels, weights=str(tmp_path / "w.safetensors"),
                    **FAST, out=tmp_path / "harden")  # fmt: skip
    assert run.comparison is None  # tensors have no test split
    described = json.loads((tmp_path / "harden" / "model.json").read_text())
    assert described["architecture"] == "shufflenet_v2_x0_5" and described["options"]["input_size"] == 224
    loaded = models.load(tmp_path / "harden").classifier
    assert checkpoint.sha256_of(loaded) == checkpoint.sha256_of(run.classifier) and loaded.size == (224, 224)


def test_hardening_raises_no_check_of_its_own(trained: Path) -> None:
    run = rc.harden(str(trained), **FAST)
    assert run.verdict == "NO GATE" and not run.classifier.training
    assert [check.check for check in run.comparison.b.preflight if check.status == "raised"] == []


def test_a_run_is_begun_again_only_with_the_same_model(trained: Path, tmp_path: Path, monkeypatch) -> None:
    modules = [rc.load_classifier(str(trained)), build("small_cnn", classes=10, size=32)]
    rc.harden(modules[0], "digits", **{**FAST, "audits": False}, out=tmp_path / "harden")
    with pytest.raises(UserError, match="finished run of another model"):
        rc.harden(modules[1], "digits", **{**FAST, "audits": False}, out=tmp_path / "harden", resume=True)


def test_mistakes_are_told_before_training(trained: Path, tmp_path: Path, monkeypatch) -> None:
    import robustcv.verbs.train as verb

    monkeypatch.setattr(verb, "fit", lambda *_, **__: pytest.fail("training began"))
    images, labels = torch.rand(30, 3, 32, 32), torch.arange(30) % 3
    for call, message in (
        (lambda: rc.harden(str(trained), effort="quik", **FAST), "effort"),
        (lambda: rc.harden(str(trained), "digits", objective="standard", eps=0, **FAST), "outside"),
        (lambda: rc.train(images, labels * 0, quiet=True), "of one class"),
        (lambda: rc.train(images, labels * 0 + 2, quiet=True), "of one class"),
        (lambda: rc.train(images, labels, model="cifar_resnet20", batch_size=1, quiet=True), "batch of 1 is too small"),
        (lambda: rc.train(images, labels, learning_rate=-1.0, quiet=True), "is no rate"),
        (lambda: rc.train(images, labels, learning_rate=float("nan"), quiet=True), "is no rate"),
        (lambda: rc.train(images, labels, minutes=0, quiet=True), "minutes"),
        (lambda: rc.train(images, labels, seed=-1, quiet=True), "seed"),
        (lambda: rc.train(images, labels, device="cuda:7", quiet=True), "cannot be used"),
        (lambda: rc.harden(str(trained), eps=["8/255", "16/255"], **FAST), "2 eps were given"),
        (lambda: rc.harden(nn.Flatten(), images, labels, quiet=True), "gives|parameters"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_layers_too_small_for_batch_norm_and_tied_weights(tmp_path: Path) -> None:
    images, labels = torch.rand(30, 3, 20, 20), torch.arange(30) % 3
    with pytest.raises(UserError, match="no variance"):
        rc.train(images, labels, model="cifar_resnet18,instance", resize=8, epochs=1, quiet=True)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(1200, 1200), nn.Linear(1200, 3)
            self.second = nn.Linear(1200, 1200)
            self.second.weight = self.first.weight

        def forward(self, pixels):
            return self.head(self.second(self.first(pixels.flatten(1)).relu()).relu())

    model = Tied().requires_grad_(False)  # frozen for inference
    run = rc.harden(model, images, labels, **{**FAST, "eps": "1/255"}, out=tmp_path / "tied")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert run.record.model.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_dropout_repeats_and_resumes(tmp_path: Path) -> None:
    from robustcv.training import OBJECTIVES, Recipe, fit

    images = rc.load_images("digits", split="train", n=40)
    weights, states = [], []

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, 20), nn.Dropout(0.5), nn.Linear(20, 10))

    for start in (None, 0):
        torch.manual_seed(17 if start is None else 99)  # whoever used the global generator before
        model = network()
        torch.rand(5 if start is None else 8)
        state, recipe = (None if start is None else states[0]), Recipe(epochs=3, batch_size=10)
        fit(model, images, images, objective=OBJECTIVES["standard"], recipe=recipe, state=state,
            save_state=lambda s: states.append(copy.deepcopy(s)))  # fmt: skip
        weights.append(model[1].weight.detach().clone())
    assert torch.equal(*weights)


def test_weights_from_a_run_keep_what_it_held_out(trained: Path, tmp_path: Path) -> None:
    made = json.loads((trained / "model.json").read_text())["data"]
    rc.train("digits", init=str(trained), seed=5, epochs=1, out=tmp_path / "more", quiet=True)
    more = json.loads((tmp_path / "more" / "model.json").read_text())["data"]
    assert more["train_sha256"] == made["train_sha256"] and more["split_seed"] == made["split_seed"]


def test_a_head_of_other_classes_is_made_new_though_it_has_the_same_size() -> None:
    torch.manual_seed(0)
    old, new = build("resnet18", classes=3, size=32), build("resnet18", classes=3, size=32)
    copied = begin_with(
        new, old.state_dict(), "run", classes_there=("cat", "dog", "owl"), classes_here=("owl", "car", "bus")
    )
    assert copied == 1 and torch.equal(new.network.fc.weight[0], old.network.fc.weight[2])
    assert not torch.equal(new.network.fc.weight[1], old.network.fc.weight[1])


def test_runs_that_spell_eps_differently_are_compared(trained: Path, tmp_path: Path) -> None:
    for name, eps in (("a", "8/255"), ("b", "0.0313725")):
        rc.audit(
            str(trained), "digits", n=30, eps=eps, sweep=False, explain=(), cases=0, out=tmp_path / name, quiet=True
        )
    pairs = rc.compare(tmp_path / "a", tmp_path / "b").comparison.paired
    robust = next(pair for pair in pairs if pair.name == "robust_accuracy")
    count = runs.load(tmp_path / "a").metric("robust_accuracy", attack=None).count
    assert robust.both + robust.only_a == count

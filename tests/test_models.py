"""Architectures, saving and loading, and weights that must not run code."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import Curved
from safetensors.torch import save_file
from torch import nn

from robustcv import models
from robustcv.errors import UserError
from robustcv.models import ARCHITECTURES, build, checkpoint

PARAMETERS = {"small_cnn": 122_570, "cifar_resnet20": 269_722}  # the tutorial's figure; He et al.'s 0.27 M


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    network = ARCHITECTURES[name](classes=10, size=32, channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size", [32, 64])
def test_an_architecture_trains_a_step_and_survives_a_round_trip(tmp_path: Path, name: str, size: int) -> None:
    classifier = build(name, classes=7, size=size)
    images, labels = torch.rand(4, 3, size, size), torch.arange(4)
    before = classifier(images)
    assert before.shape == (4, 7)
    assert not torch.allclose(before.sum(1), torch.ones(4), atol=0.01)  # logits, not probabilities
    nn.functional.cross_entropy(before, labels).backward()
    torch.optim.SGD(classifier.parameters(), 0.1).step()
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint.to_bytes(classifier))
    again = build(name, classes=7, size=size)
    checkpoint.fill(again, checkpoint.load_weights(path), str(path))
    assert (
        checkpoint.sha256_of(again)
        == checkpoint.sha256_of(classifier)
        != checkpoint.sha256_of(build(name, classes=7, size=size))
    )
    assert torch.equal(again.eval()(images), classifier.eval()(images))


def test_the_hash_ignores_the_memory_layout() -> None:
    classifier = build("small_cnn", classes=3, size=32)
    before = checkpoint.sha256_of(classifier)
    classifier.to(memory_format=torch.channels_last)
    assert checkpoint.sha256_of(classifier) == before


def test_a_run_is_loaded_by_folder_or_by_file(trained: Path) -> None:
    by_folder, by_file = models.load(trained), models.load(trained / "model.safetensors")
    assert checkpoint.sha256_of(by_folder.classifier) == checkpoint.sha256_of(by_file.classifier)
    assert by_folder.class_names == tuple("0123456789") and by_folder.architecture == "small_cnn"
    described = json.loads((trained / "model.json").read_text())
    assert described["training"]["objective"] == "standard" and described["data"]["spec"] == "digits"
    assert described["normalisation"] == {"mean": [0.5] * 3, "std": [0.25] * 3}


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_never_runs(tmp_path: Path, kind: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pt"
    content = {"state_dict": Canary(canary)}
    torch.save(content, path) if kind == "torch" else path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="refused") as caught:
        checkpoint.load_weights(path)
    assert not canary.exists()
    if kind == "torch":
        assert "pathlib" in caught.value.why


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_torch_files_with_plain_tensors_are_read(tmp_path: Path, wrap: str | None) -> None:
    network = nn.Linear(2, 3)
    content = network.state_dict() if wrap is None else {wrap: network.state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "w.pt")
    assert set(checkpoint.load_weights(tmp_path / "w.pt")) == {"weight", "bias"}


def test_every_load_in_the_package_is_of_weights_only() -> None:
    for path in Path(models.__file__).parent.parent.rglob("*.py"):
        for line in path.read_text().splitlines():
            if "torch.load(" in line and not line.strip().startswith(("#", '"')) and "it yourself" not in line:
                assert "weights_only=True" in line, f"{path}: {line}"


def test_weights_that_do_not_fit_are_refused_whole() -> None:
    network = nn.Linear(2, 3)
    kept = network.weight.detach().clone()
    for weights, message in (
        ({"weight": torch.zeros(3, 2)}, "bias is missing"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "extra": torch.zeros(1)}, "extra is unknown"),
        ({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, r"weight is \(3, 4\), expected \(3, 2\)"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.fill(network, weights, "file")
        assert torch.equal(network.weight, kept)
    checkpoint.fill(network, {"module.weight": torch.ones(3, 2), "module.bias": torch.zeros(3)}, "file")
    assert (network.weight == 1).all()


@pytest.mark.slow
def test_torchvision_models_are_built_with_weights_from_a_file(tmp_path: Path) -> None:
    import torchvision

    network = torchvision.models.mobilenet_v3_small(num_classes=5)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = models.load("torchvision:mobilenet_v3_small", str(tmp_path / "w.safetensors"))
    out = loaded.classifier.eval()(torch.rand(2, 3, 40, 40))  # resized inside
    assert out.shape == (2, 5) and loaded.classifier.size == (224, 224)
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        raise_for("torchvision:resnet5O")


def raise_for(spec: str, weights: str | None = None) -> None:
    try:
        models.load(spec, weights)
    except UserError as error:
        raise UserError(error.code, str(error), "", "") from error


MODEL_FILE = """
import torch
def make(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
def wrong(): return 3
"""


def test_a_function_in_a_file_gives_the_model(tmp_path: Path) -> None:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL_FILE)
    weights = {"1.weight": torch.ones(3, 12), "1.bias": torch.zeros(3)}
    save_file(weights, tmp_path / "w.safetensors")
    loaded = models.load(f"py:{path}:make", str(tmp_path / "w.safetensors"))
    assert loaded.classifier(torch.ones(1, 3, 2, 2)).tolist() == [[12.0] * 3]
    for spec, message in (
        (f"py:{path}:mak", "did you mean 'make'"),
        (f"py:{path}:wrong", "returned int"),
        ("py:nowhere.py:make", "names no file"),
        ("small_cnn", "an architecture without weights"),
        ("/nowhere", "there is no model"),
        (str(tmp_path), r"model\.json is missing"),
    ):
        with pytest.raises(UserError, match=message):
            raise_for(spec)


def test_a_run_whose_weights_were_changed_is_refused(trained: Path, tmp_path: Path) -> None:
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(UserError, match="is not the file that"):
        models.load(tmp_path)


def test_a_module_from_python_is_taken_as_it_is() -> None:
    model = Curved()
    assert models.load(model).classifier is model

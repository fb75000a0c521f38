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
from robustcv.models.architectures import OURS, TORCHVISION

PARAMETERS = {  # the tutorial's figure; the papers' 0.27 M, 36.5 M; what their reference code has
    "small_cnn": 122_570,
    "cifar_resnet20": 269_722,
    "cifar_resnet18": 11_173_962,
    "preact_resnet18": 11_172_170,
    "wideresnet28_10": 36_479_194,
    "wideresnet34_10": 46_160_474,
    "zfnet": 62_357_608 - 4097 * 990,
}
LEAST = {"zfnet": 64, "alexnet": 63, "inception_v3": 75}
TIMM = ("timm:resnet10t", "timm:vit_tiny_patch16_224")
LIGHT = ("small_cnn", "cifar_resnet20", "resnet18", "mobilenet_v3_small", "preact_resnet18,instance")


@pytest.mark.parametrize("name", OURS)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES[name](classes=10, size=32, channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_have_the_parameters_their_weights_have(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        network = ARCHITECTURES[name](classes=1000, size=224, channels=3).network
        whole = torchvision.models.get_model(name, weights=None, **({"init_weights": False} if "ince" in name else {}))
    heads = sum(p.numel() for key, p in whole.named_parameters() if key.startswith(("AuxLogits", "aux")))
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(parameter.numel() for parameter in network.parameters()) == published - heads


def step_and_round_trip(tmp_path: Path, name: str, size: int, channels: int = 3) -> None:
    classifier = build(name, classes=7, size=size, channels=channels)
    images, labels = torch.rand(3, channels, size, size), torch.arange(3)
    before = classifier(images)
    assert before.shape == (3, 7)
    assert not torch.allclose(before.sum(1), torch.ones(3), atol=0.01)  # logits, not probabilities
    nn.functional.cross_entropy(before, labels).backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())
    nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)  # three images at 1x1 features: steep in a deep random net
    torch.optim.SGD(classifier.parameters(), 0.01).step()
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint.to_bytes(classifier))
    again = build(name, classes=7, size=size, channels=channels)
    assert checkpoint.sha256_of(again) != checkpoint.sha256_of(classifier)
    checkpoint.fill(again, checkpoint.load_weights(path), str(path))
    assert checkpoint.sha256_of(again) == checkpoint.sha256_of(classifier)
    logits = classifier.eval()(images)
    assert logits.isfinite().all() and torch.equal(again.eval()(images), logits)


@pytest.mark.parametrize("name", LIGHT)
def test_an_architecture_trains_a_step_and_survives_a_round_trip(tmp_path: Path, name: str) -> None:
    step_and_round_trip(tmp_path, name, 40)
    step_and_round_trip(tmp_path, name, 32, channels=1)


@pytest.mark.every_case
@pytest.mark.parametrize(
    "name", [*ARCHITECTURES, "wideresnet28_10,instance", "timm:resnet10t", "timm:vit_tiny_patch16_224"]
)
def test_every_architecture_trains_a_step_and_survives_a_round_trip(tmp_path: Path, name: str) -> None:
    step_and_round_trip(tmp_path, name, LEAST.get(name, 32))


def test_small_images_are_enlarged_inside_only_where_the_network_needs_it() -> None:
    with torch.device("meta"):
        sizes = {name: build(name, classes=2, size=32).size for name in ("resnet18", "alexnet", "inception_v3")}
        assert sizes == {"resnet18": None, "alexnet": (63, 63), "inception_v3": (75, 75)}
        assert build("resnet18", classes=2, size=32, input_size=224).size == (224, 224)


def test_the_published_inception_is_normalised_as_torchvision_does(monkeypatch) -> None:
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    inner = torchvision.models.get_model

    def as_if_downloaded(name, weights=None, **rest):
        return theirs if weights is not None else inner(name, weights=None, **{**rest, "init_weights": False})

    monkeypatch.setattr(torchvision.models, "get_model", as_if_downloaded)
    ours = models.load("torchvision:inception_v3").classifier
    images = torch.rand(2, 3, 299, 299)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs((images - mean) / std), atol=1e-4)


def test_names_and_sizes_that_cannot_be_built_are_refused() -> None:
    for name, size, message in (
        ("resnet19", 32, "did you mean 'resnet18'"),
        ("small_cnn,instance", 32, "variant of small_cnn"),
        ("wideresnet28_10,layer", 32, "variant of wideresnet28_10"),
        ("zfnet", 32, "zfnet needs images of 64"),
        ("timm:resnet10x", 32, "timm model"),
    ):
        with pytest.raises(UserError, match=message):
            build(name, classes=2, size=size)


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

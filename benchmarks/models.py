"""The models that the benchmarks attack, trained here: `make bench-models` (an hour on two cores).

    python benchmarks/models.py [--only NAME] [--out benchmarks/weights]

Small on purpose, so that AutoAttack itself can be run on two cores. Each is trained on the training split only and
written as safetensors with a line of JSON beside it: architecture, data, eps, how it was trained. Weights stay out of
git. `single-step` is FGSM from a random start with steps of 1.25 eps (Wong et al. 2020); `pgd` takes 5 steps.
"""

import argparse
import functools
import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.pgd import pgd
from robustcv.data import augment, load, split_rows
from robustcv.models import build
from robustcv.training import OBJECTIVES, Recipe, fit

CIFAR, FASHION = "cifar10.tar.xz", "fashion-mnist"
MODELS = {  # architecture, data, eps in 1/255 (None: standard training), attack, epochs
    "small_cnn-cifar-pgd": ("small_cnn", CIFAR, 4, "pgd", 8),
    "small_cnn-fashion-pgd": ("small_cnn", FASHION, 16, "pgd", 6),
    "cifar_resnet20-fashion-single-step": ("cifar_resnet20", FASHION, 16, "single-step", 5),
    "small_cnn-cifar-standard": ("small_cnn", CIFAR, None, None, 10),
    "small_cnn-fashion-standard": ("small_cnn", FASHION, None, None, 6),
    "cifar_resnet20-cifar-standard": ("cifar_resnet20", CIFAR, None, None, 8),
}
ATTACKS = {
    "pgd": functools.partial(pgd, steps=5, keep="last"),
    "single-step": functools.partial(fgsm, random_start=True),
}


def images_of(name: str, split: str):
    """Load one split of a model's data, whole, from the folder that ROBUSTCV_DATA names."""
    data = MODELS[name][1]
    folder = os.environ["ROBUSTCV_DATA"]
    if data == CIFAR:
        return load(str(Path(folder) / CIFAR), split=split).in_memory()
    return load(data, split=split, data_dir=folder).in_memory()


def train(name: str, folder: Path) -> None:
    """Train one model and write it."""
    architecture, data, eps, attack, epochs = MODELS[name]
    images = images_of(name, "train")
    rows, held_out = split_rows(images.labels, 0.04, 0)
    torch.manual_seed(0)
    model = build(architecture, classes=10, size=images.shape[-1], channels=images.shape[0])
    model = model.to(memory_format=torch.channels_last)
    perturb = None if attack is None else functools.partial(ATTACKS[attack], eps=eps / 255, norm="linf")
    objective = OBJECTIVES["standard" if perturb is None else "pgd-at"]
    start = time.perf_counter()
    augmented = (augment.crop, augment.flip) if data == CIFAR else (augment.crop,)
    fitted = fit(model, images.take(rows), images.take(held_out), objective=objective,
                 attack_at=None if perturb is None else lambda _: perturb, validate_with=perturb,
                 recipe=Recipe(epochs=epochs, augment=augmented, precision="bf16"))  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / f"{name}.safetensors")
    described = {"architecture": architecture, "data": data, "eps": eps, "attack": attack, "epochs": epochs,
                 "size": images.shape[-1],
                 "selected_epoch": fitted.selected_epoch, "seconds": round(time.perf_counter() - start)}  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(described))
    print(name, described, vars(fitted.epochs[-1]), flush=True)


def read(name: str, folder: Path) -> nn.Module:
    """Rebuild a trained model, in eval mode."""
    weights = load_file(folder / f"{name}.safetensors")
    architecture = MODELS[name][0]
    size = json.loads((folder / f"{name}.json").read_text()).get("size") or images_of(name, "test").shape[-1]
    model = build(architecture, classes=10, size=size, channels=weights["mean"].shape[1])
    model.load_state_dict(weights)
    return model.to(memory_format=torch.channels_last).eval()


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    options = parser.parse_args()
    if not os.environ.get("ROBUSTCV_DATA"):
        parser.error(f"set ROBUSTCV_DATA to a folder with {CIFAR} and fashion_mnist/")
    for name in MODELS if options.only is None else [options.only]:
        if not (options.out / f"{name}.safetensors").exists():
            train(name, options.out)


if __name__ == "__main__":
    main()

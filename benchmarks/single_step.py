"""Which single-step objective is worth its passes: fast, fgsm-rs, NuAT, GradAlign, and PGI, on the same images.

    python benchmarks/single_step.py [--cases small_cnn-8,...] [--train 10000] [--epochs 15] [--rounds 1]

Each trains a case from scratch with the same images, epochs, schedule and seed, without the guard that would hide a
collapse, and is judged by the attack engine's `standard` effort on test images. NuAT is written here: of it and PGI the
package has the better one.
"""

import argparse
import functools
import os
import time

import models
import torch
from torch import Tensor, nn
from torch.nn import functional
from training import BATCH, judged, sets_of

from robustcv import draws
from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.noise_fgsm import noise_fgsm
from robustcv.attacks.pgd import pgd
from robustcv.classifier import frozen
from robustcv.data import augment
from robustcv.models import build
from robustcv.training import OBJECTIVES, Recipe, fit
from robustcv.training.objectives import cross_entropy, without_batch_norm

CASES = {  # architecture, data, eps
    "small_cnn-4": ("small_cnn", models.CIFAR, 4 / 255),
    "small_cnn-8": ("small_cnn", models.CIFAR, 8 / 255),
    "resnet20-8": ("cifar_resnet20", models.CIFAR, 8 / 255),
    "resnet20-fashion-0.1": ("cifar_resnet20", models.FASHION, 0.1),
}
SMOOTHED = 4 / 9  # of the probability: 0.6 is left to the label, as in PGI's code


def nuat(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    perturb: object = None,
    seeds: Tensor | None = None,
    targets: Tensor | None = None,
    eps: float,
    weight: float = 4.0,
) -> tuple[Tensor, Tensor]:
    """Compute clean cross-entropy plus the nuclear norm of the change under one L-inf step (Sriramanan et al. 2021).

    The step starts at random signs of eps/2 and climbs the same loss.
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    signs = draws.uniform(seeds, tuple(images.shape[1:])).to(images).sub(0.5).sign()
    with frozen(classifier):
        fast = without_batch_norm(classifier, images)
        with torch.no_grad():
            clean = fast(images)
        here = (images + eps / 2 * signs).clamp(0, 1).requires_grad_()
        logits = fast(here)
        climbed = functional.cross_entropy(logits, labels) + weight / len(images) * _nuclear(logits - clean)
        (slope,) = torch.autograd.grad(climbed, here)
        away = here.detach() + eps * slope.sign()
        away = torch.minimum(torch.maximum(away, images - eps), images + eps).clamp(0, 1)
    clean, shifted = classifier(torch.cat([images, away])).chunk(2)
    loss = cross_entropy(clean, labels, targets) + weight / len(images) * _nuclear(shifted - clean)
    return loss, shifted


def _nuclear(change: Tensor) -> Tensor:
    """Sum the singular values; in float32, as a half-precision SVD does not exist."""
    norm: Tensor = torch.linalg.matrix_norm(change.float(), "nuc")
    return norm


def objectives(eps: float) -> dict:
    """Name each objective, its attack and its label smoothing."""
    fast, rs = functools.partial(noise_fgsm, eps=eps), functools.partial(fgsm, eps=eps, random_start=True)
    return {
        "fast (N-FGSM)": (OBJECTIVES["fast"], fast, 0.0),
        "fgsm-rs": (OBJECTIVES["fgsm-rs"], rs, 0.0),
        "NuAT": (functools.partial(nuat, eps=eps), None, 0.0),
        "NuAT, smoothed labels": (functools.partial(nuat, eps=eps), None, SMOOTHED),
        "GradAlign": (functools.partial(OBJECTIVES["gradalign"], eps=eps), rs, 0.0),
        "PGI": (OBJECTIVES["fgsm-pgi"](eps=eps), None, 0.0),
        "PGI, smoothed labels": (OBJECTIVES["fgsm-pgi"](eps=eps), None, SMOOTHED),
    }


def compare(case: str, *, train: int, epochs: int, seed: int, test: int, only: list[str]) -> None:
    """Train and judge each objective on one case; print a line for each."""
    architecture, data, eps = CASES[case]
    learnt, validation, images = sets_of(data, train=train, test=test, seed=seed)
    channels, size, _ = images.shape
    for name, (objective, attack, smoothing) in objectives(eps).items():
        if only and not any(name.startswith(each) for each in only):
            continue
        torch.manual_seed(seed)
        net = build(architecture, classes=10, size=size, channels=channels).to(memory_format=torch.channels_last)
        start = time.perf_counter()
        fit(
            net, learnt, validation, objective=objective, attack_at=None if attack is None else lambda _, a=attack: a,
            validate_with=functools.partial(pgd, eps=eps, steps=10, keep="last"),
            recipe=Recipe(epochs=epochs, batch_size=BATCH, learning_rate=3e-3, precision="bf16", seed=seed,
                          label_smoothing=smoothing,
                          augment=(augment.crop, augment.flip) if data == models.CIFAR else (augment.crop,)),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        found = judged(net, images, eps)
        print(f"| {case} | {seed} | {name} | {found['clean_accuracy']:.3f} | {found['robust_accuracy']:.3f} | "
              f"{seconds / 60:.1f} |", flush=True)  # fmt: skip


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--only", default="", help="objectives, by how their names begin")
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1, help="seeds")
    options = parser.parse_args()
    if not os.environ.get("ROBUSTCV_DATA"):
        parser.error(f"set ROBUSTCV_DATA to a folder with {models.CIFAR} and fashion_mnist/")
    print(f"{options.train:,} images, {options.epochs} epochs, bf16, {torch.get_num_threads()} threads\n")
    print("| case | seed | objective | clean | robust | minutes |\n|---|---|---|---|---|---|")
    for seed in range(options.rounds):
        for case in options.cases.split(","):
            compare(case, train=options.train, epochs=options.epochs, seed=seed, test=options.test,
                    only=[each for each in options.only.split(",") if each])  # fmt: skip


if __name__ == "__main__":
    main()

"""Which single-step objective is worth its passes: fast, fgsm-rs, NuAT, GradAlign, and PGI, on the same images.

    python benchmarks/single_step.py [--cases small_cnn-8,...] [--train 10000] [--epochs 15] [--rounds 1]

Each trains a case from scratch with the same images, epochs, schedule and seed, without the guard that would hide a
collapse, and is judged by the attack engine's `standard` effort on test images. PGI (Jia et al. 2022, FGSM-MEP with the
settings of their code) is written here: it remembers a perturbation and a momentum for each training image. Of it and
NuAT, which the package has, the better one belongs there.
"""

import argparse
import functools
import os
import time
from collections.abc import Iterator

import models
import torch
from torch import Tensor, nn
from torch.nn import functional
from training import BATCH, judged, sets_of

from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.noise_fgsm import noise_fgsm
from robustcv.attacks.pgd import pgd
from robustcv.data import augment
from robustcv.models import build
from robustcv.training import OBJECTIVES, Recipe, fit

CASES = {  # architecture, data, eps
    "small_cnn-4": ("small_cnn", models.CIFAR, 4 / 255),
    "small_cnn-8": ("small_cnn", models.CIFAR, 8 / 255),
    "resnet20-8": ("cifar_resnet20", models.CIFAR, 8 / 255),
    "resnet20-fashion-0.1": ("cifar_resnet20", models.FASHION, 0.1),
}
SMOOTHED = 4 / 9  # of the probability: 0.6 is left to the label, as in PGI's code


class Rows:
    """Images in batches, remembering which of them the last batch was made of."""

    def __init__(self, images) -> None:
        self.images, self.class_names, self.rows = images, images.class_names, torch.empty(0)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels."""
        order = torch.arange(len(self)) if order is None else order
        for rows, batch in zip(order.split(batch_size), self.images.batches(batch_size, order), strict=True):
            self.rows = rows
            yield batch


class Pgi:
    """Cross-entropy after one step from the perturbation of the epoch before, tied to the answer at its start."""

    def __init__(self, sets: Rows, eps: float, seed: int, weight: float = 10.0, decay: float = 0.3) -> None:
        self.sets, self.eps, self.weight, self.decay = sets, eps, weight, decay
        generator = torch.Generator().manual_seed(seed)
        shape = (len(sets), *next(sets.batches(1))[0].shape[1:])
        self.deltas = eps * (torch.rand(shape, generator=generator) - 0.5).sign()
        self.momenta = torch.zeros(shape)

    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor, *, perturb=None, seeds=None,
                 targets: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Give the loss and the logits of the attacked images."""
        wanted, rows = labels if targets is None else targets, self.sets.rows
        delta = self.deltas[rows].requires_grad_()
        start = classifier((images + delta).clamp(0, 1))
        (slope,) = torch.autograd.grad(functional.cross_entropy(start, wanted), delta, retain_graph=True)
        momentum = slope / slope.norm(p=1) + self.decay * self.momenta[rows]
        self.momenta[rows] = momentum
        moved = [(delta.detach() + self.eps * way.sign()).clamp(-self.eps, self.eps) for way in (momentum, slope)]
        self.deltas[rows], delta = ((images + each).clamp(0, 1) - images for each in moved)
        logits = classifier(images + delta)
        tied = functional.mse_loss(logits.float(), start.float())
        return functional.cross_entropy(logits, wanted) + self.weight * tied, logits


def objectives(sets: Rows, eps: float, seed: int) -> dict:
    """Name each objective, its attack and its label smoothing."""
    fast, rs = functools.partial(noise_fgsm, eps=eps), functools.partial(fgsm, eps=eps, random_start=True)
    return {
        "fast (N-FGSM)": (OBJECTIVES["fast"], fast, 0.0),
        "fgsm-rs": (OBJECTIVES["fgsm-rs"], rs, 0.0),
        "NuAT": (functools.partial(OBJECTIVES["nuat"], eps=eps), None, 0.0),
        "NuAT, smoothed labels": (functools.partial(OBJECTIVES["nuat"], eps=eps), None, SMOOTHED),
        "GradAlign": (functools.partial(OBJECTIVES["gradalign"], eps=eps), rs, 0.0),
        "PGI, no smoothing": (Pgi(sets, eps, seed), None, 0.0),
        "PGI": (Pgi(sets, eps, seed), None, SMOOTHED),
    }


def compare(case: str, *, train: int, epochs: int, seed: int, test: int, only: list[str]) -> None:
    """Train and judge each objective on one case; print a line for each."""
    architecture, data, eps = CASES[case]
    learnt, validation, images = sets_of(data, train=train, test=test, seed=seed)
    sets, (channels, size, _) = Rows(learnt), images.shape
    for name, (objective, attack, smoothing) in objectives(sets, eps, seed).items():
        if only and not any(name.startswith(each) for each in only):
            continue
        torch.manual_seed(seed)
        net = build(architecture, classes=10, size=size, channels=channels).to(memory_format=torch.channels_last)
        start = time.perf_counter()
        fit(
            net, sets, validation, objective=objective, attack_at=None if attack is None else lambda _, a=attack: a,
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

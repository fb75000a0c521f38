"""Adversarial training: epochs against other libraries, and hardening against starting from scratch.

    python benchmarks/training.py epochs [--rounds 3] [--images 2560]
    python benchmarks/training.py harden CASE [--epochs 20] [--train 20000] [--seed 0]
    python benchmarks/training.py table

`epochs` (in `.venv-bench`): single-step and PGD-7 epochs of small_cnn and cifar_resnet20 on the CIFAR-10 archive, ours
against loops around foolbox's attack and against ART's AdversarialTrainer: the same net, images, batch size, optimiser,
steps and eps; alternating, medians, ratios; beside them ours in bfloat16, and the floor: the passes alone.

`harden` trains one case twice: from scratch with an objective, until robust validation accuracy has not risen for
three epochs (`--patience 0`: for its whole schedule), and from a clean model with the same objective, for 27 % as many
epochs: 4 of 15, which are 27 % of the passes too, validation included. The recipes (batches, rates, how eps rises)
were chosen on validation images of another seed. Both are judged by the attack engine's `standard` effort on test
images; the lines are kept under benchmarks/weights/, `table` prints them.
"""

import argparse
import functools
import json
import math
import os
import statistics
import time
from pathlib import Path

import models
import torch
from torch import nn

from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.noise_fgsm import noise_fgsm
from robustcv.attacks.pgd import pgd
from robustcv.data import augment, split_rows, stratified
from robustcv.models import build
from robustcv.training import OBJECTIVES, Guard, Recipe, fit

KEPT = Path(__file__).parent / "weights"
BATCH = 128
CASES = {  # architecture, data, eps, objective
    "fashion-0.1": ("small_cnn", models.FASHION, 0.1, "pgd-at"),
    "cifar-8": ("small_cnn", models.CIFAR, 8 / 255, "pgd-at"),
    "cifar-2": ("small_cnn", models.CIFAR, 2 / 255, "pgd-at"),
    "cifar-8-resnet20-fast": ("cifar_resnet20", models.CIFAR, 8 / 255, "fast"),
    "fashion-0.1-resnet20-fast": ("cifar_resnet20", models.FASHION, 0.1, "fast"),
}


def load(data: str, split: str):
    """Load one split, whole."""
    name = next(name for name, made in models.MODELS.items() if made[1] == data)
    return models.images_of(name, split)


def sets_of(data: str, *, train: int, test: int, seed: int):
    """Draw training, validation (1,000) and test images, class by class; the test images whatever the seed."""
    whole = load(data, "train")
    whole = whole.take(stratified(whole.labels, train + 1000, seed))
    rows, held_out = split_rows(whole.labels, 1000 / (train + 1000), seed)
    images = load(data, "test")
    return whole.take(rows), whole.take(held_out), images.take(stratified(images.labels, test, 0))


# -- harden against scratch ------------------------------------------------------------------------------------------


def attacks_of(objective: str, eps: float, steps: int):
    """Give the attack of training, that of validation, and the guard; steps rise with eps, as in the package."""
    many = functools.partial(pgd, eps=eps, steps=10, keep="last")
    if objective == "fast":
        guard = Guard(functools.partial(fgsm, eps=eps), functools.partial(pgd, eps=eps, steps=7, keep="last"))
        return (lambda s: functools.partial(noise_fgsm, eps=eps * s)), many, guard
    return (lambda s: functools.partial(pgd, eps=eps * s, steps=math.ceil(steps * s), keep="last")), many, None


def fitted(classifier, sets, data, *, objective, eps, steps, epochs, seed, rate, schedule, patience=None,
           begun=False, batch=BATCH, **more):  # fmt: skip
    """Train by one recipe; gives seconds of the processor in training and validation, and the epochs."""
    attack_at, many, guard = attacks_of(objective, eps, steps) if eps else (None, None, None)
    augmented = (augment.crop, augment.flip) if data == models.CIFAR else (augment.crop,)
    recipe = Recipe(epochs=epochs, batch_size=batch, learning_rate=rate, schedule=schedule, augment=augmented,
                    patience=patience, seed=seed, **more)  # fmt: skip
    start = time.process_time()  # of one thread: other work on the machine would weigh on one side alone
    found = fit(classifier, *sets, objective=OBJECTIVES[objective], attack_at=attack_at, validate_with=many,
                guard=guard, recipe=recipe, begun=begun)  # fmt: skip
    return time.process_time() - start, found


def judged(classifier, images, eps: float, norm: str = "linf") -> dict[str, float]:
    """Judge by the attack engine, as an audit does."""
    import robustcv as rc

    run = rc.audit(classifier, images, eps=eps, norm=norm, sweep=False, explain=(), cases=0, quiet=True)
    shares = {name: run.record.metric(name, **({"attack": None} if "robust" in name else {}))
              for name in ("clean_accuracy", "robust_accuracy")}  # fmt: skip
    return {name: metric.count / metric.n for name, metric in shares.items()}


def harden_case(case: str, *, epochs: int, train: int, seed: int, steps: int, test: int, warmup: float,
                patience: int | None) -> None:  # fmt: skip
    """Train a case from scratch and by hardening, and keep what came out."""
    architecture, data, eps, objective = CASES[case]
    *sets, images = sets_of(data, train=train, test=test, seed=seed)
    channels, size, _ = images.shape

    def fresh():
        torch.manual_seed(seed)
        return build(architecture, classes=10, size=size, channels=channels).to(memory_format=torch.channels_last)

    common = {"sets": sets, "data": data, "seed": seed, "precision": "bf16"}
    print(case, "from scratch", flush=True)
    scratch = fresh()
    attacked = {"objective": objective, "eps": eps, "steps": steps}
    seconds, found = fitted(
        scratch, **common, **attacked, epochs=epochs, rate=3e-3, schedule="one-cycle", patience=patience, eps_warmup=0.3
    )
    lines = {"scratch": {"seconds": seconds, "epochs": [vars(e) for e in found.epochs], **judged(scratch, images, eps)}}
    print(case, lines["scratch"]["robust_accuracy"], seconds, found.stopped, flush=True)
    clean = fresh()
    before, _ = fitted(clean, **common, objective="standard", eps=0, steps=0, epochs=8, rate=3e-3, schedule="one-cycle")
    lines["clean"] = {"seconds": before, **judged(clean, images, eps)}
    taken, tuned = fitted(clean, **common, **attacked, epochs=max(1, round(0.27 * len(found.epochs))), rate=5e-3,
                          schedule="one-cycle", batch=64, begun=True, eps_warmup=warmup)  # fmt: skip
    lines["hardened"] = {"seconds": taken, "epochs": [vars(e) for e in tuned.epochs], **judged(clean, images, eps)}
    kept = {"case": case, "seed": seed, "train": train, "test": test, "steps": steps,
            "threads": torch.get_num_threads(), "warmup": warmup, **lines}  # fmt: skip
    (KEPT / f"harden-{case}-seed{seed}.json").write_text(json.dumps(kept))
    report(kept)


def report(kept: dict) -> None:
    """Print one case as a line of the table."""
    scratch, clean, hardened = kept["scratch"], kept["clean"], kept["hardened"]
    print(
        f"| {kept['case']} | {kept['train']:,} | {scratch['clean_accuracy']:.3f} / {scratch['robust_accuracy']:.3f} | "
        f"{scratch['seconds'] / 60:.1f} | {clean['seconds'] / 60:.1f} | "
        f"{hardened['clean_accuracy']:.3f} / {hardened['robust_accuracy']:.3f} | {hardened['seconds'] / 60:.1f} | "
        f"{hardened['robust_accuracy'] / max(scratch['robust_accuracy'], 1e-9):.2f} | "
        f"{hardened['seconds'] / scratch['seconds']:.2f} |", flush=True,
    )  # fmt: skip


def table() -> None:
    """Print every case that was run."""
    print("| case | training images | from scratch: clean / robust | min | clean training, min | "
          "hardened: clean / robust | min | robust, share | time, share |")  # fmt: skip
    print("|---" * 9 + "|")
    for path in sorted(KEPT.glob("harden-*.json")):
        report(json.loads(path.read_text()))


# -- epochs against other libraries ----------------------------------------------------------------------------------


def ours(classifier, images, labels, eps: float, steps: int, precision: str = "float32") -> float:
    """Time one epoch of robustcv's loop."""
    from robustcv.data import ImageSet

    sets = ImageSet(images, labels, tuple("0123456789"))
    attack = functools.partial(noise_fgsm, eps=eps) if steps == 1 else functools.partial(
        pgd, eps=eps, steps=steps, step_size=eps / 4, keep="last")  # fmt: skip
    start = time.perf_counter()
    fit(classifier, sets, sets.take(torch.arange(1)), objective=OBJECTIVES["pgd-at"], attack_at=lambda _: attack,
        recipe=Recipe(epochs=1, batch_size=BATCH, learning_rate=1e-3, precision=precision))  # fmt: skip
    return time.perf_counter() - start


def floor(classifier, images, labels, eps: float, steps: int) -> float:
    """Time the passes alone, on one batch over and over: what no loop of as many passes in float32 can go below."""
    x, y = images[:BATCH].contiguous(memory_format=torch.channels_last), labels[:BATCH]
    points = x.clone().requires_grad_()
    start = time.perf_counter()
    for _ in range(len(images) // BATCH):
        classifier.eval().requires_grad_(False)
        for _ in range(steps):
            torch.autograd.grad(nn.functional.cross_entropy(classifier(points), y), points)
        classifier.train().requires_grad_(True)
        nn.functional.cross_entropy(classifier(x), y).backward()
        classifier.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def with_foolbox(classifier, images, labels, eps: float, steps: int) -> float:
    """Time one epoch of the loop that foolbox's users write."""
    import foolbox

    optimizer = torch.optim.AdamW(classifier.parameters(), 1e-3, fused=True)
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=True) if steps == 1 else foolbox.attacks.LinfPGD(
        steps=steps, abs_stepsize=eps / 4)  # fmt: skip
    start = time.perf_counter()
    for at in range(0, len(images), BATCH):
        x, y = images[at : at + BATCH], labels[at : at + BATCH]
        model = foolbox.PyTorchModel(classifier.eval(), bounds=(0, 1), device="cpu")
        _, attacked, _ = attack(model, x, y, epsilons=eps)
        classifier.train()
        loss = nn.functional.cross_entropy(classifier(attacked), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def with_art(classifier, images, labels, eps: float, steps: int) -> float:
    """Time one epoch of ART's AdversarialTrainer with its PyTorch PGD."""
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import PyTorchClassifier

    optimizer = torch.optim.AdamW(classifier.parameters(), 1e-3, fused=True)
    wrapped = PyTorchClassifier(classifier, loss=nn.CrossEntropyLoss(), optimizer=optimizer, device_type="cpu",
                                input_shape=tuple(images.shape[1:]), nb_classes=10, clip_values=(0, 1))  # fmt: skip
    attack = FastGradientMethod(wrapped, eps=eps, num_random_init=1, batch_size=BATCH) if steps == 1 else (
        ProjectedGradientDescentPyTorch(wrapped, eps=eps, eps_step=eps / 4, max_iter=steps, num_random_init=1,
                                        batch_size=BATCH, verbose=False))  # fmt: skip
    trainer = AdversarialTrainer(wrapped, attack, ratio=1.0)
    start = time.perf_counter()
    trainer.fit(images.numpy(), labels.numpy(), batch_size=BATCH, nb_epochs=1)
    return time.perf_counter() - start


def epochs(rounds: int, n: int) -> None:
    """Compare epochs of adversarial training, alternating; the first round warms up."""
    whole = load(models.CIFAR, "train")
    pixels, labels = next(whole.take(stratified(whole.labels, n, 0)).batches(n))
    loops = {"robustcv": ours, "bf16": functools.partial(ours, precision="bf16"), "foolbox": with_foolbox,
             "ART": with_art, "floor": floor}  # fmt: skip
    print(f"CIFAR-10 archive, {n} images an epoch, eps 8/255, {torch.get_num_threads()} threads, median of {rounds}")
    print("| net | attack | robustcv, s | in bf16, s | foolbox, s | ART, s | floor, s | foolbox and ART / robustcv | "
          "/ bf16 |")  # fmt: skip
    print("|---" * 9 + "|")
    for name in ("small_cnn", "cifar_resnet20"):
        for steps in (1, 7):
            seconds: dict[str, list[float]] = {loop: [] for loop in loops}
            for round_number in range(rounds + 1):
                for loop, run in loops.items():
                    torch.manual_seed(0)
                    net = build(name, classes=10, size=32).to(memory_format=torch.channels_last)
                    taken = run(net, pixels, labels, 8 / 255, steps)
                    seconds[loop] += [taken] if round_number else []
            middle = {loop: statistics.median(times) for loop, times in seconds.items()}
            print(f"| {name} | {'single step' if steps == 1 else 'PGD-7'} | "
                  + " | ".join(f"{middle[loop]:.2f}" for loop in loops)
                  + "".join(f" | {middle['foolbox'] / middle[way]:.2f}, {middle['ART'] / middle[way]:.2f}"
                            for way in ("robustcv", "bf16")) + " |", flush=True)  # fmt: skip


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["epochs", "harden", "table"])
    parser.add_argument("case", nargs="?", choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--train", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=int, default=3, help="epochs from scratch without a gain; 0: all of them")
    parser.add_argument("--warmup", type=float, default=0.4, help="share of hardening over which eps rises")
    options = parser.parse_args()
    if options.what != "table" and not os.environ.get("ROBUSTCV_DATA"):
        parser.error(f"set ROBUSTCV_DATA to a folder with {models.CIFAR} and fashion_mnist/")
    if options.what == "epochs":
        epochs(options.rounds, options.images)
    elif options.what == "table":
        table()
    else:
        for case in CASES if options.case is None else [options.case]:
            harden_case(case, epochs=options.epochs, train=options.train, seed=options.seed, steps=options.steps,
                        test=options.test, warmup=options.warmup, patience=options.patience or None)  # fmt: skip


if __name__ == "__main__":
    main()

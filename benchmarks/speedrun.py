"""How robust a network can be made in seconds: CIFAR-10, ResNet-18, from scratch and by fine-tuning. For a GPU.

    python benchmarks/speedrun.py [--only clean,scratch,fine-tune] [--seeds 3] [--out benchmarks/weights]

Clean training in 5 s (wanted: 94 %); adversarial training from scratch in 30 s, 2 and 5 minutes (wanted: 43.2, 48.6 and
50.0 % withstand AutoAttack at 8/255); fine-tuning of the longest clean run in 10 to 60 s (wanted: 45 %). Seconds are
those of training and validation; loading, compiling and judging are not counted. Original CIFAR-10 pixels where
`$ROBUSTCV_DATA` or torchvision's folder has them, else the archive, and the tables say which. `--smoke` runs everything
in some five minutes on two cores, with a small network and few images: it shows that the command works, no more.
"""

import argparse
import functools
import json
import os
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import robustcv as rc
from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.noise_fgsm import noise_fgsm
from robustcv.attacks.pgd import pgd
from robustcv.data import augment, load, split_rows, stratified
from robustcv.errors import UserError
from robustcv.models import build
from robustcv.training import OBJECTIVES, Guard, Recipe, fit

EPS = 8 / 255
SIZES = {  # network, training images, test images, batch, seconds: clean, scratch, fine-tuning
    "full": ("cifar_resnet18", 50_000, 10_000, 512, (5, 60), (30, 120, 300), (10, 20, 30, 60)),
    "smoke": ("small_cnn", 2_000, 100, 128, (3, 5), (5, 8), (3, 5)),
}
WANTED = {"clean": {5: 94.0}, "scratch": {30: 43.2, 120: 48.6, 300: 50.0}, "fine-tune": {60: 45.0}}


def cifar(split: str):
    """Load CIFAR-10: the original pixels where they are, else the archive of JPEGs."""
    folder = os.environ.get("ROBUSTCV_DATA")
    try:
        return load("cifar10", split=split, data_dir=folder).in_memory(), "original pixels"
    except UserError:
        if folder is None:
            raise
    return load(str(Path(folder) / "cifar10.tar.xz"), split=split).in_memory(), "the archive of JPEGs, not the original"


def trained(model: nn.Module, sets, *, seconds: float, robust: bool, batch: int, seed: int, begun: bool = False):
    """Train for so many seconds; gives the seconds spent, and the epochs."""
    recipe = Recipe(
        epochs=200,
        minutes=seconds / 60,
        batch_size=batch,
        optimizer="sgd",
        learning_rate=(0.05 if begun else 0.2) * batch / 512,
        weight_decay=5e-4,
        schedule="one-cycle",
        augment=(augment.crop, augment.flip),
        precision="bf16",
        seed=seed,
        eps_warmup=0.2 if robust else 0.0,
    )
    attack = {}
    if robust:
        many = functools.partial(pgd, eps=EPS, steps=10, keep="last")
        attack = {
            "attack_at": lambda share: functools.partial(noise_fgsm, eps=EPS * share),
            "validate_with": many,
            "guard": Guard(functools.partial(fgsm, eps=EPS), functools.partial(many, steps=7)),
        }
    start = time.perf_counter()
    objective = OBJECTIVES["fast" if robust else "standard"]
    found = fit(model, *sets, objective=objective, recipe=recipe, begun=begun, **attack)
    return time.perf_counter() - start, found.epochs


def judged(model: nn.Module, images, *, robust: bool) -> dict[str, float]:
    """Count what is right, and what withstands the standard effort: an image or two from AutoAttack (README)."""
    if not robust:
        model.eval()
        device = next(model.parameters()).device
        with torch.no_grad():
            right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in images.batches(500))
        return {"clean": 100 * right / len(images)}
    run = rc.audit(model, images, eps=EPS, sweep=False, explain=(), cases=0, quiet=True)
    shares = {name: run.record.metric(f"{name}_accuracy", **({"attack": None} if name == "robust" else {}))
              for name in ("clean", "robust")}  # fmt: skip
    return {name: 100 * metric.count / metric.n for name, metric in shares.items()}


class Course:
    """The sets, the network and the device that every run shares, and the clean networks to go on from."""

    def __init__(self, *, smoke: bool) -> None:
        self.architecture, self.n, tests, self.batch, *budgets = SIZES["smoke" if smoke else "full"]
        self.budgets = dict(zip(WANTED, budgets, strict=True))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.whole, self.pixels = cifar("train")
        images = cifar("test")[0]
        self.images = images.take(stratified(images.labels, tests, 0))
        self.clean: dict[int, dict[str, torch.Tensor]] = {}

    def sets(self, seed: int):
        """Draw training and validation images."""
        whole = self.whole.take(stratified(self.whole.labels, min(self.n, len(self.whole)), seed))
        rows, held_out = split_rows(whole.labels, min(1000, self.n // 10) / len(whole), seed)
        return whole.take(rows).near(self.device), whole.take(held_out).near(self.device)

    def fresh(self, seed: int) -> nn.Module:
        """Build the network, untrained."""
        torch.manual_seed(seed)
        model = build(self.architecture, classes=10, size=32, channels=3)
        return model.to(self.device, memory_format=torch.channels_last)

    def run(self, part: str, budget: float, seed: int) -> dict:
        """Train one network and judge it."""
        model = self.fresh(seed)
        begun, robust = part == "fine-tune", part != "clean"
        if begun:
            model.load_state_dict(self.clean[seed])
        took, epochs = trained(
            model, self.sets(seed), seconds=budget, robust=robust, batch=self.batch, seed=seed, begun=begun
        )
        if part == "clean" and budget == self.budgets["clean"][-1]:
            self.clean[seed] = {key: value.clone() for key, value in model.state_dict().items()}
        done = {"epochs": epochs[-1].epoch, "recovered": sum(epoch.recovered for epoch in epochs), "seconds": took}
        return {"part": part, "budget": budget, "seed": seed, **done, **judged(model, self.images, robust=robust)}


def main() -> None:
    """Run the parts asked for, and write a line of JSON for each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(WANTED), help="parts, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--smoke", action="store_true", help="small, for two cores")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.smoke):
        parser.error("this takes a GPU; --smoke shows on a processor that it works")
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(WANTED):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(WANTED)}")
    course = Course(smoke=options.smoke)
    where = torch.cuda.get_device_name() if course.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{course.architecture}, CIFAR-10 ({course.pixels}), {course.n:,} training and {len(course.images):,} test "
          f"images, {options.seeds} seeds: median (least-most); {where}\n")  # fmt: skip
    print("| part | budget, s | wanted, % | robust at 8/255, % | clean, % | s | epochs |\n|" + "---|" * 7)
    options.out.mkdir(parents=True, exist_ok=True)
    trained(course.fresh(0), course.sets(0), seconds=1, robust=True, batch=course.batch, seed=0)  # warms up
    for part, budgets in course.budgets.items():
        if part not in chosen:
            if part == "clean" and "fine-tune" in chosen:
                budgets = budgets[-1:]
            else:
                continue
        for budget in budgets:
            rows = [course.run(part, budget, seed) for seed in range(options.seeds)]
            with (options.out / "speedrun.jsonl").open("a") as kept:
                kept.writelines(json.dumps({"device": where, "pixels": course.pixels, **row}) + "\n" for row in rows)
            cells = [spread(rows, name) for name in ("robust", "clean", "seconds", "epochs")]
            wanted = "" if options.smoke else WANTED[part].get(budget, "")
            print(f"| {part} | {budget} | {wanted} | {' | '.join(cells)} |", flush=True)


def spread(rows: list[dict], name: str) -> str:
    """Write the median of the seeds, and the least and the most."""
    values = [row[name] for row in rows if name in row]
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})" if values else ""


if __name__ == "__main__":
    main()

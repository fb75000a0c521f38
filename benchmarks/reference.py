"""AutoAttack's own code as the reference: verdicts, passes and seconds per seed, kept by weight hash.

    python benchmarks/reference.py --autoattack DIR --model NAME [-n 300] [--seeds 0 1 2]

DIR is a checkout of the AutoAttack repository. One run takes minutes to an hour on two cores, so each (weights, images,
eps, seed) is run once and kept under benchmarks/weights/.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import models
import torch
from torch import nn

from robustcv.data import stratified
from robustcv.verbs.prepare import version

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"


class Counted(nn.Module):
    """Counts rows forward and backward from outside, for code that does not count."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, 0, 0

    def forward(self, images):
        self.forwards += len(images)
        if images.requires_grad:
            images.register_hook(self._seen)
        return self.inner(images)

    def _seen(self, gradient) -> None:
        self.backwards += len(gradient)


def test_images(name: str, n: int):
    """Give n test images of a model's data, class by class, seed 0."""
    images = models.images_of(name, "test")
    return images.take(stratified(images.labels, n, 0))


def reference(name: str, n: int, seed: int, folder: Path | None) -> dict | None:
    """Give AutoAttack's verdicts on a model: kept ones, else by running it; None without both."""
    weights = hashlib.sha256((WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest()[:16]
    kept = WEIGHTS / f"autoattack-{name}-{weights}-n{n}-seed{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    if folder is None:
        return None
    sys.path.insert(0, str(folder))
    from autoattack import AutoAttack

    model = Counted(models.read(name, WEIGHTS))
    eps = models.MODELS[name][2] / 255
    pixels, labels = next(test_images(name, n).batches(n))
    with torch.no_grad():
        correct = model.inner(pixels).argmax(1) == labels
    attack = AutoAttack(model, norm="Linf", eps=eps, version="standard", device="cpu", verbose=False, seed=seed)
    start = time.perf_counter()
    adversarial = attack.run_standard_evaluation(pixels, labels, bs=n)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        robust = (model.inner(adversarial).argmax(1) == labels) & correct
    found = {"model": name, "n": n, "seed": seed, "eps": eps, "robust": robust.tolist(), "correct": correct.tolist(),
             "forward": model.forwards, "backward": model.backwards, "seconds": seconds,
             "robustcv": version()}  # fmt: skip
    kept.write_text(json.dumps(found))
    print(name, "seed", seed, "robust", int(robust.sum()), "of", n, f"{seconds:.0f} s", flush=True)
    return found


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoattack", type=Path, required=True)
    parser.add_argument("--model", choices=list(models.MODELS), required=True)
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    for seed in options.seeds:
        reference(options.model, options.n, seed, options.autoattack)


if __name__ == "__main__":
    main()

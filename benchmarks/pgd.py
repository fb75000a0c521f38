"""PGD: robustcv against foolbox and torchattacks on one model, the same images, steps, step size and eps.

    python benchmarks/pgd.py [--rounds 5]

Floor: one forward and one input-gradient backward pass an image and step, for the images still standing. The peers run
every image to the end, and foolbox computes weight gradients too. Printed: median seconds of alternating runs, and
images broken (more is stronger).
"""

import argparse
import importlib.util
import statistics
import time

import torch
from torch import nn

import robustcv as rc
from robustcv import runs
from robustcv.attacks import ATTACKS
from robustcv.classifier import frozen
from robustcv.data import stratified
from robustcv.evaluation.worst_case import Planned, worst_case

EPS, STEPS = 16 / 255, 20
SIZE = 2.5 * EPS / STEPS


def ours(model: nn.Module, images, correct) -> int:
    """Run PGD through the worst-case engine, which stops broken images and checks every success twice."""
    plan = [Planned("pgd", ATTACKS["pgd"], {"steps": STEPS, "step_size": SIZE})]
    with frozen(model):
        outcome = worst_case(model, images, correct, plan, norm="linf", sweep=[EPS], seed=0, batch_size=len(images),
                             device=torch.device("cpu"), state=runs.State(None))  # fmt: skip
    return outcome.results[0].broken


def by_foolbox(model: nn.Module, pixels, labels) -> int:
    """Run foolbox's LinfPGD."""
    import foolbox

    attack = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=SIZE)
    _, _, success = attack(foolbox.PyTorchModel(model, (0, 1), device="cpu"), pixels, labels, epsilons=EPS)
    return int(success.sum())


def by_torchattacks(model: nn.Module, pixels, labels) -> int:
    """Run torchattacks' PGD and judge what it returns."""
    import torchattacks

    out = torchattacks.PGD(model, eps=EPS, alpha=SIZE, steps=STEPS, random_start=True)(pixels, labels)
    with torch.no_grad():
        return int((model(out).argmax(1) != labels).sum())


def main() -> None:
    """Alternate the three and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    model = rc.train("digits", epochs=10, quiet=True).classifier.eval()
    images = rc.load_images("digits")
    images = images.take(stratified(images.labels, 512, 0))
    pixels, labels = next(images.batches(512))
    with torch.no_grad():
        correct = model(pixels).argmax(1) == labels
    pixels, labels = pixels[correct], labels[correct]
    contenders = {"robustcv": lambda: ours(model, images, correct)}
    if importlib.util.find_spec("foolbox"):
        contenders["foolbox"] = lambda: by_foolbox(model, pixels, labels)
    if importlib.util.find_spec("torchattacks"):
        contenders["torchattacks"] = lambda: by_torchattacks(model, pixels, labels)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    broken: dict[str, int] = {}
    for round_number in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            broken[name] = run()
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    print(f"PGD-{STEPS}, L-inf {EPS * 255:g}/255, {len(labels)} images right when clean, {rounds} alternating rounds:")
    own = statistics.median(seconds["robustcv"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"  {name:<13} {median:6.2f} s   {median / own:4.2f} x robustcv   {broken[name]} broken")


if __name__ == "__main__":
    main()

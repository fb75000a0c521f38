"""How far trust checks can be trusted: coverage of intervals, mistakes caught, false alarms, time of the preflight.

    python benchmarks/trust.py [--models 25]

Models and mistakes are those of the tests; seeds from 2000 on, which neither thresholds nor tests have seen.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from honest_models import honest, patches
from test_preflight import MISTAKES, raised
from test_worst_case import job_for

from robustcv import stats
from robustcv.classifier import Classifier, frozen
from robustcv.evaluation.accuracy import predict
from robustcv.evaluation.plans import plan_for
from robustcv.evaluation.preflight import preflight
from robustcv.evaluation.robustness import measure


def coverage(draws: int = 4000) -> None:
    """Simulate each interval at its stated 95 %."""
    rng = np.random.default_rng(2000)
    print("| interval | share, n | covers |\n| --- | --- | --- |")
    for name, make in (("Wilson", stats.wilson), ("Clopper-Pearson", stats.clopper_pearson)):
        for share, n in ((0.03, 100), (0.3, 200), (0.9, 1000)):
            hits = [low <= share <= high for low, high in (make(int(k), n) for k in rng.binomial(n, share, draws))]
            print(f"| {name} | {share}, {n} | {100 * np.mean(hits):.1f} % |")
    for cells, n in (((0.5, 0.08, 0.2, 0.22), 150), ((0.8, 0.02, 0.05, 0.13), 1000)):
        rows = rng.multinomial(n, cells, draws)
        found = [stats.paired(*map(int, row)) for row in rows]
        hits = [each.low <= cells[2] - cells[1] <= each.high for each in found]
        print(f"| Newcombe, paired | {cells[2] - cells[1]:+.2f}, {n} | {100 * np.mean(hits):.1f} % |")
    for n in (50, 300):
        samples = rng.gamma(2.0, size=(draws // 4, n))
        hits = [low <= 2.0 <= high for low, high in (stats.mean_interval(each, seed=0) for each in samples)]
        print(f"| bootstrap of a mean (gamma) | 2, {n} | {100 * np.mean(hits):.1f} % |")
    for n in (100, 900):
        counts = rng.hypergeometric(620, 380, n, draws)
        hits = [low <= 0.62 <= high for low, high in (stats.finite_population(int(k), n, 1000) for k in counts)]
        print(f"| fixed set of 1,000 | 0.62, {n} | {100 * np.mean(hits):.1f} % |")


def false_alarms(models: int) -> None:
    """Audit honest models at three eps; none should raise anything."""
    alarms, checks = [], 0
    for number in range(models):
        model, images = honest(number, 2000), patches(300, 3000 + number)
        alarms += [f"preflight of {number}: {name}" for name in raised(model, images)]
        few = patches(100, 4000 + number)
        for eps in (2 / 255, 8 / 255, 24 / 255):
            with frozen(model):
                _, flags = measure(job_for(model, few), plan_for("standard", "linf"), eps=eps)
            checks += len(flags)
            alarms += [f"{each.check} of {number} at {eps:.3f}" for each in flags if each.status == "raised"]
    print(f"honest models: {models}; audits {3 * models}, flags {checks}; raised: {alarms or 'none'}")


def mistakes() -> None:
    """Plant each mistake and look whether the check made for it is raised."""
    caught = []
    for name, (make, wanted) in MISTAKES.items():
        classifier, images = make()
        caught.append((name, wanted in raised(classifier, images)))
    print(
        f"mistakes caught: {sum(ok for _, ok in caught)} of {len(caught)}; missed: {[n for n, ok in caught if not ok]}"
    )


def preflight_time() -> None:
    """Time the preflight of a ResNet-50 at 224 pixels on this machine."""
    from torchvision.models import resnet50

    model = Classifier(resnet50(num_classes=6), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).eval()
    images = patches(600, 1, size=224)
    cpu = torch.device("cpu")
    with frozen(model):
        predictions = predict(model, images.take(torch.arange(64)), batch_size=64, device=cpu)
        start = time.perf_counter()
        preflight(model, images, predictions, was_training=False, trained_on=None, device=cpu, eps=4 / 255)
    took = time.perf_counter() - start
    print(f"preflight of a resnet50 at 224 pixels, {torch.get_num_threads()} threads: {took:.1f} s")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=25)
    options = parser.parse_args()
    coverage()
    mistakes()
    false_alarms(options.models)
    torch.set_num_threads(2)
    preflight_time()


if __name__ == "__main__":
    main()

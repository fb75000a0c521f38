"""What an audit or a training run costs: images a second here, and what that means for ImageNet on N GPUs.

    python benchmarks/cost.py [--gpus 1 8 64] [--tflops 20]

Measured: forward passes, and forward with input gradients, of a few nets at their image size. Counted: operations of a
forward pass (torch's counter; an input gradient costs as many again). Extrapolated, with no measurement behind it:

    hours = images x passes x operations of a pass / (GPUs x sustained operations a second of one GPU) / 3600

`--tflops` is what one GPU sustains on these nets; read it off the "Size and speed" section of an audit on your own.
"""

import argparse
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from robustcv.models import build

NETS = (("small_cnn", 32, 64), ("preact_resnet18", 32, 32), ("resnet18", 224, 16), ("resnet50", 224, 8))
# passes an image: a standard audit at one eps spends 66 to 83 (benchmarks/RESULTS.md); weights' gradients cost one more
AUDIT, PGD_EPOCH, FAST_EPOCH = 83, 7 * 2 + 3, 2 + 3
IMAGENET_TEST, IMAGENET_TRAIN = 50_000, 1_281_167


def rates(name: str, size: int, batch: int) -> tuple[float, float, float]:
    """Give images a second forward, forward with the gradient of the images, and operations of a forward pass."""
    net = build(name, classes=1000 if size == 224 else 10, size=size).eval().to(memory_format=torch.channels_last)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    images = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images[:1])

    def forward() -> None:
        with torch.no_grad():
            net(images)

    def both() -> None:
        here = images.clone().requires_grad_()
        nn.functional.cross_entropy(net(here), torch.zeros(batch).long()).backward()

    found = []
    for work in (forward, both):
        work()
        times = []
        while len(times) < 5 or sum(times) < 2:
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        found.append(batch / sorted(times)[len(times) // 2])
    return found[0], found[1], float(counter.get_total_flops())


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tflops", type=float, default=20.0)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}\n")
    print("| net | size | GFLOP forward | forward, images/s | forward and input gradient, images/s |")
    print("|---" * 5 + "|")
    flops = {}
    for name, size, batch in NETS:
        one, two, flops[name] = rates(name, size, batch)
        print(f"| {name} | {size} | {flops[name] / 1e9:.2f} | {one:,.0f} | {two:,.0f} |", flush=True)
    print(f"\nExtrapolated: resnet50, ImageNet, {options.tflops:g} TFLOP/s sustained a GPU\n")
    print("| GPUs | standard audit of 50,000 images | PGD-7 epoch | single-step epoch |")
    print("|---" * 4 + "|")
    for gpus in options.gpus:
        per_pass = flops["resnet50"] / (gpus * options.tflops * 1e12) / 3600
        hours = [IMAGENET_TEST * AUDIT, IMAGENET_TRAIN * PGD_EPOCH, IMAGENET_TRAIN * FAST_EPOCH]
        print(f"| {gpus} | " + " | ".join(f"{each * per_pass:.2f} h" for each in hours) + " |")


if __name__ == "__main__":
    main()

"""Audit a model of your own: any nn.Module from images in [0, 1] to logits, any images with labels.

Normalisation goes inside: `rc.Classifier(network, mean=..., std=...)`. The module is left as it was found.
"""

import torch
from torch import nn

import robustcv as rc


def my_model() -> nn.Module:
    """Stand in for your trained network; also works as `--model py:examples/audit_your_model.py:my_model`."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    classifier = rc.Classifier(network, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    images = rc.load_images("digits", split="train")
    pixels, labels = next(images.batches(len(images)))
    optimizer = torch.optim.Adam(classifier.parameters(), 1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(pixels), labels).backward()
        optimizer.step()
    return classifier.eval()


if __name__ == "__main__":
    images, labels = next(rc.load_images("digits", n=100).batches(100))
    run = rc.audit(my_model(), images, labels, eps=[4 / 255, 8 / 255], out="reports/my-model")
    print(run.verdict, [(metric.name, metric.count, metric.n) for metric in run.metrics if metric.attack is None])
    print(run.page)

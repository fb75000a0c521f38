"""An attack and an explanation of your own, without a fork: a pure function and one line in a registry each."""

from typing import Literal

import torch

import robustcv as rc
from robustcv.attacks import ATTACKS
from robustcv.explainers import EXPLAINERS, Explanation


def fade(classifier, images, labels, *, eps, norm: Literal["linf"] = "linf", targets=None, seeds=None):
    """Fade to grey, or away from it, as far as eps goes: whichever leaves the label's logit lower."""
    grey = (0.5 - images).clamp(-eps, eps)
    away = ((images - 0.5).sign() * eps + images).clamp(0, 1) - images
    both = [images + change for change in (grey, away)]
    with torch.no_grad():
        logits = torch.stack([classifier(each).gather(1, labels[:, None]).squeeze(1) for each in both])
    return torch.where((logits[0] < logits[1])[:, None, None, None], *both)


def rows(classifier, images, targets, *, seeds=None):
    """Black out one row of pixels at a time; its pixels share what the target's logit loses."""
    n, _, height, width = images.shape
    maps = torch.zeros(n, 1, height, width)
    with torch.no_grad():
        whole = classifier(images).gather(1, targets[:, None])
        for y in range(height):
            hidden = images.clone()
            hidden[:, :, y] = 0
            maps[:, 0, y] = ((whole - classifier(hidden).gather(1, targets[:, None])) / width).cpu()
    return Explanation(maps, error=torch.zeros(n), forwards=torch.full((n,), height + 1), details={"fill": "black"})


if __name__ == "__main__":
    ATTACKS["fade"], EXPLAINERS["rows"] = fade, rows  # before the verbs: they read names, options and norms from these
    rc.train("digits", epochs=3, out="reports/custom/model")
    run = rc.audit("reports/custom/model", "digits", n=100, eps="32/255", attacks=["fade", "pgd"], explain=["rows"],
                   cases=6, out="reports/custom/audit")  # fmt: skip
    print({attack.name: attack.broken for attack in run.attacks if attack.eps == 32 / 255})
    print(run.page)

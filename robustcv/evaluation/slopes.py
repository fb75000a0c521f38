"""What gradients say near an image: whether there are any, whether neighbours agree, whether the loss jumps."""

import torch
from jaxtyping import Float
from torch import Tensor

from robustcv import draws
from robustcv.attacks.losses import LOSSES, Loss, margin
from robustcv.attacks.norms import NORMS
from robustcv.evaluation.job import Job
from robustcv.records import Check

NOISE = 0.5 / 255  # two points nearer to each other than a file can tell apart
AGREEMENT = 0.3  # least mean cosine of their gradients
JUMP = 0.1  # largest mean change of the margin between them, as a share of it
POINTS = 4
FIX = "gradient attacks miss too much here, so robust accuracy may be far too high: attack this defence by hand"
UNITS = 34  # pass-units an image: 8 gradients, 10 more forward passes


def slope_flags(job: Job, rows: Tensor, eps: float) -> tuple[Check, Check, Check]:
    """Look at the loss around some images: zero gradient, gradient agreement, unstable predictions.

    Parameters
    ----------
    rows
        The images to look at; at least one.
    eps
        Gradients are also taken at a random point of this ball.
    """
    chosen = job.images.take(rows)
    n = len(rows)
    images, labels = next(chosen.batches(n))
    images, labels = images.to(job.device), labels.to(job.device)
    seeds = draws.image_seeds(job.seed, chosen.hashes, "agreement").to(job.device)

    def slope(points: Tensor, loss: Loss) -> Float[Tensor, "n d"]:
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(LOSSES[loss](job.classifier(points), labels, None).sum(), points)
        return gradient.flatten(1)

    def near(stream: int) -> Tensor:
        noise = draws.uniform(seeds, tuple(images.shape[1:]), stream).to(images)
        return (images + NOISE * (2 * noise - 1)).clamp(0, 1)

    def logit_gap(points: Tensor) -> Tensor:
        with torch.no_grad():
            return margin(job.classifier(points), labels, None)

    inside = NORMS[job.norm].start(images, eps, seeds, 9)
    losses: tuple[Loss, ...] = ("cross_entropy", "margin", "dlr") if labels.numel() and _four(job) else _TWO
    with torch.no_grad():
        third = job.classifier(inside).argmax(1) != labels  # DLR may be a constant there: (z1 - z3) / (z1 - z3)
    dead = {
        loss: _dead(slope(images, loss)) + _dead(slope(inside, loss)[~third if loss == "dlr" else slice(None)])
        for loss in losses
    }
    agreement = float(torch.cosine_similarity(slope(near(0), "margin"), slope(near(1), "margin")).mean())
    own = logit_gap(images)
    moved = torch.stack([(logit_gap(near(2 + k)) - own).abs() / own.abs().clamp_min(1e-12) for k in range(POINTS)])
    jump = float(moved.nan_to_num(1.0).clamp_max(1).mean())
    told = ", ".join(f"{count} under {loss.replace('_', '-')}" for loss, count in dead.items())
    return (
        Check.of(
            "zero gradient",
            not any(dead.values()),
            f"of {2 * n} gradients, at {n} images and at a point of the ball, zero or not finite: {told}",
            FIX,
            threshold="none",
            source="Carlini et al. 2019; AutoAttack #108; Pintor et al. 2022, indicator 1",
            forward=(2 * len(losses) + 1) * n * job.samples,
            backward=2 * len(losses) * n * job.samples,
        ),
        Check.of(
            "gradient agreement",
            agreement >= AGREEMENT,
            f"mean cosine {agreement:.2f} over {n} images, at points within half an 8-bit step",
            FIX,
            threshold=f"{AGREEMENT}",
            source="Andriushchenko and Flammarion 2020",
            forward=2 * n * job.samples,
            backward=2 * n * job.samples,
        ),
        Check.of(
            "unstable predictions",
            jump <= JUMP,
            f"the margin moves by {100 * jump:.1f} % of itself within half an 8-bit step, mean over {n} images",
            FIX,
            threshold=f"{100 * JUMP:.0f} %",
            source="Pintor et al. 2022, indicator 2",
            forward=(POINTS + 1) * n * job.samples,
        ),
    )


_TWO: tuple[Loss, ...] = ("cross_entropy", "margin")


def _four(job: Job) -> bool:
    return job.predictions.logits.shape[1] >= 4  # with fewer classes DLR is the margin


def _dead(gradient: Float[Tensor, "n d"]) -> int:
    largest = gradient.abs().amax(1)
    return int((~largest.isfinite() | (largest == 0)).sum())

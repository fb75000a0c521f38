"""The attack of N-FGSM training, which leaves the ball on purpose; not for judging a classifier."""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.climb import gradient_at
from robustcv.attacks.norms import NORMS, NormName


def noise_fgsm(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: float,
    norm: NormName = "linf",
    seeds: Int64[Tensor, " n"] | None = None,
    noise: float = 2.0,
) -> Float[Tensor, "n c h w"]:
    """Add uniform noise of up to ``noise`` eps, then a step of eps up the loss, without going back to the ball.

    De Jorge et al. 2022, algorithm 1: strong noise without projection keeps single-step training from collapsing.

    Parameters
    ----------
    classifier, images, labels, eps, norm, seeds
        As in `fgsm`.
    noise
        Radius of the noise, in units of eps.

    Returns
    -------
    Tensor
        Images in [0, 1], up to ``(1 + noise) eps`` away.
    """
    ball = NORMS[norm]
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    noisy = ball.start(images, noise * eps, seeds, 0)
    gradient, _, _ = gradient_at(classifier, noisy, labels, None, "cross_entropy")
    return (noisy + eps * ball.ascend(gradient)).clamp(0, 1)

"""APGD-T: APGD towards each of the likeliest wrong classes in turn."""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.apgd import apgd
from robustcv.attacks.losses import Loss
from robustcv.attacks.norms import NormName, Radius
from robustcv.attacks.targeting import towards_each


def apgd_t(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: Radius,
    norm: NormName = "linf",
    targets: Int64[Tensor, " n"] | None = None,
    towards: Int64[Tensor, " n"] | None = None,
    seeds: Int64[Tensor, " n"] | None = None,
    steps: int = 100,
    classes: int = 9,
    directions: int = 0,
    loss: Loss = "dlr",
) -> Float[Tensor, "n c h w"]:
    """Run APGD towards the likeliest wrong classes, one after another (Croce and Hein 2020, section 5).

    Parameters
    ----------
    classifier
        Images `n c h w` in [0, 1] to logits `n k`.
    images, labels
        Clean images in [0, 1] and their true classes.
    eps
        Radius of the ball, one for all or one for each image, in units of [0, 1] (L0: values changed).
    norm
        ``linf``, ``l2``, ``l1`` or ``l0``.
    targets
        Classes to reach; None tries the likeliest wrong ones and counts any wrong answer as success.
    towards
        Classes to go towards in one run, while any wrong answer is a success: how a caller takes the classes in turn.
    seeds
        One per image, for the random starts; None uses the position in the batch.
    steps
        Gradient steps towards each class.
    classes
        How many wrong classes, at most all of them.
    directions
        As in `apgd`.
    loss
        ``dlr``, ``margin`` or ``cross_entropy``.

    Returns
    -------
    Tensor
        Images in the ball and in [0, 1].
    """
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds

    def run(wanted: Tensor, rank: int) -> Tensor:
        own = seeds + rank
        return apgd(
            classifier,
            images,
            labels,
            eps=eps,
            norm=norm,
            targets=wanted,
            seeds=own,
            steps=steps,
            directions=directions,
            loss=loss,
        )

    return towards_each(classifier, images, labels, targets, towards, classes, run)

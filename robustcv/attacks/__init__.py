"""How a classifier is broken: pure functions from images to adversarial images, by name in `ATTACKS`."""

from collections.abc import Callable

from torch import Tensor

from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.pgd import pgd

ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd}

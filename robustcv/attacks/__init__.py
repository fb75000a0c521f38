"""How a classifier is broken: pure functions from images to adversarial images, by name in `ATTACKS`."""

from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.pgd import pgd

ATTACKS = {"fgsm": fgsm, "pgd": pgd}

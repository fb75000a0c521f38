"""How a classifier is broken: pure functions from images to adversarial images, by name in `ATTACKS`."""

import inspect
from collections.abc import Callable
from typing import get_args, get_type_hints

from torch import Tensor

from robustcv.attacks.apgd import apgd
from robustcv.attacks.apgd_l1 import apgd_l1, apgd_t_l1
from robustcv.attacks.apgd_t import apgd_t
from robustcv.attacks.ddn import ddn
from robustcv.attacks.deepfool import deepfool
from robustcv.attacks.fab import fab
from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.fmn import fmn
from robustcv.attacks.foolbox_bridge import FOOLBOX, foolbox_attack
from robustcv.attacks.mi_fgsm import mi_fgsm
from robustcv.attacks.noise import noise
from robustcv.attacks.pgd import pgd
from robustcv.attacks.square import square

ATTACKS: dict[str, Callable[..., Tensor]] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "mi-fgsm": mi_fgsm,
    "apgd": apgd,
    "apgd-t": apgd_t,
    "apgd-l1": apgd_l1,
    "apgd-t-l1": apgd_t_l1,
    "square": square,
    "noise": noise,
    "deepfool": deepfool,
    "ddn": ddn,
    "fmn": fmn,
    "fab": fab,
    **{f"foolbox-{name}": foolbox_attack(name) for name in FOOLBOX},
}


def norms_of(attack: Callable[..., Tensor]) -> tuple[str, ...]:
    """List the norms an attack knows, from its signature."""
    return get_args(get_type_hints(attack)["norm"])


def is_minimum_norm(attack: Callable[..., Tensor]) -> bool:
    """Tell whether an attack looks for the nearest candidate and takes no eps."""
    return "eps" not in inspect.signature(attack).parameters

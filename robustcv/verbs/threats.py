"""What a classifier is trained against: options to attacks with their options bound."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from robustcv import draws
from robustcv.attacks.corruptions import CORRUPTIONS
from robustcv.attacks.fgsm import fgsm
from robustcv.attacks.noise_fgsm import noise_fgsm
from robustcv.attacks.norms import NORMS, NormName
from robustcv.attacks.patch import patch_each
from robustcv.attacks.pgd import pgd
from robustcv.attacks.spatial import spatial
from robustcv.errors import UserError, unknown_name
from robustcv.training.fit import AttackAt
from robustcv.training.objectives import Perturb
from robustcv.training.recipe import Guard
from robustcv.training.trades import Agreement
from robustcv.verbs.parse import parse_eps, parse_sweep

SINGLE_STEP = ("fast", "fgsm-rs", "n-fgsm", "fgsm-pgi", "gradalign")
HELD_OUT = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # corruptions that the audit does not count
VALIDATION_STEPS = 10
THREATS = (*NORMS, "gaussian", "corruptions", "patch", "spatial")


@dataclass(frozen=True)
class Threat:
    """One thing to train against: a norm with its eps, noise with its standard deviation, or a kind without a size."""

    kind: str
    size: float = 0.0

    @property
    def norm(self) -> NormName:
        """The kind, of a threat that is a norm ball."""
        assert self.kind in NORMS
        return cast(NormName, self.kind)


@dataclass(frozen=True)
class Training:
    """The attacks of one training run."""

    attack_at: AttackAt | None
    validate_with: Perturb | None
    guard: Guard | None
    described: str


def training_threats(options: Mapping[str, Any]) -> Training:
    """Bind the attacks that training, validation and the guard use; none for an objective without attack.

    Raises
    ------
    UserError
        If a threat cannot be read, or the objective cannot train against it.
    """
    objective, steps = options["objective"], options["steps"]
    if objective == "standard":
        if options["against"]:
            raise UserError(
                "RCV-E091",
                "the objective standard trains on clean images, not against anything",
                "--against would do nothing",
                "add --objective pgd-at",
            )
        return Training(None, None, None, "nothing")
    threats = parse_threats(options)
    if objective in SINGLE_STEP and (len(threats) > 1 or threats[0].kind not in ("linf", "l2")):
        raise UserError(
            "RCV-E091",
            f"{objective} takes one step in an L-inf or L2 ball",
            f"it cannot train against {', '.join(threat.kind for threat in threats)}",
            "use --objective pgd-at or trades",
        )
    if objective in ("fgsm-pgi", "gradalign") and threats[0].kind != "linf":
        raise UserError("RCV-E091", f"{objective} is made for L-inf", "its noise lies in that ball", "--norm linf")
    most = max(steps, VALIDATION_STEPS) if objective in SINGLE_STEP else steps
    validate_with = mixed([_bind(threat, most) for threat in threats])
    if objective not in SINGLE_STEP:
        return Training(_scaled(threats, steps), validate_with, None, _describe(threats, f"PGD-{steps}"))
    threat = threats[0]
    quick = functools.partial(fgsm, eps=threat.size, norm=threat.norm)
    recover = _bind(threat, max(steps, 7))
    return Training(
        lambda strength: _one_step(objective, threat, strength),
        validate_with,
        Guard(quick, recover),
        _describe(threats, f"PGD-{most}"),
    )


def parse_threats(options: Mapping[str, Any]) -> list[Threat]:
    """Read ``against`` (``linf:8/255``, ``gaussian:0.25``, ``corruptions``), or else norm and eps."""
    if not options["against"]:
        given, _ = parse_sweep(options["eps"], options["norm"], sweep=False)
        return [Threat(options["norm"], given[0])]
    found = []
    for text in options["against"]:
        kind, _, size = str(text).partition(":")
        if kind not in THREATS:
            raise unknown_name("threat", kind, THREATS)
        if kind in NORMS:
            found.append(Threat(kind, parse_sweep(size or options["eps"], kind, sweep=False)[0][0]))
        elif kind == "gaussian":
            found.append(Threat(kind, _standard_deviation(size)))
        else:
            found.append(Threat(kind))
    return found


def _standard_deviation(text: str) -> float:
    size = parse_eps(text or "0.25")
    if not 0 < size <= 1:
        raise UserError(
            "RCV-E003", f"noise of {size:g} is outside (0, 1]", "pixels lie in [0, 1]", "write gaussian:0.25"
        )
    return size


def _describe(threats: Sequence[Threat], by: str) -> str:
    """Name the attack of validation, for the page."""
    names = [by if threat.kind in NORMS else threat.kind for threat in threats]
    return " or ".join(dict.fromkeys(names))


def _scaled(threats: Sequence[Threat], steps: int) -> AttackAt:
    """Attack with a share of eps by the same share of the steps, rounded up: a small ball takes fewer."""
    return lambda strength: mixed(
        [_bind(Threat(each.kind, each.size * strength), math.ceil(steps * strength)) for each in threats]
    )


def _one_step(objective: str, threat: Threat, strength: float) -> Perturb:
    eps = threat.size * strength
    if objective in ("fast", "n-fgsm"):
        return functools.partial(noise_fgsm, eps=eps, norm=threat.norm)
    return functools.partial(fgsm, eps=eps, norm=threat.norm, random_start=objective == "fgsm-rs")


def _bind(threat: Threat, steps: int) -> Perturb:
    if threat.kind in NORMS:
        return functools.partial(pgd, eps=threat.size, norm=threat.norm, steps=steps, keep="last")
    if threat.kind == "gaussian":
        return functools.partial(_gaussian, size=threat.size)
    return _WITHOUT_SIZE[threat.kind]


def mixed(attacks: Sequence[Perturb]) -> Perturb:
    """Attack each image by one of several attacks, drawn by its seed; one pass over the batch in all."""
    if len(attacks) == 1:
        return attacks[0]

    def one_each(classifier: nn.Module, images: Tensor, labels: Tensor, *, seeds: Tensor | None = None) -> Tensor:
        seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
        which = (draws.uniform(seeds, (1,), stream=11)[:, 0] * len(attacks)).long()
        out = images.clone()
        for k, attack in enumerate(attacks):
            rows = (which == k).nonzero()[:, 0]
            if len(rows):
                part = classifier.rows_of(rows) if isinstance(classifier, Agreement) else classifier
                out[rows] = attack(part, images[rows], labels[rows], seeds=seeds[rows])
        return out

    return one_each


def _gaussian(
    classifier: nn.Module, images: Tensor, labels: Tensor, *, size: float, seeds: Tensor | None = None
) -> Tensor:
    """Add Gaussian noise, not cut to [0, 1]: what randomised smoothing adds (Cohen et al. 2019)."""
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    return images + size * draws.normal(seeds, tuple(images.shape[1:])).to(images)


def _corrupted(classifier: nn.Module, images: Tensor, labels: Tensor, *, seeds: Tensor | None = None) -> Tensor:
    """Corrupt each image by one of the four corruptions that audits leave out, at a severity of 1 to 5."""
    seeds = draws.fresh_seeds(len(images)).to(images.device) if seeds is None else seeds
    which = (draws.uniform(seeds, (1,), stream=12)[:, 0] * 5 * len(HELD_OUT)).long()
    out = images.clone()
    for number in which.unique().tolist():
        rows = (which == number).nonzero()[:, 0]
        corrupt = CORRUPTIONS[HELD_OUT[number // 5]]
        out[rows] = corrupt(images[rows], severity=number % 5 + 1, seeds=seeds[rows])
    return out


_WITHOUT_SIZE: dict[str, Callable[..., Tensor]] = {
    "corruptions": _corrupted,
    "patch": functools.partial(patch_each, steps=5, restarts=1, step_size=0.2),
    "spatial": functools.partial(spatial, angles=5, places=2),
}

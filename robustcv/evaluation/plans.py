"""Which attacks run at which effort, cheapest first: `EFFORTS`."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustcv.attacks import ATTACKS, norms_of
from robustcv.errors import UserError, unknown_name
from robustcv.evaluation.job import Planned

Steps = tuple[tuple[str, Mapping[str, Any], float], ...]  # attack, options, reach

_LIKELIEST: Steps = (
    ("fgsm", {"loss": "margin"}, 0.0),
    ("apgd", {"loss": "margin", "steps": 10}, 0.0),
    ("apgd-t", {"loss": "dlr", "steps": 20, "classes": 3, "directions": 2}, 0.3),
    # the few that came within a tenth: 1 or 2 of 1,000 validation images more, for a tenth to a fifth more passes
    ("apgd", {"loss": "dlr", "steps": 100, "restarts": 2, "directions": 2}, 0.9),
)
EFFORTS: dict[str, Steps] = {
    "quick": _LIKELIEST[:2],
    "standard": _LIKELIEST,
    "thorough": (
        *_LIKELIEST,
        ("apgd", {"loss": "cross_entropy", "steps": 50}, 0.0),
        ("apgd-t", {"loss": "dlr", "steps": 30, "classes": 9, "directions": 3}, 0.0),
        ("fmn", {"steps": 60}, 0.0),
        ("square", {"queries": 1000}, 0.0),
    ),
    # Croce and Hein 2020, "Reliable evaluation", the standard version
    "autoattack": (
        ("apgd", {"loss": "cross_entropy", "steps": 100}, 0.0),
        ("apgd-t", {"loss": "dlr", "steps": 100, "classes": 9}, 0.0),
        ("fab", {"steps": 100, "classes": 9}, 0.0),
        ("square", {"queries": 5000}, 0.0),
    ),
}
# AutoAttack's own for L1 (Croce and Hein 2021, "Mind the box")
_L1_AUTOATTACK: Steps = (
    ("apgd-l1", {"loss": "cross_entropy", "steps": 100, "restarts": 5}, 0.0),
    ("apgd-t-l1", {"loss": "dlr", "steps": 100, "classes": 5}, 0.0),
    ("fab", {"steps": 100, "classes": 9}, 0.0),
    ("square", {"queries": 5000}, 0.0),
)
# gradients of a count say little: minimum-norm attacks lead, and AutoAttack defines no schedule
_L0: dict[str, Steps] = {
    "quick": (("fmn", {"steps": 50}, 0.0),),
    "standard": (("fmn", {"steps": 100}, 0.0), ("apgd-t", {"loss": "dlr", "steps": 20, "classes": 3}, 0.0)),
    "thorough": (("fmn", {"steps": 400}, 0.0), ("apgd-t", {"loss": "dlr", "steps": 50, "classes": 9}, 0.0)),
}


# no gradients to be had: queries alone (Andriushchenko et al. 2020; AutoAttack's share of it is 5,000)
_BLACK_BOX: dict[str, Steps] = {
    effort: (("square", {"queries": queries}, 0.0),)
    for effort, queries in (("quick", 300), ("standard", 1000), ("thorough", 5000), ("autoattack", 5000))
}


def plan_for(
    effort: str, norm: str, options: Mapping[str, Mapping[str, Any]] | None = None, *, black_box: bool = False
) -> list[Planned]:
    """Give the attacks of an effort that know a norm; ``options`` by attack win over the plan's own.

    Parameters
    ----------
    black_box
        The classifier gives no gradients: only attacks that need none.

    Raises
    ------
    UserError
        If the effort is unknown, or not defined for the norm.
    """
    if effort not in EFFORTS:
        raise unknown_name("effort", effort, EFFORTS)
    if black_box and norm not in norms_of(ATTACKS["square"]):
        raise UserError(
            "RCV-E006",
            f"no attack without gradients knows the norm {norm}",
            "this model gives none",
            f"--norm {norms_of(ATTACKS['square'])[0]}",
        )
    if norm == "l0" and effort not in _L0:
        raise UserError(
            "RCV-E006",
            f"the effort {effort} knows no L0",
            "AutoAttack defines its schedule for L-inf, L2 and L1",
            "--effort thorough",
        )
    more = options or {}
    steps = _BLACK_BOX[effort] if black_box else _L0[effort] if norm == "l0" else EFFORTS[effort]
    steps = _L1_AUTOATTACK if (effort, norm) == ("autoattack", "l1") else steps
    return [
        Planned(name, ATTACKS[name], {**given, **more.get(name, {})}, reach)
        for name, given, reach in steps
        if norm in norms_of(ATTACKS[name])
    ]


def plan_of(names: Sequence[str], norm: str, options: Mapping[str, Mapping[str, Any]]) -> list[Planned]:
    """Give the attacks named, in that order.

    Raises
    ------
    UserError
        If there is none, one is unknown, or one does not know the norm.
    """
    if not names:
        raise UserError(
            "RCV-E009", "no attack was named", "robust accuracy is measured by attacks", "--attacks fgsm,pgd"
        )
    for name in names:
        if name not in ATTACKS:
            raise unknown_name("attack", name, ATTACKS)
        if norm not in norms_of(ATTACKS[name]):
            raise UserError(
                "RCV-E006",
                f"{name} does not know the norm {norm}",
                f"it works in {', '.join(norms_of(ATTACKS[name]))}",
                f"leave it out, or choose --norm {norms_of(ATTACKS[name])[0]}",
            )
    return [Planned(name, ATTACKS[name], options.get(name, {})) for name in dict.fromkeys(names)]

"""What a user may write as an option: eps, methods by name, and the options of methods."""

import inspect
import json
import math
import typing
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from robustcv.attacks.norms import NORMS
from robustcv.errors import UserError, unknown_name
from robustcv.explainers import ALIASES, ASK_ONLY, EXPLAINERS

_WITH_TENSORS = ConfigDict(arbitrary_types_allowed=True)


def parse_eps(value: Any) -> float:
    """Read an eps: a number, or text such as ``8/255``.

    Raises
    ------
    UserError
        If it is not a number.
    """
    try:
        found = _number(value) if isinstance(value, str) else float(value)
        if math.isnan(found):
            raise ValueError("not a number")
        return found
    except (ValueError, ArithmeticError, TypeError) as error:
        raise UserError(
            "RCV-E002", f"eps {value!r} is not a number", "eps is a radius in units of [0, 1]", "write 8/255 or 0.0314"
        ) from error


def parse_sweep(eps: Any, norm: str, *, sweep: bool) -> tuple[list[float], tuple[float, ...]]:
    """Give the eps asked for (the first is the headline) and all to try: with ``sweep`` 1/4 to 4 times the largest too.

    Raises
    ------
    UserError
        If the norm is unknown, or an eps lies outside what the norm allows.
    """
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    given = [parse_eps(each) for each in (eps if isinstance(eps, list | tuple) else [eps])]
    if not given:
        raise UserError("RCV-E002", "no eps was given", "robust accuracy is about changes of some size", "--eps 8/255")
    limit = 1.0 if norm == "linf" else float("inf")
    for value in given:
        if not 0 < value <= limit or value == math.inf or (norm == "l0" and not value.is_integer()):
            allowed = "(0, 1]" if norm == "linf" else "what L0 allows: 1, 2, ..." if norm == "l0" else "above 0"
            hint = f"did you mean {value:g}/255?" if value > 1 else "use a radius above 0, such as 8/255"
            raise UserError(
                "RCV-E003",
                f"eps {value:g} is outside {allowed}",
                "L0 counts changed values" if norm == "l0" else "pixels lie in [0, 1], so eps is in those units",
                "use a whole number, such as 10" if norm == "l0" else hint,
            )
    more = [factor * max(given) for factor in (0.25, 0.5, 1, 2, 4)] if sweep else []
    more = sorted({max(1.0, float(round(value))) for value in more}) if norm == "l0" else more
    every = {round(value, 12): value for value in sorted([*given, *(min(value, limit) for value in more)])}
    return given, tuple(every.values())


def parse_options(given: Any, names: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Read method options, ``["pgd.steps=50"]`` or ``{"pgd": {"steps": 50}}``, against the methods' signatures.

    Raises
    ------
    UserError
        If a method or an option is unknown.
    """
    if isinstance(given, Mapping):
        pairs = [(method, key, value) for method, options in given.items() for key, value in options.items()]
    else:
        pairs = []
        for text in given or ():
            path, equals, value = str(text).partition("=")
            method, dot, key = path.partition(".")
            if not (equals and dot):
                raise UserError(
                    "RCV-E004",
                    f"--set {text!r} cannot be read",
                    "the form is METHOD.OPTION=VALUE",
                    "--set pgd.steps=50",
                )
            pairs.append((method, key, _read(value)))
    found: dict[str, dict[str, Any]] = {}
    for method, key, value in pairs:
        if method not in names:
            raise unknown_name("method", method, names)
        found.setdefault(method, {})[key] = _checked(names[method], method, key, value)
    return found


def refuse_unused(given: Mapping[str, Any], here: Sequence[str], told: str, *, add: str) -> None:
    """Refuse options of methods that do not run.

    Parameters
    ----------
    told
        What runs, for the error.
    add
        How to make a method run, with ``{}`` for its name.

    Raises
    ------
    UserError
        For the first one.
    """
    for name in given:
        if name not in here:
            raise UserError(
                "RCV-E004",
                f"{name} does not run here, so its options would do nothing",
                told,
                f"{add.format(name)}, or leave --set {name}... out",
            )


def _read(text: str) -> Any:
    """Read a value from the command line: JSON, a fraction, Python's True and False, or else the text itself."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        pass
    try:
        return _number(text)
    except (ValueError, ArithmeticError):
        return text


def _number(text: str) -> float:
    """Read a decimal or a fraction; a fraction has no exponent, so that none can be as long as memory."""
    return float(Fraction(text)) if "/" in text else float(text)


def _checked(function: Any, method: str, key: str, value: Any) -> Any:
    """Hold a method's option against the function's signature: its name, its type, and counts at least 1."""
    reserved = ("eps", "norm", "targets", "towards", "seeds", "keep", "perturb", "pool")
    parameters = inspect.signature(function).parameters.values()
    accepted = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in reserved]
    if key not in accepted:
        raise unknown_name(f"option of {method}", key, accepted)
    annotation = typing.get_type_hints(function)[key]
    if typing.get_origin(annotation) is Literal and value not in typing.get_args(annotation):
        raise unknown_name(f"{key} of {method}", str(value), typing.get_args(annotation))
    try:
        checked = TypeAdapter(annotation, config=_WITH_TENSORS).validate_python(value)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise UserError(
            "RCV-E008", f"{method}.{key}={value} cannot be used", why, f"--set {method}.{key}=..."
        ) from error
    if (
        isinstance(checked, int | float)
        and not isinstance(checked, bool)
        and annotation is not float
        and checked <= 0
        and key not in ("target", "baseline", "baselines", "fill")
    ):
        why = "a method that takes no step, or none of any size, would count as one that failed"
        raise UserError("RCV-E008", f"{method}.{key}={value} is not above 0", why, f"--set {method}.{key}=1 or more")
    low, high = _RANGES.get(key, (-math.inf, math.inf))
    if isinstance(checked, float) and not (low < checked < high):
        allowed = f"between {low:g} and {high:g}" if key in _RANGES else "a finite number"
        told = f"{method}.{key}={value} is not {allowed}"
        raise UserError("RCV-E008", told, "nothing could be measured with it", f"--set {method}.{key}=...")
    return checked


_RANGES = {"sigma": (0.0, math.inf), "alpha": (0.0, 0.5)}


def names_of(kind: str, given: str | Sequence[str], known: Collection[str]) -> list[str]:
    """Read one name or several.

    Raises
    ------
    UserError
        If one is unknown.
    """
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
    return names


def methods_of(given: str | Sequence[str]) -> list[str]:
    """Read the names of explanation methods, short ones too, as `names_of` does."""
    names = names_of("explainer", given, {**EXPLAINERS, **ALIASES})
    return list(dict.fromkeys(ALIASES.get(name, name) for name in names))


def black_box_explainers(names: Sequence[str], default: Sequence[str]) -> list[str]:
    """Give the explainers for a model without gradients: those asked for, or one that only asks questions.

    Parameters
    ----------
    default
        What ``names`` is where the user asked for nothing.

    Raises
    ------
    UserError
        If one of those asked for needs gradients.
    """
    if list(names) == list(default):
        return ["shapley"]
    if needing := [name for name in names if name not in ASK_ONLY]:
        raise UserError(
            "RCV-E094", f"{needing[0]} needs gradients", "this model gives none", f"use one of {', '.join(ASK_ONLY)}"
        )
    return list(names)

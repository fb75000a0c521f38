"""Maps of a batch in the state of a run, so that one that was interrupted need not make them again."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import torch

from robustcv import runs
from robustcv.explainers import Explanation

FIELDS = ("heatmaps", "error", "forwards", "gap", "margin")


class Made(NamedTuple):
    """Maps of one batch by one method, and what they cost: seconds, and forward-equivalents that were really made."""

    found: Explanation
    seconds: float
    asked: int


def keep(state: runs.State, key: str, made: Mapping[str, Made]) -> None:
    """Save a batch that every method has explained."""
    if state.folder is None:
        return
    fields = {(name, field): getattr(each.found, field) for name, each in made.items() for field in FIELDS}
    arrays = {f"{name}.{field}": tensor.numpy() for (name, field), tensor in fields.items() if tensor is not None}
    told = {name: (each.found.details, each.seconds, each.asked) for name, each in made.items()}
    state.save_arrays(key, arrays)
    numbers = json.dumps(told, default=lambda each: each.item())  # numpy's, in the details of a method of the user's
    state.save(f"{key}.json", numbers.encode())  # last: where it is, the arrays are whole


def kept(state: runs.State, key: str) -> dict[str, Made] | None:
    """Read what `keep` saved; None where it did not."""
    told = state.load(f"{key}.json")
    arrays = state.load_arrays(key) if told is not None else None
    if told is None or arrays is None:
        return None
    made = {}
    for name, (details, seconds, asked) in json.loads(told).items():
        own = {field: torch.from_numpy(arrays[f"{name}.{field}"]) for field in FIELDS if f"{name}.{field}" in arrays}
        made[name] = Made(Explanation(**own, details=details), seconds, asked)
    return made

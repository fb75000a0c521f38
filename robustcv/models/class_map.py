"""A model of more classes than the data has: which of its answers each class of the data stands for."""

import copy
import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from robustcv.classifier import Classifier
from robustcv.errors import UserError, first_line, unknown_name

if TYPE_CHECKING:
    from robustcv.models.sources import Loaded


class Answering(nn.Module):
    """A classifier that is asked about some of its classes alone.

    Parameters
    ----------
    network
        Images in [0, 1] to logits; shared, not copied.
    rows
        The classes to keep, in the order of the answers.
    """

    def __init__(self, network: nn.Module, rows: Sequence[int]) -> None:
        super().__init__()
        self.network, self.rows = network, list(rows)
        self.black_box, self.samples = bool(getattr(network, "black_box", False)), int(getattr(network, "samples", 1))

    def forward(self, images: Any) -> Any:  # torch.fx comes with a stand-in for the tensor
        """Compute the chosen logits ``n k`` of images ``n c h w``."""
        return self.network(images)[:, self.rows]


def read_class_map(path: Path | str) -> dict[str, str]:
    """Read which class of the model each class of the data is, from a CSV file of two columns.

    Parameters
    ----------
    path
        Lines ``class of the data,class of the model``; the latter by name, or by number from 0.

    Raises
    ------
    UserError
        If the file cannot be read, is empty, a line has no two columns, or a class of the data appears twice.
    """
    try:
        with Path(path).expanduser().open(newline="", encoding="utf-8-sig") as lines:
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if any(map(str.strip, row))]
    except (OSError, ValueError, csv.Error) as error:
        raise _unusable(f"{path} cannot be read", first_line(error), "check --class-map") from error
    found: dict[str, str] = {}
    for row in rows:
        if len(row) != 2 or not all(row):
            raise _unusable(f"{path} has the line {','.join(row)[:80]!r}", "a line names two classes")
        if row[0] in found:
            raise _unusable(f"{path} names {row[0]!r} of the data twice", "it stands for one class of the model")
        found[row[0]] = row[1]
    if not found:
        raise _unusable(f"{path} is empty", "no class of the data would have an answer")
    return found


def rows_of(
    class_map: Mapping[str, str], class_names: Sequence[str], known: Sequence[str], classes: int
) -> dict[str, int]:
    """Find, for each class of the data, the number of the model's class that stands for it.

    Parameters
    ----------
    class_map
        What `read_class_map` gave.
    class_names
        The classes of the data.
    known
        What the model calls its classes; empty where it does not name them.
    classes
        How many classes the model has.

    Raises
    ------
    UserError
        If a class of the data is missing in the map, or the model has no such class.
    """
    if missing := [name for name in class_names if name not in class_map]:
        raise _unusable(
            f"the class map says nothing of {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}",
            f"the data has {len(class_names)} classes, and each needs an answer of the model's",
        )
    rows = {name: _row(class_map[name], known) for name in class_names}
    taken = list(rows.values())
    if twice := [row for k, row in enumerate(taken) if row in taken[:k]]:
        raise _unusable(
            f"two classes of the data stand for the model's class {twice[0]}", "they could not be told apart"
        )
    if max(taken) >= classes:
        raise _unusable(
            f"the class map names class {max(taken)}, but the model has {classes}", "classes are counted from 0"
        )
    return rows


def answering(loaded: "Loaded", rows: Mapping[str, int]) -> "Loaded":
    """Ask a model about some of its classes alone.

    Parameters
    ----------
    rows
        What the data calls them, in its order, and their numbers.
    """
    whole = loaded.classifier
    asked: nn.Module = Answering(whole, list(rows.values()))
    asked.training = whole.training  # of the new module alone: the user's layers keep their modes
    if type(whole) is Classifier:  # stays one, with all that is known of it
        inner = Answering(whole.network, list(rows.values()))
        inner.training = whole.training
        asked = copy.copy(whole)
        asked._modules = {**whole._modules, "network": inner}
    return replace(loaded, classifier=asked, class_names=tuple(rows), class_map=dict(rows), whole=whole)


def _row(name: str, names: Sequence[str]) -> int:
    """Find a class of the model by name or number; a name comes first."""
    if (times := names.count(name)) == 1:
        return names.index(name)
    if times > 1:
        raise _unusable(f"the model has {times} classes {name!r}", "the name does not say which", "write a number")
    if name.isdecimal() and len(name) < 10:
        return int(name)
    if not names:
        raise _unusable(f"the class map names {name!r}", "this model does not name its classes", "write their numbers")
    raise unknown_name("class of the model", name, names)


def _unusable(what: str, why: str, fix: str = "correct the file of --class-map") -> UserError:
    return UserError("RCV-E122", what, why, fix)

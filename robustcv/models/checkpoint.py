"""Weights on disk: safetensors with a JSON description, and loading that cannot run code."""

import hashlib
import itertools
import json
import mmap
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcv.errors import UserError, first_line


def to_bytes(module: nn.Module) -> bytes:
    """Serialise a module's parameters and buffers as safetensors."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()})


def sha256_of(module: nn.Module) -> str:
    """Hash parameters and buffers, by name; the same weights give the same hash wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """Read a state dict: safetensors, or a torch file that holds nothing but tensors and plain containers.

    Raises
    ------
    UserError
        If the file is missing, or would have to run code to be read; the reason and the blocked names are given.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("RCV-E050", f"{path} does not exist", "there are no weights to load", "check --weights")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(
                "RCV-E051", f"{path} is not a safetensors file", first_line(error), "save it again"
            ) from error
    _refuse_lies(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on old pickles; they are read, or refused below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own unpickler raises whatever bytes make of it
        raise _refused(path, error) from error
    for key in ("state_dict", "model_state_dict", "model"):  # the usual wrappings of training scripts
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not (isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values())):
        raise UserError(
            "RCV-E052",
            f"{path} holds {type(found).__name__}, not a state dict",
            "only named tensors can be loaded into an architecture",
            "save model.state_dict() with safetensors.torch.save_file(...)",
        )
    return dict(found)


def _refuse_lies(path: Path) -> None:
    """Refuse a torch file that declares more than it holds, before anything of that size is allocated.

    Raises
    ------
    UserError
        If a member of its archive is compressed or larger than the file, or an old pickle names a number of values that
        the file cannot hold.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                if any(each.compress_type != zipfile.ZIP_STORED or each.file_size > size for each in members):
                    why = "torch stores tensors uncompressed, so no part of the file can be larger than the file"
                    raise _lies(path, why)
                pickles = [archive.read(each) for each in members if each.filename.endswith("data.pkl")]
        except UserError:
            raise
        except Exception as error:  # zipfile raises many kinds, decoding errors of names among them
            raise _lies(path, f"its archive is damaged: {error}") from error
        if any(b"bytearray" in each for each in pickles):
            raise _lies(path, "it asks for a bytearray, which can be of any size; no state dict holds one")
        return
    for opcode, argument in _opcodes(path):
        if opcode == BEYOND:
            raise _lies(path, str(argument))
        number = isinstance(argument, int) and opcode.startswith(("BININT", "LONG", "INT"))
        if number and _MAGIC != argument > max(size, PLAIN):
            raise _lies(path, f"it speaks of {argument:,} values, and has {size:,} bytes")


def _opcodes(path: Path) -> Iterator[tuple[str, Any]]:
    """Read the operations of the pickles in an old torch file, by name and argument, until it ends; nothing is run.

    One whose argument is longer than what is left of the file comes last, as ``BEYOND`` with the reason.
    """
    with path.open("rb") as file:
        try:
            # a file would make room for as many bytes as an argument claims to have; a map gives what there is
            held: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            for opcode, argument, _ in itertools.chain.from_iterable(pickletools.genops(held) for _ in range(5)):
                yield opcode.name, argument
        except Exception as error:  # no pickle, or one that ends early: torch says so
            if "remain" in str(error):
                yield BEYOND, str(error)


BEYOND = "BEYOND THE END"
PLAIN = 1 << 31  # numbers up to here may be dates, seeds and versions
_MAGIC = 0x1950A86A20F9469CFC6C  # the first number of torch's old files


def _lies(path: Path, why: str) -> UserError:
    return UserError(
        "RCV-E116", f"{path} declares more than it holds", why, "save it again: safetensors.torch.save_file(...)"
    )


def _named_in_pickle(path: Path) -> list[str]:
    """List the functions and types that an old torch file, or a plain pickle, asks for; nothing is run."""
    named: dict[str, None] = {}
    words: list[str] = []
    for opcode, argument in _opcodes(path):
        if opcode == "GLOBAL":
            named[str(argument).replace(" ", ".")] = None
        elif opcode == "STACK_GLOBAL" and len(words) >= 2:
            named[".".join(words[-2:])] = None
        elif isinstance(argument, str):
            words.append(argument)
    return [name for name in named if not name.startswith(("torch.", "collections.OrderedDict"))][:5]


def _refused(path: Path, error: Exception) -> UserError:
    try:
        blocked = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))  # torch gives a set's order
    except Exception:  # not a torch zip file at all: the first error says more
        blocked = []
    blocked = blocked or _named_in_pickle(path)
    reason = f"it needs {', '.join(blocked)}" if blocked else first_line(error, 160)
    return UserError(
        "RCV-E053",
        f"{path} was refused: it cannot be read without running code that the file chooses",
        reason,
        "where you trust it: torch.load it yourself, then save its state dict with safetensors.torch.save_file",
    )


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a module, all of them or none.

    Raises
    ------
    UserError
        If names or shapes differ; the first difference is named.
    """
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    own = module.state_dict()
    missing = sorted(own.keys() - weights.keys() - {name for name in own if name.endswith("num_batches_tracked")})
    extra = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if missing or extra or shapes:
        what = shapes[0] if shapes else f"{missing[0]} is missing" if missing else f"{extra[0]} is unknown"
        raise UserError(
            "RCV-E054",
            f"the weights in {source} do not fit the architecture: {what}",
            f"{len(missing)} missing, {len(extra)} unknown, {len(shapes)} of another shape; a partly loaded model "
            "would give numbers that mean nothing",
            "name the architecture the weights were made with (--model)",
        )
    module.load_state_dict(weights, strict=False)


def describe(
    *, architecture: str, options: Mapping[str, Any], class_names: tuple[str, ...], mean: list[float], std: list[float]
) -> dict[str, Any]:
    """Give the JSON description that stands beside the weights: all that is needed to build the classifier again."""
    return {
        "format": 1,
        "architecture": architecture,
        "options": dict(options),
        "class_names": list(class_names),
        "normalisation": {"mean": mean, "std": std},
    }


def read_description(path: Path) -> dict[str, Any]:
    """Read the description beside weights that robustcv saved.

    Raises
    ------
    UserError
        If it is missing, not ours, or the weights beside it have changed since.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            "RCV-E055",
            f"{path} is missing or cannot be read",
            "the architecture of the weights is not known",
            "give the whole run folder as robustcv wrote it, with model.json beside model.safetensors",
        ) from error
    weights = path.with_name("model.safetensors")
    if not isinstance(found, dict) or not weights.is_file():
        raise UserError(
            "RCV-E055",
            f"{path.parent} is not whole",
            "model.json does not describe a model, or model.safetensors is missing",
            "give the whole run folder as robustcv wrote it",
        )
    if found.get("format") != 1 or hashlib.sha256(weights.read_bytes()).hexdigest() != found.get("weights_sha256"):
        raise UserError(
            "RCV-E056",
            f"{weights} is not the file that {path.name} describes",
            "its SHA-256 differs, or the description has another format",
            "restore the run folder, or train again",
        )
    return found

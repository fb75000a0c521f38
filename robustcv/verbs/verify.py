"""verify: does the evidence of a saved audit still say what its record says?"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcv import records, runs
from robustcv.attacks.norms import NORMS
from robustcv.attacks.wrappers import Eot
from robustcv.classifier import right
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.block import TOLERANCE
from robustcv.models import checkpoint
from robustcv.models import load as load_classifier
from robustcv.runtime import Progress
from robustcv.verbs.evidence import ARCHIVE, FLOATS
from robustcv.verbs.prepare import judged


def verify(folder: Path, *, model: Any, weights: str | None, progress: Progress) -> tuple[records.Check, ...]:
    """Hold a saved audit against its evidence, on the CPU, one image at a time; see `robustcv.verify`."""
    record = runs.load(folder)
    if record.verb != "audit" or record.evidence is None:
        raise UserError(
            "RCV-E112",
            f"{folder} holds no evidence to replay",
            f"it is the run of `{record.verb}`" + ("" if record.verb != "audit" else " of an earlier robustcv"),
            "give the folder of an audit; one that `harden` made is in its folders before/ and after/",
        )
    files = runs.load_files(folder)
    loaded = load_classifier(
        record.options["model"] if model is None else model, weights or record.options["weights"], say=progress.say
    )
    classifier = loaded.classifier.cpu()
    found = [_hashes(folder), _weights(record, classifier)]
    lines = [json.loads(line) for line in files["cases.jsonl"].decode().splitlines()]
    found.append(_counts(record, lines))
    with judged(classifier) as plain, progress.stage("replay", len(lines)) as advance:
        eot = int(record.options.get("eot", 1))
        asked = plain if eot == 1 else Eot(plain, eot).eval()
        wrong = []
        for line, clean, attacked in _failures(files, lines):
            if (why := _why_not(asked, record, line, clean, attacked)) is not None:
                wrong.append(f"image {line['index']}: {why}")
            advance(1)
    figure = (
        f"{len(lines) - len(wrong)} of {len(lines)} failures hold: in the ball, in [0, 1], right before, wrong after"
    )
    found.append(_check("failures replayed", wrong, figure, "the record counts failures that are none"))
    return tuple(found)


def _check(name: str, wrong: list[str], figure: str, fix: str) -> records.Check:
    told = "; ".join([figure, *wrong[:5], *([f"and {len(wrong) - 5} more"] if len(wrong) > 5 else [])])
    status: Any = "raised" if wrong else "pass"
    return records.Check(check=name, status=status, figure=told, fix=fix if wrong else None)


def _hashes(folder: Path) -> records.Check:
    """Hold every evidence file against SHA256SUMS, and that list against the folder."""
    place = folder / "evidence"
    try:
        lines = [line.split("  ", 1) for line in (place / "SHA256SUMS").read_text().splitlines()]
        listed = {name: digest for digest, name in lines}
    except (OSError, ValueError):
        return _check("evidence files", ["evidence/SHA256SUMS is missing or unreadable"], "", "restore the run folder")
    here = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    wrong = [f"{name} is missing" for name in sorted(listed.keys() - here)]
    wrong += [f"{name} is not listed" for name in sorted(here - listed.keys())]
    for name in sorted(listed.keys() & here):
        if hashlib.sha256((place / name).read_bytes()).hexdigest() != listed[name]:
            wrong.append(f"{name} was changed")
    figure = f"{len(listed)} files, SHA-256 of each"
    return _check("evidence files", wrong, figure, "restore the run folder, or audit again")


def _weights(record: records.Record, classifier: nn.Module) -> records.Check:
    assert record.model is not None
    found = checkpoint.sha256_of(classifier)
    wrong = [] if found == record.model.sha256 else [f"the model given has {found[:16]}..."]
    return _check(
        "model", wrong, f"weights {record.model.sha256[:16]}...", "give the model that was audited, with --model"
    )


def _counts(record: records.Record, lines: list[dict[str, Any]]) -> records.Check:
    """Hold every robust accuracy against the failures listed at or below its eps."""
    clean = record.metric("clean_accuracy")
    wrong = []
    metrics = [each for each in record.metrics if each.name == "robust_accuracy" and each.attack is None]
    for metric in metrics:
        fell = sum(line["eps"] <= (metric.eps or 0) * (1 + 1e-9) for line in lines)
        if clean is None or (clean.count or 0) - fell != metric.count:
            wrong.append(f"at eps {metric.eps:.6g} the record says {metric.count}, the failures {fell}")
    figure = f"{len(metrics)} robust accuracies are the clean count less the failures listed"
    return _check("counts", wrong, figure, "the record was changed, or cases.jsonl was")


def _failures(files: Mapping[str, bytes], lines: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """Read each failure's clean and attacked image; None for one that is lost."""
    archive = zipfile.ZipFile(io.BytesIO(files[ARCHIVE])) if ARCHIVE in files else None
    floats = runs.unpack_arrays(files[FLOATS]) if FLOATS in files else {}
    for line in lines:
        name = line["evidence"]
        yield line, _read(archive, floats, f"{name}-clean"), _read(archive, floats, f"{name}-adversarial")


def _read(archive: zipfile.ZipFile | None, floats: runs.Arrays, name: str) -> Tensor | None:
    from PIL import Image

    if name in floats:
        return torch.from_numpy(floats[name].copy())
    try:
        data = archive.read(f"{name}.png") if archive is not None else b""
        pixels = np.array(Image.open(io.BytesIO(data)))
    except (KeyError, OSError, zipfile.BadZipFile, ValueError):
        return None
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _why_not(
    classifier: nn.Module, record: records.Record, line: dict[str, Any], clean: Tensor | None, attacked: Tensor | None
) -> str | None:
    """Say why one failure does not hold; None where it does."""
    if clean is None or attacked is None:
        return "its images are missing"
    label, eps = torch.tensor([line["label"]]), float(line["eps"])
    names = record.data.class_names if record.data else ()
    stored = ImageSet(clean[None], label, names or tuple(map(str, range(line["label"] + 1))))
    if stored.hashes[0] != line["image"]:
        return "its clean image is not the one that was audited"
    before, after = (image.float()[None] / (255 if image.dtype == torch.uint8 else 1) for image in (clean, attacked))
    distance = float(NORMS[line["norm"]].distance(after, before)[0])
    if not distance <= eps * (1 + TOLERANCE) + TOLERANCE:
        return f"it was changed by {distance:.6g}, more than eps {eps:.6g}"
    if not (bool((after >= 0).all()) and bool((after <= 1).all())):
        return "its attacked image leaves [0, 1]"
    with torch.no_grad():
        if not right(classifier(before), label):
            return "the model is wrong on its clean image already"
        if right(classifier(after), label):
            return "the model is right on its attacked image"
    return None

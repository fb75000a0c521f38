"""The evidence of an audit: one clean and one attacked image for every failure that was counted."""

import io
import json
import zipfile
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from robustcv import records, runs
from robustcv.data import ImageSet
from robustcv.data.image_set import to_float
from robustcv.evaluation.replay import Replayable
from robustcv.verbs.cases import to_png

ARCHIVE, FLOATS = "evidence/broken.zip", "evidence/broken.safetensors"


def evidence_of(images: ImageSet, found: Replayable) -> tuple[records.Evidence, dict[str, bytes]]:
    """Write every failure: PNGs in an archive, and as exact floats those that no 8-bit image shows; and a line each.

    Returns
    -------
    tuple
        The counts, and the files: the archive, the floats, and cases.jsonl.
    """
    outcome = found.outcome
    floats: runs.Arrays = {}
    buffer, lines = io.BytesIO(), []
    rows = (outcome.broken_by >= 0).nonzero().squeeze(1).tolist()
    whole = images.images.dtype == torch.uint8
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for row in rows:
            eps, name = float(outcome.broken_at[row]), f"{int(images.indices[row]):07d}"
            attacked, clean = outcome.candidate(row, eps), to_float(images.images[row : row + 1])[0]
            assert attacked is not None
            exact = bool(found.exact[row])
            for kind, pixels, as_png in (("clean", clean, whole), ("adversarial", attacked, exact)):
                if as_png:
                    _add(archive, f"{name}-{kind}.png", pixels)
                else:
                    floats[f"{name}-{kind}"] = pixels.numpy()
            lines.append(json.dumps(_line(images, found, row, eps, name, exact)))
    files = {"cases.jsonl": "".join(f"{line}\n" for line in lines).encode()}
    if rows:
        files[ARCHIVE] = buffer.getvalue()
    if floats:
        files[FLOATS] = runs.pack_arrays(floats)
    exact_count = int(found.exact[rows].sum()) if rows else 0
    counts = records.Evidence(
        failures=len(rows), eight_bit=exact_count, only_float=len(rows) - exact_count, withdrawn=found.withdrawn
    )
    return counts, files


def flows_of(images: ImageSet, found: Replayable, eps: float) -> tuple[records.Flow, ...]:
    """Count which classes the images of each class are taken for once they are attacked, at or below eps."""
    fell = (found.outcome.broken_by >= 0) & ~found.outcome.robust(eps)
    fell &= found.confidences > 0  # who answers with no number names no class
    pairs = Counter(zip(images.labels[fell].tolist(), found.classes[fell].tolist(), strict=True))
    return tuple(records.Flow(label=a, prediction=b, count=n) for (a, b), n in sorted(pairs.items()))


def _line(images: ImageSet, found: Replayable, row: int, eps: float, name: str, exact: bool) -> dict[str, Any]:
    outcome = found.outcome
    return {
        "index": int(images.indices[row]),
        "image": images.hashes[row],
        "label": int(images.labels[row]),
        "attack": outcome.names[int(outcome.broken_by[row])],
        "norm": outcome.norm,
        "eps": eps,
        "distance": float(outcome.distance[row]),
        "prediction": int(found.classes[row]),
        "form": "png" if exact else "float",
        "evidence": name,
    }


def _add(archive: zipfile.ZipFile, name: str, pixels: Tensor) -> None:
    """Add an image, with a date that is always the same, so that the same images give the same bytes."""
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), to_png(pixels, optimize=False))

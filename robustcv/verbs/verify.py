"""verify: does the evidence of a saved audit still say what its record says?"""

import copy
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcv import records, runs, stats
from robustcv.attacks.norms import NORMS
from robustcv.attacks.wrappers import Eot
from robustcv.classifier import right
from robustcv.data import ImageSet
from robustcv.errors import UserError, first_line
from robustcv.evaluation.block import TOLERANCE
from robustcv.models import checkpoint
from robustcv.models import load as load_classifier
from robustcv.models.class_map import answering
from robustcv.runtime import Progress
from robustcv.verbs.failures import Failure, failures_of, replays
from robustcv.verbs.gates import conclude, judged_again
from robustcv.verbs.pairing import equal_eps
from robustcv.verbs.parse import parse_eps
from robustcv.verbs.prepare import judged


def verify(folder: Path, *, model: Any, weights: str | None, progress: Progress) -> tuple[records.Check, ...]:
    """Hold a saved audit against its evidence, on the CPU, one image at a time; see `robustcv.verify`."""
    record = runs.load(folder)
    if record.verb != "audit" or record.evidence is None or record.verdict == "INCOMPLETE":
        what = (
            f"it is the run of `{record.verb}`"
            if record.verb != "audit"
            else "the audit was interrupted, or is an old one"
        )
        raise UserError(
            "RCV-E112",
            f"{folder} holds no evidence to replay",
            what,
            "give the folder of a finished audit; one that `harden` made is in its folders before/ and after/",
        )
    spec = record.options.get("model") if model is None else model
    if model is None and str(spec).startswith("py:"):
        raise UserError(
            "RCV-E112",
            f"the model of {folder} is {spec}, a file of code",
            "robustcv runs no code because a run folder names it",
            "where you trust it: --model py:FILE:FUNCTION",
        )
    given = weights or (record.options.get("weights") if model is None else None)
    loaded = load_classifier(spec, given, say=progress.say)
    loaded = replace(loaded, classifier=copy.deepcopy(loaded.classifier).cpu())  # one from Python stays where it is
    files = runs.load_files(folder)
    found = [_hashes(folder), _weights(record, loaded.classifier)]
    if record.model is not None and record.model.class_map:
        loaded = answering(loaded, record.model.class_map)
    classifier = loaded.classifier
    try:
        lines = failures_of(files)
    except (KeyError, ValueError) as error:
        told = "cases.jsonl is missing or was changed"
        return (*found, _check("counts", [f"{told}: {first_line(error)}"], "", "restore the run folder"))
    found += [_counts(record, files, lines), _conclusions(record)]
    with judged(classifier) as plain, progress.stage("replay", len(lines)) as advance:
        eot = record.options.get("eot", 1)
        asked = Eot(plain, eot).eval() if isinstance(eot, int) and eot > 1 else plain
        wrong, as_png = [], 0
        for line, clean, attacked in replays(files, lines):
            why: str | None
            as_png += attacked is not None and attacked.dtype == torch.uint8
            try:
                why = _why_not(asked, record, line, clean, attacked)
            except (UserError, RuntimeError, ValueError, LookupError) as error:  # evidence that was tampered with
                why = f"it cannot be replayed: {first_line(error, 120)}"
            if why is not None:
                wrong.append(f"image {line.index}: {why}")
            advance(1)
    if as_png != record.evidence.eight_bit:
        wrong.append(f"the record counts {record.evidence.eight_bit} 8-bit images, {as_png} are there")
    figure = (
        f"{len(lines) - len(wrong)} of {len(lines)} failures hold: in the ball, in [0, 1], right before, wrong after"
    )
    found.append(_check("failures replayed", wrong, figure, "the record counts failures that are none"))
    return tuple(found)


def _check(name: str, wrong: list[str], figure: str, fix: str) -> records.Check:
    told = "; ".join([figure, *wrong[:5], *([f"and {len(wrong) - 5} more"] if len(wrong) > 5 else [])])
    return records.Check.of(name, not wrong, told, fix)


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


def _counts(record: records.Record, files: Mapping[str, bytes], lines: list[Failure]) -> records.Check:
    """Hold the record, every image's verdict, and the failures listed against one another."""
    try:
        verdicts = runs.unpack_arrays(files["evidence/verdicts.safetensors"])
        norm = next(each.norm for each in record.attacks)
        broken_at, correct = verdicts[f"broken_at/{norm}"], verdicts["correct"]
        keys = [(row.tobytes().hex(), int(y)) for row, y in zip(verdicts["hash"], verdicts["label"], strict=True)]
    except Exception as error:  # lost, or not what it was
        return _check(
            "counts", [f"evidence/verdicts.safetensors: {type(error).__name__}"], "", "restore the run folder"
        )
    fell = np.isfinite(broken_at) & (broken_at > 0)
    wanted = Counter((*keys[row], float(broken_at[row])) for row in np.flatnonzero(fell))
    listed = Counter((line.image, line.label, line.eps) for line in lines)
    wrong = []
    if wanted != listed:
        wrong.append(
            f"{(wanted - listed).total()} failures are not listed, {(listed - wanted).total()} listed are none"
        )
    if len({line.evidence for line in lines}) < len(lines):
        wrong.append("two failures share their evidence")
    if any(line.norm != norm for line in lines):
        wrong.append(f"a failure is listed in another norm than {norm}")
    kept = record.evidence
    if kept is None or kept.failures != len(lines) or kept.eight_bit + kept.only_float != len(lines):
        wrong.append(f"the record counts {kept.failures if kept else 0} failures, {len(lines)} are listed")
    clean = record.metric("clean_accuracy")
    if clean is None or clean.count != int(correct.sum()) or clean.n != len(correct):
        wrong.append(f"clean accuracy: the verdicts say {int(correct.sum())} of {len(correct)}")
    metrics = [each for each in record.metrics if each.name == "robust_accuracy" and each.attack is None]
    tried = sorted({each.eps for each in record.attacks if each.reason == "plan"})
    if sorted(each.eps or 0 for each in metrics) != tried:
        wrong.append(f"{len(metrics)} robust accuracies for {len(tried)} eps attacked")
    for metric in metrics:
        stands = int((broken_at > (metric.eps or 0) * (1 + 1e-9)).sum())
        if stands != metric.count or metric.n != len(correct):
            wrong.append(f"at eps {metric.eps:.6g} the record says {metric.count}, the verdicts {stands}")
    for name in ("forward", "backward"):  # earlier runs have no counts for each image
        total = sum(getattr(each, name) for each in record.attacks)
        if f"{name}s" in verdicts and total != int(verdicts[f"{name}s"].sum()):
            wrong.append(f"{total:,} {name} passes of attacks, of the images {int(verdicts[f'{name}s'].sum()):,}")
    figure = f"{len(metrics)} robust accuracies, the clean one, {len(lines)} failures and {len(correct)} verdicts agree"
    return _check(
        "counts", wrong, "the record was changed" if wrong else figure, "restore the run folder, or audit again"
    )


def _conclusions(record: records.Record) -> records.Check:
    """Hold intervals, gates, headline and verdict against the counts they follow from."""
    wrong = []
    for metric in record.metrics:
        if metric.name not in ("clean_accuracy", "robust_accuracy") or metric.count is None:
            continue
        ends = stats.wilson(metric.count, metric.n, metric.level)
        told = [np.nan if end is None else end for end in (metric.low, metric.high)]
        if not np.allclose(ends, told, rtol=0, atol=1e-6):
            wrong.append(f"the interval of {metric.name} is {ends.low:.4f} to {ends.high:.4f}")
    asked = record.options.get("eps")
    asked = asked[0] if isinstance(asked, list | tuple) else asked
    if asked is not None and not equal_eps(parse_eps(asked), record.headline_eps or 0.0):
        wrong.append(f"the headline is eps {asked}, by the options")
    for gate in record.gates:
        if gate.outcome != "across" and gate.outcome != judged_again(gate, record.metrics):
            wrong.append(f"the gate {gate.name} is not {gate.outcome}")
    if not record.flags and any(each.name not in records.GRADIENT_FREE for each in record.attacks):
        wrong.append("the checks after the attacks are missing")
    if not record.preflight and not record.options.get("skip_preflight"):
        wrong.append("the checks before the attacks are missing")
    verdict, code = conclude(record.gates, record.preflight, record.flags)
    if (verdict, code) != (record.verdict, record.exit_code):
        wrong.append(f"the verdict is {verdict}, exit code {code}")
    figure = f"intervals, {len(record.gates)} gates, {len(record.checks)} checks and the verdict follow from the counts"
    return _check("conclusions", wrong, "the record was changed" if wrong else figure, "audit again")


def _why_not(
    classifier: nn.Module, record: records.Record, line: Failure, clean: Tensor | None, attacked: Tensor | None
) -> str | None:
    """Say why one failure does not hold; None where it does."""
    if clean is None or attacked is None:
        return "its images are missing"
    label, eps = torch.tensor([line.label]), line.eps
    if attacked.shape != clean.shape:
        return "its two images differ in size"
    names = record.data.class_names if record.data else ()
    stored = ImageSet(clean[None], label, names or tuple(map(str, range(line.label + 1))))
    if stored.hashes[0] != line.image:
        return "its clean image is not the one that was audited"
    before, after = (image.float()[None] / (255 if image.dtype == torch.uint8 else 1) for image in (clean, attacked))
    distance = float(NORMS[line.norm].distance(after, before)[0])
    if not distance <= eps * (1 + TOLERANCE) + TOLERANCE:
        return f"it was changed by {distance:.6g}, more than eps {eps:.6g}"
    if not (bool((after >= 0).all()) and bool((after <= 1).all())):
        return "its attacked image leaves [0, 1]"
    with torch.no_grad():
        if not right(classifier(before), label):
            return "the model is wrong on its clean image already"
        logits = classifier(after)
        if right(logits, label):
            return "the model is right on its attacked image"
    if line.prediction is not None and bool(logits.isfinite().all()) and int(logits.argmax()) != line.prediction:
        return f"its attacked image is not taken for class {line.prediction}"
    if line.distance is not None and abs(line.distance - distance) > TOLERANCE * max(1.0, distance):
        return f"it was changed by {distance:.6g}, not by {line.distance:.6g}"
    if line.form is not None and line.form != ("png" if attacked.dtype == torch.uint8 else "float"):
        return f"it is no {line.form}"
    if line.attack not in {each.name for each in record.attacks}:
        return f"no attack of this run is named {line.attack}"
    return None if line.evidence == f"{line.index:07d}" else "its evidence is that of another image"

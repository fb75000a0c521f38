"""doctor: is this machine able to run robustcv, and is this model fed and read as it should be?"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from robustcv.data import cache
from robustcv.evaluation.accuracy import predict
from robustcv.evaluation.preflight import preflight, require_some_right
from robustcv.models import load as load_classifier
from robustcv.records import Check
from robustcv.runtime import Progress
from robustcv.verbs.parse import parse_sweep
from robustcv.verbs.prepare import (
    asked_about,
    class_map_of,
    device_of,
    gives_gradients,
    is_black_box,
    judged,
    take_images,
    training_images_among,
)

LEAST_DISK, LEAST_MEMORY = 2 << 30, 2 << 30
EXTRAS = {"onnx": "onnxruntime", "stream": "datasets", "timm": "timm", "tune": "optuna"}


def doctor(
    model: Any, images: Any, labels: Any, *, options: Mapping[str, Any], progress: Progress
) -> tuple[Check, ...]:
    """Check the machine and, where both are given, a model with its data; see `robustcv.doctor`."""
    machine = (_python(), _packages(), _extras(), _device(), _memory(), _disk(), _cache())
    if model is None or images is None:
        why = "give --model and --data to check them too"
        return (*machine, Check(check="model and data", status="not run", figure=why))
    eps, _ = parse_sweep(options["eps"], options["norm"], sweep=False)
    class_map = class_map_of(options)
    loaded = load_classifier(model, options["weights"], say=progress.say)
    device = device_of(loaded, options["device"])
    chosen, _ = take_images(
        images,
        labels,
        **{name: options[name] for name in ("split", "data_dir", "resize", "n", "seed")},
        loaded=loaded,
        device=device,
        progress=progress,
        at_most=True,
        mapped=class_map is not None,
    )
    loaded = asked_about(loaded, class_map, chosen, device)
    was_training = loaded.classifier.training
    with judged(loaded.classifier) as classifier:
        predictions = predict(classifier, chosen, batch_size=options["batch_size"], device=device)
        require_some_right(predictions)
        found = preflight(
            classifier,
            chosen,
            predictions,
            was_training=was_training,
            trained_on=loaded.class_names,
            whole=loaded.whole,
            device=device,
            norm=options["norm"],
            eps=eps[0],
            overlap=training_images_among(images, chosen, options, progress),
            black_box=is_black_box(classifier) or not gives_gradients(classifier, chosen, device),
        )
    return (*machine, *found)


def _python() -> Check:
    version = sys.version_info
    fine = (3, 11) <= version[:2] <= (3, 13)
    return Check.of("Python", fine, sys.version.split()[0], "use Python 3.11 to 3.13")


def _packages() -> Check:
    """Hold every installed package against what robustcv asks for."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in metadata.requires("robustcv") or ()]
    wrong = []
    for each in wanted:
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        try:
            if not each.specifier.contains(found := metadata.version(each.name), prereleases=True):
                wrong.append(f"{each.name} {found} is not {each.specifier}")
        except metadata.PackageNotFoundError:
            wrong.append(f"{each.name} is missing")
    versions = f"robustcv {metadata.version('robustcv')}, torch {torch.__version__}"
    return Check.of("packages", not wrong, "; ".join(wrong) or versions, "install robustcv again, with its constraints")


def _extras() -> Check:
    here = [name for name, package in EXTRAS.items() if importlib.util.find_spec(package) is not None]
    absent = [name for name in EXTRAS if name not in here]
    figure = f"installed: {', '.join(here) or 'none'}" + (f"; not: {', '.join(absent)}" if absent else "")
    return Check(check="extras", status="pass", figure=figure)


def nvidia_driver() -> str | None:
    """Give the version of the NVIDIA kernel driver; None where there is none."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    words = text.split("Kernel Module", 1)[-1].split()
    return next((word for word in words if word[:1].isdigit()), "of unknown version")


def _device() -> Check:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        return Check(check="device", status="pass", figure=f"GPU: {', '.join(names)}")
    driver = nvidia_driver()
    threads = f"{torch.get_num_threads()} threads on {len(os.sched_getaffinity(0))} cores"
    if driver is None:
        return Check(check="device", status="pass", figure=f"CPU, {threads}; no NVIDIA GPU")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    fix = (
        f"update the driver to one for CUDA {torch.version.cuda}, or install a torch built for an older CUDA"
        if torch.version.cuda
        else "install a torch with CUDA (pytorch.org, Get started)"
    )
    why = "driver too old" if torch.version.cuda else "torch cannot use it"
    return Check.of("device", False, f"GPU present, {why}: driver {driver}, torch has {built}; {threads}", fix)


def _memory() -> Check:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return Check(check="memory", status="not run", figure="this system does not tell")
    fix = "lower --batch-size and -n, or close other programs"
    return Check.of("memory", free >= LEAST_MEMORY, f"{free / 2**30:.1f} GB free", fix)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    fix = "make room, or write elsewhere with -o"
    writable = os.access(Path.cwd(), os.W_OK)
    figure = f"{free / 2**30:.1f} GB free here" + ("" if writable else ", but the folder cannot be written")
    return Check.of("disk", free >= LEAST_DISK and writable, figure, fix)


def _cache() -> Check:
    folder = cache.cache_dir()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    fix = "point ROBUSTCV_CACHE to a folder that can be written; without it images are decoded every time"
    return Check.of("cache", os.access(nearest, os.W_OK), f"{size / 2**30:.1f} GB in {folder}", fix)

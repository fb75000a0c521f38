"""The licence of every package that robustcv brings along: `python tests/licences.py > docs/licences.md`."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
HEAD = """# Licences

Every package that robustcv, or one of its extras for users ({extras}), brings along, with the licence
it states. None is under the GPL; packages that are stay in the environment of the benchmarks. Packages named
`nvidia-...` and `cuda-...` come with the builds of PyTorch for NVIDIA GPUs alone. Written by
`python tests/licences.py`; a test holds it to what is installed.

| package | licence |
| --- | --- |
"""
UNSTATED = {"cuda-toolkit": "LicenseRef-NVIDIA-Proprietary"}  # an empty package that names the others


def extras() -> list[str]:
    """List the extras that add to what robustcv does, and not to how it is made."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [name for name in project["optional-dependencies"] if name not in ("docs", "test")]


def brought() -> dict[str, metadata.Distribution]:
    """Follow the requirements of what is installed here."""
    found: dict[str, metadata.Distribution] = {}
    done, left = set(), [("robustcv", ("", *extras()))]
    while left:
        name, wanted = left.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if (name, wanted) in done:
            continue
        done.add((name, wanted))
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for text in found[name].requires or []:
            each = Requirement(text)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in wanted):
                left.append((each.name, ("", *sorted(each.extras))))
    return dict(sorted(found.items()))


def licence_of(name: str, package: metadata.Distribution) -> str:
    """Give what a package states: an SPDX expression, else its classifiers, else the first line of its text."""
    stated = package.metadata.get("License-Expression")
    classifiers = [text for text in package.metadata.get_all("Classifier") or [] if text.startswith("License ::")]
    first = next(iter((package.metadata.get("License") or "").strip().splitlines()), "")
    told = stated or ", ".join(text.split(" :: ")[-1] for text in classifiers) or first
    return told or UNSTATED.get(name, "")


if __name__ == "__main__":
    print(HEAD.format(extras=", ".join(f"`{name}`" for name in extras())), end="")
    for name, package in brought().items():
        print(f"| {name} | {licence_of(name, package)} |")

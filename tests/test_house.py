"""House rules that a reader of the code would check: what may not be committed, and what must be true of the texts."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import licences
import pytest
import torch
from PIL import Image

from robustcv.cli import build

ROOT = Path(__file__).parent.parent


def tracked() -> list[Path]:
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in found.stdout.splitlines() if (ROOT / name).is_file()]


def test_only_the_ci_script_knows_where_the_shared_data_lies() -> None:
    needle = "/".join(["..", "shared"])
    found = [path for path in tracked() if needle.encode() in path.read_bytes()]
    assert [str(path.relative_to(ROOT)) for path in found] in ([], [".ci/run"])


def test_the_pins_hold_no_addresses_and_cover_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in ("constraints.txt", "constraints-bench.txt"):
        text = (ROOT / name).read_text()
        assert "://" not in text and "--" not in text
    pinned = {
        line.split("==")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    wanted = [*project["dependencies"], *(text for text in extras if not text.startswith("robustcv"))]
    assert {re.split(r"[<>\[]", text)[0].strip().lower() for text in wanted} <= pinned


def test_the_readme_names_every_room_and_every_verb() -> None:
    text = (ROOT / "README.md").read_text()
    rooms = [p.name for p in (ROOT / "robustcv").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    assert [room for room in rooms if not room.startswith("__") and room.removesuffix(".py") not in text] == []
    for verb in ("train", "audit", "harden", "explain", "compare", "report", "list", "demo"):
        assert f"robustcv {verb}" in text, verb
    assert "make demo" in text[:2500] and "make test" in text[:2500]


def test_every_error_code_is_explained() -> None:
    used: dict[str, set[str]] = {}
    for path in (ROOT / "robustcv").rglob("*.py"):
        for code in re.findall(r'"(RCV-E\d{3})"', path.read_text()):
            used.setdefault(code, set()).add(path.stem)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert [code for code in sorted(used) if code not in text] == []
    assert [code for code in re.findall(r"RCV-E\d{3}", text) if code not in used] == []


def example(name: str, folder: Path, *arguments: str) -> list[str]:
    """Run an example in a folder; gives its lines, the last of which is a page."""
    path = ROOT / "examples" / name
    assert len(path.read_text().splitlines()) < 50
    done = subprocess.run([sys.executable, str(path), *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / done.stdout.splitlines()[-1]).exists()
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["audit_your_model.py", pytest.param("train_audit_harden.py", marks=pytest.mark.every_case)],  # as the demo
)
def test_the_examples_run(name: str, tmp_path: Path) -> None:
    example(name, tmp_path)


@pytest.mark.every_case
def test_the_example_of_a_shortcut_finds_it(tmp_path: Path) -> None:
    told = dict(
        line.rsplit(" ", 1) for line in example("find_shortcut.py", tmp_path) if line.startswith(("hon", "mis"))
    )
    for measure in ("relevance_mass", "pointing"):
        assert float(told[f"misled: {measure}"]) < float(told[f"honest: {measure}"]) - 0.05


@pytest.mark.slow
def test_the_example_of_methods_of_ones_own_attacks_and_explains(tmp_path: Path) -> None:
    broken = ast.literal_eval(example("custom_methods.py", tmp_path)[-2])
    assert broken["fade"] > 0 and broken["pgd"] > 0
    page = (tmp_path / "reports/custom/audit/report.html").read_text()
    assert "rows heat map of the adversarial image" in page


@pytest.mark.every_case
def test_the_example_of_a_torchvision_network_audits_a_folder(tmp_path: Path) -> None:
    """On a network as small as torchvision has, with weights of nobody: two classes, so that it is sometimes right."""
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), tmp_path / "weights.pth")
    pixels = torch.randint(0, 256, (4, 48, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for k, each in enumerate(pixels):
        place = tmp_path / "photos/test" / ("cat", "dog")[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each.numpy()[: 48 - k]).save(place / f"{k}.png")  # photos differ in size
    lines = example("audit_torchvision.py", tmp_path, "squeezenet1_1", "photos", "4", "weights.pth")
    assert re.match(r"2 of 4 right; \d+ still right under attack at L-inf 4/255", lines[0])


@pytest.mark.slow
@pytest.mark.every_case
def test_the_gate_for_github_actions_passes_a_good_model_and_stops_a_bad_one(trained: Path, tmp_path: Path) -> None:
    import yaml

    job = yaml.safe_load((ROOT / "examples/github_actions.yml").read_text())["jobs"]["audit"]
    steps = {step["name"]: step["run"] for step in job["steps"] if "name" in step}
    bin_folder = str(Path(sys.executable).parent)
    summary = tmp_path / "summary"
    environment = {**os.environ, "MODEL": str(trained), "DATA": "digits", "GITHUB_STEP_SUMMARY": str(summary),
                   "PATH": f"{bin_folder}:{os.environ['PATH']}"}  # fmt: skip

    def run(script: str) -> int:
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        return subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True).returncode

    audit = steps["Audit"].replace("-n 300", "-n 80")
    assert run(audit) == 0 and run(steps["Summary"]) == 0
    assert "PASS" in summary.read_text() and (tmp_path / "audit/report.html").exists()
    assert run(audit.replace("clean_accuracy=0.80", "clean_accuracy=0.999").replace("-o audit", "-o bad")) == 3
    assert "FAIL" in (tmp_path / "bad/summary.md").read_text()


def test_the_licence_of_every_dependency_is_listed_and_none_is_gpl() -> None:
    text = (ROOT / "docs/licences.md").read_text()
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", text, re.M))
    stated = {name: licences.licence_of(name, package) for name, package in licences.brought().items()}
    assert len(stated) > 60 and "" not in stated.values()
    assert {name: listed.get(name) for name in stated} == stated, "python tests/licences.py > docs/licences.md"
    assert [name for name, licence in stated.items() if "GPL" in licence or "General Public" in licence] == []


def commands_told() -> list[str]:
    """List every robustcv command in README and documentation, its lines joined and its remarks left out."""
    found = []
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"^```(?:bash)?\n(.*?)^```", path.read_text(), re.M | re.S):
            lines = [line.partition("#")[0] for line in block.replace("\\\n", " ").splitlines()]
            found += [" ".join(line.split()) for line in lines if line.startswith("robustcv ")]
    return sorted(set(found))


@pytest.mark.parametrize("command", commands_told())
def test_every_command_that_is_told_can_be_given(command: str, monkeypatch) -> None:
    """Names, options and values are those of the command line; nothing is run."""
    given = shlex.split(command.replace(" ...", " --model m --data d"))[1:]
    _, bound, _ = build(None, given).parse_args(given, print_error=False, exit_on_error=False)
    assert bound is not None


def test_the_published_samples_are_of_this_page_and_show_no_foreign_images() -> None:
    samples = ROOT / "reports" / "samples"
    for name in ("digits-compare.html", "shapes-audit.html"):
        page = (samples / name).read_text()
        assert "Content-Security-Policy" in page and "robustcv" in page
        assert "cifar" not in page.lower()

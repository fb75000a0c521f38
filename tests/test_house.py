"""House rules that a reader of the code would check: what may not be committed, and what must be true of the texts."""

import subprocess
import tomllib
from pathlib import Path

import pytest

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
    assert {text.split(">")[0].split("<")[0].strip().lower() for text in wanted} <= pinned


def test_the_readme_names_every_room_and_every_verb() -> None:
    text = (ROOT / "README.md").read_text()
    rooms = [p.name for p in (ROOT / "robustcv").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    assert [room for room in rooms if not room.startswith("__") and room.removesuffix(".py") not in text] == []
    for verb in ("train", "audit", "harden", "explain", "compare", "report", "list", "demo"):
        assert f"robustcv {verb}" in text, verb
    assert "make demo" in text[:2500] and "make test" in text[:2500]


def test_every_error_code_is_explained() -> None:
    import re

    used: dict[str, set[str]] = {}
    for path in (ROOT / "robustcv").rglob("*.py"):
        for code in re.findall(r'"(RCV-E\d{3})"', path.read_text()):
            used.setdefault(code, set()).add(path.stem)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert [code for code in sorted(used) if code not in text] == []
    assert [code for code in re.findall(r"RCV-E\d{3}", text) if code not in used] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_audit_harden.py", "audit_your_model.py"])
def test_the_examples_run(name: str, tmp_path: Path) -> None:
    import sys

    path = ROOT / "examples" / name
    assert len(path.read_text().splitlines()) < 40
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / done.stdout.splitlines()[-1]).exists()


def test_the_published_samples_are_of_this_page_and_show_no_foreign_images() -> None:
    samples = ROOT / "reports" / "samples"
    for name in ("digits-compare.html", "shapes-audit.html"):
        page = (samples / name).read_text()
        assert "Content-Security-Policy" in page and "robustcv" in page
        assert "cifar" not in page.lower()

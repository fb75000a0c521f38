"""Run folders that earlier versions wrote still make their pages: fixtures/runs-N-COMMIT.tar.xz, made by that commit.

Each holds a training of `small_cnn` on digits, an audit of 20 images, a comparison of two such audits, and explanations
of two images; without the weights, the pages and the archive of failures.
"""

import tarfile
from pathlib import Path

import pytest
from test_report import Reader

from robustcv import records, report, runs
from robustcv.report import numbers

ARCHIVES = sorted((Path(__file__).parent / "fixtures").glob("runs-*.tar.xz"))


@pytest.mark.parametrize("verb", ["train", "audit", "compare", "explain"])
@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.split(".")[0])
def test_a_run_of_an_earlier_version_is_shown(archive: Path, verb: str, tmp_path: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    record, files = runs.load(tmp_path / verb), runs.load_files(tmp_path / verb)
    page = report.write(tmp_path / verb).read_text()
    read = Reader(page)
    assert record.verb == verb and report.render(record, files) == page
    assert not [word for word in ("None", "nan", "undefined") if f" {word} " in f" {read.text} "]
    if verb == "compare":
        told = [numbers.points(pair.difference) for pair in record.comparison.paired]
        assert len(told) > 1 and all(text in page for text in told)
    if verb in ("train", "audit"):
        assert numbers.percent(record.metric("clean_accuracy")) in page
    if verb in ("audit", "explain"):
        assert page.count('<article class="case"') == len(record.cases) == 2 and "heat map" in page
    paths = report.write_formats(tmp_path / verb, ("md", "card", "csv", "junit"))
    assert len(paths) > 3 and all(path.stat().st_size > 0 for path in paths)


def test_the_fixtures_are_there() -> None:
    assert len(ARCHIVES) >= 4


def test_mean_maps_of_the_first_version_that_had_them_are_read() -> None:
    """They were judged without a comparison with chance (d0a90c3)."""
    first = {"method": "lime", "name": "a", "n": 3, "share": 0.2, "place": [0.5, 0.5], "alarm": False, "file": "f"}
    assert records.ClassFocus.model_validate(first).chance is None

"""compare, of many runs: paired with the first where that means something, and told why not where it does not."""

import shutil
from pathlib import Path

import pytest

import robustcv as rc
from robustcv import stats
from robustcv.errors import UserError

QUICK = {"n": 60, "eps": "16/255", "sweep": False, "cases": 2, "explain": (), "quiet": True}


@pytest.fixture(scope="module")
def root(trained: Path, tmp_path_factory) -> Path:
    """Give a folder of runs: a training, four audits and one that was interrupted."""
    folder = tmp_path_factory.mktemp("runs")
    rc.train("digits", epochs=1, seed=5, out=folder / "other", quiet=True)
    rc.audit(str(trained), "digits", **QUICK, out=folder / "1-first")
    rc.audit(str(folder / "other"), "digits", **QUICK, out=folder / "2-weaker")
    rc.audit(str(trained), "digits", **{**QUICK, "eps": "8/255"}, out=folder / "3-eps")
    rc.audit(str(trained), "digits", **{**QUICK, "n": 40}, out=folder / "4-images")
    rc.audit(str(trained), "digits", **{**QUICK, "effort": "quick"}, out=folder / "5-effort")
    shutil.copytree(folder / "1-first", folder / "6-stopped")
    record = (folder / "6-stopped" / "report.json").read_text()
    (folder / "6-stopped" / "report.json").write_text(record.replace('"NO GATE"', '"INCOMPLETE"'))
    return folder


def test_a_folder_of_runs_becomes_a_table(root: Path, tmp_path: Path) -> None:
    run = rc.compare(root, out=tmp_path / "all")
    rows = run.record.overview
    assert [row.name for row in rows] == ["1-first", "2-weaker", "3-eps", "4-images", "5-effort"]
    assert [row.why for row in rows] == ["the baseline", "", "another threat model", "other images",
                                         "attacked in another way"]  # fmt: skip
    assert [row.paired is not None for row in rows] == [False, True, False, False, False]
    page = run.page.read_text()
    assert "5 audits on 2 sets of images" in page and 'class="sortable"' in page and "other images" in page
    assert "None" not in page.split("<body>")[1].split("<script>")[0]


def test_the_paired_difference_is_that_of_two_runs_alone_and_its_p_value_adjusted(root: Path) -> None:
    alone = rc.compare(root / "1-first", root / "2-weaker").comparison.paired
    pair = next(each for each in alone if each.name == "robust_accuracy")
    row = rc.compare(root / "1-first", root / "2-weaker", root / "1-first", names=("a", "b", "c")).record.overview
    assert row[1].paired == pair.model_copy(update={"eps": row[1].paired.eps})
    assert [row[1].p_value, row[2].p_value] == stats.holm([pair.p_value, 1.0])
    assert row[2].paired.difference == 0 and [each.name for each in row] == ["a", "b", "c"]


def test_what_cannot_be_compared_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 0 finished audits"):
        rc.compare(tmp_path)
    with pytest.raises(UserError, match="a comparison needs two"):
        rc.compare(root / "1-first")
    with pytest.raises(UserError, match="2 names for 3 runs"):
        rc.compare(root / "1-first", root / "2-weaker", root / "1-first", names=("a", "b"))
    with pytest.raises(UserError, match="is the run of `train`"):
        rc.compare(root / "1-first", root / "2-weaker", root / "other")

"""compare, of many runs: paired with the first where that means something, and told why not where it does not."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import robustcv as rc
from robustcv import runs, stats
from robustcv.data import ImageSet
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


def test_the_best_is_named_only_where_every_run_met_the_same_attacks(root: Path, tmp_path: Path) -> None:
    places = {"alike": ("1-first", "2-weaker", "1-first"), "other attacks": ("1-first", "2-weaker", "5-effort")}
    pages = {}
    for name, folders in places.items():
        run = rc.compare(*(root / each for each in folders), names=("a", "b", "c"), out=tmp_path / name)
        pages[name] = run.page.read_text()
    assert "Of 3 audits on the same images, a and c stand most at L-inf 16/255" in pages["alike"]
    assert "of the others cannot be told apart" not in pages["alike"]  # c is no other: it stands as much
    assert "stands most" not in pages["other attacks"]
    assert "only those of the same threat and attacks on the same images can be compared" in pages["other attacks"]


def test_images_won_and_lost_are_such_as_the_models_themselves_show(root: Path, trained: Path, tmp_path: Path) -> None:
    run = rc.compare(root / "2-weaker", root / "1-first", names=("old", "new"), out=tmp_path / "two")
    models = {"old": rc.load_classifier(str(root / "other")), "new": rc.load_classifier(str(trained))}
    pair = next(each for each in run.comparison.paired if each.name == "robust_accuracy")
    shown = run.comparison.moved
    words = [each.moved for each in shown]
    assert words.count("won") == 6 < pair.only_b and words.count("lost") <= pair.only_a
    pixels = runs.unpack_arrays((tmp_path / "two/evidence/moved.safetensors").read_bytes())
    for k, each in enumerate(shown):
        clean, attacked = (torch.from_numpy(pixels[f"{k:02d}-{kind}"]) for kind in ("clean", "adversarial"))
        both = torch.stack([x.float() / (255 if x.dtype == torch.uint8 else 1) for x in (clean, attacked)])
        fell, stood = ("old", "new") if each.moved == "won" else ("new", "old")
        assert models[fell](both).argmax(1).tolist() == [each.label, each.prediction] and each.prediction != each.label
        assert int(models[stood](both[:1]).argmax()) == each.label
        assert (both[1] - both[0]).abs().max() <= each.eps * (1 + 1e-6) <= 16 / 255 * (1 + 2e-6)
        assert ImageSet(clean[None], torch.tensor([each.label]), tuple("0123456789")).hashes[0] == each.image
    page = run.page.read_text()
    assert page.count("one of those won, drawn by its hash") + page.count("broken → survived") >= 6
    assert "; new stood" in page and not list((tmp_path / "two").rglob("broken.zip"))


def test_images_won_and_lost_of_audits_of_before_or_with_pictures_that_were_changed(root: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(root / "2-weaker", old)
    lines = [json.loads(line) for line in (old / "cases.jsonl").read_text().splitlines()]
    for line in lines:
        del line["prediction"]
    (old / "cases.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    run = rc.compare(old, root / "1-first", names=("old", "new"), out=tmp_path / "told")
    assert {each.prediction for each in run.comparison.moved if each.moved == "won"} == {None}
    assert "predicted not known by old" in run.page.read_text()
    broken = old / "evidence" / "broken.zip"
    with zipfile.ZipFile(broken) as archive:
        names = archive.namelist()
    with zipfile.ZipFile(broken, "w") as archive:
        for name in names:
            buffer = io.BytesIO()
            Image.new("RGB", (5, 5) if "adversarial" in name else (32, 32)).save(buffer, "PNG")
            archive.writestr(name, buffer.getvalue())
    changed = rc.compare(old, root / "1-first", out=tmp_path / "changed").comparison.moved
    assert [each for each in changed if each.moved == "won" and f"{each.index:07d}-clean.png" in names] == []


def test_what_cannot_be_compared_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 0 finished audits"):
        rc.compare(tmp_path)
    with pytest.raises(UserError, match="a comparison needs two"):
        rc.compare(root / "1-first")
    with pytest.raises(UserError, match="2 names for 3 runs"):
        rc.compare(root / "1-first", root / "2-weaker", root / "1-first", names=("a", "b"))
    with pytest.raises(UserError, match="is the run of `train`"):
        rc.compare(root / "1-first", root / "2-weaker", root / "other")

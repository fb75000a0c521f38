"""Evidence: every counted failure is there, holds alone, and whatever is changed is noticed."""

import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_linear
from honest_models import conv, patches, trained
from PIL import Image
from test_worst_case import job_for

import robustcv as rc
from robustcv import runs
from robustcv.classifier import frozen
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.plans import plan_for
from robustcv.evaluation.replay import replayable
from robustcv.evaluation.worst_case import worst_case


def raised(folder: Path, **options) -> dict[str, str]:
    checks = rc.verify(folder, quiet=True, **options)
    return {check.check: check.figure for check in checks if check.status == "raised"}


def test_the_evidence_of_an_audit_holds(audited: Path, trained) -> None:
    assert raised(audited) == {}
    record = runs.load(audited)
    lines = [json.loads(line) for line in (audited / "cases.jsonl").read_text().splitlines()]
    assert len(lines) == record.evidence.failures == record.evidence.eight_bit + record.evidence.only_float > 20
    assert record.evidence.eight_bit > 0.9 * len(lines) and record.evidence.withdrawn == 0
    with zipfile.ZipFile(audited / "evidence/broken.zip") as archive:
        assert sum(name.endswith("-clean.png") for name in archive.namelist()) == len(lines)


CHANGES = {}


def change(name: str):
    return lambda function: CHANGES.setdefault(name, function)


@change("evidence files")
def one_byte(folder: Path) -> None:
    path = folder / "evidence/verdicts.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@change("a file too many")
def added(folder: Path) -> None:
    (folder / "evidence/more.png").write_bytes(b"")


@change("a file too few")
def removed(folder: Path) -> None:
    (folder / "evidence/broken.zip").unlink()


@change("counts")
def metric(folder: Path) -> None:
    raw = json.loads((folder / "report.json").read_text())
    found = next(each for each in raw["metrics"] if each["name"] == "robust_accuracy")
    found["count"] += 1
    (folder / "report.json").write_text(json.dumps(raw))


def edited_line(folder: Path, **fields) -> None:
    lines = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    lines[0] |= fields
    (folder / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@change("a smaller eps")
def smaller(folder: Path) -> None:
    edited_line(folder, eps=1e-4)


@change("another label")
def label(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    edited_line(folder, label=(lines[0]["label"] + 1) % 10)


@change("another image")
def image(folder: Path) -> None:
    edited_line(folder, image="0" * 16)


@change("an image of another failure")
def swapped(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    edited_line(folder, evidence=lines[1]["evidence"])


@change("hidden failures")
def hidden(folder: Path) -> None:
    """Fewer lines, and a record that agrees with them."""
    lines = (folder / "cases.jsonl").read_text().splitlines()
    (folder / "cases.jsonl").write_text("\n".join(lines[:3]) + "\n")
    raw = json.loads((folder / "report.json").read_text())
    clean = next(each for each in raw["metrics"] if each["name"] == "clean_accuracy")["count"]
    kept = [json.loads(line)["eps"] for line in lines[:3]]
    for each in raw["metrics"]:
        if each["name"] == "robust_accuracy" and each["attack"] is None:
            each["count"] = clean - sum(eps <= each["eps"] * (1 + 1e-9) for eps in kept)
    raw["evidence"] |= {"failures": 3, "eight_bit": 3, "only_float": 0}
    (folder / "report.json").write_text(json.dumps(raw))


@change("a repeated failure")
def repeated(folder: Path) -> None:
    path = folder / "cases.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")


@change("no lines")
def no_lines(folder: Path) -> None:
    (folder / "cases.jsonl").unlink()


@change("torn lines")
def torn_lines(folder: Path) -> None:
    (folder / "cases.jsonl").write_bytes(b'{"index": \xff')


@change("a torn archive")
def torn_archive(folder: Path) -> None:
    path = folder / "evidence/broken.zip"
    path.write_bytes(path.read_bytes()[:500])


@change("torn verdicts")
def torn_verdicts(folder: Path) -> None:
    (folder / "evidence/verdicts.safetensors").write_bytes(b"torn")


@change("a norm of its own")
def other_norm(folder: Path) -> None:
    edited_line(folder, norm="l2")


@change("outside the box")
def outside(folder: Path) -> None:
    """The same failure, as floats, of which the darkest pixel lies below black."""
    line = json.loads((folder / "cases.jsonl").read_text().splitlines()[0])
    with zipfile.ZipFile(folder / "evidence/broken.zip") as archive:
        clean, attacked = (
            np.array(Image.open(io.BytesIO(archive.read(f"{line['evidence']}-{kind}.png"))), np.float32) / 255
            for kind in ("clean", "adversarial")
        )
    attacked.flat[clean.argmin()] = -0.5 * line["eps"]
    stored = np.ascontiguousarray(np.atleast_3d(attacked).transpose(2, 0, 1))
    (folder / "evidence/broken.safetensors").write_bytes(runs.pack_arrays({f"{line['evidence']}-adversarial": stored}))


def edited_record(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        raw = json.loads((folder / "report.json").read_text())
        change(raw)
        (folder / "report.json").write_text(json.dumps(raw))

    return edit


def robust(raw: dict) -> dict:
    return next(each for each in raw["metrics"] if each["name"] == "robust_accuracy" and each["attack"] is None)


for name, edit in {
    "a better verdict": lambda raw: raw.update(verdict="PASS", exit_code=0),
    "a better interval": lambda raw: robust(raw).update(low=0.98, high=0.99),
    "another headline": lambda raw: raw.update(headline_eps=2 * raw["headline_eps"]),
    "no flags": lambda raw: raw.update(flags=[]),
    "no preflight": lambda raw: raw.update(preflight=[]),
    "a metric less": lambda raw: raw["metrics"].remove(robust(raw)),
    "fewer passes": lambda raw: raw["attacks"][0].update(backward=1),
    "the worst case as that of one attack": lambda raw: robust(raw).update(attack="fgsm"),
    "forms swapped": lambda raw: raw["evidence"].update(
        eight_bit=raw["evidence"]["only_float"], only_float=raw["evidence"]["eight_bit"]
    ),
}.items():
    CHANGES[name] = edited_record(edit)
for name, fields in {
    "another prediction": {"prediction": 0}, "another distance": {"distance": 0.5}, 
    "another attack": {"attack": "magic"}, "another form": {"form": "float"}, "another place": {"index": 9999},
}.items():  # fmt: skip
    CHANGES[name] = partial(edited_line, **fields)


WANTED = {
    "a better verdict": ("conclusions", "the verdict is"),
    "a better interval": ("conclusions", "the interval of robust_accuracy is"),
    "another headline": ("conclusions", "the headline is eps"),
    "no flags": ("conclusions", "checks after the attacks are missing"),
    "no preflight": ("conclusions", "checks before the attacks are missing"),
    "a metric less": ("counts", "robust accuracies for"),
    "fewer passes": ("counts", "backward passes of attacks, of the images"),
    "the worst case as that of one attack": ("counts", "robust accuracies for"),
    "forms swapped": ("failures replayed", "8-bit images,"),
    "another prediction": ("failures replayed", "is not taken for class"),
    "another distance": ("failures replayed", "not by 0.5"),
    "another attack": ("failures replayed", "no attack of this run is named magic"),
    "another form": ("failures replayed", "it is no float"),
    "another place": ("failures replayed", "that of another image"),
    "outside the box": ("failures replayed", "leaves [0, 1]"),
    "hidden failures": ("counts", "failures are not listed"),
    "a repeated failure": ("counts", "two failures share their evidence"),
    "no lines": ("counts", "is missing or was changed"),
    "torn lines": ("counts", "is missing or was changed"),
    "a torn archive": ("failures replayed", "its images are missing"),
    "torn verdicts": ("counts", "verdicts.safetensors"),
    "a norm of its own": ("counts", "in another norm"),
    "evidence files": ("evidence files", "verdicts.safetensors was changed"),
    "a file too many": ("evidence files", "more.png is not listed"),
    "a file too few": ("failures replayed", "its images are missing"),
    "counts": ("counts", "the record says"),
    "a smaller eps": ("failures replayed", "more than eps 0.0001"),
    "another label": ("failures replayed", "wrong on its clean image"),
    "another image": ("failures replayed", "not the one that was audited"),
    "an image of another failure": ("failures replayed", "not the one that was audited"),
}


@pytest.mark.parametrize("name", WANTED)
def test_what_was_changed_is_listed(name: str, audited: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(audited, folder)
    CHANGES[name](folder)
    check, words = WANTED[name]
    assert words in raised(folder)[check]


def test_another_model_is_noticed(audited: Path, tmp_path: Path) -> None:
    rc.train("digits", epochs=1, seed=5, out=tmp_path / "other", quiet=True)
    found = raised(audited, model=str(tmp_path / "other"))
    assert "the model given has" in found["model"] and "right on its attacked image" in found["failures replayed"]


def test_the_command_line_lists_what_does_not_hold(capsys, audited: Path, tmp_path: Path) -> None:
    from test_cli import call

    assert call(capsys, "verify", str(audited), "-q")[0] == 0
    folder = tmp_path / "copy"
    shutil.copytree(audited, folder)
    added(folder)
    code, printed, _ = call(capsys, "verify", str(folder), "-q")
    assert code == 3 and "RAISED  evidence files" in printed and "more.png is not listed" in printed
    assert json.loads(call(capsys, "verify", str(audited), "-q", "--json")[1])[0]["status"] == "pass"
    with pytest.raises(UserError, match="holds no evidence to replay"):
        rc.verify(Path(json.loads((audited / "report.json").read_text())["options"]["model"]))


def test_a_run_folder_cannot_have_its_code_run(audited: Path, tmp_path: Path) -> None:
    folder, mark = tmp_path / "copy", tmp_path / "ran"
    shutil.copytree(audited, folder)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    raw = json.loads((folder / "report.json").read_text())
    raw["options"]["model"] = f"py:{folder / 'evil.py'}:f"
    (folder / "report.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="runs no code because a run folder names it"):
        rc.verify(folder, quiet=True)
    assert not mark.exists()


def test_what_no_file_can_show_is_kept_as_floats_and_counted_apart(tmp_path: Path) -> None:
    """At an eps below an 8-bit step no file differs from the clean one."""
    model = trained(conv, seed=3)
    images = patches(600, 5)
    run = rc.audit(model, images, eps=0.9 / 255, sweep=False, effort="quick", explain=(), cases=2, quiet=True,
                   out=tmp_path / "run")  # fmt: skip
    assert run.evidence.failures == run.evidence.only_float >= 1 and run.evidence.eight_bit == 0
    assert raised(tmp_path / "run", model=model) == {}
    assert "no 8-bit image shows" in run.page.read_text()


def test_a_picture_is_said_to_fool_only_where_its_change_is_small_enough() -> None:
    """Below 1/255 no 8-bit image changes; rounding to the nearest one changes by a whole step."""
    run = rc.audit(trained(conv, seed=3), patches(300, 5), eps=0.9 / 255, sweep=False, effort="quick", explain=(),
                   cases=12, quiet=True)  # fmt: skip
    broken = [case for case in run.record.cases if case.outcome == "broken"]
    assert run.record.evidence.eight_bit == 0 and len(broken) > 0
    assert not any(case.exact_8bit for case in broken)


def test_the_flows_are_those_of_the_evidence(audited: Path) -> None:
    record = runs.load(audited)
    lines = [json.loads(line) for line in (audited / "cases.jsonl").read_text().splitlines()]
    fell = [line for line in lines if line["eps"] <= record.headline_eps * (1 + 1e-9)]
    assert sum(flow.count for flow in record.flows) == len(fell) > 5
    for flow in record.flows:
        same = [line for line in fell if (line["label"], line["prediction"]) == (flow.label, flow.prediction)]
        assert len(same) == flow.count and flow.label != flow.prediction
    for k, row in enumerate(record.classes):  # rows of the matrix add up
        assert row.robust + sum(flow.count for flow in record.flows if flow.label == k) == row.clean
    assert "Where attacked images go" in (audited / "report.html").read_text()


def test_the_bands_of_the_flows_are_as_wide_as_the_images_they_carry(audited: Path) -> None:
    record, page = runs.load(audited), (audited / "report.html").read_text()
    drawn = page.split('id="flows"')[1].split("<table")[0]
    names = [row.name for row in record.classes]
    wanted = {f"{row.robust} of {row.name} stand": row.robust for row in record.classes if row.robust}
    wanted |= {f"{each.count} of {names[each.label]} taken for {names[each.prediction]}": each.count
               for each in record.flows}  # fmt: skip
    wide = {}
    for told, path in re.findall(r'aria-label="(\d+ of [^"]*)"[^>]* d="([^"]*)"', drawn):
        at = [float(each) for each in re.findall(r"-?[\d.]+", path)]
        left = [y for x, y in zip(at[::2], at[1::2], strict=True) if x == min(at[::2])]
        right = [y for x, y in zip(at[::2], at[1::2], strict=True) if x == max(at[::2])]
        assert max(right) - min(right) == pytest.approx(max(left) - min(left), abs=0.03)
        wide[told] = max(left) - min(left)
    assert wide.keys() == wanted.keys()
    one = wide[next(iter(wanted))] / wanted[next(iter(wanted))]
    assert wide == pytest.approx({told: one * count for told, count in wanted.items()}, abs=0.02)
    shown = {(case.label, case.adversarial_prediction) for case in record.cases if case.outcome == "broken"}
    links = set(re.findall(r'<a href="#class=(\w+)&amp;as=(\w+)"', drawn))
    assert links == {(names[a], names[b]) for a, b in shown} and links


class Moody(torch.nn.Module):
    """Answers wrongly in a batch where it is right alone, but for changes of more than a step."""

    def __init__(self, inner: torch.nn.Module, clean: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.clean = inner, clean

    def forward(self, images):
        logits = self.inner(images)
        moved = (images[:, None] - self.clean[None]).abs().flatten(2).amax(2).amin(1)
        wrong = (moved > 1.5 / 255) | ((moved > 0.5 / 255) & torch.tensor(len(images) > 1))
        return torch.where(wrong[:, None], logits.roll(1, 1), logits)


def test_a_failure_that_is_not_repeated_alone_counts_where_it_is() -> None:
    linear = make_linear(5, (3, 6, 5), seed=1, dtype=torch.float32)
    pixels = (torch.rand(12, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 200 + 20).round().to(torch.uint8)
    with torch.no_grad():
        images = ImageSet(pixels, linear(pixels / 255).argmax(1), tuple("abcde"))
    model, sweep = Moody(linear, pixels / 255), (1 / 255, 3 / 255)
    with frozen(model):
        outcome = worst_case(job_for(model, images), plan_for("quick", "linf"), eps=sweep[1], sweep=sweep)
        settled = replayable(job_for(model, images), outcome)
    assert int((outcome.broken_at == sweep[0]).sum()) == 12  # in a batch
    assert int((settled.outcome.broken_at == sweep[1]).sum()) >= 9 and settled.withdrawn == 0  # linear, some do fall


def test_rounding_is_undone_by_attacking_on_the_grid() -> None:
    """On a linear model and a small eps, rounding towards the image undoes some successes; the grid finds some."""
    linear = make_linear(5, (3, 6, 5), seed=1, dtype=torch.float32)
    pixels = (torch.rand(150, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 255).round().to(torch.uint8)
    with torch.no_grad():
        images = ImageSet(pixels, linear(pixels / 255).argmax(1), tuple("abcde"))
    eps = 2.9 / 255
    with frozen(linear):
        job = job_for(linear, images)
        outcome = worst_case(job, plan_for("standard", "linf"), eps=eps)
        settled = replayable(job, outcome)
        grid = worst_case(job_for(linear, images, eight_bit=True), plan_for("standard", "linf"), eps=eps)
    fell, on_grid = ~outcome.robust(eps), ~grid.robust(eps)
    assert settled.withdrawn == 0 and torch.equal(~settled.outcome.robust(eps), fell)
    assert torch.equal(settled.exact & fell, on_grid & fell) and 0 < int(on_grid.sum()) < int(fell.sum())
    for row in settled.exact.nonzero().squeeze(1).tolist():
        candidate = settled.outcome.candidate(row, eps) * 255
        assert (candidate - candidate.round()).abs().max() < 1e-4


def test_an_archive_that_unpacks_to_too_much_is_not_read(audited: Path, tmp_path: Path, monkeypatch) -> None:
    from robustcv.verbs import failures as module

    copy = shutil.copytree(audited, tmp_path / "run")
    monkeypatch.setattr(module, "LARGEST_FILE", 10)
    files = {"evidence/broken.zip": (copy / "evidence" / "broken.zip").read_bytes()}
    found = module.failures_of({"cases.jsonl": (copy / "cases.jsonl").read_bytes()})
    assert found and all(replay.attacked is None for replay in module.replays(files, found))

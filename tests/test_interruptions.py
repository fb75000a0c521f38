"""Runs that are stopped, killed, starved or crowded lose nothing, and end with the numbers of one that was not."""

import importlib
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from honest_models import conv, patches
from honest_models import trained as train_patches
from test_worst_case import job_for

import robustcv as rc
from robustcv import runs, runtime, stopping
from robustcv.classifier import frozen
from robustcv.errors import UserError
from robustcv.evaluation.accuracy import predict
from robustcv.evaluation.plans import plan_for
from robustcv.evaluation.worst_case import worst_case

COMMAND = [sys.executable, "-m", "robustcv.cli"]


def commands(trained: Path) -> dict[str, list[str]]:
    model = ["--model", str(trained)]
    return {
        "train": ["train", "--data", "digits", "--epochs", "5", "-q"],
        "harden": ["harden", *model, "--epochs", "2", "-n", "60", "--eps", "8/255", "-q"],
        "audit": ["audit", *model, "--data", "digits", "-n", "60", "--batch-size", "8", "--eps", "8/255", "-q"],
        "explain": ["explain", *model, "--data", "digits", "-n", "24", "--methods", "ig,shapley,rise",
                    "--batch-size", "4", "-q"],
    }  # fmt: skip


def numbers_of(folder: Path) -> dict:
    return runs.comparable(json.loads((folder / "report.json").read_text()))


@pytest.fixture(scope="module")
def straight(trained: Path, tmp_path_factory):
    """Give each verb's run that nothing disturbed, and how long it took; made when it is asked for."""
    made = {}

    def of(verb: str) -> tuple[Path, float]:
        if verb not in made:
            folder = tmp_path_factory.mktemp("straight") / verb
            start = time.monotonic()
            subprocess.run([*COMMAND, *commands(trained)[verb], "-o", str(folder)], check=True, capture_output=True)
            made[verb] = folder, time.monotonic() - start
        return made[verb]

    return of


KILLS = {"train": 6, "harden": 6, "audit": 8, "explain": 5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "number"),
    [
        pytest.param(verb, k, marks=[] if (verb, k) == ("audit", 0) else pytest.mark.every_case)
        for verb, many in KILLS.items()
        for k in range(many)
    ],
)
def test_a_run_killed_at_a_random_moment_resumes_to_the_same_numbers(verb, number, straight, trained, tmp_path) -> None:
    whole, seconds = straight(verb)
    folder = tmp_path / "killed"
    command = [*COMMAND, *commands(trained)[verb], "-o", str(folder)]
    share = (number + random.Random(f"{verb}{number}").random()) / KILLS[verb]
    wait = (0.3 + 0.6 * share) * seconds  # before that it is loading its libraries
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        if process.poll() is None:
            break
        shutil.rmtree(folder)  # it was faster this time, and had ended
        wait *= 0.8
    process.kill()
    process.wait()
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert numbers_of(folder) == numbers_of(whole)
    assert verb != "audit" or all(check.status == "pass" for check in rc.verify(folder, quiet=True))
    for name in ("model.safetensors", "cases.jsonl", "evidence/broken.zip", "evidence/heatmaps.safetensors"):
        assert (whole / name).exists() == (folder / name).exists()
        assert not (whole / name).exists() or (whole / name).read_bytes() == (folder / name).read_bytes()


def interrupted_at(monkeypatch, module, name: str, count: int) -> None:
    """Let the user press Ctrl-C when a function is called for the so-manieth time."""
    function, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            stopping._asked.set()
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)


@pytest.fixture(autouse=True)
def nobody_asked():
    yield
    stopping._asked.clear()


OPTIONS = {"n": 30, "eps": "16/255", "cases": 4, "batch_size": 8, "quiet": True}


def test_one_ctrl_c_in_an_audit_gives_a_page_of_what_there_is(trained, tmp_path, monkeypatch) -> None:
    from robustcv.evaluation import worst_case as module

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_at(patch, module, "attack_rows", 4)
        run = rc.audit(str(trained), "digits", out=out, **OPTIONS)
    assert (run.verdict, run.exit_code) == ("INCOMPLETE", 130)
    robust, clean = run.record.metric("robust_accuracy"), run.record.metric("clean_accuracy")
    assert robust.count <= clean.count and run.explanations == () and run.flags == () and run.evidence is None
    page = run.page.read_text()
    assert "INCOMPLETE" in page and "Interrupted, and this is what there was by then" in page and "--resume" in page
    stopping._asked.clear()
    resumed = rc.audit(str(trained), "digits", out=out, resume=True, **OPTIONS)
    whole = rc.audit(str(trained), "digits", out=tmp_path / "whole", **OPTIONS)
    assert numbers_of(out) == numbers_of(tmp_path / "whole") and resumed.verdict == whole.verdict == "NO GATE"
    assert resumed.evidence.failures > 0


def test_one_ctrl_c_in_a_search_keeps_the_finished_trials(tmp_path, monkeypatch) -> None:
    out, options = tmp_path / "run", {"trials": 3, "epochs": 2, "quiet": True}
    with monkeypatch.context() as patch:
        # each trial is validated twice at most: this is the first or the second epoch of the second trial
        interrupted_at(patch, importlib.import_module("robustcv.training.fit"), "validate", 3)
        run = rc.tune("digits", out=out, **options)
    assert (run.verdict, run.exit_code) == ("INCOMPLETE", 130) and len(run.tuning.trials) == 1
    assert "INCOMPLETE" in run.page.read_text() and (out / "best.toml").exists()
    stopping._asked.clear()
    assert len(rc.tune("digits", out=out, resume=True, **options).tuning.trials) == 3


def test_one_ctrl_c_in_training_keeps_the_finished_epochs(tmp_path, monkeypatch) -> None:
    out, options = tmp_path / "run", {"epochs": 3, "quiet": True}
    with monkeypatch.context() as patch:
        interrupted_at(
            patch, importlib.import_module("robustcv.training.fit"), "validate", 2
        )  # in the second epoch; the third one stops at its first batch
        run = rc.train("digits", out=out, **options)
    assert run.verdict == "INCOMPLETE" and len(run.training.epochs) == 2 and (out / "model.safetensors").exists()
    assert run.training.stopped == "the user asked to stop" and "INCOMPLETE" in run.page.read_text()
    stopping._asked.clear()
    rc.train("digits", out=out, resume=True, **options)
    rc.train("digits", out=tmp_path / "whole", **options)
    assert numbers_of(out) == numbers_of(tmp_path / "whole")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("call", "images", "methods"), [(5, 4, 2), pytest.param(2, 4, 2, marks=pytest.mark.every_case), (1, 4, 1)]
)
def test_one_ctrl_c_among_explanations_keeps_the_finished_maps(call, images, methods, trained, tmp_path, monkeypatch):
    """In the third batch two are finished; in the first one, after one method of two, its maps are shown."""
    from robustcv.evaluation import attribution as module

    out, options = tmp_path / "run", {"n": 12, "method": ["ig", "saliency"], "batch_size": 4, "quiet": True}
    options["measures"] = ["deletion"]
    with monkeypatch.context() as patch:
        interrupted_at(patch, module, "_one", call)
        run = rc.explain(str(trained), "digits", out=out, **options)
    assert (run.verdict, run.exit_code) == ("INCOMPLETE", 130) and run.measures == ()
    finished = images * (2 if call == 5 else 1)
    assert [each.images for each in run.explanations] == [finished] * methods and len(run.cases) == finished
    assert all(len(case.heatmaps) == methods for case in run.cases)
    page = run.page.read_text()
    assert "INCOMPLETE" in page and "--resume" in page and "data:image/" in page
    stopping._asked.clear()
    explained = []
    with monkeypatch.context() as patch:
        real = module._one
        patch.setattr(module, "_one", lambda name, *args, **own: explained.append(name) or real(name, *args, **own))
        rc.explain(str(trained), "digits", out=out, resume=True, **options)
    rc.explain(str(trained), "digits", out=tmp_path / "whole", **options)
    assert numbers_of(out) == numbers_of(tmp_path / "whole")
    batches = {5: 2, 2: 1, 1: 0}[call]
    assert len(explained) == 2 * (3 - batches)


def test_what_was_not_attacked_passes_no_gate_and_is_not_compared(trained, tmp_path, monkeypatch) -> None:
    from robustcv.evaluation import worst_case as module

    out = tmp_path / "run"
    interrupted_at(monkeypatch, module, "attack_rows", 1)
    run = rc.audit(str(trained), "digits", out=out, fail_under=["robust_accuracy=0.6"], seeds=2, format=["junit"],
                   **OPTIONS)  # fmt: skip
    assert run.verdict == "INCOMPLETE" and [gate.outcome for gate in run.gates] == ["across"] and run.seeds == ()
    assert (
        'failures="0"' in (out / "junit.xml").read_text() and 'message="inconclusive' in (out / "junit.xml").read_text()
    )
    with pytest.raises(UserError, match="was interrupted"):
        rc.compare(out, out)


@pytest.mark.parametrize(
    "name",
    [
        "_one_step",
        *(pytest.param(each, marks=pytest.mark.every_case) for each in ("_wins", "_unfinished", "_unbounded")),
    ],
)
def test_a_ctrl_c_among_the_flags_raises_none(name, trained, tmp_path, monkeypatch) -> None:
    from robustcv.evaluation import reliability

    interrupted_at(monkeypatch, reliability, name, 1)
    run = rc.audit(str(trained), "digits", out=tmp_path / "run", **OPTIONS)
    assert run.verdict == "INCOMPLETE" and run.flags == () and run.page.exists()


@pytest.mark.parametrize("verb", ["audit", "explain", "train"])
def test_a_ctrl_c_before_the_first_figure_gives_a_page_too(verb, trained, tmp_path) -> None:
    stopping._asked.set()
    out = tmp_path / "run"
    calls = {
        "audit": lambda: rc.audit(str(trained), "digits", n=60, quiet=True, out=out),
        "explain": lambda: rc.explain(str(trained), "digits", n=10, quiet=True, out=out),
        "train": lambda: rc.train("digits", epochs=1, quiet=True, out=out),
    }
    run = calls[verb]()
    assert run.verdict == "INCOMPLETE" and "Interrupted before there was a figure" in run.page.read_text()


@pytest.mark.slow
def test_the_command_line_exits_with_130_and_a_second_ctrl_c_stops_at_once(trained, tmp_path) -> None:
    out = tmp_path / "run"
    arguments = ["audit", "--model", str(trained), "--data", "digits", "--batch-size", "4", "--effort", "autoattack"]
    process = subprocess.Popen([*COMMAND, *arguments, "-o", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    while len(list((out / "state").glob("plan-*"))) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, talk = process.communicate(timeout=60)
    assert process.returncode == 130 and printed.splitlines()[-1] == str(out / "report.html")
    assert "stopping after this batch" in talk and "--resume" in talk and "Traceback" not in talk
    assert runs.load(out).verdict == "INCOMPLETE" and runs.load(out).exit_code == 130


class Hungry(torch.nn.Module):
    """Has no memory for more than a few images at a time."""

    def __init__(self, inner: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.refused = inner, most, 0

    def forward(self, images):
        if len(images) > self.most:
            self.refused += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.inner(images)


def test_where_memory_does_not_suffice_batches_are_halved_and_verdicts_stay(capsys, tmp_path) -> None:
    runtime.forget_notes()
    model, images = train_patches(conv, seed=3), patches(50, 5)
    hungry = Hungry(model, 10).eval()
    with frozen(model), frozen(hungry):
        plain = worst_case(job_for(model, images), plan_for("standard", "linf"), eps=4 / 255)
        job = job_for(model, images)
        starved = worst_case(
            type(job)(**{**vars(job), "classifier": hungry}), plan_for("standard", "linf"), eps=4 / 255
        )
        predictions = predict(hungry, images, batch_size=64, device=torch.device("cpu"))
    assert hungry.refused > 3 and torch.equal(plain.broken_at, starved.broken_at)
    assert torch.equal(plain.broken_by, starved.broken_by) and torch.allclose(
        predictions.logits, job.predictions.logits, atol=1e-5
    )
    assert "memory did not suffice" in capsys.readouterr().err and runtime.notes()
    hungry.most, options = 10, {"eps": "4/255", "sweep": False, "effort": "quick", "explain": (), "cases": 0}
    run = rc.audit(hungry, images, **options, batch_size=90, out=tmp_path / "run", quiet=True)
    assert "memory did not suffice for a check; it takes 8 images" in run.page.read_text()
    more = {"also": ("corruptions", "spatial"), "certify": ("smoothing",), "set": ["smoothing.samples=100"]}
    both = [
        rc.audit(each, images, **options | {"eps": "4/255"}, **more, batch_size=90, quiet=True)
        for each in (hungry, model)
    ]
    assert both[0].corruptions == both[1].corruptions
    rows = [[row.model_dump(exclude={"forward"}) for row in run.certified] for run in both]
    assert rows[0] == rows[1]  # but for passes: what comes in two goes costs a forward more
    assert both[0].metric("spatial_accuracy") == both[1].metric("spatial_accuracy")
    with pytest.raises(torch.cuda.OutOfMemoryError), frozen(hungry):
        hungry.most = 0
        worst_case(type(job)(**{**vars(job), "classifier": hungry}), plan_for("quick", "linf"), eps=4 / 255)


def test_what_no_memory_sufficed_for_in_numpy_is_halved_too() -> None:
    def work(part: slice) -> int:
        if part.stop - part.start > 2:
            raise MemoryError
        return part.stop - part.start

    assert runtime.in_chunks(work, 7, 7) == [1] * 7 and runtime.on_fewer(lambda n: work(slice(0, n)), 9) == 2


def test_stability_of_maps_goes_on_in_halves(tmp_path) -> None:
    model, images = train_patches(conv, seed=3), patches(40, 5)
    options = {"eps": "4/255", "sweep": False, "effort": "quick", "cases": 4, "also": ("maps",), "quiet": True}
    options |= {"explain": ("saliency",), "batch_size": 8}
    hungry, plain = (rc.audit(each, images, **options) for each in (Hungry(model, 10).eval(), model))
    assert len(hungry.stability) == len(plain.stability) > 0
    for own, other in zip(hungry.stability, plain.stability, strict=True):
        assert (own.change, own.quantity, own.n) == (other.change, other.quantity, other.n)
        assert own.mean == pytest.approx(other.mean, abs=1e-3)


def test_a_resumed_run_tells_what_was_noted_before(tmp_path, monkeypatch) -> None:
    from robustcv.verbs import audit as module

    model, images = train_patches(conv, seed=3), patches(40, 5)
    options = {"eps": ["16/255", "0.0035"], "sweep": False, "attacks": ("fgsm",), "explain": (), "cases": 0}
    options |= {"quiet": True, "precision": "bf16"}
    rc.audit(model, images, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patched:

        def killed(*args, **kwargs):
            raise KeyboardInterrupt

        patched.setattr(module, "draw_cases", killed)
        with pytest.raises(KeyboardInterrupt):
            rc.audit(model, images, out=tmp_path / "killed", **options)
    rc.audit(model, images, out=tmp_path / "killed", resume=True, **options)
    assert "bfloat16" in " ".join(runs.load(tmp_path / "whole").environment.notes)
    assert numbers_of(tmp_path / "killed") == numbers_of(tmp_path / "whole")


def test_what_a_killed_write_left_is_removed_when_the_run_goes_on(trained, tmp_path) -> None:
    out = tmp_path / "run"
    (out / "evidence").mkdir(parents=True)
    (out / "state").mkdir()
    (out / "state/fingerprint").write_text("x")
    litter = [out / "evidence/.broken.zip.ab_c123x", out / ".report.html.abcdefgh"]
    kept = [out / "evidence/.hidden", out / "evidence/000-clean.png"]
    for path in (*litter, *kept):
        path.write_bytes(b"")
    runs.open_folder(out, resume=True, fingerprint="x")
    runs.release(out)
    assert not any(path.exists() for path in litter) and all(path.exists() for path in kept)


def test_a_lock_on_a_file_that_was_removed_holds_nothing(tmp_path, monkeypatch) -> None:
    """Between opening and locking, the run that owned the folder ends and takes it away."""
    out, flock = tmp_path / "run", runs.fcntl.flock

    def slow(*args):
        monkeypatch.setattr(runs.fcntl, "flock", flock)
        (out / "state/owner").unlink()
        flock(*args)

    monkeypatch.setattr(runs.fcntl, "flock", slow)
    with pytest.raises(UserError, match="is in use by"):
        runs.open_folder(out, resume=False, fingerprint="x")
    runs.open_folder(out, resume=False, fingerprint="x")
    runs.release(out)


@pytest.fixture
def held(tmp_path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Give a run folder that another process holds, and that process."""
    out = tmp_path / "run"
    code = (
        f"import time; from robustcv import runs; from pathlib import Path; place = Path({str(out)!r}); "
        "runs.open_folder(place, resume=False, fingerprint='x'); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        yield out, other
        other.kill()


def test_a_refused_run_leaves_the_folder_of_the_other_alone(held) -> None:
    out, _ = held
    for options in ({"resume": True}, {"seed": -1}):
        with pytest.raises(UserError):
            rc.train("digits", epochs=1, quiet=True, out=out, **options)
    assert (out / "state/fingerprint").read_text() == "x" and (out / "state/owner").exists()


def test_two_runs_cannot_share_a_folder(held) -> None:
    out, other = held
    with pytest.raises(UserError, match=f"is in use by process {other.pid} on "):
        runs.open_folder(out, resume=True, fingerprint="x")
    other.kill()
    other.wait()
    runs.open_folder(out, resume=True, fingerprint="x")  # the lock of a process that was killed is gone
    runs.release(out)


def test_a_full_disk_is_told_and_loses_nothing(trained, tmp_path) -> None:
    """No file may grow beyond 40 kB: the kernel refuses, as it does on a full disk."""
    out = tmp_path / "run"
    arguments = [
        "audit",
        "--model",
        str(trained),
        "--data",
        "digits",
        "-n",
        "60",
        "--eps",
        "16/255",
        "-q",
        "-o",
        str(out),
    ]

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, preexec_fn=small_disk)
    assert done.returncode == 2 and "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert "make room, then the same command with --resume goes on" in done.stderr
    assert not (out / "report.json").exists() and not list(out.rglob(".*"))
    again = subprocess.run([*COMMAND, *arguments, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


def test_a_folder_that_cannot_be_written_is_told(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("/proc/robustcv", str(tmp_path / "file" / "run"), str(tmp_path / ("x" * 300))):
        with pytest.raises(UserError, match="could not be written"):
            rc.train("digits", epochs=1, quiet=True, out=place)


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch) -> None:
    import datetime as real

    class Backwards(real.datetime):
        turns = 0

        @classmethod
        def now(cls, zone=None):
            cls.turns += 1
            return real.datetime(2026, 1, 1, tzinfo=zone) - real.timedelta(days=cls.turns)

    from robustcv.verbs import prepare

    monkeypatch.setattr(runs, "datetime", Backwards)
    monkeypatch.setattr(prepare, "datetime", Backwards)
    monkeypatch.setattr(time, "time", lambda: -1e9)
    first = runs.default_folder("audit", "x", tmp_path)
    first.mkdir()
    Backwards.turns -= 1
    assert runs.default_folder("audit", "x", tmp_path) != first
    run = rc.audit(train_patches(conv, seed=3), patches(30, 5), eps="2/255", effort="quick", sweep=False, explain=(),
                   cases=2, quiet=True, out=tmp_path / "run")  # fmt: skip
    assert run.environment.seconds > 0 and all(each.seconds >= 0 for each in run.attacks)

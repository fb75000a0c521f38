"""Several processes give what one gives: the same verdicts, maps and counts, the same gradients, and clear endings."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcv import processes, runs
from robustcv.cli import _without_devices

AUDIT = ["audit", "--data", "digits", "-n", "61", "--eps", "16/255", "--no-sweep", "--cases", "4", "--batch-size", "2"]


def robustcv(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robustcv", *arguments], capture_output=True, text=True, timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def test_one_process_does_everything_itself() -> None:
    assert (processes.size(), processes.rank(), processes.is_first()) == (1, 0, True)
    assert processes.shared([3, 1, 2], lambda item: item * 10) == [30, 10, 20]
    assert processes.summed([1, 2]) == [1, 2] and processes.agreed("x") == "x" and processes.by_first(lambda: 4) == 4
    assert processes.own_share(torch.arange(5).split(2)) is None


def test_the_command_line_of_the_workers() -> None:
    folder = Path("reports/x")
    assert _without_devices(["audit", "--devices", "2", "-q"], folder) == ["audit", "-q", "-o", "reports/x"]
    assert _without_devices(["audit", "--devices=2", "-o", "y"], folder) == ["audit", "-o", "y"]
    assert _without_devices(["audit", "--out=y", "--devices", "3"], folder) == ["audit", "--out=y"]


@pytest.fixture(scope="module")
def alone(trained: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "audit"
    done = robustcv(*AUDIT, "--model", str(trained), "-o", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def same_audit(a: Path, b: Path) -> None:
    left, right = (runs.unpack_arrays((folder / "evidence" / "verdicts.safetensors").read_bytes()) for folder in (a, b))
    assert left.keys() == right.keys()
    for name in left:
        assert np.array_equal(left[name], right[name]), name
    maps = [runs.unpack_arrays((folder / "evidence" / "heatmaps.safetensors").read_bytes()) for folder in (a, b)]
    assert all(np.array_equal(maps[0][name], maps[1][name]) for name in maps[0])
    records = [runs.load(folder) for folder in (a, b)]
    assert records[0].metrics == records[1].metrics and records[0].passes == records[1].passes
    counts = [[(each.name, each.attempted, each.broken, each.forward) for each in record.attacks] for record in records]
    assert counts[0] == counts[1] and [f.figure for f in records[0].flags] == [f.figure for f in records[1].flags]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.every_case)])
def test_an_audit_in_several_processes_is_that_of_one(trained: Path, alone: Path, tmp_path: Path, count: int) -> None:
    done = robustcv(*AUDIT, "--model", str(trained), "-o", str(tmp_path / "audit"), "--devices", str(count))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "audit" / "report.html")
    assert "torch" not in done.stderr and "Traceback" not in done.stderr
    same_audit(alone, tmp_path / "audit")
    assert not list((tmp_path / "audit" / "state").glob("*.safetensors"))


@pytest.mark.every_case
def test_an_audit_by_two_agents_that_meet_over_the_network_is_that_of_one(
    trained: Path, alone: Path, tmp_path: Path
) -> None:
    """The README's command for two machines, both of them this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "-m", "robustcv", *AUDIT,
               "--model", str(trained), "-o", str(tmp_path / "audit"), "--resume"]  # fmt: skip
    agents = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(2)]  # fmt: skip
    told = [agent.communicate(timeout=400) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], told
    assert "".join(out for out, _ in told).strip() == str(tmp_path / "audit" / "report.html")
    same_audit(alone, tmp_path / "audit")


@pytest.mark.slow
def test_a_lost_process_leaves_what_another_number_goes_on_with(trained: Path, alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    command = [sys.executable, "-m", "robustcv", *AUDIT, "--model", str(trained), "-o", str(folder)]
    running = subprocess.Popen([*command, "--devices", "2"], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    saved: list[Path] = []
    begun = time.monotonic()
    while len(saved) < 2 and running.poll() is None and time.monotonic() - begun < 200:
        saved = list((folder / "state").glob("plan-*"))
        time.sleep(0.02)
    workers = subprocess.run(
        ["pgrep", "-f", f"robustcv audit.*{folder}"], capture_output=True, text=True
    ).stdout.split()
    lost = [int(pid) for pid in workers if int(pid) != running.pid and "LOCAL_RANK=1" in environment_of(int(pid))]
    assert lost, "no second worker found"
    os.kill(lost[0], signal.SIGKILL)
    _, said = running.communicate(timeout=200)
    assert running.returncode != 0 and "a process was lost" in said and "--resume" in said
    assert list((folder / "state").glob("plan-*"))
    done = robustcv(*AUDIT, "--model", str(trained), "-o", str(folder), "--resume", "--devices", "3")
    assert done.returncode == 0, done.stderr
    same_audit(alone, folder)


def environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.slow
def test_exit_codes_and_errors_come_through(trained: Path, tmp_path: Path) -> None:
    common = [*AUDIT, "--model", str(trained), "--attacks", "fgsm", "--explain", "", "--devices", "2"]
    failed = robustcv(*common, "-o", str(tmp_path / "gate"), "--fail-under", "robust_accuracy=0.99")
    assert failed.returncode == 3, failed.stderr
    wrong = robustcv(*common, "-o", str(tmp_path / "gate"))
    assert wrong.returncode == 2 and wrong.stderr.count("RCV-E020") == 1 and "Traceback" not in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "objective"),
    [
        (2, "fgsm-pgi"),  # what one remembers the others must know
        pytest.param(2, "pgd-at", marks=pytest.mark.every_case),
        pytest.param(3, "pgd-at", marks=pytest.mark.every_case),
        pytest.param(3, "fgsm-pgi", marks=pytest.mark.every_case),
    ],
)
def test_training_in_several_processes_takes_the_steps_of_one(tmp_path: Path, count: int, objective: str) -> None:
    weights, epochs = [], []
    for number in (1, count):
        folder = tmp_path / str(number)
        done = robustcv("train", "--data", "digits", "--epochs", "2", "--augment", "none", "--objective", objective,
                        "--steps", "2", "--batch-size", "128", "--optimizer", "sgd", "-o", str(folder), "--devices",
                        str(number))  # fmt: skip
        assert done.returncode == 0, done.stderr
        weights.append(runs.unpack_arrays((folder / "model.safetensors").read_bytes()))
        epochs.append(json.loads((folder / "report.json").read_text())["training"]["epochs"])
    for name in weights[0]:
        assert np.allclose(weights[0][name], weights[1][name], atol=2e-3), name
    for one, many in zip(*epochs, strict=True):
        assert one["n"] == many["n"] == 1078 and one["loss"] == pytest.approx(many["loss"], abs=1e-3)
        assert abs(one["validation_robust"] - many["validation_robust"]) <= 1


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_leaves_a_page(trained, tmp_path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "robustcv", *AUDIT, "--effort", "autoattack", "--devices", "2"]
    process = subprocess.Popen([*command, "--model", str(trained), "-o", str(out)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    while not list((out / "state").glob("plan-*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    talk = process.communicate(timeout=90)[1]
    assert process.returncode == 130 and talk.count("--resume") == 1 and "Traceback" not in talk, talk
    assert not subprocess.run(["pgrep", "-f", f"robustcv audit.*{out}"], capture_output=True).stdout
    assert runs.load(out).verdict == "INCOMPLETE" and "Interrupted before" in (out / "report.html").read_text()

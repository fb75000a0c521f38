"""Starting a command in several processes, by torchrun, and learning how it went."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from robustcv.errors import INTERRUPTED

EXIT_FILE = "ROBUSTCV_EXIT_FILE"  # where the first process leaves its exit code for the one that started them
PATIENCE = 40  # seconds that processes have to leave what they hold


def one_of_several() -> bool:
    """Tell whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Tell whether this process is the first of several, or the only one, before it has joined the others."""
    return os.environ.get("RANK", "0") == "0"


def start(arguments: Sequence[str], devices: int, folder: Path) -> int:
    """Run the same command in several processes of this machine, by torchrun; gives the exit code of the first.

    Parameters
    ----------
    arguments
        Of the command line, without ``--devices``.
    folder
        The run folder; remembered as what can be resumed where a process is lost.
    """
    with tempfile.TemporaryDirectory() as place:
        left = Path(place) / "exit"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}",
                   "-m", "robustcv", *arguments]  # fmt: skip
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // devices))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ends them all; what is done is saved
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
        environment = {**os.environ, EXIT_FILE: str(left), "OMP_NUM_THREADS": threads}
        # in a session of its own, so that a Ctrl-C reaches this process alone: torchrun answers it with tracebacks
        running = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            code = running.wait()
        except BaseException:
            _end(running, Path(place))
            raise
        if left.exists():
            return int(left.read_text())
    print(
        f"a process was lost; what is done is saved: the same command with -o {folder} --resume goes on, with any "
        "number of processes",
        file=sys.stderr,
    )
    return code or 1


def _end(running: subprocess.Popen[bytes], place: Path) -> None:
    """Interrupt the processes that torchrun started, and torchrun before them."""
    running.kill()
    running.wait()
    last, told = time.monotonic() + PATIENCE, set[int]()
    try:
        while time.monotonic() < last:
            workers = _reported(place)
            for worker in workers - told:  # one may report in late
                _signal(worker, signal.SIGINT)
            told = workers
            if not any(_lives(worker) for worker in workers):
                return
            time.sleep(0.05)
    finally:
        for worker in _reported(place):
            _signal(worker, signal.SIGKILL)


def _reported(place: Path) -> set[int]:
    return {int(text) for file in place.glob("process-*") if (text := file.read_text())}


def _signal(process: int, number: int) -> bool:
    """Send a signal; tells whether there was a process to take it."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


def _lives(process: int) -> bool:
    """Tell whether a process is at work: one that has ended may stay listed where nobody asks how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # it is gone, or this system has no such files
        return _signal(process, 0)


def report_in() -> None:
    """Tell the process that started this one, by torchrun, which it is; where that has gone, there is nothing to do."""
    if file := os.environ.get(EXIT_FILE):
        try:
            Path(file).with_name(f"process-{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))
        except FileNotFoundError:
            raise SystemExit(INTERRUPTED) from None


def leave(code: int) -> None:
    """Note the exit code for the process that started this one: the first one's, or that of any that failed."""
    if (is_first() or code) and (file := os.environ.get(EXIT_FILE)):
        Path(file).write_text(str(code))

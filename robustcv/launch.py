"""Starting a command in several processes, by torchrun, and learning how it went."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

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
    last = time.monotonic() + PATIENCE
    workers = [int(file.read_text()) for file in place.glob("process-*")]
    for worker in workers:
        _signal(worker, signal.SIGINT)
    while any(_signal(worker, 0) for worker in workers) and time.monotonic() < last:
        with contextlib.suppress(ChildProcessError):  # in a container they become this process's
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.05)
    for worker in workers:
        _signal(worker, signal.SIGKILL)


def _signal(process: int, number: int) -> bool:
    """Send a signal; tells whether there was a process to take it."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


def report_in() -> None:
    """Tell the process that started this one, by torchrun, which it is."""
    if file := os.environ.get(EXIT_FILE):
        Path(file).with_name(f"process-{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))


def leave(code: int) -> None:
    """Note the exit code for the process that started this one: the first one's, or that of any that failed."""
    if (is_first() or code) and (file := os.environ.get(EXIT_FILE)):
        Path(file).write_text(str(code))

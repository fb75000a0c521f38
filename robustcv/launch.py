"""Starting a command in several processes, by torchrun, and learning how it went."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

EXIT_FILE = "ROBUSTCV_EXIT_FILE"  # where the first process leaves its exit code for the one that started them


def one_of_several() -> bool:
    """Tell whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


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
        environment = {**os.environ, EXIT_FILE: str(left), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "")}
        if not environment["OMP_NUM_THREADS"]:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // devices))
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if left.exists():
            sys.stderr.write(_ours(done.stderr))
            return int(left.read_text())
    sys.stderr.write(done.stderr[-4000:])
    print(
        f"a process was lost; what is done is saved: the same command with -o {folder} --resume goes on, with any "
        "number of processes",
        file=sys.stderr,
    )
    return done.returncode or 1


def _ours(text: str) -> str:
    """Drop torchrun's own lines, which tell the user nothing."""
    return "".join(line for line in text.splitlines(keepends=True) if "torch/distributed" not in line)


def leave(code: int) -> None:
    """Note the exit code for the process that started this one."""
    if os.environ.get("RANK", "0") == "0" and (file := os.environ.get(EXIT_FILE)):
        Path(file).write_text(str(code))

"""All benchmarks: `make bench`; those on real images run when ROBUSTCV_DATA names a folder with cifar10.tar.xz."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run each benchmark in its own process; what is given to this script goes on to attacks.py."""
    archive = Path(os.environ.get("ROBUSTCV_DATA", "")) / "cifar10.tar.xz"
    parts = ["oracle", "corruptions"]
    if archive.exists():
        subprocess.run([sys.executable, str(HERE / "epoch.py"), "--data", str(archive)], check=True)
        parts += ["pgd", "device", "autoattack", "probes"]
    else:
        print("epoch, pgd, device, autoattack, probes: skipped, set ROBUSTCV_DATA to a folder with cifar10.tar.xz")
    subprocess.run([sys.executable, str(HERE / "attacks.py"), "--only", ",".join(parts), *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()

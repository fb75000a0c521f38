"""Train a small CNN, audit it, harden it, audit it again, compare: the whole loop from Python.

Run it anywhere: `python examples/train_audit_harden.py`. The last line printed is the page that compares.
"""

from pathlib import Path

import robustcv as rc

FOLDER, EPS, N = Path("reports/example"), "16/255", 100


def main() -> None:
    """Run the loop; every step writes a run folder with its own page."""
    rc.train("digits", model="small_cnn", epochs=4, out=FOLDER / "train")
    before = rc.audit(str(FOLDER / "train"), "digits", n=N, eps=EPS, out=FOLDER / "audit")
    rc.harden(str(FOLDER / "train"), eps=EPS, epochs=3, audits=False, out=FOLDER / "harden")  # audited below
    after = rc.audit(str(FOLDER / "harden"), "digits", n=N, eps=EPS, out=FOLDER / "audit-hardened")
    for name, run in (("standard", before), ("hardened", after)):
        robust = run.metric("robust_accuracy", eps=16 / 255, attack=None)
        print(f"{name}: {robust.count} of {robust.n} images stand at L-inf {EPS}")
    compared = rc.compare(before.folder, after.folder, names=("standard", "hardened"), out=FOLDER / "compare")
    print(compared.page)


if __name__ == "__main__":
    main()

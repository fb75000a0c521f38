"""demo: the whole story in a minute, on real images that come with the package."""

from pathlib import Path

from robustcv import api, runs, runtime, stopping

# what each stage of the five runs below takes, in seconds on two cores: for the time left, nothing else
_TRAIN, _HARDEN, _FIRST_AUDIT, _AUDIT = (10.0, 0.2), (22.0, 0.2), (0.2, 0.3, 7.0, 0.5, 4.0), (0.2, 0.3, 7.0, 0.5, 2.0)
EXPECTED = (*_TRAIN, *_FIRST_AUDIT, *_HARDEN, *_AUDIT, 3.0)


def run(folder: Path, *, data: str, eps: str, n: int, epochs: int, seed: int, quiet: bool) -> Path:
    """Train, audit, harden, audit again with the same images, explain both, compare; gives the comparison's page.

    Parameters
    ----------
    folder
        Gets one folder per run: train, audit, harden, audit-hardened, compare.
    """
    runs.open_folder(folder, resume=False, fingerprint="")
    explain = ("integrated_gradients", "gradient_shap", "shapley")
    with runtime.sharing(runtime.Progress(expected=EXPECTED, quiet=quiet)) as progress:
        api.train(data, epochs=epochs, seed=seed, out=folder / "train")
        stopping.at_boundary()
        api.audit(str(folder / "train"), data, n=n, eps=eps, seed=seed, explain=explain, cases=20, out=folder / "audit")
        stopping.at_boundary()
        api.harden(str(folder / "train"), eps=eps, epochs=epochs, seed=seed, audits=False, out=folder / "harden")
        stopping.at_boundary()
        hardened = folder / "audit-hardened"
        api.audit(str(folder / "harden"), data, n=n, eps=eps, seed=seed, explain=explain, cases=20, out=hardened)
        stopping.at_boundary()
        with progress.stage("compare", 1) as advance:
            made = api.compare(folder / "audit", hardened, names=("standard", "hardened"), out=folder / "compare")
            advance(1)
    runs.release(folder)
    assert made.page is not None
    return made.page

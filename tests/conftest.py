"""Fixtures: classifiers with known answers, one trained model, and what a test needs of the machine."""

import gc
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

torch.set_num_threads(1)  # the models here are so small that threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nor do those of commands that a test starts
os.environ.setdefault("ROBUSTCV_CACHE", "")  # set to a temporary folder below; never the user's


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep decoded images out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ROBUSTCV_CACHE"] = str(folder)
    yield folder


OFFLINE = Path(__file__).parent / "offline"
_spec = importlib.util.spec_from_file_location("offline", OFFLINE / "sitecustomize.py")
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))  # from here on this process reaches no other machine
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")]))  # nor its own


class Linear(nn.Module):
    """A linear classifier of images: every answer about it is known in closed form."""

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.bias = nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weights.T + self.bias


def make_linear(classes: int, shape: tuple[int, int, int] = (3, 6, 5), *, seed: int = 0, dtype=torch.float64) -> Linear:
    """Make a random linear classifier whose decision runs through mid-grey."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(classes, shape[0] * shape[1] * shape[2], generator=generator, dtype=torch.float64)
    return Linear(weights.to(dtype), (-0.5 * weights.sum(1)).to(dtype))


def make_images(n: int, shape: tuple[int, int, int] = (3, 6, 5), *, seed: int = 0, dtype=torch.float64) -> Tensor:
    """Draw images well inside the box, so that small balls do not touch it."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return (0.35 + 0.3 * torch.rand(n, *shape, generator=generator, dtype=torch.float64)).to(dtype)


class Curved(nn.Module):
    """A small smooth network, for what a linear one cannot show."""

    def __init__(self, classes: int = 4, channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(channels, 6, 3, padding=1), nn.Softplus(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
            )
            self.head = nn.Linear(54, classes)
            for parameter in self.parameters():
                parameter.data *= 3

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the small CNN on the digits once; gives the run folder."""
    import robustcv as rc

    folder = tmp_path_factory.mktemp("runs") / "train"
    rc.train("digits", epochs=4, out=folder, quiet=True)
    return folder


@pytest.fixture(scope="session")
def audited(trained: Path) -> Path:
    """Audit the trained model on 60 digits; gives the run folder."""
    import robustcv as rc

    folder = trained.parent / "audit"
    rc.audit(str(trained), "digits", n=60, eps=["16/255", "8/255"], cases=6, out=folder, quiet=True)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Give the folder with copies of published data sets; skip without one, or fail where one is required."""
    given = os.environ.get("ROBUSTCV_DATA")
    if given is None:
        pytest.skip("needs copies of published data sets: set ROBUSTCV_DATA to their folder")
    folder = Path(given)
    assert (folder / "cifar10.tar.xz").exists(), f"ROBUSTCV_DATA={given} holds no cifar10.tar.xz"
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Give the path of Chromium; skip without one, or fail where one is required."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        message = "needs Chromium (Debian: apt-get install chromium)"
        if os.environ.get("ROBUSTCV_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return found


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every later garbage collection: hypothesis asks for one with each example."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let what was frozen be freed at the end, or libraries complain of leaks."""
    gc.unfreeze()

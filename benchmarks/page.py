"""How large a page is and how fast it opens: `python benchmarks/page.py`, with Chromium and the test extra installed.

Targets: 100 cases at 224 pixels in at most 9 MB, loaded within 1 s, first paint within 500 ms; 24 such cases in 2.5 MB,
100 at 32 pixels in 1 MB; style, script and template in 150 KB. The pictures are crops of the photos that scikit-image
brings along, attacked by PGD on a network with random weights; the maps are the gradients of that network, which are as
rough as maps get. What counts here is bytes, not what they mean.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from skimage import data
from torch.nn import functional

import robustcv as rc
from robustcv import records, report, runs
from robustcv.attacks.pgd import pgd
from robustcv.explainers.saliency import saliency
from robustcv.verbs.cases import to_png

HOME = Path(report.__file__).parent
SHELL = ("report.css", "report.js", "page.html.j2")
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


def photos(n: int, size: int) -> torch.Tensor:
    """Give n photos `n 3 size size` in [0, 1]: CIFAR-10's where ROBUSTCV_DATA has them, else cut out of large ones."""
    archive = Path(os.environ.get("ROBUSTCV_DATA", "")) / "cifar10.tar.xz"
    if size == 32 and archive.exists():
        return next(rc.load_images(str(archive), n=n).batches(n))[0]
    cuts = []
    for photo in (data.astronaut(), data.chelsea(), data.coffee(), data.rocket()):
        pixels = torch.from_numpy(photo[..., :3].copy()).permute(2, 0, 1).float() / 255
        rows, columns = (range(0, side - 224, 48) for side in pixels.shape[1:])
        cuts += [pixels[:, y : y + 224, x : x + 224] for y in rows for x in columns]
    chosen = torch.randperm(len(cuts), generator=torch.Generator().manual_seed(0))[:n]
    return functional.interpolate(torch.stack([cuts[k] for k in chosen]), (size, size), mode="area")


def attacked_and_explained(clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attack with PGD on the 8-bit grid at 8/255; gives the images, and the gradients of clean and attacked ones."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    found, maps = [], []
    for part in clean.split(10):
        with torch.no_grad():
            labels = network(part).argmax(1)
        made = (pgd(network, part, labels, eps=8 / 255, steps=10) * 255).round() / 255
        pairs = torch.stack([part, made], 1).flatten(0, 1)
        maps.append(saliency(network, pairs, labels.repeat_interleave(2)).heatmaps)
        found.append(made)
    return torch.cat(found), torch.cat(maps)


def page_of(template: records.Record, n: int, size: int) -> str:
    """Render the page of an audit with n cases of that size, each clean, attacked, the change, and two heat maps."""
    clean = photos(n, size)
    attacked, maps = attacked_and_explained(clean)
    files: dict[str, bytes] = {}
    exact, heat, cases = {}, {}, []
    for k in range(n):
        names = {}
        for j, (kind, pixels) in enumerate((("clean", clean[k]), ("adversarial", attacked[k]))):
            names[kind] = f"evidence/{k:03d}-{kind}.png"
            files[names[kind]] = to_png(pixels, optimize=False)
            exact[f"{k:03d}-{kind}"] = pixels.numpy()
            heat[f"{k:03d}-{kind}-saliency"] = maps[2 * k + j].numpy()
        refs = tuple(
            records.HeatmapRef(method="saliency", image=kind, target=k % 6, error=0.01, forwards=2, details={},
                               file=f"{k:03d}-{kind}-saliency")
            for kind in ("clean", "adversarial")
        )  # fmt: skip
        cases.append(
            records.Case(index=k, image=f"{k:064x}", selection="sample", outcome="broken", label=k % 6,
                         prediction=k % 6, confidence=0.9, attack="pgd", norm="linf", eps=8 / 255,
                         adversarial_prediction=(k + 1) % 6,
                         adversarial_confidence=0.8, linf=8 / 255, l2=1.0, exact_8bit=True, files=names, heatmaps=refs)
        )  # fmt: skip
    files["evidence/cases.safetensors"] = runs.pack_arrays(exact)
    files["evidence/heatmaps.safetensors"] = runs.pack_arrays(heat)
    assert template.data is not None
    described = template.data.model_copy(update={"shape": (3, size, size)})
    return report.render(template.model_copy(update={"cases": tuple(cases), "data": described}), files)


def opened(path: Path, rounds: int) -> tuple[float, float]:
    """Open a page offline in a fresh context each round: median milliseconds to the load event, and to first paint."""
    from playwright.sync_api import sync_playwright

    ask = """() => [performance.getEntriesByType('navigation')[0].loadEventEnd,
                    performance.getEntriesByName('first-contentful-paint')[0].startTime]"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        times = []
        for _ in range(rounds + 1):
            context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
            page = context.new_page()
            page.goto(path.as_uri())
            while not page.evaluate("performance.getEntriesByName('first-contentful-paint').length"):
                page.wait_for_timeout(50)
            times.append(page.evaluate(ask))
            context.close()
        browser.close()
    load, paint = np.array(times[1:]).T  # the first round warms the browser
    return statistics.median(load), statistics.median(paint)


def main() -> None:
    """Print size, load and first paint for each number and size of cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    shell = sum((HOME / name).stat().st_size for name in SHELL)
    with tempfile.TemporaryDirectory() as folder:
        rc.train("shapes:32", epochs=1, out=Path(folder) / "model", quiet=True)
        run = rc.audit(f"{folder}/model", "shapes:32", n=100, effort="quick", cases=0, explain=(), quiet=True)
        bare = len(report.render(run.record, {}).encode())
        print(f"style, script and template: {shell / 1e3:.0f} KB (150); page without cases: {bare / 1e3:.0f} KB")
        for n, size, most in ((100, 32, 1.0), (24, 224, 2.5), (100, 224, 9.0)):
            path = Path(folder) / f"{n}-{size}.html"
            path.write_text(page_of(run.record, n, size))
            load, paint = opened(path, rounds)
            told = f"{path.stat().st_size / 1e6:.2f} MB ({most:g})"
            print(f"{n} cases at {size} px: {told}; load {load:.0f} ms (1000), first paint {paint:.0f} ms (500)")


if __name__ == "__main__":
    main()

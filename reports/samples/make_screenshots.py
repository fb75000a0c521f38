"""Pictures of a page: each section, wide and narrow, light and dark, and a case enlarged: `make screenshots`."""

import argparse
import shutil
import tempfile
from pathlib import Path

WIDTHS, SCHEMES, MODES = (1280, 390), ("light", "dark"), ("panels", "beside", "slider", "blink", "change")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


def shoot(page_file: Path, folder: Path) -> int:
    """Write the pictures of one page; gives how many."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for width in WIDTHS:
            for scheme in SCHEMES:
                size = {"width": width, "height": 800}
                context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
                page = context.new_page()
                page.goto(page_file.resolve().as_uri())
                name = f"{width}-{scheme}"
                page.screenshot(path=folder / f"{name}-0-first-screen.png")
                page.screenshot(path=folder / f"{name}-whole.png", full_page=True)
                if (width, scheme) == (1280, "light"):
                    for number, section in enumerate(page.locator("section.card").all(), 1):
                        section.screenshot(path=folder / f"{name}-{number:02d}-{section.get_attribute('id')}.png")
                attacked = page.locator(".case:has([data-kind=attacked]) .zoom")
                if attacked.count():
                    attacked.first.click()
                    for mode in MODES:
                        if page.locator(f"#modes [value={mode}]").is_enabled():
                            page.locator(f"#modes [value={mode}]").click()
                            page.screenshot(path=folder / f"{name}-case-{mode}.png")
                context.close()
        browser.close()
    return len(list(folder.glob("*.png")))


def everything(root: Path) -> list[Path]:
    """Make a page of every verb, on digits, so that no section goes unseen; gives the pages."""
    import robustcv as rc

    model, common = str(root / "train"), {"n": 60, "eps": "8/255"}
    rc.train("digits", epochs=4, out=root / "train")
    rc.audit(model, "digits", out=root / "audit", **common, agreement=20, certify=["bounds", "smoothing"], cases=8,
             also=["corruptions", "spatial", "patch", "maps"], measures=["deletion", "insertion"],
             set=["smoothing.samples=200", "patch.steps=20"])  # fmt: skip
    rc.explain(model, "digits", out=root / "explain", n=12, eps="8/255", method=["ig", "saliency", "grad_cam"],
               measures=["deletion"])  # fmt: skip
    rc.harden(model, "digits", out=root / "harden", epochs=1, eps="8/255", n=60)
    rc.tune("digits", trials=4, epochs=2, out=root / "tune")
    audits = [root / "audit", root / "harden/before", root / "harden/after"]
    rc.compare(*audits[1:], out=root / "compare")
    rc.compare(*audits, out=root / "overview")
    return [path / "report.html" for path in sorted(root.iterdir()) if (path / "report.html").exists()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="report.html files")
    parser.add_argument("--everything", action="store_true", help="pages of every verb beside them, made here")
    parser.add_argument("-o", "--out", type=Path, default=Path("reports/screenshots"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        for each in [*arguments.pages, *(everything(Path(made)) if arguments.everything else [])]:
            place = arguments.out / (each.resolve().parent.name if each.name == "report.html" else each.stem)
            print(f"{place}: {shoot(each, place)} pictures")

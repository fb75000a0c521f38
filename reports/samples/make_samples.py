"""Make the published sample pages again: `make samples`. Pictures of the page need Chromium and the test extra."""

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import robustcv as rc
from robustcv import demo

HERE = Path(__file__).parent


def main() -> None:
    """Run the demo and an audit of rendered shapes with a planted shortcut; keep their pages."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # pages name the paths they were given
        root = Path()
        page = demo.run(root / "demo", data="digits", eps="16/255", n=300, epochs=10, seed=0, quiet=False)
        shutil.copy(page, HERE / "digits-compare.html")
        rc.train("shapes:32,shortcut", epochs=8, out=root / "shapes")
        audit = rc.audit(
            str(root / "shapes"), "shapes:32,shortcut", n=300, eps="4/255", out=root / "audit",
            explain=["integrated_gradients", "partition_shap"],
        )  # fmt: skip
        shutil.copy(audit.page, HERE / "shapes-audit.html")
    for name in ("digits-compare", "shapes-audit"):
        picture(HERE / f"{name}.html")


def picture(page: Path) -> None:
    """Photograph the top of a page for the README."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("the pages are made; the picture needs Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shot = browser.new_page(viewport={"width": 1280, "height": 960})
        shot.goto(page.resolve().as_uri())
        shot.screenshot(path=page.with_suffix(".png"))
        browser.close()


if __name__ == "__main__":
    main()

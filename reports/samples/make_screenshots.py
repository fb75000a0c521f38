"""Pictures of a page: each section, wide and narrow, light and dark, and a case enlarged: `make screenshots`."""

import argparse
import shutil
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, help="report.html files")
    parser.add_argument("-o", "--out", type=Path, default=Path("reports/screenshots"))
    arguments = parser.parse_args()
    for each in arguments.pages:
        place = arguments.out / (each.resolve().parent.name if each.name == "report.html" else each.stem)
        print(f"{place}: {shoot(each, place)} pictures")

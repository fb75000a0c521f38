"""The page in a real browser: light and dark, wide and narrow, with nothing on the network."""

import http.server
import re
import threading
from pathlib import Path

import pytest

import robustcv as rc

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def browser(chromium: str):
    """Start Chromium once."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(trained: Path, audited: Path, tmp_path_factory) -> dict[str, Path]:
    """Give an audit page and a comparison page."""
    root = tmp_path_factory.mktemp("browser")
    rc.audit(str(trained), "digits", n=60, eps=["16/255", "8/255"], cases=6, out=root / "b", quiet=True,
             also=("corruptions", "spatial", "patch"), set={"patch": {"steps": 10}})  # fmt: skip
    rc.compare(audited, root / "b", out=root / "compare")
    return {
        "audit": root / "b" / "report.html",
        "compare": root / "compare" / "report.html",
        "train": trained / "report.html",
    }


@pytest.mark.parametrize("name", ["audit", "compare", pytest.param("train", marks=pytest.mark.every_case)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_renders_without_overflow_errors_or_requests(
    browser, page_file, tmp_path, name, scheme, width
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
    page = context.new_page()
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file[name].as_uri())
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 29)"
    assert dark == (scheme == "dark")
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    last_tile = page.locator(".tile").last.bounding_box()
    assert last_tile["y"] + last_tile["height"] <= 800  # verdict and the four figures need no scrolling
    assert page.locator("figure.chart svg").first.bounding_box()["height"] > 100
    shot = page.screenshot(full_page=True)
    assert len(shot) > 20_000
    context.close()


def test_text_in_charts_follows_the_theme(browser, page_file) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(page_file["audit"].as_uri())
        colours[scheme] = set(
            page.evaluate("[...document.querySelectorAll('figure.chart text')].map((t) => getComputedStyle(t).fill)")
        )
        page.close()
    assert colours["light"] and not colours["light"] & colours["dark"]


def test_a_case_opens_enlarged_by_keyboard_and_closes_again(browser, page_file) -> None:
    page = browser.new_page()
    page.goto(page_file["audit"].as_uri())
    page.locator("#cases .zoom").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] img").count() >= 3
    small, large = (page.locator(f"{where} img").first.bounding_box()["width"] for where in ("#cases .case", "dialog"))
    assert large > 1.5 * small
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.className") == "zoom"
    page.close()


def test_everything_can_be_read_without_javascript(browser, page_file) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file["audit"].as_uri())
    for heading in ("Robustness curve", "Per class", "Cases", "Calibration", "Threat model", "Reproduce"):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible()
    context.close()


def test_hostile_names_run_nothing(browser, tmp_path) -> None:
    from test_report import HOSTILE, make_record

    from robustcv import report

    path = tmp_path / "hostile.html"
    path.write_text(report.render(make_record(1000, HOSTILE, 900, 100), {}))
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.evaluate("window.PWN") is None
    page.close()


def test_the_page_sends_nothing_even_when_served(browser, page_file) -> None:
    """A loopback server sees the page's own request and no other; what a page tries to fetch is blocked."""
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page_file["audit"].read_bytes())

        def log_message(self, *args) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/page")
    blocked = page.evaluate("fetch('/secret').then(() => false, () => true)")
    page.wait_for_timeout(200)
    server.shutdown()
    server.server_close()
    page.close()
    assert blocked and set(hits) <= {"/page", "/favicon.ico"}


def test_it_prints_on_a4_without_the_navigation(browser, page_file) -> None:
    page = browser.new_page()
    page.goto(page_file["audit"].as_uri())
    pdf = page.pdf(format="A4")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert pdf.startswith(b"%PDF") and 1 <= pages <= 14
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and page.locator("h1").is_visible()
    page.close()

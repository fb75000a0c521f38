"""The page in a real browser: light and dark, wide and narrow, with nothing on the network."""

import csv
import http.server
import io
import itertools
import os
import re
import threading
from pathlib import Path
from urllib.parse import unquote_plus

import pytest
from PIL import Image

import robustcv as rc
from robustcv import records, report, runs
from robustcv.report import numbers

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


class Pages(dict[str, Path]):
    """Pages by name; those of other data are made when a test asks for one."""

    def __init__(self, root: Path, made: dict[str, Path]) -> None:
        super().__init__(made)
        self.root = root

    def __missing__(self, name: str) -> Path:
        model, common = str(self["train"].parent), {"n": 24, "eps": "8/255", "quiet": True, "out": self.root / name}
        if name == "explain":
            rc.explain(model, "digits", **common, method=["ig", "saliency", "grad_cam"], measures=["deletion"])
        if name == "full":
            rc.audit(model, "digits", **common, attacks=["fgsm", "pgd"], sweep=False, agreement=10, cases=4,
                     certify=["bounds"], also=["maps"], measures=["deletion", "insertion"])  # fmt: skip
        if name in ("explain", "full"):
            self[name] = self.root / name / "report.html"
            return self[name]
        data, n = {"shapes": ("shapes:64,shortcut", 24), "cifar": (photos() if name == "cifar" else "", 24)}[name]
        rc.train(data, epochs=1, out=self.root / f"{name}-model", quiet=True)
        rc.audit(str(self.root / f"{name}-model"), data, n=n, eps="4/255", effort="quick", cases=8, quiet=True,
                 explain=("integrated_gradients", "grad_cam"), out=self.root / name)  # fmt: skip
        self[name] = self.root / name / "report.html"
        return self[name]


def photos() -> str:
    archive = Path(os.environ.get("ROBUSTCV_DATA", "")) / "cifar10.tar.xz"
    if not archive.exists():
        pytest.skip("no copy of CIFAR-10 under ROBUSTCV_DATA")
    return str(archive)


@pytest.fixture(scope="module")
def page_file(trained: Path, audited: Path, tmp_path_factory) -> dict[str, Path]:
    """Give an audit page and a comparison page."""
    root = tmp_path_factory.mktemp("browser")
    rc.audit(str(trained), "digits", n=60, eps=["16/255", "8/255"], cases=6, out=root / "b", quiet=True,
             also=("corruptions", "spatial", "patch"), set={"patch": {"steps": 10}})  # fmt: skip
    rc.compare(audited, root / "b", out=root / "compare")
    rc.compare(audited, root / "b", audited, names=("first", "again", "third"), out=root / "overview")
    made = {
        "audit": root / "b" / "report.html",
        "compare": root / "compare" / "report.html",
        "overview": root / "overview" / "report.html",
        "train": trained / "report.html",
    }
    return Pages(root, made)


RARE = [
    pytest.param(name, marks=pytest.mark.every_case)
    for name in ("train", "overview", "shapes", "cifar", "explain", "full")
]


@pytest.mark.parametrize("name", ["audit", "compare", *RARE])
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


def test_the_theme_can_be_turned_and_is_kept(browser, page_file) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()

    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.goto(page_file["audit"].as_uri())
    dark = ground()
    page.locator("#theme").click()
    light = ground()
    assert (dark, light) == ("rgb(21, 24, 29)", "rgb(246, 248, 250)")
    page.reload()
    assert ground() == light
    page.keyboard.press("t")
    assert ground() == dark
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('.tile')).backgroundColor") == "rgb(255, 255, 255)"
    context.close()


def test_every_table_with_a_head_can_be_saved_as_csv(browser, page_file, tmp_path) -> None:
    record = runs.load(page_file["audit"].parent)
    page = browser.new_page()
    page.goto(page_file["audit"].as_uri())
    assert page.locator("button.csv").count() == page.locator("main .scroll table:has(thead)").count() > 8
    page.locator("#curve details").first.locator("summary").click()
    with page.expect_download() as saved:
        page.locator("#curve button.csv").click()
    assert saved.value.suggested_filename.startswith("curve-")
    rows = list(csv.reader(Path(saved.value.path()).read_text(encoding="utf-8-sig").splitlines()))
    assert rows[0][:5] == ["eps", "worst case", "worst case: n", "worst case: CI low", "worst case: CI high"]
    told = {row[0]: [float(each) for each in row[1:5]] for row in rows[1:]}
    metric = record.metric("robust_accuracy", eps=record.headline_eps, attack=None)
    wanted = [metric.count / metric.n, metric.n, metric.low, metric.high]
    assert told[numbers.eps_short(record.headline_eps)] == pytest.approx(wanted, rel=1e-5)
    page.close()


def test_the_command_can_be_copied_where_there_was_one(browser, page_file, tmp_path) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(page_file["audit"].as_uri())  # which was made from Python
    assert page.locator("#reproduce button", has_text="copy").count() == 0
    record = runs.load(page_file["audit"].parent)
    command = "robustcv audit --data 'my pictures/' --eps 8/255"
    told = record.model_copy(update={"environment": record.environment.model_copy(update={"command": command})})
    path = tmp_path / "told.html"
    path.write_text(report.render(told, runs.load_files(page_file["audit"].parent)))
    page.goto(path.as_uri())
    page.locator("#reproduce button", has_text="copy").click()
    page.locator("#reproduce button", has_text="copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == command
    context.close()


def test_a_saved_table_runs_nothing_in_a_spreadsheet(browser, tmp_path) -> None:
    from test_report import make_record

    names = ("=1+1", '"a, b"', "plain", "a;=2", "＝3")
    path = tmp_path / "names.html"
    path.write_text(report.render(make_record(60_000, names, 50_000, 20_000), {}))
    page = browser.new_page()
    page.goto(path.as_uri())
    with page.expect_download() as saved:
        page.locator("#classes button.csv").click()
    rows = list(csv.reader(Path(saved.value.path()).read_text(encoding="utf-8-sig").splitlines()))
    assert {"'=1+1", '"a, b"', "plain", "a;=2", "'＝3"} <= set(rows[0])
    with page.expect_download() as saved:
        page.locator("#flows button.csv").click()
    text = Path(saved.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.reader(text.splitlines()))
    assert '"a;=2"' in text and rows[1][1:4] == ["4000", "6000", "0"]
    page.close()


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


STATES = {
    "plain": "() => null",
    "case": "() => document.querySelector('.case:has([data-kind=attacked]) .zoom, .case .zoom')?.click()",
    "slider": "() => { document.querySelector('.case:has([data-kind=attacked]) .zoom')?.click();"
    " document.querySelector('#modes [value=slider]').click(); }",
    "keys": "() => document.getElementById('help').click()",
    "open": "() => document.querySelectorAll('details').forEach((each) => { each.open = true; })",
    "print": "() => null",
}
EVERYTHING = """() => { document.getElementById('whole').checked = true;
    document.querySelectorAll('details').forEach((each) => { each.open = true; }) }"""
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


ALWAYS = {
    ("audit", 390, "dark"), ("overview", 390, "light"), ("compare", 1280, "dark"), ("explain", 390, "light"),
    ("full", 1280, "light"),
}  # fmt: skip
NAMES = ("audit", "compare", "train", "overview", "cifar", "shapes", "explain", "full")
AXE = itertools.product(NAMES, (1280, 390), ("light", "dark"))


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [pytest.param(*case, marks=() if case in ALWAYS else pytest.mark.every_case) for case in AXE],
)
def test_axe_finds_nothing_and_leaves_nothing_open(browser, page_file, name: str, width: int, scheme: str) -> None:
    import axe_playwright_python

    source = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
    for state, enter in STATES.items():
        if name in ("train", "overview") and state in ("case", "slider"):
            continue
        if name == "explain" and state == "slider":  # nothing was attacked
            continue
        page = context.new_page()
        if state == "print":
            page.set_viewport_size({"width": 703, "height": 1000})  # A4 within its margins
            page.emulate_media(media="print", color_scheme=scheme)
        page.goto(page_file[name].as_uri())
        page.evaluate(enter)
        page.evaluate(source)
        rules = {"target-size": {"enabled": state != "print"}}  # nobody presses paper
        run = "([tags, rules]) => axe.run(document, {runOnly: {type: 'tag', values: tags}, rules})"
        found = page.evaluate(run, [TAGS, rules])
        for kind in ("violations", "incomplete"):
            told = [(rule["id"], [node["html"][:200] for node in rule["nodes"]][:3]) for rule in found[kind]]
            assert told == [], (state, kind)
        assert len(found["passes"]) > 15
        page.close()
    context.close()


def test_nothing_is_cut_when_everything_is_printed(browser, page_file) -> None:
    page = browser.new_page(viewport={"width": 703, "height": 1000})
    page.emulate_media(media="print")
    page.goto(page_file["audit"].as_uri())
    page.evaluate(EVERYTHING)
    charts = page.locator("figure.chart svg")
    assert charts.count() > 2
    for k in range(charts.count()):
        box = charts.nth(k).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 703, k
    page.close()


def test_cases_can_be_filtered_without_a_mouse(browser, page_file) -> None:
    page = browser.new_page()
    page.goto(page_file["audit"].as_uri())
    every = page.locator("#cases .case").count()
    page.locator("#filters select[name=class]").focus()
    for _ in range(20):
        if page.evaluate("document.activeElement.name") == "outcome":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("b")  # broken
    assert page.url.endswith("#outcome=broken")
    assert 0 < page.locator("#cases .case:visible").count() < every
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.close()


def test_classes_with_odd_spaces_can_be_chosen(browser, tmp_path) -> None:
    from test_report import make_record

    names = ("a  b", "c ")
    case = {"image": "0", "selection": "sample", "outcome": "survived", "label": 0, "prediction": 0, "confidence": 0.5}
    record = make_record(60, names, 50, 20)
    cases = [records.Case(index=k, **{**case, "label": k}, files={"clean": "evidence/0.png"}) for k in (0, 1)]
    page = browser.new_page()
    path = tmp_path / "spaces.html"
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    files = {"evidence/0.png": picture.getvalue()}
    path.write_text(report.render(record.model_copy(update={"cases": tuple(cases)}), files))
    page.goto(path.as_uri())
    for name in names:
        page.locator("#filters select[name=class]").select_option(value=name)
        assert page.locator("#cases .case:visible").count() == 1
    page.close()


def test_cases_are_chosen_by_class_and_the_choice_stands_in_the_address(browser, page_file) -> None:
    page = browser.new_page()
    page.goto(page_file["audit"].as_uri())
    every = page.locator("#cases .case").count()
    assert page.locator("#cases .case:visible").count() == every
    one = page.locator("#cases .case").first.get_attribute("data-class")
    page.locator("#filters select[name=class]").select_option(one)
    same = page.locator(f".case[data-class='{one}']").count()
    assert 0 < same < every and page.locator("#cases .case:visible").count() == same
    assert page.url.endswith(f"#class={one}") and page.locator("#shown").inner_text() == f"{same} of {every} shown"
    again = browser.new_page()
    again.goto(page.url)
    assert again.locator("#cases .case:visible").count() == same
    assert again.locator("#filters select[name=class]").input_value() == one
    again.locator("#filters select[name=class]").select_option("")
    assert again.locator("#cases .case:visible").count() == every
    for field in ("outcome", "attack"):
        one = again.locator(f"#filters select[name={field}] option").nth(1).inner_text()
        again.locator(f"#filters select[name={field}]").select_option(one)
        left = again.locator("#cases .case:visible")
        assert 0 < left.count() < every and {each.get_attribute(f"data-{field}") for each in left.all()} == {one}
        again.locator(f"#filters select[name={field}]").select_option("")
    link = again.locator("#flows td a").first
    went = link.get_attribute("href")
    link.click()
    cell = dict(part.split("=") for part in went.removeprefix("#").split("&"))
    shown = again.locator("#cases .case:visible")
    assert shown.count() and {each.get_attribute("data-class") for each in shown.all()} == {cell["class"]}
    assert {each.get_attribute("data-as") for each in shown.all()} == {cell["as"]}
    mark = again.locator("#curve svg a").first
    asked = unquote_plus(mark.get_attribute("href").removeprefix("#eps="))
    mark.focus()
    again.keyboard.press("Enter")
    assert {each.get_attribute("data-eps") for each in shown.all()} == {asked} and shown.count() < every
    again.close()
    page.close()


def test_a_table_of_runs_is_sorted_by_any_column_and_searched(browser, page_file) -> None:
    page = browser.new_page()
    page.goto(page_file["overview"].as_uri())
    rows, headers = page.locator("#overview tbody tr"), page.locator("#overview thead th")
    first = [row.locator("th").inner_text() for row in rows.all()]
    assert first == ["first", "again", "third"]

    def column(k: int) -> list[str]:
        return [row.locator("th, td").nth(k).inner_text() for row in rows.all()]

    headers.first.locator("button").press("Enter")
    assert column(0) == ["again", "first", "third"] and headers.first.get_attribute("aria-sort") == "ascending"
    headers.first.locator("button").press("Enter")
    assert column(0) == ["third", "first", "again"] and headers.first.get_attribute("aria-sort") == "descending"
    for k, name in enumerate(header.inner_text() for header in headers.all()):
        headers.nth(k).locator("button").click()
        values = [row.locator("th, td").nth(k).get_attribute("data-value") for row in rows.all()]
        if None not in values:
            assert [float(value) for value in values] == sorted(map(float, values)), name
    page.locator("#overview input[type=search]").fill("third")
    assert [row.locator("th").inner_text() for row in rows.all() if row.is_visible()] == ["third"]
    page.close()


def test_many_classes_are_sorted_as_numbers_through_the_fold(browser, tmp_path) -> None:
    from test_report import make_record

    record = make_record(1000, tuple(f"class {i}" for i in range(60)), 900, 300)
    rows = tuple(row.model_copy(update={"n": 100, "clean": 100 - k, "robust": (k * 7) % 60}) for k, row
                 in enumerate(record.classes))  # fmt: skip
    path = tmp_path / "classes.html"
    path.write_text(report.render(record.model_copy(update={"classes": rows}), {}))
    page = browser.new_page()
    page.goto(path.as_uri())
    heads = page.locator("#classes table").first.locator("thead th")
    column = next(k for k, head in enumerate(heads.all()) if head.inner_text() == "clean")
    heads.nth(column).locator("button").click()
    shares = [row.locator("th, td").nth(column).get_attribute("data-value") for row in
              page.locator("#classes tbody tr").all()]  # fmt: skip
    assert [float(each) for each in shares] == sorted(float(each) for each in shares) and len(shares) == 60
    assert page.locator("#classes tbody").first.locator("tr").count() == 50
    page.locator("#classes input[type=search]").fill("class 59")
    visible = [row for row in page.locator("#classes tbody tr").all() if row.is_visible()]
    assert len(visible) == 1
    page.close()


def test_a_case_is_compared_side_by_side_under_a_slider_and_in_turn(browser, page_file) -> None:
    page = browser.new_page()
    page.goto(page_file["audit"].as_uri())
    page.locator(".case:has([data-kind=attacked]) .zoom").first.click()

    def mode(name: str) -> None:
        page.locator(f"#modes [value={name}]").click()
        assert page.locator("#modes [aria-pressed=true]").get_attribute("value") == name

    mode("beside")
    assert page.locator("#zoomed img").count() == 2
    mode("slider")
    page.locator("#zoomed input[type=range]").fill("30")
    assert "30%" in page.locator("#zoomed img").last.evaluate("(image) => image.style.clipPath")
    mode("change")
    factor = int(page.locator(".case:has([data-kind=change]) [data-kind=change]").first.get_attribute("data-factor"))
    page.locator("#zoomed input[type=range]").fill(str(factor / 2))
    assert page.locator("#zoomed img").evaluate("(image) => image.style.filter") == "contrast(0.5)"
    mode("blink")
    page.evaluate("""() => { window.swaps = []; new MutationObserver(() => swaps.push(performance.now()))
                     .observe(document.querySelector('#zoomed img:last-child'), {attributes: true}); }""")
    page.wait_for_timeout(1800)
    swaps = page.evaluate("swaps")
    assert len(swaps) >= 2 and (len(swaps) - 1) / (swaps[-1] - swaps[0]) <= 6 / 1000  # a blink is two swaps
    first = page.locator("#title").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#title").inner_text() != first
    page.keyboard.press("1")
    assert page.locator("#modes [aria-pressed=true]").get_attribute("value") == "panels"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "zoom"
    page.close()


def test_nothing_blinks_where_less_motion_is_asked_for(browser, page_file) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(page_file["audit"].as_uri())
    page.locator(".case:has([data-kind=attacked]) .zoom").first.click()
    page.locator("#modes [value=blink]").click()
    before = page.locator(".which").inner_text()
    page.wait_for_timeout(1200)
    assert page.locator(".which").inner_text() == before
    page.get_by_role("button", name="swap").click()
    assert page.locator(".which").inner_text() != before
    context.close()


def test_the_page_can_be_walked_by_keys_alone(browser, page_file) -> None:
    page = browser.new_page()
    page.goto(page_file["audit"].as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#summary")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible() and "Enter" in page.locator("#keys").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.tagName") == "SELECT"
    page.keyboard.press("Tab")
    page.locator("#filters select").last.focus()
    for _ in range(3):  # past the last filter comes the one stop of all cases
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "zoom":
            break
    focused = "document.activeElement.closest('.case')?.getAttribute('aria-label')"
    first = page.evaluate(focused)
    page.keyboard.press("j")
    second = page.evaluate(focused)
    page.keyboard.press("ArrowLeft")
    assert first and second and first != second and page.evaluate(focused) == first
    page.keyboard.press("Enter")
    assert page.locator("#zoom").is_visible() and page.locator("#title").inner_text() == first
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == first
    closed = "document.querySelectorAll('main details:not([open])').length"
    page.keyboard.press("d")
    assert page.evaluate(closed) == 0
    page.keyboard.press("?")
    page.locator("#use-keys").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("d")
    assert page.evaluate(closed) == 0  # switched off
    page.close()


def test_it_works_in_a_sandboxed_frame(browser, page_file, tmp_path) -> None:
    """As MLflow and notebooks show it: scripts run, but nothing of the outside, no storage, no address."""
    outer = tmp_path / "outer.html"
    content = page_file["audit"].read_text().replace("&", "&amp;").replace('"', "&quot;")
    outer.write_text(
        f'<!doctype html><iframe sandbox="allow-scripts" srcdoc="{content}" width=1200 height=780></iframe>'
    )
    page, problems = browser.new_page(), []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(outer.as_uri())
    frame = page.frames[1]
    frame.wait_for_selector(".case")
    one = frame.locator("#cases .case").first.get_attribute("data-class")
    frame.locator("#filters select[name=class]").select_option(one)
    assert frame.locator("#cases .case:visible").count() == frame.locator(f".case[data-class='{one}']").count()
    frame.locator("#cases .case:visible .zoom").first.click()
    assert frame.locator("dialog[open] img").count() >= 3
    assert problems == []
    page.close()


def test_everything_can_be_read_without_javascript(browser, page_file) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file["audit"].as_uri())
    for heading in ("Robustness curve", "Per class", "Cases", "Calibration", "Threat model", "Reproduce"):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible()
    tiles, charts, cases = (page.locator(each) for each in (".tile b", "figure.chart svg", ".case img"))
    assert tiles.count() == 4 and charts.count() >= 3 and cases.count() > 10
    assert all(each.is_visible() for each in (*tiles.all(), *charts.all(), *cases.all()))
    tables = [each for each in page.locator("main table").all() if not each.evaluate("t => t.closest('details')")]
    assert len(tables) > 6 and all(each.is_visible() for each in tables)
    context.close()


LONG = tuple(f"a rather long name of a class that ends otherwise, {k}" for k in range(12))
ODD = {
    "long names": (1200, LONG, 900, 300),
    "one class": (3, ("one",), 3, 3),
    "three images": (3, ("a", "b", "c"), 1, 0),
    "hostile": (1000, None, 900, 0),
    "German and Chinese": (1000, ("Schäferhund", "Größe", "狗", "飞机"), 1000, 1000),
    "nothing right": (10, ("a", "b"), 0, 0),
    "all in one": (1000, ("cat", "dog", "horse", "bird"), 1000, 0),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("width", [390, 1280])
def test_odd_runs_are_laid_out_whole(browser, tmp_path, name, width) -> None:
    from test_report import HOSTILE, make_record

    n, classes, clean, robust = ODD[name]
    path = tmp_path / "odd.html"
    path.write_text(report.render(make_record(n, classes or HOSTILE, clean, robust), {}))
    page = browser.new_page(viewport={"width": width, "height": 800})
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(path.as_uri())
    assert problems == [] and page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.PWN") is None
    boxes = [mark.bounding_box() for mark in page.locator("#flows svg text").all()]
    lines = sorted((round(box["x"] + box["width"] / 2 > 400), box["y"], box["y"] + box["height"]) for box in boxes)
    for (side, _, end), (other, start, _) in itertools.pairwise(lines[2:]):  # but the legend's two
        assert side != other or start >= end - 3, "two names lie on each other"
    frame = page.locator("#flows svg").bounding_box() if boxes else None
    assert all(box["x"] >= frame["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"] for box in boxes)
    assert page.evaluate(RUN_OVER) == []
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})
    wide = page.locator("table.matrix").evaluate_all("tables => tables.map(t => t.getBoundingClientRect().right)")
    assert all(right <= 704 for right in wide), "paper cuts a table"
    page.close()


RUN_OVER = """() => [...document.querySelectorAll("main table th, main table td")].filter((cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  const [inner, outer] = [range, cell].map((each) => each.getBoundingClientRect().right);
  return cell.offsetParent && cell.textContent && inner > outer + 1;
}).map((cell) => cell.textContent.slice(0, 40))"""  # cells whose text runs over the next one


WORDS_CUT = """() => {
  const found = [], walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, cell = node.parentElement.closest("td, th");
    if (!cell || !cell.offsetParent || node.parentElement.closest("code, svg")) continue;
    for (const word of node.data.matchAll(/[A-Za-z0-9]{2,20}/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) found.push(word[0]);
    }
  }
  return found;
}"""


@pytest.mark.parametrize("name", ["audit", "compare"])
def test_no_word_of_a_table_is_cut_on_a_phone(browser, page_file, name: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(page_file[name].as_uri())
    assert page.evaluate(WORDS_CUT) == []
    page.close()


def test_hostile_names_run_nothing(browser, tmp_path) -> None:
    from test_report import HOSTILE, make_record

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


def pages_of(pdf: bytes) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


@pytest.mark.parametrize("name", ["audit", "compare", "train", "overview", "explain", "full"])
def test_the_summary_prints_on_four_a4_pages_and_everything_on_more(browser, page_file, name: str) -> None:
    page = browser.new_page()
    page.goto(page_file[name].as_uri())
    summary = page.pdf(prefer_css_page_size=True)
    page.locator("#whole").check()
    everything = page.pdf(prefer_css_page_size=True)
    assert summary.startswith(b"%PDF") and 1 <= pages_of(summary) <= 4
    assert pages_of(everything) > pages_of(summary) or name in ("train", "overview")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and page.locator("h1").is_visible()
    page.close()


def test_many_classes_print_on_four_pages_and_fit_the_window(browser, tmp_path) -> None:
    from test_report import make_record

    path = tmp_path / "many.html"
    path.write_text(report.render(make_record(100_000, tuple(f"class {i}" for i in range(1000)), 90_000, 10_000), {}))
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert pages_of(page.pdf(prefer_css_page_size=True)) <= 4
    page.close()

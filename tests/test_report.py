"""The page: a pure function of the record, offline, with every number's n; hostile or odd runs do not break it."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_plus

import numpy as np
import pytest
from PIL import Image

import robustcv as rc
from robustcv import records, report, runs
from robustcv.report import blocks, images, numbers
from robustcv.report.gallery import top_shared
from robustcv.report.sections import SECTIONS
from robustcv.report.text import shown
from robustcv.report.thinning import PREVIEWS, with_previews

ENVIRONMENT = records.Environment(
    python="3.11", platform="test", device="cpu", threads=2, packages={"torch": "2"}, started="2026-01-01T00:00:00",
    seconds=1.0, command="robustcv",
)  # fmt: skip


class Reader(HTMLParser):
    """Reads a page back: its text, ids, links and everything a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.ids, self.links, self.fetched, self.tags = "", [], [], [], []
        self._skip = 0
        self.feed(page)

    def handle_starttag(self, tag, attributes) -> None:
        found = dict(attributes)
        self.tags.append((tag, found))
        self._skip += tag in ("style", "script")
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.fetched += [found[key] for key in ("src", "srcset", "data") if key in found]
        self.fetched += [found["href"]] if tag in ("link", "image", "use") and "href" in found else []

    def handle_endtag(self, tag) -> None:
        self._skip -= tag in ("style", "script")

    def handle_data(self, data) -> None:
        self.text += "" if self._skip else data


@pytest.fixture(scope="module")
def pages(trained: Path, audited: Path, tmp_path_factory) -> dict[str, Path]:
    """One page of every verb."""
    root = tmp_path_factory.mktemp("pages")
    rc.harden(str(trained), epochs=1, steps=2, n=12, out=root / "harden", quiet=True)
    options = {"n": 60, "eps": ["16/255", "8/255"], "cases": 6, "quiet": True}
    rc.audit(str(root / "harden"), "digits", **options, out=root / "hardened")
    rc.explain(
        str(trained), "digits", n=3, method=["integrated_gradients", "gradient_shap"], out=root / "explain", quiet=True
    )
    rc.compare(audited, root / "hardened", out=root / "compare")
    return {
        "train": trained,
        "audit": audited,
        "harden": root / "harden",
        "explain": root / "explain",
        "compare": root / "compare",
    }


VERBS = ["train", "audit", "harden", "explain", "compare"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_page_is_whole_offline_and_the_same_every_time(pages, verb: str) -> None:
    page = (pages[verb] / "report.html").read_text()
    assert report.render(runs.load(pages[verb]), runs.load_files(pages[verb])) == page
    read = Reader(page)
    assert all(uri.startswith("data:image/webp;base64,") for uri in read.fetched)
    assert not re.search(r"(?:src|href)=[\"']?https?:", page)
    assert len(read.ids) == len(set(read.ids))
    asked = re.compile(r"#(class=[^=&]+(&as=[^=&]+)?|eps=[^=&]+)$")
    assert all(link.startswith("#") and (link[1:] in read.ids or asked.match(link)) for link in read.links)
    for word in ("nan", "None", "undefined", "inf ", "Traceback"):
        assert not re.search(rf"(?<![\w.-]){word}(?![\w-])", read.text), word
    policy = next(a["content"] for t, a in read.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy
    assert sum(tag == "h1" for tag, _ in read.tags) == 1
    assert all(found.get("alt") for tag, found in read.tags if tag == "img")
    assert sum(found.get("class") == "tile" for _, found in read.tags) == 4


def test_the_threat_is_told_as_it_was(audited: Path) -> None:
    record = make_record(100, ("a", "b"), 80, 20)
    white = Reader(report.render(record, {})).text
    assert "whoever knows the weights" in white and "AML.T0043.000" in white and "violation of integrity" in white
    asked = tuple(each.model_copy(update={"name": "square"}) for each in record.attacks)
    black = Reader(report.render(record.model_copy(update={"attacks": asked}), {})).text
    assert "whoever asks for answers alone" in black and "AML.T0043.001" in black and "White-Box" not in black
    whole = runs.load(audited)
    page = (audited / "report.html").read_text()
    assert whole.model.sha256[:12] in page and whole.data.sha256[:12] in page


def test_a_forced_comparison_says_what_differs(pages) -> None:
    record, files = runs.load(pages["compare"]), runs.load_files(pages["compare"])

    def banner(*differs: str) -> str:
        both = record.comparison.model_copy(update={"forced": True, "differs": differs})
        return report.render(record.model_copy(update={"comparison": both}), files)

    assert "made on different images" in banner("images") and "attacked in different" not in banner("images")
    assert "attacked in different ways" in banner("attacks") and "made on different images" not in banner("attacks")


def test_a_comparison_tells_size_and_speed_of_both(pages) -> None:
    record = runs.load(pages["compare"])
    page = Reader((pages["compare"] / "report.html").read_text())
    assert "cost" in page.ids and all(f"{side.model.parameters:,}" in page.text for side in
                                      (record.comparison.a, record.comparison.b))  # fmt: skip


def test_cards_and_the_curve_tell_changes_in_every_unit(audited: Path) -> None:
    record, text = runs.load(audited), Reader((audited / "report.html").read_text()).text
    attacked = [case for case in record.cases if case.l0 is not None]
    assert attacked and all(f"L2 {case.l2:.3f}, L0 {case.l0:,}" in text for case in attacked)
    assert all(0 < case.l0 <= 3 * 32 * 32 for case in attacked if case.outcome == "broken")
    assert f"{record.headline_eps:.3f}" in text  # below its multiple of 1/255


def test_every_chart_has_its_csv(pages, audited: Path) -> None:
    from robustcv.report.formats import FORMATS

    behind = {"curve": "metrics", "flows": "flows", "calibration": "calibration", "training": "epochs",
              "stability": "stability", "certified": "certified"}  # fmt: skip
    for folder in (*pages.values(), audited):
        record, files = runs.load(folder), runs.load_files(folder)
        made = FORMATS["csv"](record, files)
        for name, make in SECTIONS.items():
            section = make(record, files)
            if section is not None and any(block.kind == "chart" for block in section.blocks):
                assert f"csv/{behind[name]}.csv" in made, (folder, name)


def test_the_glossary_defines_what_the_page_shows(pages) -> None:
    for verb, terms in {"audit": ("robust accuracy", "Holm", "IoU of maps"), "compare": ("McNemar",)}.items():
        text = Reader((pages[verb] / "report.html").read_text()).text
        told = text[text.index("What the numbers mean") :]
        assert all(term in told for term in (*terms, "Wilson, (p + z"))


def test_the_fixed_part_of_the_page_is_small() -> None:
    home = Path(report.__file__).parent
    assert sum((home / name).stat().st_size for name in ("report.css", "report.js", "page.html.j2")) < 40_000


def test_the_figures_on_the_page_are_those_of_the_record(pages) -> None:
    record, text = runs.load(pages["audit"]), Reader((pages["audit"] / "report.html").read_text()).text
    for metric in record.metrics:
        if metric.name != "calibration_error":
            assert numbers.percent(metric) in text and numbers.interval(metric) in text
    for attack in record.attacks:
        assert f"{attack.forward:,}" in text and f"{attack.backward:,}" in text
    assert "upper bound" in text and "L-inf 16/255" in text


def test_every_section_appears_somewhere(pages) -> None:
    found = set()
    for folder in pages.values():
        found |= set(Reader((folder / "report.html").read_text()).ids)
    made = [
        make(runs.load(pages[v]), runs.load_files(pages[v])) for make in SECTIONS.values() for v in ("audit", "compare")
    ]
    assert {section.id for section in made if section} <= found
    assert {"curve", "findings", "limits", "classes", "cases", "explanations", "calibration", "training", "threat",
            "paired", "changes", "reproduce", "glossary", "next"} <= found  # fmt: skip


def make_record(n: int, classes: tuple[str, ...], clean: int, robust: int) -> records.Record:
    """Make a record of an audit by hand."""
    from robustcv.stats import wilson

    def metric(name, count, **fields):
        low, high = wilson(count, n)
        return records.Metric(name=name, n=n, count=count, low=low, high=high, **fields)

    per = len(classes)
    rows = [records.ClassRow(name=name, n=n // per, clean=clean // per, robust=robust // per) for name in classes]
    threat = {"norm": "linf", "eps": 8 / 255}
    attack = records.AttackResult(
        name="pgd", options={}, attempted=clean, broken=clean - robust, forward=1, backward=1, seconds=0.1,
        max_distance=None if clean == 0 else 8 / 255, **threat,
    )  # fmt: skip
    data = records.Data(
        name="made up", split="test", n=n, total=n, class_names=classes, shape=(3, 8, 8), sha256="0", selection="all"
    )
    pairs = [(k, (k + 1) % len(classes)) for k in range(len(classes)) if len(classes) > 1 and clean > robust]
    fell = max(1, (clean - robust) // per)
    flows = tuple(records.Flow(label=a, prediction=b, count=fell) for a, b in pairs)
    return records.Record(
        verb="audit",
        version="0",
        environment=ENVIRONMENT,
        headline_eps=8 / 255,
        flows=flows,
        metrics=(metric("clean_accuracy", clean), metric("robust_accuracy", robust, bound="upper", **threat)),
        attacks=(attack,),
        classes=tuple(rows),
        data=data,
    )


def found_by(record: records.Record, rule: str) -> str:
    """Give the text of one rule's line under Findings; empty where there is none."""
    section = SECTIONS["findings"](record, {})
    bullets = section.blocks[0].items if section else ()
    return next((f"{each.severity}: {each.text}" for each in bullets if each.rule == rule), "")


def test_findings_tell_what_weighs_most() -> None:
    plain = make_record(300, ("a", "b", "c"), 240, 90)
    epoch = records.Epoch(epoch=1, loss=1.0, correct=1, n=1, validation_correct=292, validation_n=300,
                          learning_rate=0.1, seconds=1.0)  # fmt: skip
    made = records.Training(objective="standard", options={}, epochs=(epoch,), selected_epoch=1, selected_by="accuracy")
    assert "97.3" in found_by(plain.model_copy(update={"training": made}), "RCV-F12")
    near = made.model_copy(update={"epochs": (epoch.model_copy(update={"validation_correct": 250}),)})
    assert found_by(plain.model_copy(update={"training": near}), "RCV-F12") == ""
    agreement = records.Agreement(attacks=("pgd", "square"), norm="linf", eps=8 / 255, n=50, both=((9, 8), (8, 11)),
                                  only=(1, 3))  # fmt: skip
    told = found_by(plain.model_copy(update={"agreement": agreement}), "RCV-F11")
    assert told.startswith("high: square alone breaks 3 of 50 images") and "pgd" not in told
    gate = records.Gate(name="clean_accuracy", metric="clean_accuracy", threshold=0.9, outcome="failed", value=0.8,
                        low=0.75, high=0.84)  # fmt: skip
    assert "is below the gate of 90" in found_by(plain.model_copy(update={"gates": (gate,)}), "RCV-F10")
    focus = records.ClassFocus(
        method="shapley", name="b", n=9, share=0.31, place=(0.1, 0.9), alarm=True, chance=0.1, file="x"
    )
    told = found_by(plain.model_copy(update={"focus": (focus,)}), "RCV-F13")
    assert told.startswith("high: Shortcut alarm on 1 of 1 mean maps, most on class 'b': 31 %")
    rows = tuple(row.model_copy(update={"p_value": p}) for row, p in zip(plain.classes, (0.9, 1.0, 1.0), strict=True))
    assert found_by(plain.model_copy(update={"classes": rows}), "RCV-F02").startswith("low:")
    for rule in ("RCV-F10", "RCV-F11", "RCV-F12", "RCV-F13", "RCV-F14"):
        assert found_by(plain, rule) == ""


HOSTILE = (
    "</script><script>window.PWN=1</script>",
    '"><img src=x onerror="window.PWN=1">',
    "\u202etxet",
    "猫" * 300,
    "\x1b[31mred\x07",
)


@pytest.mark.parametrize(
    ("n", "classes", "clean", "robust"),
    [
        (3, ("one",), 3, 3),
        (3, ("a", "b", "c"), 1, 0),
        (100_000, tuple(f"class {i}" for i in range(1000)), 90_000, 10_000),
        (1000, HOSTILE, 900, 0),
        (1000, ("Schäferhund", "Größe", "狗", "飞机"), 1000, 1000),
        (0 + 10, ("a", "b"), 0, 0),
    ],
)
def test_odd_runs_do_not_break_the_page(n, classes, clean, robust) -> None:
    page = report.render(make_record(n, classes, clean, robust), {})
    read = Reader(page)
    for word in ("nan", "None", "undefined"):
        assert not re.search(rf"(?<![\w.-]){word}(?![\w-])", read.text)
    assert all(shown(name) in read.text for name in classes)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", page)
    assert "<script>window.PWN" not in page and "<img src=x" not in page
    assert len(page) < 1_000_000


def test_a_page_can_be_held_to_a_size_and_says_what_it_gave_up(audited: Path) -> None:
    record, files = runs.load(audited), runs.load_files(audited)
    whole = report.render(record, files)
    size, cases = len(whole.encode()), whole.count('<article class="case"')
    assert report.render(record, files, size / 1e6) == whole and "--max-report-mb" not in whole
    previews = report.render(record, files, 0.95 * size / 1e6)
    assert len(previews.encode()) <= 0.95 * size and "pictures are previews of at most 112 pixels" in previews
    assert f"of {cases} cases are shown" not in previews
    least = report.render(record, files, 0.001)
    assert '<article class="case"' not in least and "Without cases, this page takes" in least
    most = (len(previews.encode()) + len(least.encode())) / 2
    some = report.render(record, files, most / 1e6)
    shown = some.count('<article class="case"')
    assert len(some.encode()) <= most and 0 < shown < cases and f", {shown} of {cases} cases are shown" in some
    assert report.render(record, files, most / 1e6) == some
    asked = record.model_copy(update={"options": {**record.options, "max_report_mb": most / 1e6}})
    assert f"of {cases} cases are shown" in report.render(asked, files)


def test_large_pictures_become_previews() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    item = blocks.Item("a", (blocks.Strip((blocks.Picture(images.data_uri(pixels), "", ""),)),), "")
    for largest in PREVIEWS:
        (made,) = with_previews([blocks.Section("cases", "Cases", "", (blocks.Gallery((item,)),))], largest)
        uri = made.blocks[0].items[0].strips[0].pictures[0].uri
        with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as picture:
            assert picture.size == (largest, largest)


@pytest.mark.every_case
def test_a_page_fits_whatever_the_size_and_its_links_lead_to_cases_that_are_there(audited: Path) -> None:
    record, files = runs.load(audited), runs.load_files(audited)
    many = record.model_copy(update={"cases": record.cases * 4})
    exact, n = runs.unpack_arrays(files["evidence/cases.safetensors"]), len(record.cases)
    copies = {f"{k * n + int(name[:3]):03d}{name[3:]}": each for k in range(4) for name, each in exact.items()}
    files = {**files, "evidence/cases.safetensors": runs.pack_arrays(copies)}
    least, whole = (len(report.render(many, files, most).encode()) for most in (0.001, 100))
    for most in np.linspace(least + 3000, whole, 4).tolist():
        page = report.render(many, files, most / 1e6)
        assert len(page.encode()) <= most
        shown = page.count('<article class="case"')
        assert f"{shown} of {len(many.cases)} cases are shown" in page or shown == len(many.cases)
        told = dict(re.findall(r'href="#(class|eps)=([^"&]+)"', page))
        for name, value in told.items():
            assert f'data-{name}="{unquote_plus(value)}"' in page
    train = report.render(make_record(100, ("a", "b"), 90, 10), {}, 0.001)
    assert "0 of 0" not in train and "this page takes" in train and "preview" not in train


def test_gates_are_told_in_the_first_sentence() -> None:
    gate = records.Gate(name="robust_accuracy", threshold=0.4, outcome="failed")
    failed = {"verdict": "FAIL", "exit_code": 3, "gates": (gate,)}
    record = make_record(1000, ("a", "b"), 900, 314).model_copy(update=failed)
    text = " ".join(Reader(report.render(record, {})).text.replace("\u00a0", " ").split())
    assert (
        "FAIL Robust accuracy at L-inf 8/255 31.4 % (95 % CI 28.6–34.3; n = 1,000) is below the gate of 40 %." in text
    )


def test_a_raised_check_is_told_with_what_to_do() -> None:
    check = records.Check(check="logits", status="raised", figure="rows sum to 1", fix="remove the softmax")
    record = make_record(1000, ("a", "b"), 900, 314).model_copy(
        update={"verdict": "INCONCLUSIVE", "preflight": (check,)}
    )
    text = Reader(report.render(record, {})).text
    assert "1 check was raised" in text and "remove the softmax" in text and "INCONCLUSIVE" in text


# -- numbers and pictures ---


def test_how_numbers_are_written() -> None:
    metric = records.Metric(name="x", count=314, n=1000, low=0.286, high=0.343)
    nbsp = numbers.NBSP
    assert numbers.percent(metric) == f"31.4{nbsp}%"
    assert numbers.interval(metric) == f"95{nbsp}% CI 28.6–34.3; n{nbsp}={nbsp}1,000"
    assert numbers.percent(None) == "not run"
    assert numbers.share(0.314, 50) == f"31{nbsp}%"
    assert numbers.eps_short(8 / 255) == "8/255" and numbers.eps_short(0.5, "l2") == "0.5"
    assert numbers.eps_short(2.5 / 255) == "2.5/255" and numbers.eps_short(0.0123) == "0.0123"
    assert numbers.eps_long(8 / 255, "linf") == "L-inf 8/255 (0.0314), pixels in [0, 1]"
    assert numbers.points(-0.0123) == f"−1.2{nbsp}pp"
    assert numbers.duration(750) == "12 min 30 s" and numbers.duration(3725) == "1 h 2 min"
    assert numbers.p_value(0.0001) == "p < 0.001"


def test_heat_maps_of_one_image_share_their_scale() -> None:
    strong, weak = np.full((1, 4, 4), 2.0, np.float32), np.full((1, 4, 4), 1.0, np.float32)
    (first, second), scale = images.heatmap_pair([strong, weak])
    assert scale == 2.0
    assert first[0, 0].tolist() == [176, 84, 0] and second[0, 0].tolist() == [240, 178, 112]
    assert images.diverging(np.array([-1.0, 0.0]))[:, 2].tolist() == [160, 255]


def test_the_top_pixels_of_two_maps_are_compared_by_their_union() -> None:
    a = np.zeros((3, 10, 10), dtype=np.float32)
    a[0, 0, :] = np.arange(10, 20)
    b = np.zeros_like(a)
    b[1, 0, :5] = -np.arange(10, 15)  # signs do not matter, channels are summed
    b[2, 5, :5] = np.arange(10, 15)
    assert top_shared(a, a) == 1 and top_shared(a, -a) == 1 and top_shared(a, b) == pytest.approx(5 / 15)


def test_a_gate_is_drawn_at_its_eps() -> None:
    record = make_record(1000, ("a", "b"), 900, 300)
    eps = record.headline_eps
    gate = records.Gate(
        name="robust_accuracy=0.4", metric="robust_accuracy", norm=None, eps=None, threshold=0.4, outcome="failed"
    )
    page, plain = (report.render(record.model_copy(update={"gates": gates}), {}) for gates in ((gate,), ()))
    label = f'"eps: {eps * 255:g}; bar: 0.4"'
    assert label in page and "thick bar: the gate" in page and label not in plain
    assert re.search(rf'<path aria-label={label}[^>]*d="M[\d.]+,[\d.]+h26v4h-26Z"', page)  # wide, not high


def test_large_changes_are_sampled_and_large_maps_averaged() -> None:
    """Each pixel of a sampled change is one of the change's own; an averaged map keeps its mean."""
    rng = np.random.default_rng(0)
    clean = rng.random((3, 224, 300), dtype=np.float32)
    change = rng.choice([-8, 0, 8], size=clean.shape).astype(np.float32) / 255
    picture, factor = images.perturbation(clean, clean + change)
    assert picture.shape == (119, 160, 3) and factor == 15
    wanted = {round((0.5 + 15 * step / 255) * 255) for step in (-8, 0, 8)}
    assert {int(value) for value in np.unique(picture)} <= {near + d for near in wanted for d in (-1, 0, 1)}
    smooth = np.linspace(-1, 1, 224 * 300, dtype=np.float32).reshape(1, 224, 300)
    (coloured,), scale = images.heatmap_pair([smooth])
    assert coloured.shape == (119, 160, 3) and scale == pytest.approx(0.995, abs=0.01)
    (blue, red), (middle,) = coloured[0, 0, [2, 0]], coloured[59:60, 80, 0]
    assert blue > red and middle > 240
    (small,), _ = images.heatmap_pair([smooth[:, :64, :64]])
    assert small.shape == (64, 64, 3)


def test_a_change_is_amplified_by_the_number_that_is_told() -> None:
    clean = np.full((3, 2, 2), 0.5, np.float32)
    picture, factor = images.perturbation(clean, clean + 0.05)
    assert factor == 10 and (picture == round((0.5 + 0.5) * 255)).all()
    assert images.perturbation(clean, clean)[1] == 1


@pytest.mark.parametrize("value", np.linspace(0, 1, 21))
def test_text_on_the_heat_cells_can_be_read(value: float) -> None:
    background, colour = images.cividis(float(value))
    channels = [int(part) / 255 for part in background[4:-1].split()]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    contrast = 1.05 / (light + 0.05) if colour == "#fff" else (light + 0.05) / 0.05
    assert contrast >= 4.5


def test_blocks_are_plain_values() -> None:
    from robustcv.report import blocks

    made = [each for each in vars(blocks).values() if dataclasses.is_dataclass(each)]
    assert len(made) > 8 and all(each.__dataclass_params__.frozen for each in made)


SHARES_IN = ("curve", "paired", "classes", "certified", "agreement", "overview")


def test_every_percentage_of_accuracy_has_its_n_and_interval_behind_it(pages) -> None:
    """In the tiles and in the tables of accuracy: what is shown lies within its interval."""
    shown = 0
    for folder in pages.values():
        page = (folder / "report.html").read_text()
        tiles = re.findall(r'<div class="tile"><span>([^<]*)</span><b([^>]*)>([^<]*)</b>', page)
        found = [(rest, text) for label, rest, text in tiles if "Relative error" not in label and "gap" not in label]
        for name, content in re.findall(r'<section class="card[^"]*" id="(\w+)">(.*?)</section>', page, re.S):
            if name in SHARES_IN:
                found += re.findall(r"<td([^>]*)>(\d+(?:\.\d)?\xa0%)", content)
        for attributes, text in found:
            if not re.fullmatch(r"\d+(\.\d)?\xa0%", text):
                continue
            told = dict(re.findall(r'data-([\w-]+)="([^"]*)"', attributes))
            assert {"metric", "n", "ci-low", "ci-high"} <= told.keys(), (text, attributes)
            low, high, share = float(told["ci-low"]), float(told["ci-high"]), float(text.split("\xa0")[0]) / 100
            assert int(told["n"]) > 0 and low - 0.006 <= share <= high + 0.006, (text, told)
            shown += 1
    assert shown > 60


# Machado, Oliveira and Fernandes 2009, severity 1
SIMULATED = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def tokens(scheme: str) -> dict[str, np.ndarray]:
    """Read the page's colours, as linear RGB."""
    css = (Path(report.__file__).parent / "report.css").read_text()
    found = {}
    for name, *both in re.findall(r"--(\w+):light-dark\(#(\w{6}),#(\w{6})\)", css):
        full = both[0 if scheme == "light" else 1]
        part = np.array([int(full[k : k + 2], 16) for k in (0, 2, 4)]) / 255
        found[name] = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return found


def lab(linear: np.ndarray) -> np.ndarray:
    from skimage.color import rgb2lab

    bounded = np.clip(linear, 0, 1)
    coded = np.where(bounded <= 0.0031308, 12.92 * bounded, 1.055 * bounded ** (1 / 2.4) - 0.055)
    return rgb2lab(coded[None, None])[0, 0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart_by_the_colour_blind_and_text_can_be_read(scheme: str) -> None:
    from skimage.color import deltaE_ciede2000

    colours = tokens(scheme)
    for group in (("pass", "inc", "fail"), ("s1", "s2", "s3", "s4")):
        for matrix in (np.eye(3), *map(np.array, SIMULATED.values())):
            seen = [lab(matrix @ colours[name]) for name in group]
            apart = [float(deltaE_ciede2000(a, b)) for k, a in enumerate(seen) for b in seen[k + 1 :]]
            assert min(apart) >= 15, (group, apart)

    def contrast(a: str, b: str) -> float:
        bright, dim = sorted((float(colours[name] @ [0.2126, 0.7152, 0.0722]) for name in (a, b)), reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    for ground in ("bg", "card"):
        assert min(contrast(name, ground) for name in ("text", "muted", "pass", "inc", "fail", "accent")) >= 4.5
        assert min(contrast(name, ground) for name in ("s1", "s2", "s3", "s4")) >= 3

"""Explanations run over images: shared passes, measures beside controls, stability, mean maps, the verb."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Curved, make_images, make_linear
from PIL import Image
from test_explainers import Counting
from torch import nn

import robustcv as rc
from robustcv.classifier import frozen
from robustcv.data import ImageSet
from robustcv.errors import UserError
from robustcv.evaluation.attribution import explain_images
from robustcv.evaluation.faithfulness import BUDGETED, at_budget, judge_maps
from robustcv.evaluation.focus import class_focus, heaviest_window
from robustcv.evaluation.neighbours import features_of, nearest
from robustcv.evaluation.stability import furthest_held, stability
from robustcv.explainers import EXPLAINERS
from robustcv.report.tiles import tiles
from robustcv.runtime import chunk_size, in_chunks

CPU = torch.device("cpu")


@pytest.fixture
def problem():
    return Curved(), make_images(6, dtype=torch.float32), torch.tensor([0, 1, 2, 3, 1, 0])


def run(model, images, targets, *names, options=None, batch_size=64):
    with frozen(model):
        return explain_images(
            model, images, targets, [str(k) for k in range(len(images))],
            methods={name: EXPLAINERS[name] for name in names}, options=options or {}, seed=0, batch_size=batch_size,
            device=CPU,
        )  # fmt: skip


def test_methods_that_hide_regions_share_their_passes_and_say_so(problem) -> None:
    model, images, targets = problem
    counting = Counting(model)
    small = {name: {"samples": 60} for name in ("kernel_shap", "lime", "shapley")}
    made = run(counting, images, targets, "kernel_shap", "lime", "shapley", options=small)
    squares, line, chosen = (result for _, result in made.values())
    assert (squares.reused, line.reused) == (0, line.forwards)
    assert 2 * len(images) <= chosen.reused < chosen.forwards  # it chooses its own masks; some are the same
    assert counting.rows == squares.forwards + chosen.forwards - chosen.reused
    alone = run(model, images, targets, "lime", options=small)["lime"][0]
    assert torch.equal(alone.heatmaps, made["lime"][0].heatmaps)  # sharing changes nothing


@pytest.mark.parametrize("name", ["integrated_gradients", "gradient_shap", "shapley", "rise", "lime"])
def test_a_map_is_the_same_whatever_the_batch_size(problem, name) -> None:
    model, images, targets = problem
    usual, _ = run(model, images, targets, name)[name]
    for batch_size in (1, 4):
        other, _ = run(model, images, targets, name, batch_size=batch_size)[name]
        assert torch.allclose(usual.heatmaps, other.heatmaps, atol=1e-5)
        assert other.error.shape == usual.error.shape


def test_values_that_are_not_finite_are_refused(problem) -> None:
    _, images, targets = problem

    class Overflows(nn.Module):
        def forward(self, x):
            return (x.mean((1, 2, 3)) / 0)[:, None] * torch.tensor([[1.0, -1.0, 2.0, 0.0]])

    with pytest.raises(UserError, match="not finite"):
        run(Overflows(), images, targets, "saliency")


def test_budgets_are_kept_by_every_method_that_has_a_choice(problem) -> None:
    model, _, targets = problem
    images = make_images(6, (3, 24, 24), dtype=torch.float32)
    for name in BUDGETED:
        if name == "partition_shap":
            continue
        for budget in (64, 200):
            made, _ = run(model, images, targets, name, options={name: at_budget(name, budget)})[name]
            assert 0.25 * budget <= int(made.forwards.max()) <= 1.02 * budget + 1, (name, budget, made.forwards)


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    tried = []

    def work(part: slice) -> int:
        tried.append(part.stop - part.start)
        if tried[-1] > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return tried[-1]

    assert sum(in_chunks(work, 20, 16)) == 20
    assert tried[:3] == [16, 8, 4] and max(tried[3:]) <= 2

    def hopeless(part: slice) -> int:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(RuntimeError, match="allocate memory"):
        in_chunks(hopeless, 4, 4)
    with pytest.raises(RuntimeError, match="a bug"):
        in_chunks(lambda part: (_ for _ in ()).throw(RuntimeError("a bug")), 4, 4)


def test_the_chunk_follows_the_size_of_the_images() -> None:
    assert chunk_size(torch.zeros(1, 3, 32, 32), None) == 64
    assert chunk_size(torch.zeros(1, 3, 224, 224), None) == 6
    assert chunk_size(torch.zeros(1, 3, 4000, 4000), None) == 1
    assert chunk_size(torch.zeros(1, 3, 224, 224), 50) == 50


def test_nothing_that_is_slow_to_import_comes_with_the_explainers() -> None:
    slow = '[name for name in ("shap", "captum", "skimage") if name in sys.modules]'
    code = f"import sys, robustcv, robustcv.explainers; print({slow})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- quality ---


def test_the_true_map_beats_edges_and_a_random_map_does_not() -> None:
    model, images = make_linear(3, (3, 8, 8), dtype=torch.float32), make_images(30, (3, 8, 8), dtype=torch.float32)
    with torch.no_grad():
        targets = model(images).argmax(1)
    share = model.weights.detach()[targets].reshape(30, 3, 8, 8) * images
    noise = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    results = judge_maps(
        model, images, targets, [str(k) for k in range(30)], maps={"truth": share, "noise": noise}, explain={},
        measures=["deletion", "insertion", "completeness"], forwards={"truth": 2}, gaps={"truth": torch.zeros(30)},
        masks=None, seed=0,
    )  # fmt: skip
    found = {(row.method, row.measure): row for row in results}
    assert found["truth", "deletion"].beats and found["truth", "insertion"].beats
    assert not found["noise", "deletion"].beats
    assert found["sobel", "deletion"].beats is None and found["sobel", "deletion"].control
    assert found["truth", "completeness"].mean == 0 and ("noise", "completeness") not in found
    assert all(row.low <= row.mean <= row.high for row in results)
    row = found["truth", "deletion"]
    assert row.difference == pytest.approx(row.mean - found["sobel", "deletion"].mean, abs=1e-9)


# -- stability ---


def gradient_maps(model, images, targets):
    with frozen(model):
        return EXPLAINERS["saliency"](model, images, targets).heatmaps


def test_the_gradient_of_a_linear_model_stands_any_attack() -> None:
    model, images = make_linear(3, (3, 8, 8), dtype=torch.float32), make_images(5, (3, 8, 8), dtype=torch.float32)
    with frozen(model):
        targets = model(images).argmax(1)
        rows = stability(
            model,
            images,
            targets,
            list("abcde"),
            predictions=targets,
            explain={"saliency": gradient_maps},
            eps=(0.02, 0.2),
            norm="linf",
            seed=0,
        )
    perfect = {"top_overlap": 1.0, "spearman": 1.0, "mass_shift": 0.0, "centroid_shift": 0.0}
    assert {row.change for row in rows} == {
        "noise", "attack, prediction held", "attack, prediction flipped", "attack on the map"
    }  # fmt: skip
    assert all(row.mean == pytest.approx(perfect[row.quantity], abs=1e-5) for row in rows)


class Wavy(nn.Module):
    """Its gradient turns quickly, so that maps can be moved."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
                nn.Linear(16 * 64, 3),
            )  # fmt: skip

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_changes_stay_in_the_ball_and_hold_the_prediction_where_they_say_so(norm) -> None:
    from robustcv.attacks.map_pgd import map_pgd
    from robustcv.attacks.norms import NORMS
    from robustcv.attacks.pgd import pgd

    model, images = Wavy().requires_grad_(False), make_images(8, (3, 8, 8), dtype=torch.float32)
    eps = 0.05 if norm == "linf" else 0.5
    with torch.no_grad():
        targets = model(images).argmax(1)
    worst = pgd(model, images, targets, eps=eps, norm=norm)
    for moved in (furthest_held(model, images, worst, targets), map_pgd(model, images, targets, eps=eps, norm=norm)):
        assert (NORMS[norm].distance(moved, images) <= eps * (1 + 1e-5)).all()
        assert moved.min() >= 0 and moved.max() <= 1
        assert torch.equal(model(moved).argmax(1), targets)


def test_an_attack_on_the_map_moves_it_further_than_noise_of_the_same_size() -> None:
    model, images = Wavy(), make_images(8, (3, 8, 8), dtype=torch.float32)

    def shares(classifier, x, t):
        with frozen(classifier):
            return EXPLAINERS["input_x_gradient"](classifier, x, t).heatmaps

    with frozen(model):
        with torch.no_grad():
            targets = model(images).argmax(1)
        rows = stability(
            model,
            images,
            targets,
            list("abcdefgh"),
            predictions=targets,
            explain={"shares": shares},
            eps=(0.03,),
            norm="linf",
            seed=0,
        )
    moved = {row.change: row.mean for row in rows if row.quantity == "mass_shift"}
    assert moved["attack on the map"] > 1.3 * moved["noise"]


# -- mean maps and neighbours ---


def test_a_tag_in_the_corner_of_one_class_raises_the_alarm_and_scattered_objects_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.zeros(60, 1, 32, 32)
    for k, (y, x) in enumerate(torch.randint(4, 24, (60, 2), generator=generator).tolist()):
        maps[k, 0, y : y + 4, x : x + 4] = 1
    classes = torch.arange(60) % 3
    rows, pictures = class_focus({"m": maps}, classes, ("a", "b", "c"), None)
    assert not any(row.alarm for row in rows) and len(pictures) == 3
    maps[classes == 1] = 0.01
    maps[classes == 1, :, :4, 28:] = 1
    rows, _ = class_focus({"m": maps}, classes, ("a", "b", "c"), None)
    assert [row.alarm for row in rows] == [False, True, False]
    assert rows[1].place == (pytest.approx(2 / 32), pytest.approx(30 / 32)) and rows[1].share > 0.5


def test_relevance_outside_the_object_raises_the_alarm() -> None:
    masks = torch.zeros(10, 16, 16, dtype=torch.bool)
    masks[:, :8] = True
    maps = torch.rand(10, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    classes = torch.zeros(10, dtype=torch.long)
    outside = maps * (1 - masks[:, None].float())
    for heat, alarm in ((maps * masks[:, None], False), (outside, True)):
        (row,), _ = class_focus({"m": heat}, classes, ("a",), masks)
        assert row.alarm is alarm and row.inside == pytest.approx(0.0 if alarm else 1.0)


def test_the_heaviest_window_by_hand() -> None:
    mean = torch.zeros(16, 24)
    mean[4:6, 9:12] = 0.1
    share, (y, x) = heaviest_window(mean)
    assert share == pytest.approx(0.6) and (y, x) == (pytest.approx(5 / 16), pytest.approx(10.5 / 24))


def test_the_nearest_image_in_feature_space_is_the_image_itself(problem) -> None:
    model, images, targets = problem
    known = ImageSet((images * 255).round().to(torch.uint8), targets, tuple("abcd"))
    with frozen(model):
        features = features_of(model, known, batch_size=4, device=CPU)
    rows, distances = nearest(features, features, 3)
    assert rows[:, 0].tolist() == list(range(6)) and distances[:, 0].abs().max() < 1e-5
    assert (distances.diff(dim=1) >= 0).all()
    assert not any(module._forward_pre_hooks for module in model.modules())


# -- the verb ---


def test_everything_the_page_can_show_is_there(trained: Path, tmp_path: Path) -> None:
    made = rc.explain(
        str(trained), "digits", n=50, method=["ig", "shapley"], measures=["deletion"],
        budget=32, neighbours="digits", cases=3, out=tmp_path / "explain", quiet=True,
    )  # fmt: skip
    attacked = rc.explain(
        str(trained), "digits", n=6, method=["ig", "shapley"], measures=["randomisation_smooth"], budget=32,
        eps="8/255", out=tmp_path / "attacked", quiet=True,
    )  # fmt: skip
    record = made.record
    assert [result.method for result in record.explanations] == ["integrated_gradients", "shapley"]
    assert len(record.cases) == 3 and all(len(case.neighbours) == 3 for case in record.cases)
    assert {row.method for row in record.measures} == {"integrated_gradients", "shapley", "random", "sobel", "centre"}
    assert {row.quantity for row in attacked.record.stability} == {
        "spearman",
        "top_overlap",
        "mass_shift",
        "centroid_shift",
    }
    assert record.focus and all(row.n >= 5 for row in record.focus)
    page = made.page.read_text() + attacked.page.read_text()
    for wanted in ("How good are the maps?", "Do the maps stand an attack?", "Where classes are looked for"):
        assert wanted in page
    for broken in ("None", "nan", "undefined", "e-0", "e+0"):
        assert f">{broken}<" not in page and f"{broken} %" not in page, broken


def test_single_files_are_explained_without_labels(trained: Path, tmp_path: Path) -> None:
    paths = []
    digits, _ = next(rc.load_images("digits", n=2).batches(2))
    for k in range(2):
        paths.append(str(tmp_path / f"{k}.png"))
        Image.fromarray((digits[k, 0] * 255).round().byte().numpy()).save(paths[-1])
    made = rc.explain(str(trained), files=paths, method="saliency", quiet=True)
    assert len(made.record.cases) == 2 and made.record.metrics == () and made.record.cases[0].label is None
    Image.new("L", (9, 9)).save(tmp_path / "large.png")
    for files, message in (
        ([str(tmp_path / "none.png")], "does not exist"),
        ([*paths, str(tmp_path / "large.png")], "differ in size"),
    ):
        with pytest.raises(UserError, match=message):
            rc.explain(str(trained), files=files, quiet=True)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="cannot be read"):
        rc.explain(str(trained), files=[str(tmp_path / "text.png")], quiet=True)
    with pytest.raises(UserError, match="both given"):
        rc.explain(str(trained), "digits", files=paths, quiet=True)
    with pytest.raises(UserError, match="nothing to explain"):
        rc.explain(str(trained), quiet=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sharpley"}, "no explainer called"),
        ({"measures": "delation"}, "no measure called"),
        ({"set": ["shapley.regions=slick:3"], "method": "shapley"}, "cannot be read"),
        ({"set": ["shapley.fill=images:x"], "method": "shapley"}, "images:K"),
        ({"targets": 99}, "not all classes"),
        ({"targets": 1.5}, "not all classes"),
        ({"eps": 8}, "eps 8 is outside"),
    ],
)
def test_a_mistake_is_told(trained: Path, options, message) -> None:
    with pytest.raises(UserError, match=message):
        rc.explain(str(trained), "digits", n=2, quiet=True, **options)


def test_other_images_can_fill(trained: Path) -> None:
    made = rc.explain(str(trained), "digits", n=4, method="shapley", set=["shapley.fill=images:3"], quiet=True)
    assert made.record.explanations[0].details["baseline"] == "3 other images"


def test_the_class_asked_for_is_explained_while_the_prediction_is_attacked() -> None:
    model, images = Wavy(), make_images(6, (3, 8, 8), dtype=torch.float32)
    with frozen(model):
        predictions = model(images).argmax(1)
        rows = stability(
            model, images, (predictions + 1) % 3, list("abcdef"), predictions=predictions,
            explain={"saliency": gradient_maps}, eps=(0.05,), norm="l2", seed=0, rows=4,
        )  # fmt: skip
    moved = {row.change: row for row in rows if row.quantity == "spearman"}
    assert moved["attack on the map"].mean < 0.999 and moved["noise"].n == 6


def test_maps_of_zeros_are_left_out_of_means_that_need_a_share() -> None:
    model, images = make_linear(3, (3, 8, 8), dtype=torch.float32), make_images(8, (3, 8, 8), dtype=torch.float32)
    maps = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    maps[2] = 0
    results = judge_maps(
        model, images, torch.zeros(8, dtype=torch.long), list("abcdefgh"), maps={"m": maps},
        explain={"m": lambda c, x, t: maps + 0.1}, measures=["max_sensitivity"], forwards={}, gaps={}, masks=None,
        seed=0,
    )  # fmt: skip
    (row,) = [each for each in results if each.method == "m"]
    assert row.n == 7 and row.mean < 1


def test_few_images_beat_nothing() -> None:
    model, images = make_linear(3, (3, 8, 8), dtype=torch.float32), make_images(3, (3, 8, 8), dtype=torch.float32)
    results = judge_maps(
        model, images, torch.zeros(3, dtype=torch.long), list("abc"), maps={"m": torch.rand(3, 1, 8, 8)}, explain={},
        measures=["deletion"], forwards={}, gaps={}, masks=None, seed=0,
    )  # fmt: skip
    assert all(row.beats is None for row in results)


def test_random_maps_raise_the_alarm_about_the_object_rarely() -> None:
    masks = torch.zeros(20, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 4:12] = True
    raised = 0
    for seed in range(40):
        maps = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        (row,), _ = class_focus({"m": maps}, torch.zeros(20, dtype=torch.long), ("a",), masks)
        raised += row.alarm
    assert raised <= 5
    rows, _ = class_focus({"m": torch.zeros(20, 1, 16, 16)}, torch.zeros(20, dtype=torch.long), ("a",), masks)
    assert rows == ()


def test_an_explaining_run_is_repeated_from_its_config(trained: Path, tmp_path: Path, capsys) -> None:
    from robustcv.cli import main

    first, again = tmp_path / "first", tmp_path / "again"
    made = rc.explain(str(trained), "digits", 3, n=3, method="saliency", out=first, quiet=True)
    assert made.record.options["targets"] == 3 and "class asked for" in made.page.read_text()
    with pytest.raises(SystemExit) as ended:
        main(["explain", "--config", str(first / "config.toml"), "-o", str(again), "-q"])
    assert ended.value.code == 0
    maps = [(folder / "evidence" / "heatmaps.safetensors").read_bytes() for folder in (first, again)]
    assert maps[0] == maps[1]


def test_records_from_before_the_two_errors_were_told_apart_are_read_as_they_were_meant() -> None:
    from robustcv.records import ExplainerResult, HeatmapRef

    old = {
        "method": "integrated_gradients", "options": {}, "images": 1, "forwards": 66, "seconds": 1.0,
        "error_name": "completeness gap", "median_error": 0.02, "worst_error": 0.1, "details": {},
    }  # fmt: skip
    result = ExplainerResult.model_validate(old)
    assert (result.median_gap, result.worst_gap, result.median_error) == (0.02, 0.1, None)
    assert ExplainerResult.model_validate_json(result.model_dump_json()) == result
    ref = {"method": "m", "image": "clean", "target": 1, "error": 0.3, "forwards": 2, "details": {}, "file": "f"}
    read = HeatmapRef.model_validate(ref)
    assert (read.gap, read.error) == (0.3, None)
    assert HeatmapRef.model_validate_json(read.model_dump_json()) == read


def test_an_audit_measures_maps_as_explain_does_and_a_comparison_shows_both(trained: Path, tmp_path: Path) -> None:
    options = {"n": 32, "measures": ["deletion", "sparseness"], "quiet": True}
    quick = {"eps": "8/255", "sweep": False, "attacks": ["fgsm"], "cases": 0, "explain": ("saliency",)}
    run = rc.audit(str(trained), "digits", **options, **quick, also=["maps"], out=tmp_path / "run")
    followed = next(row for row in run.stability if row.change.endswith("held") and row.quantity == "spearman")
    assert tiles(run.record)[3].value == f"{followed.mean:.2f}"
    told = {(row.method, row.measure): row for row in run.measures}
    for row in rc.explain(str(trained), "digits", **options, method="saliency").measures:
        assert told[row.method, row.measure].mean == pytest.approx(row.mean, abs=1e-6), row
    page = rc.compare(tmp_path / "run", tmp_path / "run", names=("one", "two"), out=tmp_path / "both").page.read_text()
    league = page.split('id="league"', 1)[1].split("</section>", 1)[0]
    assert "<caption>one</caption>" in league and "<caption>two</caption>" in league
    assert 'scope="row">deletion</th>' in page.split('id="glossary"', 1)[1]
    with pytest.raises(UserError, match="cannot be had here"):
        rc.audit(str(trained), "digits", n=32, measures=["pointing"], **quick, quiet=True)

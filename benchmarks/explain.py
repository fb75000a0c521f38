"""Explanations against the usual tools: error at equal passes, time over the floor, measures, and what shortcuts show.

    python benchmarks/explain.py [--only shapley,ig,overhead,deep_lift,measures,league] [--rounds 3] [--images 8]

Runs in .venv-bench (`make bench` makes it); needs ROBUSTCV_DATA and the models of `make bench-models`. Same model, same
images and same budget for everyone, in one process; times are medians of alternating rounds. Tables go to stdout.
"""

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from models import images_of, read
from torch import Tensor, nn

from robustcv import stats
from robustcv.classifier import frozen
from robustcv.explainers import EXPLAINERS
from robustcv.explainers.coalitions import draw
from robustcv.explainers.design import choose
from robustcv.explainers.kernel_shap import least_squares
from robustcv.explainers.odd_process import exact, shapley_values
from robustcv.explainers.regions import neighbours, regions_of

WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("cifar_resnet20-cifar-standard", "small_cnn-cifar-standard", "small_cnn-cifar-pgd")
BUDGETS = (50, 100, 200, 400, 800)
MORE = (1600, 3200)  # for those who need them
GRIDS = {8: "grid:2x4", 12: "grid:3x4", 16: "grid:4"}


def problem(name: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Give a frozen model, test images and the classes it predicts."""
    model = read(name, WEIGHTS).requires_grad_(False)
    images, _ = next(images_of(name, "test").take(torch.arange(n)).batches(n))
    with torch.no_grad():
        return model, images, model(images).argmax(1)


# -- Shapley values: error at equal forwards, coverage ---


def games(name: str, k: int, n: int) -> np.ndarray:
    """Enumerate all 2**k coalitions of k rectangles, mean fill, predicted logit; row i is image i."""
    model, images, targets = problem(name, n)
    regions = regions_of(images, GRIDS[k])
    masks = torch.from_numpy(every_mask(k))
    found = []
    with torch.no_grad():
        for image, where, target in zip(images, regions, targets, strict=True):
            fill = image.mean((1, 2), keepdim=True)
            parts = [torch.where(part[:, where][:, None], image, fill) for part in masks.split(1024)]
            found.append(torch.cat([model(part)[:, target] for part in parts]).double().numpy())
    return np.stack(found)


def every_mask(k: int) -> np.ndarray:
    return ((np.arange(2**k)[:, None] >> np.arange(k)) & 1).astype(bool)


def looked_up(values: np.ndarray, k: int) -> Callable[[np.ndarray], np.ndarray]:
    """Give the game as a function of masks, so that every peer plays the same one."""
    place = 1 << np.arange(k)
    return lambda masks: values[(np.asarray(masks) > 0.5).astype(int) @ place]


def by_captum(kind: str, game: Callable[[np.ndarray], np.ndarray], k: int, budget: int, seed: int) -> np.ndarray:
    from captum.attr import KernelShap, ShapleyValueSampling

    torch.manual_seed(seed)
    np.random.seed(seed)
    forward = lambda x: torch.from_numpy(game(x.numpy()))  # noqa: E731
    ones, zeros = torch.ones(1, k), torch.zeros(1, k)
    if kind == "KernelShap":
        made = KernelShap(forward).attribute(ones, zeros, n_samples=budget, perturbations_per_eval=64)
    else:
        orders = max(1, (budget - 1) // k)
        made = ShapleyValueSampling(forward).attribute(ones, zeros, n_samples=orders, perturbations_per_eval=1)
    return made.numpy()[0]


def by_shap(kind: str, game: Callable[[np.ndarray], np.ndarray], k: int, budget: int, seed: int) -> np.ndarray:
    import shap

    np.random.seed(seed)
    if kind == "Permutation":
        explainer = shap.PermutationExplainer(game, np.zeros((1, k)), seed=seed)
        return explainer(np.ones((1, k)), max_evals=max(2 * k + 1, budget), silent=True).values[0]
    explainer = shap.KernelExplainer(game, np.zeros((1, k)))
    more = {"l1_reg": 0} if kind == "Kernel, l1_reg=0" else {}
    return explainer.shap_values(np.ones((1, k)), nsamples=max(2, budget - 2), silent=True, **more)[0]


ESTIMATORS: dict[str, Callable[..., np.ndarray]] = {
    "robustcv shapley": lambda game, k, budget, seed: ours(game, k, budget, seed)[0],
    "robustcv kernel_shap": lambda game, k, budget, seed: squares(game, k, budget, seed),
    "shap Kernel, l1_reg=0": lambda *rest: by_shap("Kernel, l1_reg=0", *rest),
    "shap Kernel, default": lambda *rest: by_shap("Kernel", *rest),
    "shap Permutation": lambda *rest: by_shap("Permutation", *rest),
    "captum KernelShap": lambda *rest: by_captum("KernelShap", *rest),
    "captum ShapleyValueSampling": lambda *rest: by_captum("Sampling", *rest),
}


def ours(game: Callable[[np.ndarray], np.ndarray], k: int, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = choose(k, budget, seed)
    (where,) = regions_of(torch.zeros(1, 3, 32, 32), GRIDS[k])
    return shapley_values(chosen, game(chosen), neighbours(where))


def squares(game: Callable[[np.ndarray], np.ndarray], k: int, budget: int, seed: int) -> np.ndarray:
    drawn = draw(k, budget, seed)
    return least_squares(drawn, game(drawn))


def shapley(options: argparse.Namespace) -> None:
    """Median relative error over images and seeds, and the forwards at which it is 8 %."""
    for name in MODELS:
        for k in (12, 8, 16):
            values = games(name, k, options.images if k < 16 else 3)
            truth = [exact(every_mask(k), own) for own in values]
            names = (
                list(ESTIMATORS) if k == 12 else ["robustcv shapley", "robustcv kernel_shap", "shap Kernel, l1_reg=0"]
            )
            print(f"\n### {name}, {k} rectangles, {len(values)} images x {options.seeds} seeds\n")
            print("| estimator | " + " | ".join(map(str, BUDGETS)) + " | forwards for 8 % |\n|" + "---|" * 7)
            for estimator in names:
                errors: list[float] = []
                for budget in (*BUDGETS, *MORE):
                    if budget in MORE and errors[-1] <= 0.08:
                        break
                    found = []
                    for image, own in enumerate(values):
                        game = looked_up(own, k)
                        for seed in range(options.seeds):
                            estimate = ESTIMATORS[estimator](game, k, budget, 1000 * image + seed)
                            found.append(np.linalg.norm(estimate - truth[image]) / np.linalg.norm(truth[image]))
                    errors.append(statistics.median(found))
                row = " | ".join(f"{100 * each:.1f} %" for each in errors[: len(BUDGETS)])
                print(f"| {estimator} | {row} | {crossing((*BUDGETS, *MORE), errors, 0.08)} |", flush=True)
            covered = []
            for budget in BUDGETS[:4]:
                hits = []
                for image, own in enumerate(values):
                    for seed in range(options.coverage):
                        estimate, margin = ours(looked_up(own, k), k, budget, 7000 + 1000 * image + seed)
                        hits.append(np.mean(np.abs(estimate - truth[image]) <= margin + 1e-12))
                covered.append(f"{100 * np.mean(hits):.1f} % at {budget}")
            print(f"\n95 % intervals of `shapley` covered {', '.join(covered)}.", flush=True)


def falls(budgets: tuple[float, ...], errors: list[float], level: float) -> float | None:
    """Interpolate, in logarithms, where an error curve falls to a level; None outside the budgets."""
    if errors[0] > level:
        for left, right, high, low in zip(budgets, budgets[1:], errors, errors[1:], strict=False):
            if low <= level:
                share = (math.log(high) - math.log(level)) / (math.log(high) - math.log(low))
                return math.exp(math.log(left) + share * (math.log(right) - math.log(left)))
    return None


def crossing(budgets: tuple[float, ...], errors: list[float], level: float) -> str:
    """Say where an error curve falls to a level."""
    found = falls(budgets, errors, level)
    if found is None:
        return f"under {budgets[0]:.0f}" if errors[0] <= level else f"over {budgets[-1]:.0f}"
    return f"{found:.0f}"


# -- integrated gradients: passes for a stated error ---


THEIRS, OURS = "captum, gausslegendre", "robustcv, error="


def ig(options: argparse.Namespace) -> None:
    """Points for a median error of 5, 2 and 1 %, and how often a stated error was met."""
    from captum.attr import IntegratedGradients

    n = max(16, options.images)
    print("\n### Integrated gradients, points on the path (forward and backward) for a median relative error\n")
    print("| model | method | 5 % | 2 % | 1 % |\n|---|---|---|---|---|")
    for name in (*MODELS[:2], "cifar_resnet20-fashion-single-step"):
        model, images, targets = problem(name, n)
        truth = EXPLAINERS["integrated_gradients"](model, images, targets, steps=2000).heatmaps

        def off(maps: Tensor, truth: Tensor = truth) -> Tensor:
            return (maps - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)

        steps = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
        curves: dict[str, tuple[list[float], list[float]]] = {}
        for method in ("gausslegendre", "riemann_middle"):
            theirs = IntegratedGradients(model)
            errors = []
            for k in steps:
                made = theirs.attribute(images, target=targets, n_steps=k, method=method, internal_batch_size=256)
                errors.append(float(off(made.detach().float()).median()))
            curves[f"captum, {method}"] = ([float(k) for k in steps], errors)
        spent, errors, lines = [], [], []
        for wanted in (0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01):
            made = EXPLAINERS["integrated_gradients"](model, images, targets, error=wanted)
            spent.append(float((made.forwards - 1).median()) / 2)
            errors.append(float(off(made.heatmaps).median()))
            met = float((off(made.heatmaps) <= wanted).float().mean())
            lines.append(f"error={wanted}: met on {100 * met:.0f} % of images with {spent[-1]:.0f} points (median)")
        curves[OURS] = (spent, errors)
        for method, (points, found) in curves.items():
            cells = [crossing(tuple(points), found, level) for level in (0.05, 0.02, 0.01)]
            print(f"| {name} | {method} | {' | '.join(cells)} |", flush=True)
        default, own = (falls(tuple(curves[way][0]), curves[way][1], 0.02) for way in (THEIRS, OURS))
        if default and own:
            lines.append(f"captum's default over ours at 2 %: {default / own:.2f}")
        print("| | " + "; ".join(lines) + " | | | |", flush=True)


# -- time over the floor ---


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


ASKING = ("occlusion", "lime", "rise", "kernel_shap", "shapley")  # by forward passes alone
ONCE = ("saliency", "deep_lift", "grad_cam")  # in one pass or two


def overhead(options: argparse.Namespace) -> None:
    """Seconds of a method over those of its bare passes at the best batch, measured in turns."""
    print("\n### Time over the floor: rows x time of a row at the best batch")
    print("\nOf methods of one pass or two also over the bare passes of the same images, in brackets.\n")
    methods = {
        "saliency": {}, "integrated_gradients": {"steps": 32}, "gradient_shap": {"samples": 32},
        "smooth_grad": {"samples": 32}, "deep_lift": {}, "grad_cam": {}, "occlusion": {}, "lime": {}, "rise": {},
        "kernel_shap": {}, "shapley": {},
    }  # fmt: skip
    sizes = (1, 8, 64)
    print("| model | method | " + " | ".join(f"{n} images" for n in sizes) + " |\n|" + "---|" * 5)
    for name in ("cifar_resnet20-cifar-standard", "small_cnn-cifar-standard"):
        model, images, targets = problem(name, 64)
        best = {back: best_batch(model, images, back=back) for back in (False, True)}
        for method, given in methods.items():
            cells = []
            back = method not in ASKING
            for n in sizes:
                regions = (
                    {"regions": regions_of(images[:n], "slic:16")}
                    if method in ("lime", "kernel_shap", "shapley")
                    else {}
                )
                run = lambda: EXPLAINERS[method](model, images[:n], targets[:n], **given, **regions)  # noqa: E731, B023
                made = run()
                passes = int(made.forwards.sum()) + int(made.details.get("shared_forwards", 0))
                rows = passes / (2 if back else 1)
                cell = f"{over(run, model, best[back], rows, options.rounds, back=back):.2f}"
                if method in ONCE:
                    cell += f" ({over(run, model, images[:n], rows, options.rounds, back=back):.2f})"
                cells.append(cell)
            print(f"| {name} | {method} | " + " | ".join(cells) + " |", flush=True)


def best_batch(model: nn.Module, images: Tensor, *, back: bool) -> Tensor:
    """Find the batch whose rows pass in the least time."""
    batches = [images.repeat(-(-size // len(images)), 1, 1, 1)[:size].contiguous() for size in (16, 32, 64, 128, 256)]
    return min(batches, key=lambda rows: min(timed(lambda: bare(model, rows, back=back)) for _ in range(5)) / len(rows))


def over(run: Callable[[], object], model: nn.Module, batch: Tensor, rows: float, rounds: int, *, back: bool) -> float:
    """Measure a method and bare passes of a batch in turns: the ratio of the medians, for as many rows."""
    took = timed(run)
    turns = max(rounds, min(50, int(0.5 / took)))
    every = max(1, min(20, int(took / timed(lambda: bare(model, batch, back=back)))))
    pairs = []
    for _ in range(turns):
        floor = statistics.median(timed(lambda: bare(model, batch, back=back)) for _ in range(every))
        pairs.append((timed(run), floor / len(batch) * rows))
    return statistics.median(own for own, _ in pairs) / statistics.median(floor for _, floor in pairs)


def bare(model: nn.Module, rows: Tensor, *, back: bool) -> None:
    if not back:
        with torch.no_grad():
            model(rows)
        return
    inputs = rows.clone().requires_grad_()
    torch.autograd.grad(model(inputs)[:, 0].sum(), inputs)


# -- measures against Quantus ---


class Grey(nn.Module):
    """Takes grey images of one channel for a model that wants three."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.expand(-1, 3, -1, -1))


def measures(options: argparse.Namespace) -> None:
    """The same values, and the time."""
    import quantus

    from robustcv.measures.deletion import area, removal_curve
    from robustcv.measures.randomisation import randomisation_smooth
    from robustcv.measures.ranking import ranks
    from robustcv.measures.road import imputed

    warnings.simplefilter("ignore")
    np.trapz = np.trapezoid  # Quantus 0.6 calls it by the name that numpy 2.4 has taken away
    n = 32
    coloured, images, targets = problem("cifar_resnet20-fashion-single-step", n)
    model, images = Grey(coloured).eval(), images[:, :1].contiguous()  # one channel: Quantus ranks channels apart
    side = images.shape[-1]
    maps = EXPLAINERS["deep_lift"](model, images, targets).heatmaps.sum(1, keepdim=True)
    # black pixels all have 0: ties, which we break by lot and Quantus by place; here both are given the same order
    maps = maps + 1e-6 * maps.abs().amax() * torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))
    x, y, a = images.numpy(), targets.numpy(), maps.numpy()
    shares = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    common = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}

    def our_flipping() -> np.ndarray:
        curve = removal_curve(model, images, targets, ranks(maps), steps=side, fill=0.0, of="probability")
        return area(curve[:, 1:]).numpy()

    def their_flipping() -> np.ndarray:
        metric = quantus.PixelFlipping(
            features_in_step=side, perturb_baseline="black", return_auc_per_sample=True, **common
        )
        return np.array(metric(model, x, y, a, device="cpu", softmax=True)) / (side - 1)

    def our_road() -> np.ndarray:
        rank, pixels = ranks(maps), side * side
        with torch.no_grad():
            said = [model(imputed(images, rank < int(s * pixels), noise=0)).argmax(1) for s in shares]
        return np.array([float((each == targets).float().mean()) for each in said])

    def their_road() -> np.ndarray:
        metric = quantus.ROAD(noise=0.0, percentages=[round(100 * s) for s in shares], **common)
        found = metric(model, x, y, a, device="cpu")
        return np.array([found[key] for key in sorted(found)])

    def again(classifier: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
        with frozen(classifier):
            return EXPLAINERS["saliency"](classifier, inputs, wanted).heatmaps

    layers = sum(hasattr(module, "reset_parameters") for module in model.modules())

    def our_mprt() -> np.ndarray:
        first, options = again(model, images, targets), {"stages": layers, "samples": 1, "noise": 0.0}
        return randomisation_smooth(model, images, targets, first, explain=again, **options).numpy()

    def their_mprt() -> np.ndarray:
        def explain(model, inputs, targets, **kwargs):
            return again(model, torch.as_tensor(inputs), torch.as_tensor(targets)).sum(1, keepdim=True).numpy()

        metric = quantus.MPRT(
            similarity_func=quantus.similarity_func.correlation_spearman, layer_order="top_down", **common
        )
        found = metric(model, x, y, None, device="cpu", explain_func=explain)
        return np.array([np.mean(np.abs(each)) for each in found.values()])

    print(f"\n### Measures of {n} maps, cifar_resnet20 on Fashion-MNIST, against Quantus {quantus.__version__}\n")
    print("| measure | robustcv | Quantus | ratio | values |\n|---|---|---|---|---|")
    pairs = {f"pixel flipping, {side} steps": (our_flipping, their_flipping), "ROAD, 9 levels": (our_road, their_road),
             f"MPRT, {layers} layers": (our_mprt, their_mprt)}  # fmt: skip
    for name, (us, them) in pairs.items():
        times: tuple[list[float], list[float]] = ([], [])
        values = []
        for _ in range(options.rounds):
            for spent, work in zip(times, (us, them), strict=True):
                start = time.perf_counter()
                values.append(work())
                spent.append(time.perf_counter() - start)
        own, other = (statistics.median(each) for each in times)
        first, second = values[-2], values[-1]
        if first.shape == second.shape:
            told = f"largest difference {np.abs(first - second).max():.2g}"
        else:
            told = f"means {first.mean():.3f} and {second.mean():.3f} (other random weights)"
        print(f"| {name} | {own:.2f} s | {other:.2f} s | {other / own:.1f} | {told} |", flush=True)


def together(options: argparse.Namespace) -> None:
    """Deletion, insertion and ROAD of 64 images by six methods, over the bare forward passes."""
    from robustcv.measures import MEASURES

    model, images, targets = problem("cifar_resnet20-cifar-standard", 64)
    maps = torch.rand(6, 64, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = 6 * 64 * (17 + 17 + 18)

    def bare_passes() -> None:
        for _ in range(rows // 256):
            bare(model, images.repeat(4, 1, 1, 1), back=False)

    def all_three() -> None:
        for each in maps:
            for name in ("deletion", "insertion", "road"):
                MEASURES[name].function(model, images, targets, each)

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.rounds):
        times[0].append(timed(all_three))
        times[1].append(timed(bare_passes))
    own, floor = (statistics.median(each) for each in times)
    print(f"\nDeletion, insertion and ROAD of 64 images x 6 methods: {own:.1f} s, {own / floor:.2f} x the bare passes.")


# -- DeepLIFT: who is exact where ---


def deep_lift(options: argparse.Namespace) -> None:
    """Completeness gaps on torchvision families with random weights, float64, zero and random baselines."""
    from torchvision.models import get_model

    families = (
        "alexnet", "vgg11", "vgg11_bn", "resnet18", "resnext50_32x4d", "inception_v3", "googlenet", "densenet121",
        "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x0_5", "mnasnet0_5",
        "squeezenet1_0", "regnet_y_400mf", "swin_t",
    )  # fmt: skip
    print("\n### DeepLIFT: completeness gap at zero and at random baseline\n")
    print("| network | robustcv | captum | shap |\n|---|---|---|---|")
    for name in families:
        size = 299 if name == "inception_v3" else 64
        torch.manual_seed(0)
        extra = {"init_weights": True} if name in ("inception_v3", "googlenet") else {}
        model = get_model(name, weights=None, **extra).double().train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        images, targets = torch.rand(2, 3, size, size, dtype=torch.float64), torch.tensor([0, 0])
        with torch.no_grad():
            model(torch.rand(8, 3, size, size, dtype=torch.float64))
        model.eval().requires_grad_(False)
        cells = []
        for method in ("deep_lift", "captum_deep_lift", "shap_deep_explainer"):
            found = []
            for baseline in (torch.zeros(1, 3, size, size).double(), torch.rand(1, 3, size, size).double()):
                try:
                    found.append(
                        f"{float(EXPLAINERS[method](model, images, targets, baseline=baseline).gap.max()):.0e}"
                    )
                except Exception as error:
                    found.append(
                        str(error).split("\n")[1].strip()[:40] if "RCV" in str(error) else type(error).__name__
                    )
            cells.append(", ".join(found))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


# -- the rendered set: league table, shortcut and clean twin ---


def league(options: argparse.Namespace) -> None:
    """Equal budgets on rendered shapes, with and without a planted shortcut; false alarms on clean twins."""
    import robustcv as rc

    started = time.perf_counter()
    methods = (
        "integrated_gradients",
        "gradient_shap",
        "deep_lift",
        "grad_cam",
        "lime",
        "rise",
        "shapley",
        "saliency",
        "smooth_grad",
    )
    measured = (
        "deletion",
        "insertion",
        "road",
        "infidelity",
        "relevance_mass",
        "relevance_rank",
        "pointing",
        "average_precision",
    )
    alarms: dict[str, dict[str, list[bool]]] = {"shortcut": {}, "clean": {}}
    for twin in range(options.twins):
        for data, kind in (("shapes:32", "clean"), ("shapes:32,shortcut", "shortcut")):
            folder = options.out / f"{kind}-{twin}"
            if not (folder / "model.safetensors").exists():
                rc.train(data, model="small_cnn", epochs=4, seed=twin, out=folder, quiet=True)
            run = rc.explain(
                str(folder), data, method=methods, measures=measured if twin == 0 else (), budget=128, n=120,
                seed=twin, quiet=True,
            )  # fmt: skip
            for row in run.focus:
                alarms[kind].setdefault(row.method, []).append(row.alarm)
            if twin == 0:
                clean = run.record.metric("clean_accuracy")
                print(f"\n### {data}: right on {clean.count} of {clean.n}; 128 forward-equivalents a map\n")
                print("| method | " + " | ".join(measured) + " |\n|" + "---|" * (len(measured) + 1))
                found = {(row.method, row.measure): row for row in run.measures}
                for method in dict.fromkeys(row.method for row in run.measures):
                    cells = [found[method, each] for each in measured]
                    mark = {True: " *", False: "", None: ""}
                    texts = [f"{row.mean:.2f} ({row.low:.2f}-{row.high:.2f}){mark[row.beats]}" for row in cells]
                    print(f"| {method} | " + " | ".join(texts) + " |", flush=True)
    print("\n\\* beats Sobel's edges by the interval of the paired difference.\n")
    print("| method | alarm with the shortcut | false alarms on clean twins |\n|---|---|---|")
    for method in methods:
        cells = []
        for kind in ("shortcut", "clean"):
            raised = alarms[kind][method]
            low, high = stats.wilson(sum(raised), len(raised))
            cells.append(f"{sum(raised)} of {len(raised)} ({100 * low:.0f}-{100 * high:.0f} %)")
        print(f"| {method} | {' | '.join(cells)} |")
    print(f"\n{time.perf_counter() - started:.0f} s in all, training included where it had to be.")


PARTS = {
    "shapley": shapley,
    "ig": ig,
    "overhead": overhead,
    "deep_lift": deep_lift,
    "measures": measures,
    "together": together,
    "league": league,
}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--coverage", type=int, default=25, help="draws of coalitions an image, for the coverage")
    parser.add_argument("--twins", type=int, default=3, help="pairs of models, with and without the shortcut")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "twins")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for part in options.only.split(","):
        PARTS[part](options)


if __name__ == "__main__":
    main()

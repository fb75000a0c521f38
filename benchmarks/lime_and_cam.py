"""LIME and class activation maps against lime and pytorch-grad-cam: error at equal forwards, time, the same maps.

    python benchmarks/lime_and_cam.py [--only lime,cam] [--rounds 3] [--images 8] [--model NAME]

Runs in .venv-bench; needs ROBUSTCV_DATA and the models of `make bench-models`. Same model, images, regions, fill and
number of forward passes for both, in one process; times are medians of alternating rounds. Tables go to stdout.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from explain import GRIDS, every_mask, problem, timed
from torch import Tensor, nn

from robustcv.explainers import EXPLAINERS
from robustcv.explainers.regions import regions_of

K, BUDGETS = 12, (50, 100, 200, 400, 800)


# -- LIME: the weighted regression over all masks, by both from a few of them ---


def regression(model: nn.Module, image: Tensor, regions: Tensor, target: int, width: float = 0.25) -> np.ndarray:
    """Give LIME's coefficients for every one of the 2**K masks, equally likely, hidden parts black, no penalty."""
    masks = every_mask(K)
    with torch.no_grad():
        shown = torch.from_numpy(masks)
        values = torch.cat([model(image * part[:, regions][:, None])[:, target] for part in shown.split(512)])
    distance = 1 - np.sqrt(masks.sum(1) / K)
    weight = np.exp(-(distance**2) / width**2 / 2)  # the root of lime's kernel
    weight /= weight.sum()
    x, y = masks - weight @ masks, values.double().numpy() - weight @ values.double().numpy()
    return np.linalg.solve((x.T * weight) @ x, (x.T * weight) @ y)


def lime_values(options: argparse.Namespace) -> None:
    """Median relative error of the coefficients, and seconds, at equal forward passes."""
    import lime.lime_image

    lime.lime_image.tqdm = lambda rows: rows  # its progress bar cannot be switched off

    model, images, targets = problem(options.model, options.images)
    regions = regions_of(images, GRIDS[K])
    truth = [regression(model, image, own, int(t)) for image, own, t in zip(images, regions, targets, strict=True)]

    def theirs(samples: int, seed: int) -> np.ndarray:
        found = []
        for image, own, target in zip(images, regions, targets.tolist(), strict=True):
            explainer = lime.lime_image.LimeImageExplainer(random_state=seed)
            ask = lambda batch: model(torch.from_numpy(batch).permute(0, 3, 1, 2).float()).detach().numpy()  # noqa: E731
            told = explainer.explain_instance(
                image.permute(1, 2, 0).double().numpy(), ask, labels=(target,), top_labels=None, hide_color=0,
                num_features=K, num_samples=samples, batch_size=samples,
                segmentation_fn=lambda _, own=own: own.numpy(),
            )  # fmt: skip
            found.append([dict(told.local_exp[target])[k] for k in range(K)])
        return np.array(found)

    def ours(samples: int, seed: int) -> np.ndarray:
        seeds = torch.arange(len(images)) + 1000 * seed
        made = EXPLAINERS["lime"](model, images, targets, samples=samples, regions=regions, fill=0.0, seeds=seeds)
        assert int(made.forwards.max()) <= samples
        maps = made.heatmaps[:, 0]
        return np.array(
            [[float(one[own == k].sum()) for k in range(K)] for one, own in zip(maps, regions, strict=True)]
        )

    print(
        f"\n### LIME, {options.model}, {K} rectangles, black fill, {options.images} images x {options.rounds} seeds\n"
    )
    print("| estimator | " + " | ".join(map(str, BUDGETS)) + " | s at 800 |\n|" + "---|" * (2 + len(BUDGETS)))
    seconds: dict[str, list[float]] = {"robustcv lime": [], "lime": []}
    errors: dict[str, list[float]] = {"robustcv lime": [], "lime": []}
    for budget in BUDGETS:
        far: dict[str, list[float]] = {name: [] for name in errors}
        for seed in range(options.rounds):
            for name, make in (("robustcv lime", ours), ("lime", theirs)):
                start = time.perf_counter()
                made = make(budget, seed)
                if budget == BUDGETS[-1]:
                    seconds[name].append(time.perf_counter() - start)
                far[name] += [
                    float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(made, truth, strict=True)
                ]
        for name, each in far.items():
            errors[name].append(statistics.median(each))
    for name, each in errors.items():
        cells = " | ".join(f"{100 * error:.1f} %" for error in each)
        print(f"| {name} | {cells} | {statistics.median(seconds[name]):.2f} |")


# -- class activation maps: the same maps, and who is faster ---


def cam(options: argparse.Namespace) -> None:
    """Seconds for 64 images at the same layer, and how far the maps are apart."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images, targets = problem(options.model, 64)
    pairs = {"grad_cam": "GradCAM", "grad_cam_pp": "GradCAMPlusPlus", "hires_cam": "HiResCAM", "layer_cam": "LayerCAM"}
    print(f"\n### Class activation maps, {options.model}, 64 images at once\n")
    print("| method | robustcv, s | pytorch-grad-cam, s | ratio | correlation of the maps, median and least |")
    print("|---|---|---|---|---|")
    for ours, theirs in pairs.items():
        made = EXPLAINERS[ours](model, images, targets)
        layer = model.get_submodule(str(made.details["layer"]))
        chosen = [ClassifierOutputTarget(target) for target in targets.tolist()]
        model.requires_grad_(True)  # it takes gradients at the layer by hooks, which need a graph
        with getattr(pytorch_grad_cam, theirs)(model=model, target_layers=[layer]) as peer:
            maps = peer(input_tensor=images, targets=chosen)
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(options.rounds):
                model.requires_grad_(False)
                times[0].append(timed(lambda ours=ours: EXPLAINERS[ours](model, images, targets)))
                model.requires_grad_(True)
                times[1].append(timed(lambda peer=peer, chosen=chosen: peer(input_tensor=images, targets=chosen)))
        model.requires_grad_(False)
        alike = [
            float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
            for a, b in zip(made.heatmaps[:, 0].numpy(), maps, strict=True)
            if a.std() > 0 and b.std() > 0
        ]
        own, other = (statistics.median(each) for each in times)
        agree = f"{statistics.median(alike):.4f}, {min(alike):.4f}"
        print(f"| {ours} | {own:.3f} | {other:.3f} | {other / own:.1f} | {agree} |")


PARTS = {"lime": lime_values, "cam": cam}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--model", default="cifar_resnet20-cifar-standard")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.only.split(","):
        PARTS[part](options)


if __name__ == "__main__":
    main()

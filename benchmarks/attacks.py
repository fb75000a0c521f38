"""The attack engine against its peers: one process run, alternating, medians, ratios; written to RESULTS.md.

    python benchmarks/attacks.py [--rounds 3] [--autoattack DIR] [--only pgd,device,autoattack,...]

Needs the models of `make bench-models` and ROBUSTCV_DATA. The parts:

pgd          20 steps of eps/8 from the image itself, adversarially trained models, their training eps, against
             torchattacks, foolbox and ART, which ask the model as it is; ours asks its folded form, as an audit does.
             Floor: one forward and one input-gradient backward pass an image and step.
device       the same on a GPU, if there is one: as it is, folded, in bf16, compiled, each against its own floor.
autoattack   the `standard` effort against AutoAttack's own code (`reference.py`): robust accuracy, pass-units (a
             forward 1, a backward 2) and time, and the curve of units against the gap. Floor: the units.
probes       what the checks for masked gradients spend beside the plan, over the number of images.
oracle       one attack from four libraries against the exact worst case of a linear model: who is off, by how much.
corruptions  against imagecorruptions, 32 and 224 pixels, batch 256. Floor: random numbers and bytes, printed.
"""

import argparse
import functools
import io
import os
import statistics
import sys
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import torch
from reference import WEIGHTS, reference, test_images
from torch import nn

from robustcv import runs
from robustcv.attacks import ATTACKS
from robustcv.attacks.corruptions import COMMON, CORRUPTIONS, filters
from robustcv.classifier import frozen
from robustcv.compiled import compiled
from robustcv.evaluation.accuracy import predict
from robustcv.evaluation.job import Job, Planned
from robustcv.evaluation.plans import plan_for
from robustcv.evaluation.robustness import measure
from robustcv.evaluation.worst_case import worst_case
from robustcv.folding import folded
from robustcv.reduced import FAR, STEEP, Reduced

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
warnings.filterwarnings("ignore")
CPU = torch.device("cpu")
TRAINED = [name for name, made in models.MODELS.items() if made[2] is not None]
STEPS = 20
N = 300


def present(names):
    """Give the models whose weights are there."""
    return [name for name in names if (WEIGHTS / f"{name}.safetensors").exists()]


def job_for(model, images, batch_size=256) -> Job:
    """Make a job without state, on the CPU."""
    predictions = predict(model, images, batch_size=256, device=CPU)
    fast = folded(model, next(images.batches(32))[0])
    return Job(model, images, predictions, "linf", 0, batch_size, CPU, runs.State(None), fast=fast)


def medians(contenders: dict, rounds: int) -> tuple[dict, dict]:
    """Time contenders in turn; the first round warms up."""
    seconds, results = {name: [] for name in contenders}, {}
    for round_number in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            results[name] = run()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


# -- 1: PGD -----------------------------------------------------------------------------------------------------------


def by_torchattacks(model, pixels, labels, eps, size):
    """Run torchattacks' PGD from the images themselves."""
    import torchattacks

    return torchattacks.PGD(model, eps=eps, alpha=size, steps=STEPS, random_start=False)(pixels, labels)


def by_foolbox(model, pixels, labels, eps, size):
    """Run foolbox's LinfPGD from the images themselves."""
    import foolbox

    attack = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=size, random_start=False)
    _, clipped, _ = attack(foolbox.PyTorchModel(model, (0, 1), device="cpu"), pixels, labels, epsilons=eps)
    return clipped


def by_art(model, pixels, labels, eps, size):
    """Run ART's PGD from the images themselves."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(pixels.shape[1:]), 10, clip_values=(0, 1),
                                device_type="cpu")  # fmt: skip
    attack = ProjectedGradientDescentPyTorch(wrapped, eps=eps, eps_step=size, max_iter=STEPS, num_random_init=0,
                                             batch_size=len(pixels), verbose=False)  # fmt: skip
    return torch.from_numpy(attack.generate(pixels.numpy(), labels.numpy()))


PEERS = {"torchattacks": by_torchattacks, "foolbox": by_foolbox, "ART": by_art}


def pgd(rounds: int) -> list[str]:
    """Compare PGD, with and without leaving broken images alone, and with gradients in bfloat16."""
    lines = ["| model | way | robustcv | torchattacks | foolbox | ART | missed of what a peer broke |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name in present(TRAINED):
        model, images = models.read(name, WEIGHTS), test_images(name, 512)
        eps = models.MODELS[name][2] / 255
        size = eps / 8
        job = job_for(model, images)
        images = images.take(job.predictions.correct.nonzero().squeeze(1))
        job = job_for(model, images, batch_size=len(images))
        pixels, labels = next(images.batches(len(images)))
        options = {"steps": STEPS, "step_size": size, "random_start": False}

        def stopping(job=job, eps=eps, options=options, model=model):
            with frozen(model):
                return ~worst_case(job, [Planned("pgd", ATTACKS["pgd"], options)], eps=eps).robust(eps)

        in_bf16 = functools.partial(stopping, job=replace(job, reduced=Reduced(job.asked)))

        def straight(asked=job.asked, pixels=pixels, labels=labels, eps=eps, options=options):
            with frozen(asked):
                return ATTACKS["pgd"](asked, pixels, labels, eps=eps, keep="last", **options)

        contenders = {"stopping": stopping, "stopping, bf16": in_bf16, "straight": straight}
        for peer, attack in PEERS.items():
            contenders[peer] = lambda attack=attack, m=model, x=pixels, y=labels, e=eps, s=size: attack(m, x, y, e, s)
        seconds, found = medians(contenders, rounds)
        broken = {}
        with torch.no_grad():
            for peer, out in found.items():
                broken[peer] = out if peer.startswith("stopping") else model(out).argmax(1) != labels
        for way in ("stopping", "stopping, bf16", "straight"):
            missed = max(int((broken[peer] & ~broken[way]).sum()) for peer in PEERS)
            cells = [f"{seconds[peer]:.2f} s, {seconds[peer] / seconds[way]:.2f} x" for peer in PEERS]
            own = f"{seconds[way]:.2f} s, {int(broken[way].sum())} of {len(labels)} broken"
            lines.append(f"| {name} | {way} | {own} | {' | '.join(cells)} | {missed} |")
            print(lines[-1], flush=True)
    return lines


def _passes_alone(form, pixels, labels, eps):
    """Run forward and input-backward, as often as PGD does."""
    for _ in range(STEPS):
        points = pixels.clone().requires_grad_()
        torch.autograd.grad(form(points).logsumexp(1).sum(), points)
    if pixels.is_cuda:
        torch.cuda.synchronize()


def _pgd_alone(form, pixels, labels, eps):
    """Run PGD without leaving anything out."""
    options = {"steps": STEPS, "step_size": eps / 8, "random_start": False, "keep": "last"}
    ATTACKS["pgd"](form, pixels, labels, eps=eps, **options)
    if pixels.is_cuda:
        torch.cuda.synchronize()


def device(rounds: int) -> list[str]:
    """Hold a step of PGD against its floor, forward and input-backward, in every form of the model; on a GPU if any."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = where.type == "cuda"
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    lines = [f"On {name}; compiled forms on a GPU alone.", "",
             "| model | images | form | PGD, images a second and step | floor | share of the floor |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for net in present(TRAINED):
        n = 4096 if gpu else 256
        eps = models.MODELS[net][2] / 255
        pixels, labels = (part.to(where) for part in next(test_images(net, n).batches(n)))
        model = models.read(net, WEIGHTS).to(where)
        with frozen(model):
            fast = folded(model, pixels[:32])
            forms = {"as it is": model, "folded, channels last": fast, "in bf16": Reduced(fast)}
            if gpu:
                half = {"logits": FAR, "slopes": STEEP}
                forms |= {f"{form}, compiled": compiled(forms[form], pixels[:32], **more)
                          for form, more in (("folded, channels last", {}), ("in bf16", half))}  # fmt: skip
            runs_of = {(kind, told): functools.partial(run, form, pixels, labels, eps) for told, form in forms.items()
                       for kind, run in (("floor", _passes_alone), ("pgd", _pgd_alone))}  # fmt: skip
            seconds, _ = medians(runs_of, rounds)
        for told in forms:
            ours, least = (n * STEPS / seconds[kind, told] for kind in ("pgd", "floor"))
            lines.append(f"| {net} | {n} | {told} | {ours:,.0f} | {least:,.0f} | {100 * ours / least:.0f} % |")
            print(lines[-1], flush=True)
    return lines


# -- 2: the standard effort against AutoAttack ------------------------------------------------------------------------


def units(results) -> int:
    """Count pass-units: a forward 1, a backward 2."""
    return sum(each.forward + 2 * each.backward for each in results)


def autoattack(rounds: int, folder: Path | None, n_by_model: dict[str, int]) -> list[str]:
    """Compare the standard effort with AutoAttack's own code."""
    lines = ["| model | n | AutoAttack, robust by seed | standard, robust | units | time | probes | flags |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    curve = ["", "| model | effort | attacks | units of AutoAttack's | stand | over its best seed |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name in present(TRAINED):
        n = n_by_model.get(name, N)
        kept = [found for seed in (0, 1, 2) if (found := reference(name, n, seed, folder)) is not None]
        if not kept:
            print(f"{name}: no reference; give --autoattack DIR")
            continue
        model, images = models.read(name, WEIGHTS), test_images(name, n)
        eps = models.MODELS[name][2] / 255
        seconds = []
        with frozen(model):
            for _ in range(rounds):
                job = job_for(model, images)
                start = time.perf_counter()
                outcome, flags = measure(job, plan_for("standard", "linf"), eps=eps)
                seconds.append(time.perf_counter() - start)
            efforts = {effort: worst_case(job, plan_for(effort, "linf"), eps=eps) for effort in ("quick", "thorough")}
        spent = units(outcome.results) + sum(flag.forward + 2 * flag.backward for flag in flags)
        plan = units([each for each in outcome.results if each.reason == "plan"])
        theirs = statistics.median(each["forward"] + 2 * each["backward"] for each in kept)
        took = statistics.median(each["seconds"] for each in kept)
        robust = [sum(each["robust"]) for each in kept]
        raised = [flag.check for flag in flags if flag.status == "raised"]
        mine = statistics.median(seconds)
        lines.append(
            f"| {name} | {n} | {', '.join(map(str, robust))} | {int(outcome.robust(eps).sum())} | "
            f"{spent:,} of {theirs:,} ({100 * spent / theirs:.2f} %) | {mine:.1f} of {took:.0f} s "
            f"(1/{took / mine:.0f}) | {100 * (spent - plan) / plan:.2f} % of the plan's units | "
            f"{', '.join(raised) or 'none'} |"
        )
        print(lines[-1], flush=True)
        efforts = {"quick": efforts["quick"], "standard": outcome, "thorough": efforts["thorough"]}
        for effort, found in efforts.items():
            curve += after_each(name, effort, found, int(job.predictions.correct.sum()), theirs, min(robust))
    print("\n".join(curve), flush=True)
    return lines + curve


def after_each(name, effort, outcome, stand, theirs, least) -> list[str]:
    """Tell what stood after each attack of a plan, and what had been spent by then."""
    lines, spent, told = [], 0, []
    for result in outcome.results:
        if result.reason != "plan":
            continue
        spent, stand = spent + units([result]), stand - result.broken
        told.append(result.name)
        lines.append(f"| {name} | {effort} | {' '.join(told)} | {100 * spent / theirs:.2f} % | {stand} | "
                     f"{stand - least:+d} |")  # fmt: skip
    return lines


def probes() -> list[str]:
    """Count what the probes spend, over the number of images."""
    lines = [
        "| model | images | plan's units | probes' units | share | flags |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in present(TRAINED):
        for n in (300, 1000, 3000):
            model, images = models.read(name, WEIGHTS), test_images(name, n)
            eps = models.MODELS[name][2] / 255
            with frozen(model):
                outcome, flags = measure(job_for(model, images), plan_for("standard", "linf"), eps=eps)
            plan = units([each for each in outcome.results if each.reason == "plan"])
            spent = units(outcome.results) + units(flags) - plan
            raised = [flag.check for flag in flags if flag.status == "raised"]
            lines.append(f"| {name} | {len(images)} | {plan:,} | {spent:,} | {100 * spent / plan:.2f} % | "
                         f"{', '.join(raised) or 'none'} |")  # fmt: skip
            print(lines[-1], flush=True)
    return lines


# -- 3: corruptions ---------------------------------------------------------------------------------------------------


def imagecorruptions_module():
    """Import imagecorruptions, with the names that today's numpy and scikit-image no longer have."""
    import skimage.filters

    np.float_ = np.float64
    plain = skimage.filters.gaussian

    def gaussian(image, sigma=1, multichannel=None, **more):
        return plain(image, sigma=sigma, **({"channel_axis": -1} if multichannel else {}), **more)

    import imagecorruptions.corruptions as module

    module.gaussian = gaussian
    return module


def photographs(size: int, n: int) -> torch.Tensor:
    """Cut n 8-bit pictures out of scikit-image's astronaut."""
    import skimage

    base = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float()
    generator = torch.Generator().manual_seed(0)
    out = []
    for _ in range(n):
        side = int(torch.randint(size, 500, (1,), generator=generator))
        y, x = (int(torch.randint(0, 512 - side, (1,), generator=generator)) for _ in range(2))
        cut = base[:, :, y : y + side, x : x + side]
        out.append(nn.functional.interpolate(cut, (size, size), mode="bilinear", antialias=True))
    return torch.cat(out).round().clamp(0, 255) / 255


def corruptions(rounds: int, batch: int = 256, severity: int = 3) -> list[str]:
    """Compare with imagecorruptions; both use the constants of large images, so that the work is the same."""
    from PIL import Image

    module = imagecorruptions_module()
    filters.SMALL = 0
    lines = []
    for size in (32, 224):
        images, seeds = photographs(size, batch), torch.arange(batch)
        pictures = [Image.fromarray(each) for each in (images * 255).byte().permute(0, 2, 3, 1).numpy()]
        few = batch if size == 32 else 16  # the peer works picture by picture: its time is in proportion
        start = time.perf_counter()
        torch.empty_like(images).normal_()
        floor_random = time.perf_counter() - start
        start = time.perf_counter()
        images.clone().mul_(0.5)
        floor_bytes = time.perf_counter() - start
        lines += [f"**{size} pixels, batch {batch}, severity {severity}**; floors: {1000 * floor_random:.0f} ms for a "
                  f"normal number a value, {1000 * floor_bytes:.0f} ms to read and write the batch twice; {few} "
                  "pictures timed for the peer.", "",
                  "| corruption | robustcv | imagecorruptions | ratio | largest and mean difference in 1/255 |",
                  "| --- | --- | --- | --- | --- |"]  # fmt: skip
        ratios = []
        for name in COMMON:

            def peer(name=name, pictures=pictures, few=few):
                np.random.seed(0)
                with redirect_stdout(io.StringIO()):
                    return [np.asarray(getattr(module, name)(each, severity=severity)) for each in pictures[:few]]

            def ours(name=name, images=images, seeds=seeds):
                return CORRUPTIONS[name](images, severity=severity, seeds=seeds)

            seconds, found = medians({"ours": ours, "peer": peer}, 1 if name == "glass_blur" and size > 32 else rounds)
            theirs = seconds["peer"] * batch / few
            gap = 255 * found["ours"][:few].permute(0, 2, 3, 1).double().numpy() - np.stack(found["peer"])
            ratios.append(theirs / seconds["ours"])
            lines.append(f"| {name} | {1000 * seconds['ours']:.0f} ms | {1000 * theirs:.0f} ms | {ratios[-1]:.1f} | "
                         f"{np.abs(gap).max():.1f}, {np.abs(gap).mean():.2f} |")  # fmt: skip
            print(lines[-1], flush=True)
        lines += ["", f"Median ratio of the 15: **{statistics.median(ratios):.1f}**", ""]
        print(lines[-2], flush=True)
    filters.SMALL = 64
    return lines


# -- 4: the linear oracle ---------------------------------------------------------------------------------------------


def linear(scale: float) -> nn.Module:
    """Make a linear model of ten classes on 3x16x16, whose decision runs through mid-grey."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    weights = torch.randn(10, 768, generator=generator)
    with torch.no_grad():
        model[1].weight.copy_(scale * weights)
        model[1].bias.copy_(-0.5 * scale * weights.sum(1))
    return model.eval()


def oracle() -> list[str]:
    """Run one attack from each library on a linear model whose exact robust accuracy is known."""
    import exact
    import foolbox
    import torchattacks

    eps, n = 0.006, 200
    lines = [
        "| attack | robust accuracy, logits x 1 | off by | logits x 1000 | off by |",
        "| --- | --- | --- | --- | --- |",
    ]
    table: dict[str, list[str]] = {}
    for scale in (1.0, 1000.0):
        model = linear(scale)
        pixels = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            labels = model(pixels).argmax(1)
        weights, bias = (part.detach().double().numpy() for part in (model[1].weight, model[1].bias))
        flat = pixels.double().flatten(1).numpy()
        truth = np.mean([exact.stands(weights, bias, flat[i], int(labels[i]), eps, "linf") for i in range(n)])
        wrapped = foolbox.PyTorchModel(model, (0, 1), device="cpu")
        size = eps / 10

        def robustcv(name, model=model, pixels=pixels, labels=labels, **options):
            with frozen(model):
                return ATTACKS[name](model, pixels, labels, eps=eps, **options)

        from robustcv.data import ImageSet

        images = ImageSet(pixels, labels, tuple("abcdefghij"))
        with frozen(model):
            standard = worst_case(job_for(model, images), plan_for("standard", "linf"), eps=eps).robust(eps)
        outs = {
            "robustcv standard": standard,
            "robustcv apgd-t": robustcv("apgd-t"),
            "robustcv PGD-40, margin": robustcv("pgd", steps=40, step_size=size, loss="margin"),
            "robustcv PGD-40, cross-entropy": robustcv("pgd", steps=40, step_size=size),
            "torchattacks PGD-40": torchattacks.PGD(model, eps=eps, alpha=size, steps=40)(pixels, labels),
            "torchattacks APGDT, defaults (10 steps)": torchattacks.APGDT(model, eps=eps, n_classes=10)(pixels, labels),
            "foolbox LinfPGD, defaults": foolbox.attacks.LinfPGD()(wrapped, pixels, labels, epsilons=eps)[1],
            "ART PGD-20": by_art(model, pixels, labels, eps, size),
        }
        for name, out in outs.items():
            with torch.no_grad():
                stands = out if out.dtype == torch.bool else model(out).argmax(1) == labels
            share = float(stands.double().mean())
            table.setdefault(name, []).append(f"{100 * share:.1f} | {100 * (share - truth):+.1f}")
        table.setdefault("exact", []).append(f"{100 * truth:.1f} | 0")
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in table.items()]
    near = ["", "| minimum-norm attack, L2 | median of distance over exact | largest |", "| --- | --- | --- |"]
    model = linear(1.0)
    few = pixels[:24]
    with torch.no_grad():
        truth_labels = model(few).argmax(1)
    weights, bias = (part.detach().double().numpy() for part in (model[1].weight, model[1].bias))
    least = np.array([exact.nearest(weights, bias, few[i].double().flatten().numpy(), int(truth_labels[i]), "l2")
                      for i in range(24)])  # fmt: skip
    wrapped = foolbox.PyTorchModel(model, (0, 1), device="cpu")
    with frozen(model):
        found = {f"robustcv {name}": ATTACKS[name](model, few, truth_labels, norm="l2")
                 for name in ("deepfool", "ddn", "fmn", "fab")}  # fmt: skip
    for name, attack in (("DDN", foolbox.attacks.DDNAttack(steps=200)),
                         ("L2FMN", foolbox.attacks.L2FMNAttack(steps=200)),
                         ("DeepFool", foolbox.attacks.L2DeepFoolAttack())):  # fmt: skip
        found[f"foolbox {name}"] = attack(wrapped, few, truth_labels, epsilons=None)[1]
    for name, out in found.items():
        ratio = (out - few).flatten(1).norm(dim=1).double().numpy() / least
        near.append(f"| {name} | {np.median(ratio):.3f} | {ratio.max():.3f} |")
    print("\n".join([*lines, *near]), flush=True)
    return [*lines, *near]


def main() -> None:
    """Run the parts asked for and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--autoattack", type=Path)
    parser.add_argument("--only", default="oracle,pgd,device,autoattack,probes,corruptions")
    options = parser.parse_args()
    parts = {
        "oracle": ("The linear oracle: 3x16x16, ten classes, 200 images, eps 0.006", oracle),
        "pgd": ("PGD-20, the same start, steps and eps", lambda: pgd(options.rounds)),
        "autoattack": (
            "The standard effort against AutoAttack",
            lambda: autoattack(options.rounds, options.autoattack, {"cifar_resnet20-fashion-single-step": 100}),
        ),
        "probes": ("What the probes for masked gradients spend", probes),
        "corruptions": ("Corruptions against imagecorruptions", lambda: corruptions(options.rounds)),
        "device": ("A step of PGD against its floor, by form of the model", lambda: device(options.rounds)),
    }
    results = Path(__file__).parent / "RESULTS.md"
    kept = results.read_text() if results.exists() else "# Results\n"
    for name in options.only.split(","):
        title, run = parts[name]
        lines = run()
        if not any(line.startswith("| ") and not line.startswith(("| ---", "| model")) for line in lines):
            print(
                f"{name}: nothing was measured, so RESULTS.md keeps what it has; see make bench-models, AUTOATTACK=DIR"
            )
            continue
        command = f"python benchmarks/attacks.py --only {name} --rounds {options.rounds}"
        block = "\n".join(
            [f"## {title}", "", f"`{command}`, {os.cpu_count()} CPU cores, torch {torch.__version__}", "", *lines, ""]
        )
        head, _, rest = kept.partition(f"## {title}\n")
        after = rest.partition("\n## ")[2]
        kept = head.rstrip() + "\n\n" + block + (f"\n## {after}" if after else "")
    results.write_text(kept)


if __name__ == "__main__":
    main()

"""Foolbox's attacks as ours, for breadth: those that work are in `FOOLBOX`, the others with reasons in `DENIED`."""

import importlib
import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustcv import draws, runtime
from robustcv.attacks.nearest import Nearest
from robustcv.attacks.norms import NormName
from robustcv.classifier import Counted, Tracked, frozen, rows_in_play

# our name: foolbox's class by norm, and options that keep a run short
FOOLBOX: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "boundary": ({"l2": "BoundaryAttack"}, {"steps": 2000}),
    "hopskipjump": (
        {"l2": "HopSkipJumpAttack", "linf": "HopSkipJumpAttack"},
        {"steps": 20, "max_gradient_eval_steps": 1000},
    ),
    "carlini-wagner": ({"l2": "L2CarliniWagnerAttack"}, {"steps": 500, "binary_search_steps": 5, "abort_early": False}),
    "ead": ({"l1": "EADAttack"}, {"steps": 300, "binary_search_steps": 5, "abort_early": False}),
    "newton-fool": ({"l2": "NewtonFoolAttack"}, {}),
    "salt-and-pepper": ({"l2": "SaltAndPepperNoiseAttack"}, {"steps": 200}),
    "linear-blend": ({"l2": "LinearSearchBlendedUniformNoiseAttack"}, {"steps": 100}),
    "gaussian-blur": ({"linf": "GaussianBlurAttack"}, {}),
    "contrast-search": ({"linf": "LinearSearchContrastReductionAttack"}, {"steps": 100}),
}
DENIED = {
    "L2FMNAttack": "never projects: 50 times the exact distance on a linear model (foolbox 3.3.4); use fmn",
    "L1FMNAttack": "can return the clean image with distance 0 for a failure; use fmn",
    "L0FMNAttack": "fails with NotImplementedError where a radius must shrink; use fmn",
    "PointwiseAttack": "fails with AttributeError when it is given an eps",
    "L0BrendelBethgeAttack": "needs numba, which foolbox does not declare",
    "L1BrendelBethgeAttack": "needs numba, which foolbox does not declare",
    "L2BrendelBethgeAttack": "needs numba, which foolbox does not declare",
    "LinfinityBrendelBethgeAttack": "needs numba, which foolbox does not declare",
    "SpatialAttack": "tries the same grid for all images and warns of a removed torch default; use spatial",
    "LinfPGD and other gradient attacks": "ours are exact where foolbox's are not, stop, and count; use pgd, apgd, ddn",
}


def foolbox_attack(name: str) -> Callable[..., Tensor]:
    """Give one of foolbox's attacks as a minimum-norm attack of ours.

    It gets the model's own device, frozen parameters, bounds of [0, 1] and only images that are right; success and
    distance are measured again here, since some of foolbox's attacks call a black picture a success. Its randomness
    comes from the global generators, which are seeded from the images' seeds and put back; so it depends on the batch.

    Parameters
    ----------
    name
        A key of `FOOLBOX`.
    """
    by_norm, usual = FOOLBOX[name]
    usual_norm = cast(NormName, next(iter(by_norm)))

    def attack(
        classifier: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        *,
        norm: NormName = usual_norm,
        targets: Int64[Tensor, " n"] | None = None,
        seeds: Int64[Tensor, " n"] | None = None,
        steps: int | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Run foolbox's attack; success and distance are measured again."""
        foolbox = _foolbox()
        seeds = draws.fresh_seeds(len(images)) if seeds is None else seeds
        nearest = Nearest(images, norm)
        rows = rows_in_play(classifier, images)
        plain = classifier.classifier if isinstance(classifier, Tracked) else classifier
        with torch.no_grad():
            right = plain(images[rows]).argmax(1) == labels[rows]
        _count(classifier, rows, len(rows), 0)
        rows = rows[right]
        if len(rows) == 0:
            return images.clone()
        counted = Counted(plain)  # foolbox asks about copies of images, which `Tracked` could not tell apart
        options = {**usual, **({} if steps is None else {"steps": steps})}
        kind = getattr(foolbox.attacks, by_norm[norm])
        known = inspect.signature(kind.__init__).parameters
        options |= {"constraint": norm} if name == "hopskipjump" else {}
        asked = rows
        with frozen(plain), _seeded(int(seeds.sum())):
            model = foolbox.PyTorchModel(counted.eval(), bounds=(0, 1), device=images.device)
            runner = kind(**{key: value for key, value in options.items() if key in known})
            more: dict[str, Tensor] = {}
            if name in ("boundary", "hopskipjump"):
                wanted = None if targets is None else targets[rows]
                starts, fool = _starts(counted, images[rows], labels[rows], wanted, seeds[rows])
                if not bool(fool.all()):
                    runtime.note(f"{name} found no image to start from for {int((~fool).sum())} of {len(rows)} images")
                rows, more = rows[fool], {"starting_points": starts[fool]}
            if len(rows):
                criterion = (
                    foolbox.criteria.Misclassification(labels[rows])
                    if targets is None
                    else foolbox.criteria.TargetedMisclassification(targets[rows])
                )
                _, found, _ = runner(model, images[rows].clone(), criterion, epsilons=None, **more)
                candidates = found.detach().clamp(0, 1).nan_to_num(0.0)
                with torch.no_grad():
                    nearest.offer(rows, candidates, counted(candidates), labels, targets)
        _count(classifier, asked, counted.forwards, counted.backwards)
        return nearest.images

    attack.__name__ = f"foolbox_{name.replace('-', '_')}"
    attack.__annotations__["norm"] = Literal[tuple(by_norm)]
    return attack


def _foolbox() -> Any:
    """Import foolbox, which takes a second and uses an old name of scipy's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("foolbox")


def _count(classifier: nn.Module, rows: Tensor, forwards: int, backwards: int) -> None:
    """Spread passes evenly over the rows they were spent on."""
    if not isinstance(classifier, Tracked) or len(rows) == 0:
        return
    for counts, passes in ((classifier.forwards, forwards), (classifier.backwards, backwards)):
        counts[rows] += passes // len(rows)
        counts[rows[: passes % len(rows)]] += 1


def _starts(
    classifier: nn.Module, images: Tensor, labels: Tensor, targets: Tensor | None, seeds: Tensor
) -> tuple[Tensor, Tensor]:
    """Find a fooling start for each image, as decision attacks need: noise, the other images, black, white.

    Tells also which images have one: foolbox would stop with an error at the others.
    """
    starts, missing = images.clone(), torch.ones(len(images), dtype=torch.bool, device=images.device)
    tries: list[Tensor] = [draws.uniform(seeds, tuple(images.shape[1:]), stream).to(images) for stream in range(20)]
    tries += [images.roll(shift, 0) for shift in range(1, min(len(images), 20))]
    tries += [torch.zeros_like(images), torch.ones_like(images), 1 - images]
    with torch.no_grad():
        for candidates in tries:
            answers = classifier(candidates).argmax(1)
            fools = (answers != labels if targets is None else answers == targets) & missing
            starts[fools] = candidates[fools]
            missing &= ~fools
            if not bool(missing.any()):
                break
    return starts, ~missing


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that foolbox draws from, and put them back as they were."""
    python, old = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            torch.manual_seed(seed % 2**63)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(old)

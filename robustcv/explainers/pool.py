"""One pool of masked forward passes: each mask is asked about once, for all classes and all methods."""

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcv.explainers.references import Reference, references
from robustcv.explainers.regions import Regions, counts, regions_of
from robustcv.runtime import chunk_size, in_chunks

Masks = NDArray[np.bool_]


class Pool:
    """What a classifier says of one batch of images with regions hidden.

    Hand the same pool to several methods, or to one method for several targets: masks that were asked about before
    cost nothing.

    Parameters
    ----------
    classifier
        Images in [0, 1] to logits; only queried.
    images
        The batch, ``n c h w``.
    rows
        Masked images sent through the classifier at a time; None suits their size.
    """

    def __init__(self, classifier: nn.Module, images: Float[Tensor, "n c h w"], *, rows: int | None = None) -> None:
        self.classifier = classifier
        self.images = images.detach()
        self.rows = chunk_size(images, rows)
        self.forwards = 0
        self._games: dict[tuple[object, object], Game] = {}

    def game(self, regions: Regions, fill: Reference) -> "Game":
        """Give the game of hiding these regions behind this fill; the same one where it was asked for before."""
        key = tuple(each if isinstance(each, str | float | int) else id(each) for each in (regions, fill))
        if key not in self._games:
            self._games[key[0], key[1]] = Game(self, regions, fill)
        return self._games[key[0], key[1]]

    def ask(
        self, shown: Shaped[Tensor, "m h w"], image: Int64[Tensor, " m"], fills: list[Tensor]
    ) -> Float[Tensor, "m k"]:
        """Compute logits of images blended into each fill (``shown`` 1: image, 0: fill), averaged over the fills."""
        total: Tensor | None = None
        for fill in fills:
            behind = fill.expand_as(self.images)

            def run(part: slice, behind: Tensor = behind) -> Tensor:
                which, weight = image[part], shown[part, None]
                if weight.dtype == torch.bool:
                    blended = torch.where(weight, self.images[which], behind[which])
                else:
                    blended = torch.lerp(behind[which], self.images[which], weight)
                with torch.no_grad():
                    logits: Tensor = self.classifier(blended)
                return logits.double()

            logits = torch.cat(in_chunks(run, len(shown), self.rows))
            total = logits if total is None else total + logits
            self.forwards += len(shown)
        assert total is not None
        return total / len(fills)


class Game:
    """The logits of a pool's images as functions of which of their regions are shown."""

    def __init__(self, pool: Pool, regions: Regions, fill: Reference) -> None:
        self.pool = pool
        self.kept = regions, fill  # so that their identity stays theirs
        self.regions = regions_of(pool.images, regions)
        self.counts = counts(self.regions)
        self.fills = references(pool.images, fill)
        self._rows: list[dict[bytes, int]] = [{} for _ in pool.images]
        self._logits: list[Tensor] = []  # of all images together, in the order they were asked

    def logits(self, masks: list[Masks]) -> list[Float[Tensor, "m k"]]:
        """Give the logits under each image's masks (``m regions``, True: shown); float64, on the CPU.

        Masks asked about before are looked up.
        """
        wanted: list[list[int]] = []
        known = sum(len(part) for part in self._logits)
        new: list[tuple[int, NDArray[np.bool_]]] = []
        for number, own in enumerate(masks):
            rows = self._rows[number]
            positions = []
            for packed, mask in zip(np.packbits(own, axis=1), own, strict=True):
                key = packed.tobytes()
                if key not in rows:
                    rows[key] = known + len(new)
                    new.append((number, mask))
                positions.append(rows[key])
            wanted.append(positions)
        if new:
            self._logits.append(self._ask(new))
        every = torch.cat(self._logits)
        self._logits = [every]
        return [every[torch.tensor(positions)] for positions in wanted]

    def _ask(self, new: list[tuple[int, NDArray[np.bool_]]]) -> Tensor:
        """Query in steps, so that masks of pixels need not all lie in memory."""
        device, answers = self.pool.images.device, []
        most = max(self.counts)
        for start in range(0, len(new), self.pool.rows):
            part = new[start : start + self.pool.rows]
            table = np.zeros((len(part), most), bool)
            for row, (_, mask) in zip(table, part, strict=True):
                row[: len(mask)] = mask
            image = torch.tensor([number for number, _ in part], device=device)
            shown = torch.from_numpy(table).to(device).gather(1, self.regions[image].flatten(1))
            answers.append(self.pool.ask(shown.unflatten(1, self.regions.shape[1:]), image, self.fills).cpu())
        return torch.cat(answers)


def at_targets(logits: list[Float[Tensor, "m k"]], targets: Int64[Tensor, " n"]) -> list[NDArray[np.float64]]:
    """Pick each image's target from the logits under its masks."""
    return [part[:, target].numpy() for part, target in zip(logits, targets.tolist(), strict=True)]

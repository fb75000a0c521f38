"""Clean predictions, and what follows from them: accuracy overall and per class, calibration."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcv import processes, stats
from robustcv.classifier import right
from robustcv.data import Images
from robustcv.records import CalibrationBin, Metric
from robustcv.runtime import Advance, in_chunks

BINS = 15


@dataclass(frozen=True)
class Predictions:
    """Logits of a set of images, with what was predicted and whether it was right; all on the CPU."""

    logits: Float[Tensor, "n k"]
    labels: Int64[Tensor, " n"]

    @property
    def classes(self) -> Int64[Tensor, " n"]:
        """The predicted classes."""
        return self.logits.argmax(1)

    @property
    def confidences(self) -> Float[Tensor, " n"]:
        """Softmax probability of each predicted class; 0 where a logit is not finite."""
        sure = self.logits.double().softmax(1).amax(1).float()
        return torch.where(self.logits.isfinite().all(1), sure, 0.0)

    @property
    def correct(self) -> Bool[Tensor, " n"]:
        """Which images are right; one with a logit that is not finite never is."""
        return right(self.logits, self.labels)


def predict(
    classifier: nn.Module,
    images: Images,
    *,
    batch_size: int,
    device: torch.device,
    advance: Advance = lambda _: None,
) -> Predictions:
    """Run a (frozen) classifier over images: one forward pass each."""
    rows = torch.arange(len(images)).split(batch_size)
    batches = images.batches(batch_size, processes.own_share(rows))

    def answer(part: Tensor) -> Tensor:
        batch = next(batches)[0].to(device)

        def ask(rows: slice) -> Tensor:
            logits: Tensor = classifier(batch[rows]).float().cpu()
            return logits

        with torch.no_grad():
            logits = torch.cat(in_chunks(ask, len(part), len(part)))
        advance(len(part))
        return logits

    return Predictions(torch.cat(processes.shared(rows, answer)), images.labels)


def proportion(name: str, hits: Tensor, **fields: str | float | None) -> Metric:
    """Make the metric of a proportion from a mask, with its Wilson interval."""
    return share(name, int(hits.sum()), len(hits), **fields)


def share(name: str, count: int, n: int, **fields: str | float | None) -> Metric:
    """Make the metric of a proportion from counts, with its Wilson interval."""
    low, high = stats.wilson(count, n)
    return Metric(name=name, n=n, count=count, low=low, high=high, **fields)  # type: ignore[arg-type]


def calibration(
    confidences: Float[Tensor, " n"], right: Bool[Tensor, " n"], *, seed: int, **fields: Any
) -> tuple[Metric, tuple[CalibrationBin, ...]]:
    """Compute the expected calibration error over 15 equal bins (Guo et al. 2017, equation 3), and the bins.

    The interval is a percentile bootstrap over images, 1,000 resamples, shifted by its bias. ``fields`` go into the
    metric, which is called ``calibration_error`` where they do not say otherwise.
    """
    confidence = confidences.double().numpy()
    correct = right.numpy().astype(float)
    low, high = stats.bootstrap(expected_calibration_error, confidence, correct, seed=seed)
    error = expected_calibration_error(confidence, correct)
    place = _bin_of(confidence)
    bins = []
    for k in range(BINS):
        inside = place == k
        n = int(inside.sum())
        mean = float(confidence[inside].mean()) if n else 0.0
        bins.append(
            CalibrationBin(low=k / BINS, high=(k + 1) / BINS, n=n, correct=int(correct[inside].sum()), confidence=mean)
        )
    method = f"bootstrap over images, 1,000 resamples with seed {seed}, shifted by its bias"
    named = {"name": "calibration_error", **fields}
    metric = Metric(n=len(correct), value=error, low=max(0, low), high=high, method=method, **named)
    return metric, tuple(bins)


def _bin_of(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.float64]) -> float:
    """Average |accuracy - confidence| over the bins, weighted by the images in each."""
    gaps = np.bincount(_bin_of(confidence), weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))

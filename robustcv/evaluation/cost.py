"""What a classifier costs: parameters, operations, bytes, and how fast it answers here."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustcv import runtime
from robustcv.records import Cost, Latency

BATCHES = (1, 64)
SECONDS = 1.0  # spent on each batch size, once the fewest runs are done
FEWEST, MOST = 5, 100


def cost(classifier: nn.Module, image: Tensor, *, black_box: bool = False) -> Cost:
    """Count and time the forward pass of a frozen classifier.

    Parameters
    ----------
    image
        One image, `c h w`, on the classifier's device.
    black_box
        The classifier cannot be looked into: its operations are not counted.
    """
    batch = image[None]
    with torch.no_grad():
        flops = None if black_box else _flops(classifier, batch)
        rows = tuple(row for size in BATCHES if (row := _latency(classifier, batch, size)) is not None)
    tensors = [*classifier.parameters(), *classifier.buffers()]
    return Cost(
        flops=flops,
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        threads=torch.get_num_threads(),
        latencies=rows,
    )


def _flops(classifier: nn.Module, batch: Tensor) -> int | None:
    """Count floating-point operations of one image by torch's counter: two for each multiply-add of matrices."""
    with FlopCounterMode(display=False) as counter:
        classifier(batch)
    total = int(counter.get_total_flops())
    return total or None


def _latency(classifier: nn.Module, image: Tensor, size: int) -> Latency | None:
    """Time one batch size; None where memory does not suffice for it."""
    wait = _waiter(image.device)
    try:
        images = image.expand(size, -1, -1, -1).contiguous()
        classifier(images)
    except (RuntimeError, MemoryError) as error:
        if not runtime.out_of_memory(error):
            raise
        runtime.note(f"memory did not suffice to time a batch of {size}")
        return None
    wait()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < FEWEST or (len(times) < MOST and time.perf_counter() - begun < SECONDS):
        start = time.perf_counter()
        classifier(images)
        wait()
        times.append(time.perf_counter() - start)
    middle, slow = np.percentile(times, [50, 95])
    return Latency(batch=size, runs=len(times), p50=float(middle), p95=float(slow))


def _waiter(device: torch.device) -> Callable[[], None]:
    """Give what waits for the device; a GPU answers before it is done."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None

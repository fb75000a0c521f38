"""One run in several processes: who does what, and how everyone learns what came out (torch.distributed)."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from robustcv.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = datetime.timedelta(days=7)  # a process that ends is noticed at once; one that works may take long


_joined: list[bool] = []  # a group that somebody else made is none of ours


def size() -> int:
    """Give the number of processes; 1 where nobody asked for more."""
    return distributed.get_world_size() if _joined else 1


def rank() -> int:
    """Give the number of this process, from 0."""
    return distributed.get_rank() if _joined else 0


def is_first() -> bool:
    """Tell whether this is the process that talks and writes."""
    return rank() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started, for the length of a block."""
    cuda = torch.cuda.is_available()
    if cuda:
        if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count():
            raise UserError(
                "RCV-E030",
                f"{os.environ['LOCAL_WORLD_SIZE']} processes were started for {torch.cuda.device_count()} GPUs",
                "each process works on a GPU of its own",
                "lower --devices, or hide the GPUs: CUDA_VISIBLE_DEVICES=",
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if not os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    _joined.append(True)
    try:
        yield
    finally:
        _joined.clear()
        distributed.destroy_process_group()


def shared(items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Do every item once, each process its share in turn; everyone gets all results, in the order of the items.

    The results must not hold tensors of a GPU. Nothing is padded, and what an item is does not depend on the number of
    processes, so that the results do not either.
    """
    if size() == 1:
        return [work(item) for item in items]
    own = {k: work(items[k]) for k in range(rank(), len(items), size())}
    parts: list[Any] = [None] * size()
    distributed.all_gather_object(parts, own)
    merged = {k: result for part in parts for k, result in part.items()}
    return [merged[k] for k in range(len(items))]


def own(items: Sequence[Item]) -> Sequence[Item]:
    """Give the items that fall to this process: every so-manieth."""
    return items[rank() :: size()]


def own_share(parts: Sequence[Tensor]) -> Tensor | None:
    """Join the rows of the parts that `shared` gives this process, in order; None where it does all of them."""
    if size() == 1:
        return None
    mine = own(parts)
    return torch.cat(list(mine)) if mine else torch.empty(0, dtype=torch.int64)


def mean_over(tensors: Sequence[Tensor], share: float) -> None:
    """Replace tensors by their sum over processes, each weighted by its share, in place and in one message a type.

    Parameters
    ----------
    share
        Weight of this process; the weights of all add up to 1.
    """
    if size() == 1:
        return
    for kind in dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors):
        group = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]
        flat = torch.cat([tensor.reshape(-1) for tensor in group]) * share
        distributed.all_reduce(flat)
        for tensor, part in zip(group, flat.split([each.numel() for each in group]), strict=True):
            tensor.copy_(part.reshape(tensor.shape))


def summed(values: Sequence[float]) -> list[float]:
    """Add up numbers over processes."""
    if size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(total)
    return [float(value) for value in total]


def agreed(value: Any) -> Any:
    """Give everyone what the first process has."""
    if size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def by_first(work: Callable[[], Result]) -> Result:
    """Let the first process do something alone, such as open a folder; everyone gets its result, or its error."""
    if size() == 1:
        return work()
    outcome: Any = None
    if is_first():
        try:
            outcome = work()
        except UserError as error:
            outcome = error
    outcome = agreed(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    found: Result = outcome
    return found

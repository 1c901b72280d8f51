"""Data-parallel training under torchrun: who this process is, its share of a batch, and what all have to agree on.

Without torchrun there is one process, and all of this gives back what it got.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, distributed

Arguments = tuple[Tensor | None, ...]
Value = TypeVar("Value")


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def processes() -> Iterator[None]:
    """Joins the processes that torchrun started; on CPUs, so by gloo."""
    if not launched():
        yield
        return
    distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def agree(value: Value) -> Value:
    """The first process's value, in all of them: what was decided by a clock or read from a disk."""
    if size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: Value) -> list[Value]:
    """Every process's value, in order."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    distributed.all_gather_object(values, value)
    return values


def share(arguments: Arguments, labels: Tensor) -> tuple[Arguments, Tensor, float]:
    """This process's rows of a batch of tokens [T, B] and lengths [B], and the weight of their summed loss.

    Gradients that are averaged over processes are then those of the whole batch's mean. A process for which no row is
    left takes the first, without weight, since all have to take part.
    """
    count = len(labels)
    rows, weight = (slice(rank(), None, size()), size() / count) if rank() < count else (slice(0, 1), 0.0)
    own = tuple(part if part is None else part[..., rows] for part in arguments)
    return own, labels[rows], weight


def mean(values: Tensor) -> Tensor:
    """Element by element, over processes."""
    if size() > 1:
        distributed.all_reduce(values)
    return values / size()


def spread(parts: list[Any], run: Any) -> list[Any]:
    """`run` of each part, the parts dealt out among the processes, every result in all of them."""
    own = [run(part) for part in parts[rank() :: size()]]
    found: list[Any] = [None] * len(parts)
    for index, results in enumerate(gather(own)):
        found[index :: size()] = results
    return found


def refuse(names: list[str], allowed: str) -> None:
    """Raises ValueError where several processes were asked for something else than the one study that has a use."""
    if launched() and names != [allowed]:
        raise ValueError(
            f"torchrun trains the study {allowed} alone, got {', '.join(names)}: name it, or start one process"
        )

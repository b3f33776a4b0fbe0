"""What the processes of one fit tell each other; without words where there is only one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


def launched() -> tuple[int, int]:
    """How many processes there are on each machine, and how many machines: as `torchrun` says, or one of each."""
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()):
        return 1, 1  # though others than torchrun leave such variables too
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def everywhere(fabric: Fabric, *flags: Tensor) -> Tensor:
    """Whether each of these is true in all processes."""
    told = torch.stack(flags)
    return told if fabric.world_size == 1 else fabric.all_reduce(told.int(), reduce_op="min").bool()  # pyright: ignore


def mean(fabric: Fabric, value: Tensor) -> float:
    """The mean over the processes."""
    if fabric.world_size > 1:
        value = fabric.all_reduce(value.clone(), reduce_op="mean")  # pyright: ignore
    return float(value)


def of_the_first(fabric: Fabric, value: T) -> T:
    """What the first process found, where noise or the last bit may differ."""
    return value if fabric.world_size == 1 else fabric.broadcast(value)


def of_each(fabric: Fabric, t: Tensor) -> Tensor:
    """The tensor of each process, (processes, *shape)."""
    if fabric.world_size == 1:
        return t[None]
    t = t.to(fabric.device)
    parts = [torch.empty_like(t) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(parts, t)
    return torch.stack(parts).cpu()

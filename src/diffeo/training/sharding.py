"""FSDP: weights, gradients and the optimiser's state of a fit, sharded over all of its processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.core import Chain
from diffeo.transforms import Continuous


def shards_strategy(objective: nn.Module, precision: str) -> Any:
    """Fabric's strategy for `fit(strategy="fsdp")`; its own of that name is for GPUs only.

    Raises:
        ValueError: an objective, parameter or memory policy that does not go with shards.
    """
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    if any(chain.memory != "store" for chain in objective.modules() if isinstance(chain, Chain)):
        raise ValueError("fit: strategy='fsdp' needs Chain(memory='store'); the others run parts by themselves")
    if getattr(objective, "path_gradient", False):
        raise ValueError("fit: strategy='fsdp' cannot hold weights fixed, as path_gradient=True asks for")
    scalars = [name for name, p in objective.named_parameters() if p.ndim == 0]
    if scalars:
        raise ValueError(f"fit: strategy='fsdp' cannot shard parameters without dimensions: {', '.join(scalars)}")
    return ModelParallelStrategy(_shard)


def in_shards(strategy: Any) -> bool:
    """Whether a strategy of Fabric's shards the weights."""
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    return isinstance(strategy, ModelParallelStrategy)


def _shard(objective: nn.Module, mesh: Any) -> nn.Module:
    """Each part of a chain is gathered while it runs, and the rest with the whole; all start as the first process does.

    Parts that objectives call in other ways than forward, which are continuous ones, stay with the whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    with torch.no_grad():
        for t in (*objective.parameters(), *objective.buffers()):
            first = t.to(mesh.device_type, copy=True)
            torch.distributed.broadcast(first, 0)
            t.copy_(first)
    mesh = init_device_mesh(mesh.device_type, (torch.distributed.get_world_size(),))
    chains = [module for module in objective.modules() if isinstance(module, Chain)]
    for chain in reversed(chains):  # inner ones first
        for part in chain.parts:
            whole_only = isinstance(part, Continuous) or next(part.parameters(), None) is None
            if not isinstance(part, FSDPModule) and not whole_only:
                fully_shard(part, mesh=mesh)
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)  # an evaluation may change the weights
    register_forward_methods(objective)
    return objective


@contextmanager
def quietly() -> Iterator[None]:
    """Without PyTorch's warning of results that are views, which only those who write to them need."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        yield


def register_forward_methods(module: nn.Module) -> None:
    """Let FSDP gather the shards of a module also when `inverse` and the sampling methods are called."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    for part in module.modules():
        if isinstance(part, FSDPModule):
            for method in ("inverse", "sample", "rsample", "sample_and_log_prob", "draw"):
                if hasattr(part, method):
                    register_fsdp_forward_method(part, method)


def whole(t: Tensor) -> Tensor:
    """All of a tensor; of one in shards, every process must ask for it."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t  # pyright: ignore


def place(t: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device and in the shards of another."""
    t = t.to(like.device)
    if not hasattr(like, "full_tensor"):
        return t
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(t, like.device_mesh, like.placements)  # pyright: ignore

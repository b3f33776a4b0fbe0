"""FSDP: methods besides `forward` that need the whole weights."""

from __future__ import annotations

import torch
from torch import nn


def register_forward_methods(module: nn.Module) -> None:
    """Let FSDP gather the shards of a module also when `inverse` and the sampling methods are called."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    for part in module.modules():
        if isinstance(part, FSDPModule):
            for method in ("inverse", "sample", "rsample", "sample_and_log_prob", "draw"):
                if hasattr(part, method):
                    register_fsdp_forward_method(part, method)

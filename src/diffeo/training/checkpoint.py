"""Checkpoints of a fit: one atomic safetensors file with everything that decides the rest of the run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffeo.storage import FORMAT, FORMAT_VERSION, read_tensors, write_tensors
from diffeo.training.sharding import place, whole

NAME = "fit.safetensors"


def open_folder(checkpoint: str | os.PathLike[str] | None, resume: bool) -> tuple[Path | None, bool]:
    """The folder, made when a state is first written, and whether there is one in it to continue from."""
    if checkpoint is None:
        if resume:
            raise ValueError("fit: resume=True needs checkpoint=, the folder of the fit to continue")
        return None, False
    folder = Path(checkpoint)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"fit: checkpoint={str(folder)!r} is a file; give a folder")
    there = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if there and not resume:
        raise ValueError(
            f"fit: the folder {str(folder)!r} is not empty ({', '.join(there[:3])}); "
            "pass resume=True to continue that fit, or another folder"
        )
    return folder, NAME in there


def write(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a state, replacing the one before it in one rename."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": f"{FORMAT}-fit", "format_version": str(FORMAT_VERSION), "state": json.dumps(state)}
    write_tensors(folder / NAME, tensors, header)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state that `write` wrote."""
    tensors, header = read_tensors(folder / NAME, format=f"{FORMAT}-fit")
    return tensors, json.loads(header["state"])


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """The optimiser's state by parameter position."""
    state = optimizer.state
    return {f"optimizer.{i}.{key}": v for i, p in enumerate(parameters) for key, v in state.get(p, {}).items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], saved: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    for name, value in saved.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            parameter = parameters[int(i)]
            value = value.to(parameter.device) if key == "step" else place(value, parameter)
            optimizer.state[parameter][key] = value


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names under a prefix; values detached copies on the CPU, whole."""
    return {f"{prefix}.{name}": whole(t.detach()).cpu().clone().contiguous() for name, t in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under a prefix, with their own names."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + ".")}

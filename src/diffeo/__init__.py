"""Normalizing flows for PyTorch: densities made of invertible, differentiable maps, trained by exact likelihood."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffeo.version import __version__ as __version__

if TYPE_CHECKING:
    from diffeo.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # PyTorch loads with the first name that needs it, so that `diffeo --help` answers at once
    if name.startswith("__"):
        raise AttributeError(f"module 'diffeo' has no attribute {name!r}")
    value = getattr(import_module("diffeo.public"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    public = import_module("diffeo.public")
    return sorted(name for name in {*globals(), *dir(public)} if name == "__version__" or not name.startswith("_"))

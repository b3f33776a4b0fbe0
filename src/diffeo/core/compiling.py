"""Compiling functions of tensors with `torch.compile`: for any batch size, each with a cache of its own."""

# pyright: basic
from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

# A spline is one loop over scalars, but of more operations than Inductor joins by default.
OPTIONS: dict[str, Any] = {"max_fusion_size": 10_000, "size_asserts": False}


@cache
def has_compiler() -> bool:
    """Whether this machine can compile kernels; if it cannot, one quiet line in the log says so."""
    if torch.cuda.is_available() or any(shutil.which(c) for c in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return True
    logging.getLogger("diffeo").info("no C++ compiler found, so everything runs eagerly")
    return False


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled, or as it is where there is no compiler.

    The leading dim of every tensor may change from call to call without compiling again. Compiled kernels are kept on
    disk by Inductor (`TORCHINDUCTOR_CACHE_DIR`), so that the next process starts faster.
    """
    if not has_compiler():
        return function

    def call(*args: Any) -> Any:
        return function(*args)

    # Dynamo limits how often one code object is compiled anew; every flow gets an allowance of its own.
    own = FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)
    run = torch.compile(own, options=OPTIONS)

    def marked(*args: Any) -> Any:
        for arg in args:
            for t in arg.values() if isinstance(arg, Mapping) else (arg,):  # pyright: ignore[reportUnknownVariableType]
                if isinstance(t, Tensor) and t.ndim > 1:
                    torch._dynamo.maybe_mark_dynamic(t, 0)  # pyright: ignore
        return run(*args)

    return marked

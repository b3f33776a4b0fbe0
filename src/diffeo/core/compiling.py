"""Compiling functions of tensors with `torch.compile`: for any batch size, each with a cache of its own."""

# pyright: basic
from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
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

    run = torch.compile(_own_code(function), options=OPTIONS)

    def marked(*args: Any) -> Any:
        for arg in args:
            for t in arg.values() if isinstance(arg, Mapping) else (arg,):  # pyright: ignore[reportUnknownVariableType]
                if isinstance(t, Tensor) and t.ndim > 1:
                    torch._dynamo.maybe_mark_dynamic(t, 0)  # pyright: ignore
        return run(*args)

    return marked


class Kernel:
    """A function of tensors that is compiled apart from the models that call it: once, for all sizes.

    Compiled for each dtype, device and number of threads in turn, on examples of these shapes, of which the last size
    may differ later. Calls check nothing, so they cost little; arguments must be contiguous and of one dtype. Without a
    compiler, the function as it is.
    """

    def __init__(self, function: Callable[..., Any], shapes: Sequence[tuple[int, ...]]):
        self.function, self.shapes = function, shapes
        self.runs: dict[tuple[torch.dtype, torch.device, int], Callable[..., Any]] = {}

    def __call__(self, *args: Tensor) -> Any:
        key = (args[0].dtype, args[0].device, torch.get_num_threads())
        run = self.runs.get(key)
        if run is None:
            run = self.runs[key] = self._compile(*key[:2])
        return run(*args)

    def _compile(self, dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
        if not has_compiler():
            return self.function
        examples = tuple(torch.zeros(shape, dtype=dtype, device=device) for shape in self.shapes)
        for example in examples:
            torch._dynamo.mark_dynamic(example, example.ndim - 1)  # pyright: ignore
        compiler: Any = torch.compile(self.function, fullgraph=True, options=OPTIONS)
        with torch.no_grad():
            run = compiler.aot_compile((examples, {}))  # kept here: resetting the compiler does not touch it
        run.disable_guard_check()
        return run


def _own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a code object of its own: Dynamo limits how often one is compiled anew."""

    def call(*args: Any) -> Any:
        return function(*args)

    return FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)

"""Whether C may run: the one place where that is asked.

Kernels run where a compiler has taken over (`torch.compile`), or within `compiled_kernels`, on CPUs, on plain tensors
of one type that nobody watches. `can_run` says so of the tensors at hand, `can_pull` of gradients in a backward pass;
whether there is a library for an activation or a scalar map, the kernel itself knows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diffeo.kernels.private import has_global_hooks, is_in_memory, is_transformed, is_watched
from diffeo.kernels.process import prepare

TYPES = {torch.float32: "float", torch.float64: "double"}
TENSORS = (Tensor, torch.nn.Parameter)
_state = threading.local()


def can_run(first: Tensor, *rest: Tensor, traced: bool = True, products: bool = False) -> bool:
    """Whether C may run on these tensors, here and at this moment.

    Args:
        traced: also under `torch.compile`, which sees an operator; kernels that have none pass False.
        products: for kernels that multiply matrices, which is left to autocast where that is on.
    """
    if products and torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_dynamo_compiling():  # not for code that merely runs during a compilation, as recordings do
        same = traced and all(t.is_cpu and t.dtype == first.dtype for t in (first, *rest))
        return same and first.dtype in TYPES and not is_transformed() and not torch.compiler.is_exporting()
    return kernels_in_use() and not is_transformed() and not has_global_hooks() and can_read(first, *rest)


def can_pull(first: Tensor, *rest: Tensor) -> bool:
    """Whether the backward pass may run in C, given the gradients of the results.

    Second derivatives and several gradients at once take PyTorch operations, which autograd can follow.
    """
    return not torch.is_grad_enabled() and (torch.compiler.is_compiling() or can_read(first, *rest))


def entry(run: Callable[..., Any], operator: Callable[..., Any]) -> Callable[..., Any]:
    """The custom operator under `torch.compile`; otherwise the function itself, which costs less to call."""
    return operator if torch.compiler.is_compiling() else run


def can_read(first: Tensor, *rest: Tensor) -> bool:
    """Whether C can read them: numbers of one type in the memory of a CPU, and nobody records what is done."""
    if first.dtype not in TYPES or is_watched():
        return False
    return all(type(t) in TENSORS and t.is_cpu and t.dtype == first.dtype and is_in_memory(t) for t in (first, *rest))


def is_traced() -> bool:
    """Whether values are unknown: under a compiler, or a transform such as vmap."""
    return torch.compiler.is_compiling() or is_transformed()


def kernels_in_use() -> bool:
    """Whether uncompiled models run what there is in C (`compiled_kernels`)."""
    return getattr(_state, "using", False)


@contextmanager
def compiled_kernels(use: bool = True) -> Iterator[None]:
    """Uncompiled flows within run scalar maps, conditioners and autoregressive inverses in compiled C, on the CPU.

    Couplings of pictures whose nets have no blocks, linear maps of up to 64 channels, and WaveNets over frames are one
    operation each, and so are layers of vectors in a row, or, where no gradient is wanted, one such layer. Not splines
    that rows share; nor conditioners that are residual, normalise or drop units, have more than 512 inputs or units in
    a hidden layer, hooks, layers of one's own, or other activations than ReLU, LeakyReLU and SiLU; nor scalar maps
    whose inverse is a search, or whose arithmetic C cannot repeat (tests/cases.py says which).

    What `fit` does in all but short fits, unless told `compile=False`, for loops of one's own. Results agree with those
    of uncompiled kernels up to rounding. Only this thread is concerned. Tensors that `torch.func` wraps, second
    derivatives, other devices and dtypes than float32 and float64 are left to the uncompiled kernels, as is everything
    without a C compiler.

    Args:
        use: False has the opposite effect, within a block that has it.

    Cost: some seconds of compiling, the first time on a machine.

    >>> import torch, diffeo
    >>> flow = diffeo.nsf(2)
    >>> with diffeo.compiled_kernels():
    ...     (-flow(torch.randn(64, 2)).mean()).backward()
    """
    prepare()
    with using(use):
        yield


@contextmanager
def using(use: bool = True) -> Iterator[None]:
    """Inside, uncompiled models of this thread run what there is in C, or do not."""
    before = kernels_in_use()
    _state.using = use
    try:
        yield
    finally:
        _state.using = before

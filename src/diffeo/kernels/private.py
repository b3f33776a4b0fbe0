"""The private names of PyTorch that this package rests on, all of them in this file; tried on PyTorch 2.13.0.

Another version of PyTorch that lacks one fails here, when `diffeo` is imported, and not in the middle of a fit. Not
here are `Module._apply`, `Distribution._validate_args` and `_validate_sample`, which PyTorch's own subclasses override
and call.
"""

# pyright: basic
from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _has_storage, _len_torch_dispatch_stack
from torch._C._functorch import is_functorch_wrapped_tensor, maybe_current_level
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.nn.modules import dropout
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map
from torch.utils._pytree import tree_map_only as tree_map_only
from torch.utils._pytree import tree_unflatten as tree_unflatten

Dropout = dropout._DropoutNd  # of any number of dims
HELD = "_parameters", "_buffers", "_modules"  # what a module has, by name
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_engine: Any = torch.autograd.Variable._execution_engine  # that runs backward passes


def is_transformed() -> bool:
    """Whether a transform of `torch.func`, such as vmap, is at work."""
    return maybe_current_level() is not None


def is_watched() -> bool:
    """Whether somebody records operations: a dispatch mode, a tracer, forward-mode derivatives."""
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return tracing or _len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0


def is_in_memory(t: Tensor) -> bool:
    """Whether the numbers of a tensor lie in memory as they are: no wrapper, no lazy zero or sign."""
    wrapped = is_functorch_wrapped_tensor(t) or not _has_storage(t)
    return not (wrapped or t._is_zerotensor() or t.is_neg())


def apply_directly(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`, outside compilers, for functions that have `setup_context`.

    PyTorch inspects the signature of `forward` for defaults at every call, which takes as long as ten operations.
    """
    wrapped = torch._C._are_functorch_transforms_active()
    owner: Any = function if wrapped else super(torch.autograd.Function, function)
    return owner.apply(*(args if wrapped else unwrap_dead_wrappers(args)))


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module is more than the `forward` of its class."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__


@cache
def defined_together(kind: type, *names: str) -> bool:
    """Whether one class brings all these methods, so that no subclass has replaced one of them."""
    owners = {next((c for c in kind.__mro__ if name in vars(c)), None) for name in names}
    return len(owners) == 1 and None not in owners


def all_modules(module: nn.Module) -> list[nn.Module]:
    """The module and all in it, once each, as `modules()`, which takes ten times as long."""
    found: dict[nn.Module, None] = {}
    waiting = [module]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = None
            if one._modules:
                waiting.extend(part for part in one._modules.values() if part is not None)
    return list(found)


def weights_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Their own weights, once each."""
    found = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
    return list(found.values())


def pull_back(ends: list[Tensor], grads: list[Tensor], starts: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients of `starts` from those of `ends`, as `torch.autograd.grad`, whose checks take longer than small steps.

    They must have the shapes of the ends.
    """
    plain = all(type(t) in (Tensor, nn.Parameter) for t in (*ends, *grads, *starts))
    if not plain or torch.compiler.is_compiling():
        return torch.autograd.grad(ends, starts, grads, allow_unused=True)
    options = {"allow_unreachable": True, "accumulate_grad": False}
    return _engine.run_backward(tuple(ends), tuple(grads), False, False, tuple(starts), **options)


def version(t: Tensor) -> int:
    """How often a tensor was changed in place."""
    return 0 if is_lazy(t) or t.is_inference() else t._version


@torch.no_grad()
def move_towards(values: list[Tensor], ends: list[Tensor], share: float) -> None:
    """Move all values in place by this share of the way to the ends, in one operation."""
    torch._foreach_lerp_(values, ends, share)  # pyright: ignore


def standard_gamma(shape: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws of Gamma(shape, 1), which no public function seeds."""
    return torch._standard_gamma(shape, generator=generator)  # pyright: ignore


def has_global_hooks() -> bool:
    """Whether there are hooks of all modules."""
    return bool(torch.nn.modules.module._has_any_global_hook())


_scans = 0  # around what is traced now


def scan(step: Callable[..., Any], start: Any, rows: Any) -> tuple[Any, Any]:
    """(state, results of all rows) of `step(state, row) -> (state, result)`, as one loop that exporters keep.

    Not within another one, which exporters do not know.
    """
    from torch._higher_order_ops.scan import scan  # here: it takes a while

    global _scans
    _scans += 1
    try:
        return scan(step, start, rows)
    finally:
        _scans -= 1


def in_scan() -> bool:
    """Whether what is traced now is the body of a `scan`."""
    return _scans > 0


def mark_constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that compilers run once, while they look, and take its result for a constant.

    As `torch.compiler.assume_constant_result`, which would import the compiler, and that takes a second.
    """
    function._dynamo_marked_constant = True
    return function


def trace_gradients() -> AbstractContextManager[None]:
    """Inside, compilers trace calls of `torch.autograd.grad`."""
    return torch._dynamo.config.patch(trace_autograd_ops=True)


def compiler_errors() -> type[Exception]:
    """What compilers and exporters raise where they cannot go on."""
    from torch._dynamo.exc import TorchDynamoException  # here: it takes a while

    return TorchDynamoException


def mark_sizes(t: Tensor, dim: int, must: bool = False) -> None:
    """Tell the compiler that this size may change from call to call; with `must`, it is never taken for a constant."""
    (torch._dynamo.mark_dynamic if must else torch._dynamo.maybe_mark_dynamic)(t, dim)


def replace_calls(module: nn.Module, wrap: Callable[..., Any] | None) -> None:
    """Calls of the module, hooks included, go through `wrap` of them from now on; None undoes it."""
    module._compiled_call_impl = None if wrap is None else wrap(module._call_impl)

"""Compiling functions of tensors with `torch.compile`: for any batch size, each with a cache of its own."""

# pyright: basic
from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.functional import narrowed
from diffeo.kernels import native
from diffeo.kernels.private import has_hooks, mark_sizes, tree_map_only
from diffeo.kernels.process import prepare, thread_limit, waiting

# what only other code would change, and costs small models a tenth of a call to check each time
CODE = {
    "BUILTIN_MATCH",
    "CLASS_MATCH",
    "CLOSURE_MATCH",
    "DUPLICATE_INPUT",
    "MODULE_MATCH",
    "NOT_PRESENT_IN_GENERIC_DICT",
}


def _may_change(guards: Sequence[Any]) -> list[bool]:
    """Which of the conditions of a compiled function to check at each call."""
    return [not (g.is_global and g.guard_type in CODE) for g in guards]


# A spline is one loop over scalars, but of more operations than Inductor joins by default. `torch.compile` takes the
# filter out of what it is given, so give it a copy.
OPTIONS: dict[str, Any] = {
    "max_fusion_size": 10_000,
    "size_asserts": False,
    "guard_filter_fn": _may_change,
    "cpp.min_chunk_size": 1 << 14,  # steps of a loop that are worth another thread, which may have to be woken
}
LITTLE = 1 << 27  # rows times weights, up to which only the kernels of diffeo run on more than one thread
_BOOKKEEPING = vars(nn.Module())


@cache
def has_compiler() -> bool:
    """Whether this machine can compile kernels; if it cannot, one quiet line in the log says so."""
    if torch.cuda.is_available() or native.find_compiler():
        return True
    logging.getLogger("diffeo").info("no C++ compiler found, so everything runs eagerly")
    return False


def compiled(function: Callable[..., Any], weights: int | None = None) -> Callable[..., Any]:
    """The function compiled, or as it is where there is no compiler.

    The leading dim of every tensor may change from call to call without compiling again, but that little work (rows of
    the first tensor times `weights`, where that is given) is compiled for one thread, and much for all. Compiled
    kernels are kept on disk by Inductor (`TORCHINDUCTOR_CACHE_DIR`), so that the next process starts faster.
    """
    if not has_compiler():
        return function

    run = torch.compile(own_code(function), options=dict(OPTIONS))

    def marked(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # something larger is compiled, of which this is a part
            return function(*args, **kwargs)
        prepare()
        for arg in (*args, *kwargs.values()):
            for t in arg.values() if isinstance(arg, Mapping) else (arg,):  # pyright: ignore[reportUnknownVariableType]
                if isinstance(t, Tensor) and t.ndim > 1:
                    mark_sizes(t, 0)
        little = weights is not None and _is_little(next(iter((*args, *kwargs.values())), None), weights)
        if not little and not waiting.crowded:
            return run(*args, **kwargs)
        threads = 1 if little else waiting.free
        begin = thread_limit.begin if threads == 1 else partial(thread_limit.begin, threads=threads)
        with thread_limit if threads == 1 else thread_limit.of(threads):
            out = run(*args, **kwargs)
        for node in {t.grad_fn for t in (out if isinstance(out, tuple) else (out,)) if t.grad_fn is not None}:
            node.register_prehook(begin)
            node.register_hook(thread_limit.end)
        return out

    return marked


def _is_little(x: Any, weights: int) -> bool:
    """Whether the work is too little for a second thread; kernels choose their own number."""
    return isinstance(x, Tensor) and x.is_cpu and x.ndim > 1 and x.numel() // max(1, x.shape[-1]) * weights <= LITTLE


def compile_method(module: nn.Module, name: str) -> None:
    """Compile a method of this module, in place: `module.name` is the compiled one, until it is copied or pickled.

    Events that are wider than its weights are left to the method as it is: both directions have to round alike.
    """
    weights = sum(p.numel() for p in module.parameters())
    plain = getattr(type(module), name).__get__(module)
    fast = compiled(plain, weights)

    def run(x: Tensor, *rest: Any, **options: Any) -> Any:
        return (fast if narrowed(x, module).dtype == x.dtype else plain)(x, *rest, **options)

    setattr(module, name, run)


class Region:
    """A function of tensors that is compiled apart from the models that call it: once, for all sizes.

    Compiled for each dtype, device and number of threads in turn. Calls check nothing, so they cost little: arguments
    must be contiguous tensors of one dtype, or tuples of them, in always the same shapes but for the last size of the
    first `free` arguments, which may differ from call to call; `typical` is the one it is made for. Without a compiler,
    the function as it is.
    """

    def __init__(self, function: Callable[..., Any], free: int, typical: int):
        self.function, self.free, self.typical = function, free, typical
        self.runs: dict[tuple[torch.dtype, torch.device, int], Callable[..., Any]] = {}

    def __call__(self, first: Tensor, *rest: Any) -> Any:
        key = (first.dtype, first.device, torch.get_num_threads())
        run = self.runs.get(key)
        if run is None:
            run = self.runs[key] = self._compile(first, *rest)
        return run(first, *rest)

    def _compile(self, *args: Any) -> Callable[..., Any]:
        if not has_compiler():
            return self.function

        def example(t: Tensor) -> Tensor:
            sized = t.new_zeros(*t.shape[:-1], self.typical)
            mark_sizes(sized, t.ndim - 1, must=True)
            return sized

        off = torch.autocast(args[0].device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), off:
            examples = tree_map_only(Tensor, example, args[: self.free])
            fixed = tree_map_only(Tensor, torch.zeros_like, args[self.free :])
            # no condition is checked later, and some could not even be kept
            options = {**OPTIONS, "guard_filter_fn": lambda guards: [False] * len(guards)}
            compiler: Any = torch.compile(self.function, fullgraph=True, options=options)
            # kept here: resetting the compiler does not touch it
            run = compiler.aot_compile(((*examples, *fixed), {}))
        run.disable_guard_check()
        return run


def signature(module: nn.Module) -> Hashable:
    """Equal for modules that compute the same: their classes, attributes and parts; None where that cannot be told."""
    if any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))) or has_hooks(module):
        return None
    own = frozenset((k, v) for k, v in vars(module).items() if k not in _BOOKKEEPING and _is_hashable(v))
    hidden = sum(k not in _BOOKKEEPING for k in vars(module)) - len(own)
    parts = tuple((name, signature(part)) for name, part in module.named_children())
    # what diffeo has does the same in training and after it
    mode = None if type(module).__module__.split(".")[0] == "diffeo" else module.training
    return None if hidden or any(part is None for _, part in parts) else (type(module), mode, own, parts)


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a code object of its own: Dynamo limits how often one is compiled anew."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)

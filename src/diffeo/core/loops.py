"""Elementwise functions of tensors as loops in C, for the CPU: compiled in a fraction of a second.

A function runs once on a few numbers, and what it does to them becomes the body of a loop over scalars, which the C
compiler turns into vector instructions. So the function stays the only source, for autograd, for Inductor on other
devices, and here.
"""

# pyright: basic
from __future__ import annotations

import ctypes
import logging
import math
import re
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffeo.core.compiling import find_compiler
from diffeo.core.native import FAILURES, build, prelude, tiles
from diffeo.core.transform import Univariate

ROWS = 1024  # scalars below which a further thread costs more than it does
# `maximum` keeps a NaN on its left and loses one on its right, since gcc does not vectorise what keeps both;
# softmax, which subtracts the maximum from each, gives NaN all the same
FORMS = {
    "abs": "FABS({0})",
    "add": "{0} + {1}",
    "bitwise_or": "{0} | {1}",
    "clamp": "clamp({0}, {1}, {2})",
    "clamp_min": "{0} < {1} ? {1} : {0}",
    "div": "{0} / {1}",
    "exp": "EXP({0})",
    "ge": "{0} >= {1}",
    "isnan": "{0} != {0}",
    "log": "LOG({0})",
    "maximum": "{1} >= {0} ? {1} : {0}",
    "mul": "{0} * {1}",
    "neg": "-{0}",
    "rsub": "{1} - {0}",
    "sigmoid": "1 / (1 + EXP(-{0}))",
    "softplus": "softplus({0})",
    "sqrt": "SQRT({0})",
    "sub": "{0} - {1}",
    "tanh": "tangent({0})",
    "where": "{0} ? {1} : {2}",
}
FILE = """\
%(prelude)s
const int outputs = %(outputs)d;
const int planes[] = {%(planes)s};

static inline real clamp(real x, real low, real high) { return x < low ? low : x > high ? high : x; }

/* log(1 + e) with the bits that 1 + e rounds away */
static inline real softplus(real x) {
  const real e = EXP(x > 20 ? 20 : x), u = 1 + e;
  return x > 20 ? x : LOG(u) + (e - (u - 1)) / u;
}

/* by m = exp(y) - 1, with the bits that the difference loses (Kahan) */
static inline real tangent(real x) {
  const real y = -2 * FABS(x), u = EXP(y), m = u == 1 ? y : u == 0 ? -1 : (u - 1) * y / LOG(u);
  const real positive = -m / (2 + m);
  return x < 0 ? -positive : positive;
}

static void part(long n, long begin, long end, %(signature)s) {
#ifdef _OPENMP
#pragma omp simd
#endif
  for (long i = begin; i < end; i++) {
%(body)s
  }
}

void run(long n, int threads, %(signature)s) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const long k = omp_get_thread_num(), count = omp_get_num_threads();
    const long size = (n + count - 1) / count / 16 * 16 + 16;
    const long begin = k * size < n ? k * size : n, end = begin + size < n ? begin + size : n;
    part(n, begin, end, %(names)s);
  }
#else
  part(n, 0, n, %(names)s);
#endif
}
"""
# besides what compilers do: operations that have no form, and what other versions of PyTorch may do; the numbers can be
# had without
UNWRITTEN = (*FAILURES, KeyError, ValueError, AttributeError)
_state = threading.local()


def is_recording() -> bool:
    """Whether a loop is being made from the function that asks."""
    return getattr(_state, "recording", False)


class Loop:
    """An elementwise function of tensors as a loop in C: compiled once for each dtype, for all sizes and threads.

    Arguments are contiguous, of one shape, or with a dim of size k before it for k planes of numbers that belong to one
    scalar, which the function takes apart by `unbind`; its results are of these shapes too, planes put together by
    `stack`. Where it cannot be compiled, `otherwise` runs. Libraries are kept on disk (`TORCHINDUCTOR_CACHE_DIR`, as
    Inductor's kernels).
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        planes: tuple[int | None, ...],
        otherwise: Callable[..., tuple[Tensor, ...]] | None = None,
    ):
        self.function, self.planes = function, planes
        self.otherwise = otherwise or function
        self.runs: dict[torch.dtype, Callable[..., tuple[Tensor, ...]]] = {}

    def __call__(self, *args: Tensor) -> tuple[Tensor, ...]:
        return self._run(args[0].dtype)(*args)

    def is_compiled(self, dtype: torch.dtype) -> bool:
        """Whether it is a loop indeed; compiles it if that was not tried before."""
        return self._run(dtype) is not self.otherwise

    def _run(self, dtype: torch.dtype) -> Callable[..., tuple[Tensor, ...]]:
        run = self.runs.get(dtype)
        if run is None:
            run = self.runs[dtype] = self._build(dtype)
        return run

    def _build(self, dtype: torch.dtype) -> Callable[..., tuple[Tensor, ...]]:
        compiler = find_compiler()
        if compiler is None:
            return self.otherwise
        try:
            return self._load(build(self.source(dtype), compiler))
        except UNWRITTEN:
            logging.getLogger("diffeo").info("an elementwise kernel could not be compiled", exc_info=True)
            return self.otherwise

    def _load(self, library: ctypes.CDLL) -> Callable[..., tuple[Tensor, ...]]:
        count = ctypes.c_int.in_dll(library, "outputs").value
        shapes = [(k,) if k else () for k in (ctypes.c_int * count).in_dll(library, "planes")]
        call = library.run
        call.restype = None
        call.argtypes = [ctypes.c_long, ctypes.c_int, *[ctypes.c_void_p] * (len(self.planes) + count)]

        numbers = [k or 1 for k in self.planes]

        def run(*args: Tensor) -> tuple[Tensor, ...]:
            first = args[0]
            n = first.numel()
            if [t.numel() for t in args] != [n * k for k in numbers]:
                raise ValueError(f"Loop: sizes {[tuple(t.shape) for t in args]} do not belong together")
            out = [first.new_empty(shape + first.shape) if shape else torch.empty_like(first) for shape in shapes]
            threads = 1 if n < 2 * ROWS else min(torch.get_num_threads(), n // ROWS)
            call(n, threads, *[t.data_ptr() for t in (*args, *out)])
            return tuple(out)

        return run

    def source(self, dtype: torch.dtype) -> str:
        """The C of the function."""
        recorder = _Recorder()
        _state.recording = True
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
                shapes = [(2,) if k is None else (k, 2) for k in self.planes]
                inputs = [torch.zeros(shape, dtype=dtype, device="cpu") for shape in shapes]
                for i, t in enumerate(inputs):
                    recorder.enter(t, f"in{i}")
                with recorder:
                    results = self.function(*inputs)
        finally:
            _state.recording = False
        counts = [recorder.leave(t, f"out{i}") for i, t in enumerate(results)]
        names = [f"in{i}" for i in range(len(inputs))], [f"out{i}" for i in range(len(counts))]
        return FILE % {
            "prelude": prelude(dtype),
            "outputs": len(counts),
            "planes": ", ".join(map(str, counts)),
            "signature": ", ".join(
                [f"const real *restrict {name}" for name in names[0]] + [f"real *restrict {name}" for name in names[1]]
            ),
            "names": ", ".join((*names[0], *names[1])),
            "body": "\n".join(f"    {line}" for line in recorder.lines),
        }


def build_around(univariate: Univariate, inverse: bool, dtype: torch.dtype, source: str) -> Any:
    """The library of C that takes scalars through this map (or its inverse) by `part`; None where it cannot be made.

    Before the source stand `part` and `tiles.c`. Scalar maps that are no plain arithmetic cannot be written down.
    """
    compiler = find_compiler()
    if compiler is None:
        return None

    def scalars(v: Tensor, params: Tensor) -> tuple[Tensor, ...]:
        return (univariate.inverse if inverse else univariate)(v, params.movedim(0, -1))

    try:
        part = Loop(scalars, (None, univariate.n_params)).source(dtype)
        return build(part + tiles() + source, compiler)
    except UNWRITTEN:
        logging.getLogger("diffeo").info("a layer could not be compiled around %s", univariate, exc_info=True)
        return None


class _Recorder(TorchDispatchMode):
    """Writes down what is done to tensors, as lines of C on one scalar of each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.names: dict[int, str | list[str]] = {}
        self.alive: list[Tensor] = []  # an id names a tensor while it lives

    def enter(self, t: Tensor, name: str) -> None:
        """An argument of the function."""
        if t.ndim == 1:
            self._name(t, self._line("real", f"{name}[i]"))
        else:
            self._name(t, [f"{name}[{j} * n + i]" for j in range(len(t))])

    def leave(self, t: Tensor, name: str) -> int:
        """A result of the function; its number of planes, 0 for a plain one."""
        value = self.names[id(t)]
        if isinstance(value, str):
            self.lines.append(f"{name}[i] = {value};")
            return 0
        self.lines += [f"{name}[{j} * n + i] = {plane};" for j, plane in enumerate(value)]
        return len(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "unbind":
            for t, plane in zip(out, self.names[id(args[0])], strict=True):
                self._name(t, self._line("real", plane))
        elif name == "stack":
            self._name(out, [str(self.names[id(t)]) for t in args[0]])
        elif name in ("detach", "permute", "expand"):  # the same numbers, wherever they lie
            self._name(out, self.names[id(args[0])])
        elif name == "squeeze" and isinstance(self.names[id(args[0])], list):  # of a single plane
            (plane,) = self.names[id(args[0])]
            self._name(out, self._line("real", plane))
        elif name in ("new_zeros", "zeros_like", "full_like", "scalar_tensor"):
            value = {"full_like": args[-1], "scalar_tensor": args[0]}.get(name, 0)
            self._name(out, "0" if out.dtype == torch.bool else _literal(value))
        elif name in FORMS and kwargs in (None, {}) and len(args) == len(set(re.findall(r"\{\d\}", FORMS[name]))):
            values = [str(self.names[id(a)]) if isinstance(a, Tensor) else _literal(a) for a in args]
            kind = "int" if out.dtype == torch.bool else "real"
            self._name(out, self._line(kind, FORMS[name].format(*values)))
        else:
            raise NotImplementedError(f"{func} in an elementwise loop")
        return out

    def _line(self, kind: str, value: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"const {kind} {name} = {value};")
        return name

    def _name(self, t: Tensor, name: str | list[str]) -> None:
        self.names[id(t)] = name
        self.alive.append(t)


def _literal(value: Any) -> str:
    if not math.isfinite(value):
        raise NotImplementedError(f"{value} in an elementwise loop")
    return f"(real){float(value)!r}"

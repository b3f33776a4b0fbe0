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
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffeo.kernels import native, process
from diffeo.kernels.native import prelude
from diffeo.kernels.private import TorchDispatchMode

SHARE = 1024  # scalars below which a further thread costs more than it does
# `maximum` keeps a NaN on its left and loses one on its right, since gcc does not vectorise what keeps both;
# softmax, which subtracts the maximum from each, gives NaN all the same
FORMS = {
    "abs": "FN(fabs)({0})",
    "add": "{0} + {1}",
    "addcmul": "{0} + {1} * {2}",
    "asinh": "FN(asinh)({0})",
    "atan": "FN(atan)({0})",
    "atan2": "FN(atan2)({0}, {1})",
    "atanh": "FN(atanh)({0})",
    "bitwise_and": "{0} & {1}",
    "bitwise_not": "!{0}",
    "bitwise_or": "{0} | {1}",
    "ceil": "FN(ceil)({0})",
    "clamp": "clamp({0}, {1}, {2})",
    "clamp_max": "{0} > {1} ? {1} : {0}",
    "clamp_min": "{0} < {1} ? {1} : {0}",
    "cos": "FN(cos)({0})",
    "copysign": "FN(copysign)({0}, {1})",
    "cosh": "FN(cosh)({0})",
    "div": "{0} / {1}",
    "eq": "{0} == {1}",
    "erf": "FN(erf)({0})",
    "erfc": "FN(erfc)({0})",
    "exp": "FN(exp)({0})",
    "exp2": "FN(exp2)({0})",
    "expm1": "FN(expm1)({0})",
    "floor": "FN(floor)({0})",
    "fmod": "FN(fmod)({0}, {1})",
    "ge": "{0} >= {1}",
    "gt": "{0} > {1}",
    "hardtanh": "clamp({0}, {1}, {2})",
    "hardtanh_backward": "({1} <= {2} || {1} >= {3}) ? 0 : {0}",
    "hypot": "FN(hypot)({0}, {1})",
    "isnan": "{0} != {0}",
    "le": "{0} <= {1}",
    "lerp": "{2} < 0.5 ? {0} + {2} * ({1} - {0}) : {1} - ({1} - {0}) * (1 - {2})",
    "leaky_relu": "{0} > 0 ? {0} : {0} * {1}",
    "leaky_relu_backward": "{1} > 0 ? {0} : {0} * {2}",
    "log": "FN(log)({0})",
    "log10": "FN(log10)({0})",
    "log1p": "FN(log1p)({0})",
    "log2": "FN(log2)({0})",
    "log_sigmoid_backward": "{0} / (1 + FN(exp)({1}))",
    "log_sigmoid_forward": "-softplus(-{0})",
    "logaddexp": "add_powers({0}, {1})",
    "logical_and": "({0} != 0) & ({1} != 0)",
    "logical_not": "{0} == 0",
    "logical_or": "({0} != 0) | ({1} != 0)",
    "lt": "{0} < {1}",
    "logit": "FN(log)({0} / (1 - {0}))",
    "logit_backward": "({1} < 0 || {1} > 1) ? NAN : {0} / ({1} * (1 - {1}))",
    "masked_fill": "{1} ? {2} : {0}",
    "maximum": "{1} >= {0} ? {1} : {0}",
    "minimum": "{1} <= {0} ? {1} : {0}",
    "mul": "{0} * {1}",
    "ne": "{0} != {1}",
    "neg": "-{0}",
    "pow": "FN(pow)({0}, {1})",
    "reciprocal": "1 / {0}",
    "relu": "{0} < 0 ? 0 : {0}",
    "remainder": "{0} - {1} * FN(floor)({0} / {1})",
    "round": "FN(rint)({0})",
    "rsqrt": "1 / FN(sqrt)({0})",
    "rsub": "{1} - {0}",
    "sigmoid": "1 / (1 + FN(exp)(-{0}))",
    "sigmoid_backward": "{0} * {1} * (1 - {1})",
    "sgn": "(real)(({0} > 0) - ({0} < 0))",
    "sign": "(real)(({0} > 0) - ({0} < 0))",
    "silu": "{0} / (1 + FN(exp)(-{0}))",
    "silu_backward": "silu_backward({0}, {1})",
    "sin": "FN(sin)({0})",
    "sinh": "FN(sinh)({0})",
    "softplus": "softplus({0})",
    "softplus_backward": "{0} / (1 + FN(exp)(-{1}))",
    "sqrt": "FN(sqrt)({0})",
    "sub": "{0} - {1}",
    "tan": "FN(tan)({0})",
    "tanh": "tangent({0})",
    "tanh_backward": "{0} * (1 - {1} * {1})",
    "threshold_backward": "{1} <= {2} ? 0 : {0}",
    "trunc": "FN(trunc)({0})",
    "where": "{0} ? {1} : {2}",
}
POWERS = (2, 3, 4)  # that are products; `power` in the C
FUNCTIONS = """\

static inline real clamp(real x, real low, real high) { return x < low ? low : x > high ? high : x; }

/* log(1 + e) with the bits that 1 + e rounds away */
static inline real softplus(real x) {
  const real e = FN(exp)(x > 20 ? 20 : x), u = 1 + e;
  return x > 20 ? x : FN(log)(u) + (e - (u - 1)) / u;
}

/* by m = exp(y) - 1, with the bits that the difference loses (Kahan), before exp(y) is so small that it loses some */
static inline real tangent(real x) {
  const real a = FN(fabs)(x), y = a > 30 ? -60 : -2 * a, u = FN(exp)(y);
  const real m = u == 1 ? y : y < -50 ? -1 : (u - 1) * y / FN(log)(u);
  const real positive = -m / (2 + m);
  return x < 0 ? -positive : positive;
}

/* log(exp(a) + exp(b)) */
static inline real add_powers(real a, real b) {
  const real top = a > b ? a : b, apart = FN(fabs)(a - b);
  return a == b ? a + (real)0.6931471805599453 : a != a || b != b ? a + b : top + FN(log1p)(FN(exp)(-apart));
}

static inline real silu_backward(real grad, real x) {
  const real s = 1 / (1 + FN(exp)(-x));
  return grad * s * (1 + x * (1 - s));
}

/* small whole powers */
static inline real power(real x, int n) { return n == 2 ? x * x : n == 3 ? x * x * x : x * x * (x * x); }

"""
LOOP = """\
static void %(name)s(long n, long begin, long end, %(signature)s) {
#ifdef _OPENMP
#pragma omp simd
#endif
  for (long i = begin; i < end; i++) {
%(body)s
  }
}

"""
RUN = """\
const int outputs = %(outputs)d;
const int planes[] = {%(planes)s};

void run(long n, int threads, %(signature)s) {
#ifdef _OPENMP
  /* blocks go to whichever thread is free, since a core may be busy with something else */
  const long size = threads > 1 ? n / (4 * threads) / 16 * 16 + 16 : n;
  long taken = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (long begin; (begin = __atomic_fetch_add(&taken, size, __ATOMIC_RELAXED)) < n;)
    part(n, begin, begin + size < n ? begin + size : n, %(names)s);
#else
  part(n, 0, n, %(names)s);
#endif
}
"""
# a function that cannot be written down: operations without a form, and what other versions of PyTorch may do
UNWRITTEN = (NotImplementedError, KeyError, ValueError, AttributeError, RuntimeError)
_state = threading.local()


def is_recording() -> bool:
    """Whether a loop is being made from the function that asks."""
    return getattr(_state, "recording", False)


class RecordedLoop:
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
        source = None if native.find_compiler() is None else write(self.source, dtype)
        library = None if source is None else native.load(source, "an elementwise kernel")
        return self.otherwise if library is None else self._load(library)

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
                raise ValueError(f"RecordedLoop: sizes {[tuple(t.shape) for t in args]} do not belong together")
            out = [first.new_empty(shape + first.shape) if shape else torch.empty_like(first) for shape in shapes]
            call(n, process.threads(n // SHARE), *[t.data_ptr() for t in (*args, *out)])
            return tuple(out)

        return run

    def source(self, dtype: torch.dtype) -> str:
        """The C of the function, which a program can call."""
        text, values = self._write(dtype, "part")
        return prelude(dtype) + FUNCTIONS + text + RUN % values

    def part(self, dtype: torch.dtype, name: str) -> str:
        """The C of the function for some of the scalars, `name`, as part of a larger program that has `FUNCTIONS`."""
        return self._write(dtype, name)[0]

    def _write(self, dtype: torch.dtype, name: str) -> tuple[str, dict[str, Any]]:
        recorder = _Recorder()
        _state.recording = True
        try:
            off = torch.autocast("cpu", enabled=False)
            # hooks on saved tensors, such as those of checkpointing, must not see the recording either
            kept = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
            with torch.inference_mode(False), torch.no_grad(), off, kept:
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
        values = {
            "name": name,
            "outputs": len(counts),
            "planes": ", ".join(map(str, counts)),
            "signature": ", ".join(
                [f"const real *restrict {name}" for name in names[0]] + [f"real *restrict {name}" for name in names[1]]
            ),
            "names": ", ".join((*names[0], *names[1])),
            "body": "\n".join(f"    {line}" for line in recorder.lines),
        }
        return LOOP % values, values


def write(source: Callable[[torch.dtype], str], dtype: torch.dtype) -> str | None:
    """The C of a recorded function, or None where it cannot be written down."""
    try:
        return source(dtype)
    except UNWRITTEN:
        logging.getLogger("diffeo").info("an elementwise function cannot be written as C", exc_info=True)
        return None


Name = str | list[str]  # of a scalar, or of the planes of a tensor


class _Recorder(TorchDispatchMode):
    """Writes down what is done to tensors, as lines of C on one scalar of each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.names: dict[int, Name] = {}
        self.axes: dict[int, int] = {}  # which dim of a tensor holds its planes, counted from the end
        self.alive: list[Tensor] = []  # an id names a tensor while it lives

    def enter(self, t: Tensor, name: str) -> None:
        """An argument of the function."""
        if t.ndim == 1:
            self._name(t, self._line("real", f"{name}[i]"))
        else:
            self._name(t, [f"{name}[{j} * n + i]" for j in range(len(t))], -t.ndim)

    def leave(self, t: Tensor, name: str) -> int:
        """A result of the function; its number of planes, 0 for a plain one."""
        value = self.names[id(t)]
        if isinstance(value, str):
            self.lines.append(f"{name}[i] = {value};")
            return 0
        self.lines += [f"{name}[{j} * n + i] = {plane};" for j, plane in enumerate(value)]
        return len(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.endswith("_") and not name.startswith("_"):
            self._require_alone(args[0], func)
            name = name[:-1]
        out = func(*args, **(kwargs or {}))
        if not (self._rearrange(name, out, args) or self._fill(name, out, args)):
            self._compute(name, out, args, kwargs or {}, func)
        return out

    def _require_alone(self, t: Tensor, func: Any) -> None:
        """Refuse to change in place what others may have looked at, who keep their names."""
        place = t.untyped_storage().data_ptr()
        if any(other is not t and other.untyped_storage().data_ptr() == place for other in self.alive):
            raise NotImplementedError(f"{func} of a view in an elementwise loop")

    def _rearrange(self, name: str, out: Any, args: Any) -> bool:
        """Whether the operation only picks planes, or puts them together or elsewhere."""
        if name in ("stack", "cat"):
            pieces = [self.names[id(t)] for t in args[0]]
            planes = [plane for piece in pieces for plane in ([piece] if isinstance(piece, str) else piece)]
            dim = (args[1] if len(args) > 1 else 0) % out.ndim - out.ndim
            along = all(self.axes.get(id(t), dim) == dim for t in args[0])
            if not along or (name == "cat" and any(isinstance(piece, str) for piece in pieces)):
                raise NotImplementedError(f"{name} of scalars in an elementwise loop")
            self._name(out, planes, dim)
            return True
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None or id(first) not in self.names:
            return False
        if name in ("select_backward", "slice_backward"):
            self._put_back(name, out, args)
            return True
        value, axis = self.names[id(first)], self.axes.get(id(first), 0)
        if name in ("detach", "expand", "alias", "clone", "_to_copy", "unsqueeze", "permute", "squeeze"):
            self._keep(name, out, first, value, axis, args)
            return True
        if name not in ("unbind", "select", "slice", "split_with_sizes", "split"):
            return False
        dim = args[1] if len(args) > 1 and name in ("select", "slice") else args[-1] if len(args) > 2 else 0
        dim = (args[1] if name == "unbind" and len(args) > 1 else dim) % first.ndim - first.ndim
        if isinstance(value, str) or dim != axis:
            raise NotImplementedError(f"{name} of scalars in an elementwise loop")
        places = torch.arange(len(value))
        if name == "unbind":
            for t, plane in zip(out, value, strict=True):
                self._name(t, self._line("real", plane))
        elif name == "select":
            self._name(out, self._line("real", value[args[2]]))
        elif name == "slice":
            self._name(out, value[slice(*args[2:5])], axis)
        else:
            sizes = [t.shape[axis] for t in out]
            for t, part in zip(out, places.split(sizes), strict=True):
                self._name(t, [value[i] for i in part.tolist()], axis)
        return True

    def _keep(self, name: str, out: Tensor, first: Tensor, value: Name, axis: int, args: Any) -> None:
        """The same numbers, wherever they lie."""
        if isinstance(value, str):
            self._name(out, value)
        elif name == "squeeze" and len(value) == 1:
            self._name(out, self._line("real", value[0]))
        elif name == "permute":
            order = [d % first.ndim - first.ndim for d in args[1]]
            self._name(out, value, order.index(axis) - first.ndim)
        elif name == "unsqueeze":
            dim = args[1] % out.ndim - out.ndim
            self._name(out, value, axis - 1 if dim > axis else axis)
        else:
            self._name(out, value, axis)

    def _put_back(self, name: str, out: Tensor, args: Any) -> None:
        """The gradient of all planes from that of one, or of a slice: zero for the others."""
        value, dim = self.names[id(args[0])], args[2] % out.ndim - out.ndim
        planes = [_literal(0.0)] * out.shape[dim]
        where = range(out.shape[dim])[slice(*args[3:6]) if name == "slice_backward" else slice(args[3], args[3] + 1)]
        for i, plane in zip(where, [value] * len(where) if isinstance(value, str) else value, strict=True):
            planes[i] = plane
        self._name(out, planes, dim)

    def _fill(self, name: str, out: Any, args: Any) -> bool:
        """Whether the operation makes a tensor of one constant."""
        constants = {"full_like": 1, "full": 1, "fill": 1, "new_full": 2, "scalar_tensor": 0}
        if name in ("empty_like", "new_empty"):
            self._name(out, _literal(0.0))  # until it is filled
            return True
        if name not in (*constants, "zeros", "new_zeros", "zeros_like", "ones", "new_ones", "ones_like"):
            return False
        value = args[constants[name]] if name in constants else float("ones" in name)
        if isinstance(value, Tensor):  # whose number at the recording would be taken for a constant
            raise NotImplementedError(f"{name} with a tensor in an elementwise loop")
        self._name(out, str(int(value)) if out.dtype == torch.bool else _literal(value))
        return True

    def _compute(self, name: str, out: Any, args: Any, kwargs: dict, func: Any) -> None:
        """An operation on numbers, plane by plane where they have planes."""
        numbers = {"softplus": 1, "softplus_backward": 2}.get(name, len(args))  # then follow a slope and a bound
        if args[numbers : numbers + 1] in ((), (1,)) and all(bound >= 20 for bound in args[numbers + 1 :]):
            args = args[:numbers]
        args = args[:-1] if args and args[-1] is None else args
        if name == "log_sigmoid_backward":
            args = args[:2]  # the third is of use to some devices alone
        if name == "clamp" and len(args) == 3 and args[1] is None:
            name, args = "clamp_max", (args[0], args[2])
        elif name == "clamp" and (len(args) == 2 or args[2] is None):
            name, args = "clamp_min", args[:2]
        if name == "_softmax" and not isinstance(self.names[id(args[0])], str):
            self._name(out, self._softmax(list(self.names[id(args[0])])), self.axes[id(args[0])])
            return
        if name in ("sum", "cumsum") and not isinstance(self.names[id(args[0])], str):
            self._add_up(name, out, args, kwargs, func)
            return
        if name == "leaky_relu_backward":
            args = args[:3]  # the fourth says what slopes above 0 make no difference to
        form, places = FORMS.get(name, ""), len(set(re.findall(r"\{\d\}", FORMS.get(name, ""))))
        if name == "pow" and not isinstance(args[1], Tensor) and args[1] in POWERS:
            form, args, places = f"power({{0}}, {int(args[1])})", args[:1], 1
        if name not in FORMS or kwargs or len(args) != places:
            raise NotImplementedError(f"{func} in an elementwise loop")
        out = out[0] if name == "log_sigmoid_forward" else out
        values = [self.names[id(a)] if isinstance(a, Tensor) else _literal(a) for a in args]
        kind = "int" if out.dtype == torch.bool else "real"
        counts = {len(v) for v in values if not isinstance(v, str)}
        if not counts:
            self._name(out, self._line(kind, form.format(*values)))
            return
        axes = {self.axes[id(a)] for a in args if isinstance(a, Tensor) and id(a) in self.axes}
        if len(counts) > 1 or len(axes) > 1:
            raise NotImplementedError(f"{func} of unlike planes in an elementwise loop")
        columns = [[v] * max(counts) if isinstance(v, str) else v for v in values]
        planes = [self._line(kind, form.format(*row)) for row in zip(*columns, strict=True)]
        self._name(out, planes, max(axes))

    def _add_up(self, name: str, out: Tensor, args: Any, kwargs: dict, func: Any) -> None:
        planes, axis = self.names[id(args[0])], self.axes[id(args[0])]
        dims = args[1] if isinstance(args[1], Sequence) else [args[1]]
        if [d % args[0].ndim - args[0].ndim for d in dims] != [axis] or kwargs or len(args) > 2:
            raise NotImplementedError(f"{func} over scalars in an elementwise loop")
        sums = [planes[0]]
        for plane in planes[1:]:
            sums.append(self._line("real", f"{sums[-1]} + {plane}"))
        if name == "cumsum":
            self._name(out, sums, axis)
        else:
            self._name(out, sums[-1])

    def _softmax(self, planes: list[str]) -> list[str]:
        top = planes[0]
        for plane in planes[1:]:
            top = self._line("real", FORMS["maximum"].format(top, plane))
        powers = [self._line("real", f"FN(exp)({plane} - {top})") for plane in planes]
        total = self._line("real", " + ".join(powers))
        return [self._line("real", f"{power} / {total}") for power in powers]

    def _line(self, kind: str, value: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"const {kind} {name} = {value};")
        return name

    def _name(self, t: Tensor, name: Name, axis: int | None = None) -> None:
        self.names[id(t)] = name
        if axis is not None:
            self.axes[id(t)] = axis
        self.alive.append(t)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if math.isnan(value):
        raise NotImplementedError(f"{value} in an elementwise loop")
    return (
        f"(real){float(value)!r}" if math.isfinite(value) else ("(-(real)INFINITY)" if value < 0 else "(real)INFINITY")
    )

"""C compiled where it runs: libraries for this processor, kept on disk (`TORCHINDUCTOR_CACHE_DIR`, as Inductor's)."""

# pyright: basic
from __future__ import annotations

import ctypes
import getpass
import hashlib
import os
import platform
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor
from torch._C import _has_storage as has_storage  # pyright: ignore
from torch._C import _len_torch_dispatch_stack as len_torch_dispatch_stack
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore
from torch.autograd import forward_ad

TYPES = {torch.float32: "float", torch.float64: "double"}
PLAIN = (Tensor, torch.nn.Parameter)
FAILURES = (OSError, RuntimeError)  # what compiler, disk and loader may do
# neither error codes nor the sign of zero matter; infinities and NaN do
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-shared", "-fPIC")
# not every compiler knows all of these; the first that works is taken
FURTHER = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
# exponentials and logarithms as the C library computes many at once
PRELUDE = """\
#if __has_include(<features.h>)
#include <features.h>
#endif
typedef %(real)s real;
#if defined(__GLIBC__) && defined(__x86_64__)
#pragma omp declare simd notinbranch
real exp%(suffix)s(real);
#pragma omp declare simd notinbranch
real log%(suffix)s(real);
#else
real exp%(suffix)s(real);
real log%(suffix)s(real);
#endif
#define EXP exp%(suffix)s
#define LOG log%(suffix)s
#define SQRT __builtin_sqrt%(suffix)s
#define FABS __builtin_fabs%(suffix)s
#ifdef _OPENMP
int omp_get_thread_num(void);
int omp_get_num_threads(void);
#endif
"""
_state = threading.local()


def tiles() -> str:
    """Matrix products of any small sizes (`tiles.c`), to be written after the prelude."""
    return resources.files("diffeo.core").joinpath("tiles.c").read_text()


def prelude(dtype: torch.dtype) -> str:
    """The type of numbers, `real`, and their functions."""
    real = TYPES[dtype]
    return PRELUDE % {"real": real, "suffix": "f" if real == "float" else ""}


def kernels_in_use() -> bool:
    """Whether uncompiled models run what there is in C (`compiled_kernels`)."""
    return getattr(_state, "using", False)


@contextmanager
def compiled_kernels(use: bool = True) -> Iterator[None]:
    """Uncompiled flows within run splines, conditioners and autoregressive inverses in compiled C, on the CPU.

    Where no gradient is wanted, couplings too. Not splines that rows share; nor conditioners that are residual,
    normalise or drop units, have more than 512 inputs or units in a hidden layer, hooks, layers of one's own, or other
    activations than ReLU, LeakyReLU and SiLU; nor scalar maps whose inverse is a search.

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
    keep_freed_memory()
    before = kernels_in_use()
    _state.using = use
    try:
        yield
    finally:
        _state.using = before


def keep_freed_memory() -> None:
    """Let the process keep up to 62 MiB that it frees, for the next call, which would get it back page by page.

    A training step frees its activations at its end, and the next one would write to new pages, each of which the
    system first clears. The C library of GNU keeps twice the largest block that it has freed, up to about this one's
    size; other libraries do as they do.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")  # nothing is written to it, so it costs nothing


def can_read(first: Tensor, *rest: Tensor) -> bool:
    """Whether C can read them: numbers of one type in the memory of a CPU, and nobody records what is done."""
    watched = torch.jit.is_tracing() or len_torch_dispatch_stack() or forward_ad._current_level >= 0  # pyright: ignore
    if first.dtype not in TYPES or watched:
        return False
    return all(type(t) in PLAIN and t.is_cpu and t.dtype == first.dtype and not _is_wrapped(t) for t in (first, *rest))


def _is_wrapped(t: Tensor) -> bool:
    return is_functorch_wrapped_tensor(t) or not has_storage(t) or t._is_zerotensor() or t.is_neg()


def build(source: str, compiler: str) -> ctypes.CDLL:
    """The compiled library of a source, from disk where it was compiled before."""
    what = (source, _version(compiler), *FLAGS, _processor(), *platform.libc_ver())
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()[:32] + ".so"
    folder = _folder()
    if folder is not None and (folder / name).exists():
        return ctypes.CDLL(str(folder / name))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        text, made = Path(place) / "loop.c", Path(place) / "loop.so"
        text.write_text(source)
        said = ""
        for further in FURTHER:
            command = [compiler, *FLAGS, *further, "-x", "c", str(text), "-o", str(made), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                library = ctypes.CDLL(str(made))  # one that loads; it stays loaded when its file moves
                if folder is None:
                    return library
                made.replace(folder / name)  # whole or not at all, whoever else writes it
                return ctypes.CDLL(str(folder / name))  # by the name that it has from now on
            said = said or done.stderr
    raise RuntimeError(f"{compiler} said: {said}")


def _folder() -> Path | None:
    """Where libraries are kept: only where nobody else may put some, since what lies there is run."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        folder = Path(given or f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}") / "diffeo"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, KeyError, ImportError):  # a disk that cannot be written, a user without a name
        return None
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        return None
    return folder if os.access(folder, os.W_OK) else None


@cache
def _version(compiler: str) -> str:
    """What the compiler says it is."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


@cache
def _processor() -> str:
    """What tells processors with other instructions apart, for caches on shared disks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())

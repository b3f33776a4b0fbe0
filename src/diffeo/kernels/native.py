"""C compiled where it runs: libraries for this processor, kept on disk (`TORCHINDUCTOR_CACHE_DIR`, as Inductor's)."""

# pyright: basic
from __future__ import annotations

import ctypes
import getpass
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

import torch

from diffeo.kernels.dispatch import TYPES
from diffeo.kernels.process import crowded, openmp, region

FAILURES = (OSError, RuntimeError)  # what compiler, disk and loader may do
# neither error codes nor the sign of zero matter; infinities and NaN do
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-shared", "-fPIC")
# not every compiler knows all of these; the first that works is taken
FURTHER = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
# functions that the C library of GNU computes many at once: since version 2.22, and since 2.35
VECTORISED = ("exp", "log", "sin", "cos"), ("expm1", "log1p", "sinh", "cosh", "asinh", "atan", "atan2", "atanh", "erf")
PRELUDE = """\
#if __has_include(<features.h>)
#include <features.h>
#endif
#include <math.h>
typedef %(real)s real;
#if defined(__GLIBC__) && defined(__x86_64__)
%(old)s
#if __GLIBC_PREREQ(2, 35)
%(new)s
#endif
#endif
#define FN(name) name%(paste)s
#ifdef _OPENMP
int omp_get_thread_num(void);
#endif
"""
# The compiler makes of a parallel region a call of this function of GNU's library, with the region's body; ours stands
# before it, for regions whose threads share out work by a counter alone. See team.c.
REGIONS = """\
#ifdef TEAM
typedef void (*Body)(void *);
void (*run_region)(Body, void *, unsigned, unsigned);
__attribute__((visibility("hidden"))) void GOMP_parallel(Body body, void *data, unsigned threads, unsigned flags) {
  run_region(body, data, threads, flags);
}
#endif
"""


def c_file(name: str) -> str:
    """A file of C of this package."""
    return resources.files("diffeo.kernels").joinpath(name).read_text()


def tiles() -> str:
    """Matrix products of any small sizes (`tiles.c`), to be written after the prelude."""
    return c_file("tiles.c")


def prelude(dtype: torch.dtype, meets: bool = False) -> str:
    """The type of numbers, `real`, and their functions: `FN(exp)` is the exponential of a `real`.

    Args:
        dtype: float32 or float64.
        meets: whether threads of a region wait for each other within it, at barriers or loops of OpenMP.
    """
    real = TYPES[dtype]
    suffix = "f" if real == "float" else ""

    def declare(name: str) -> str:
        arguments = "real, real" if name == "atan2" else "real"
        return f"#pragma omp declare simd notinbranch\nreal {name}{suffix}({arguments});"

    old, new = ("\n".join(map(declare, names)) for names in VECTORISED)
    text = PRELUDE % {"real": real, "paste": "##f" if suffix else "", "old": old, "new": new}
    return text + ("" if meets else REGIONS)


def find_compiler() -> str | None:
    """The C++ compiler of this machine, if it has one."""
    return next((c for c in (os.environ.get("CXX", "g++"), "g++", "clang++") if shutil.which(c)), None)


def load(source: str, what: str) -> ctypes.CDLL | None:
    """The compiled library of a source; None, and a line in the log, where it cannot be made."""
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        library = build(source, compiler)
        if hasattr(library, "run_region"):
            ctypes.c_void_p.in_dll(library, "run_region").value = _team(compiler)
        return library
    except FAILURES:
        logging.getLogger("diffeo").info("%s could not be compiled", what, exc_info=True)
        return None


def build(source: str, compiler: str) -> ctypes.CDLL:
    """The compiled library of a source, from disk where it was compiled before."""
    shared = openmp()  # threads are those of PyTorch; two libraries would have a pool each
    libraries = [] if shared is None else ["-x", "none", "-Wl,--as-needed", shared]
    flags = FLAGS if region() is None else (*FLAGS, "-DTEAM", "-pthread")
    what = (source, _version(compiler), *flags, *libraries, _processor(), *platform.libc_ver())
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()[:32] + ".so"
    folder = _folder()
    if folder is not None and (folder / name).exists():
        return ctypes.CDLL(str(folder / name))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        text, made = Path(place) / "loop.c", Path(place) / "loop.so"
        text.write_text(source)
        said = ""
        for further in FURTHER:
            command = [compiler, *flags, *further, "-x", "c", str(text), "-o", str(made), *libraries, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                library = ctypes.CDLL(str(made))  # one that loads; it stays loaded when its file moves
                if folder is None:
                    return library
                made.replace(folder / name)  # whole or not at all, whoever else writes it
                return ctypes.CDLL(str(folder / name))  # by the name that it has from now on
            said = said or done.stderr
    raise RuntimeError(f"{compiler} said: {said}")


@cache
def _team(compiler: str) -> int:
    """Where the function that runs parallel regions is: that of `team.c`, or else GNU's."""
    try:
        library = build(c_file("team.c"), compiler)
    except FAILURES:
        logging.getLogger("diffeo").info("team.c could not be compiled", exc_info=True)
        return region() or 0
    library.set_up.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.set_up(region(), ctypes.addressof(crowded))
    return ctypes.cast(library.run_region, ctypes.c_void_p).value or 0


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

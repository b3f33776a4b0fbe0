"""Linear maps of the channels of pictures and couplings, in turn, as one operation on CPUs, in C (`picture_steps.c`).

For trained models, without a gradient: of many small layers one by one, calls take longer than what they compute.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffeo.kernels import perceptron, process
from diffeo.kernels.convolution import TAPS
from diffeo.kernels.coupling import ACTIVATION, pack_event
from diffeo.kernels.native import c_file
from diffeo.kernels.perceptron import WORK
from diffeo.kernels.scalars import ScalarMap, build_around, identify

_libraries: dict[tuple[Hashable, bool, torch.dtype], Any] = {}
_STEP = struct.Struct("3P6l7P")  # `Step` of the C


class LinearStep(NamedTuple):
    """z = W (x + c) in one direction, x = W z − c in the other."""

    weight: Tensor  # W, (C, C)
    shift: Tensor  # c, (C,)
    log_scale: Tensor  # log|det| of the first


class CouplingStep(NamedTuple):
    """Channels that the net sees set the others."""

    weights: tuple[Tensor, Tensor, Tensor]  # of its net, see `Convolution`
    biases: tuple[Tensor, Tensor, Tensor]
    shifted: bool  # whether it also reads the context
    seen: int  # the first channel that the net sees
    changed: int  # and that the scalar map changes


class Steps:
    """Steps packed for C, to be run on any pictures.

    Args:
        steps: those of the inverse in the order in which they are done.
    """

    def __init__(self, scalar_map: ScalarMap, steps: Sequence[LinearStep | CouplingStep], library: Any, inverse: bool):
        self.steps, self.library, self.inverse, self.planes = steps, library, inverse, scalar_map.n_params
        packed = b"".join(_pack(step, None) for step in steps)
        self.room = library.count_room(len(steps), packed)
        couplings = [step for step in steps if isinstance(step, CouplingStep)]
        self.shifted = any(step.shifted for step in couplings)
        self.packed = None if self.shifted else packed
        self.products = sum(w.numel() for step in couplings for w in step.weights)

    def __call__(self, x: Tensor, shifts: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """What comes of pictures x, (n, C, H, W), and the log-det; with the nets' shifts, one for each step."""
        n, _, height, width = x.shape
        z, logdet, room = x.new_empty(x.shape), x.new_empty(n), x.new_empty(self.room)
        held = [None if t is None else t.contiguous() for t in shifts] if self.shifted else []
        packed = self.packed or b"".join(map(_pack, self.steps, held))
        event = pack_event(x, 0, 0, self.planes)
        threads = min(n, process.threads(n * height * width * self.products // WORK))
        if self.library.run_steps(
            *(n, event, len(self.steps), packed, self.inverse),
            *(room.data_ptr(), z.data_ptr(), logdet.data_ptr(), threads),
        ):
            raise MemoryError("prepare_inference: not enough memory for a picture")
        return z, logdet


def plan(
    scalar_maps: Sequence[ScalarMap], steps: Sequence[LinearStep | CouplingStep], dtype: torch.dtype, inverse: bool
) -> Steps | None:
    """How to run steps in one operation, or None where that can't be; the scalar maps are those of the couplings."""
    names = {identify(scalar_map) for scalar_map in scalar_maps}
    if len(names) != 1 or None in names:
        return None
    library = _find_library(scalar_maps[0], inverse, dtype)
    return None if library is None else Steps(scalar_maps[0], steps, library, inverse)


def _pack(step: LinearStep | CouplingStep, shift: Tensor | None) -> bytes:
    """`Step` of the C."""
    if isinstance(step, LinearStep):
        return _STEP.pack(*(t.data_ptr() for t in step), *[0] * 13)
    enter, mix, leave = step.weights
    widths = TAPS * enter.shape[1], enter.shape[0], mix.shape[0], TAPS * leave.shape[0]
    layers = (t.data_ptr() for t in (*step.weights, *step.biases))
    return _STEP.pack(0, 0, 0, step.seen, step.changed, *widths, *layers, 0 if shift is None else shift.data_ptr())


def _find_library(scalar_map: ScalarMap, inverse: bool, dtype: torch.dtype) -> Any:
    """The library for a direction of a scalar map, or None where it cannot be made."""
    key = identify(scalar_map), inverse, dtype
    if key not in _libraries:
        _libraries[key] = _build(scalar_map, inverse, dtype)
    return _libraries[key]


def _build(scalar_map: ScalarMap, inverse: bool, dtype: torch.dtype) -> Any:
    files = "convolution.c", "coupling.c", "mix.c", "picture_steps.c"
    source = perceptron.source(ACTIVATION) + "#define NO_PULL\n" + "".join(map(c_file, files))
    library: Any = build_around(scalar_map, inverse, dtype, source)
    if library is None:
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    library.count_room.argtypes, library.count_room.restype = [long, pointer], long
    library.run_steps.argtypes = [long, pointer, long, pointer, flag, pointer, pointer, pointer, flag]
    return library

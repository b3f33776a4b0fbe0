"""Flows as they are used after training: what depends on weights alone is worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import groupby
from typing import TypeVar

import torch
from torch import nn

from diffeo.core import Chain, Transform
from diffeo.kernels.mix import FEW
from diffeo.nets.wavenet import WaveNet
from diffeo.transforms.along import Along, Grouped
from diffeo.transforms.linear import ExpLinear, FixedLinear, Householder, LULinear, TriangularLinear
from diffeo.transforms.norm import ActNorm, Standardize, Whiten
from diffeo.transforms.permute import Permute
from diffeo.transforms.picture_steps import PictureSteps, is_step

DENSE = (LULinear, TriangularLinear, ExpLinear, Householder, Whiten, FixedLinear)  # z = W x + b, at a cost of O(D²)
THIN = (ActNorm, Standardize, Permute)  # and of O(D)
WHOLE = 256  # features up to which one matrix is faster than a map of groups of them

M = TypeVar("M", bound=nn.Module)


def prepare_inference(module: M) -> M:
    """A copy for inference alone: neighbouring linear maps, norms and permutations of a `Chain` become one matrix.

    z = W_k(… (W_1 x + b_1) …) + b_k = W (x + c); W, c and W⁻¹ are worked out once, in float64, so that neither
    direction multiplies or inverts factors again. Of a WaveNet over frames it keeps the weights a second time, as C
    reads them. On CPUs, couplings of pictures whose nets have no blocks and the maps between them become one operation,
    where C may run (`compiled_kernels`). The copy gives the same values up to rounding, and learns nothing. It is no
    longer what its recipe makes, so it can't be saved: save the original.

    Args:
        module: a flow, a density around one, or a transform, all of whose layers have been initialised.

    Returns:
        A copy in evaluation mode, without gradients of weights.

    Raises:
        ValueError: a layer that has not seen data yet.

    Cost: O(D³) for each run of linear maps, once; for WaveNets some seconds of compiling, the first time on a machine.

    >>> import torch, diffeo
    >>> chain = diffeo.Chain(diffeo.Permute(torch.tensor([1, 0])), diffeo.LULinear(2))
    >>> len(diffeo.prepare_inference(chain).parts)
    1
    """
    for name, part in module.named_modules():
        if isinstance(part, THIN + DENSE) and not getattr(part, "initialized", True):
            raise ValueError(f"prepare_inference: {type(part).__name__} at {name!r} has not seen data; fit first")
    return _prepared(deepcopy(module).eval()).eval().requires_grad_(False)


def _prepared(module: M) -> M:
    for name, child in module.named_children():
        setattr(module, name, _prepared(child))
    if isinstance(module, WaveNet):
        module.pack()
    return _folded(module) if type(module) is Chain else module  # pyright: ignore[reportReturnType] (then M is Chain)


def _folded(chain: Chain) -> Chain:
    parts: list[Transform] = []
    runs: list[tuple[tuple[int, int] | None, list[Transform]]] = []
    for place, run in groupby(chain.parts, key=_place):
        runs.append((place, list(run)))  # pyright: ignore[reportArgumentType] (a ModuleList forgets its elements)
    for i, (place, some) in enumerate(runs):
        maps: list[Transform] = [_vectors(part) for part in some]  # pyright: ignore[reportAssignmentType]
        beside = [part for _, others in (*runs[max(0, i - 1) : i], *runs[i + 1 : i + 2]) for part in others]
        among_steps = place == (-3, 3) and _features(maps[0]) <= FEW and any(map(is_step, beside))
        if place is None or not (among_steps or any(_is_linear(part, DENSE) for part in maps)):
            parts += some
            continue
        one = fixed(maps, beside)
        parts.append(one if place == (-1, 1) else Along(one, *place))
    return Chain(*_gathered(parts), memory=chain.memory)


def _gathered(parts: list[Transform]) -> list[Transform]:
    """The parts, of which runs that can be one operation on pictures are one part."""
    gathered: list[Transform] = []
    for are_steps, run in groupby(parts, key=is_step):
        some = list(run)
        gathered += [PictureSteps(*some)] if are_steps and len(some) > 1 else some
    return gathered


def _place(part: nn.Module) -> tuple[int, int] | None:
    """The dim that a linear map runs along and the dims of its event; None for anything else."""
    if not _is_linear(_vectors(part), DENSE + THIN):
        return None
    return (part.dim, part.event_ndim) if isinstance(part, Along) else (-1, 1)


def _is_linear(part: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Whether it is of these kinds, or such a map of each group of a few features."""
    if isinstance(part, Grouped) and part.size * part.groups <= WHOLE:
        return _is_linear(_vectors(part.transform), kinds)
    return isinstance(part, kinds)


def _vectors(part: nn.Module) -> nn.Module:
    """What an `Along` does to vectors, a chain of which has been folded; any other part."""
    inner = part.transform if isinstance(part, Along) else part
    return inner.parts[0] if isinstance(part, Along) and type(inner) is Chain and len(inner.parts) == 1 else inner


def _features(part: Transform) -> int:
    if part.event is None or not part.event or part.event[-1] is None:
        raise ValueError(f"prepare_inference: {type(part).__name__} maps vectors of no fixed length")
    return part.event[-1]


@torch.no_grad()
def fixed(maps: list[Transform], beside: Sequence[Transform] = ()) -> FixedLinear:
    """All maps in turn as one matrix, from their values at the unit vectors, and the point that they take to zero.

    Dtype and device are those of the maps or, where these have no numbers, as permutations, of their neighbours.
    """
    owners = (*maps, *beside)
    some = next(t for part in owners for t in (*part.parameters(), *part.buffers()) if t.is_floating_point())
    exact = [deepcopy(part).cpu().double() for part in maps]
    eye = torch.eye(_features(maps[0]), dtype=torch.float64)
    origin = torch.zeros_like(eye[0])
    for part in reversed(exact):
        origin = part.inverse(origin)[0]
    images = eye + origin
    for part in exact:
        images = part(images)[0]
    return FixedLinear(images.T, -origin).to(some.device, some.dtype)

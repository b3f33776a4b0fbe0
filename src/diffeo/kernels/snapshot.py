"""Detects whether modules have changed since they were looked at."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any

from torch import Tensor, nn

from diffeo.kernels.private import HELD, HOOKS, all_modules


class Snapshot:
    """What a module and all in it consist of: attributes, parts, hooks, and tensors with the memory they lie in.

    Cost: a microsecond or two for each module, to make and to check. The numbers in the tensors may change.
    """

    def __init__(self, module: nn.Module):
        modules = all_modules(module)
        held: list[dict[str, Any]] = [getattr(m, name) for m in modules for name in HELD]
        self._empty = [d for d in held if not d] + [getattr(m, name) for m in modules for name in HOOKS]
        self._held = [(d, list(d.values())) for d in held if d]
        self._attributes = [(vars(m), list(vars(m).values())) for m in modules]
        self._tensors = [t for _, values in self._held for t in values if isinstance(t, Tensor)]
        self._memory = list(map(_memory, self._tensors))
        self._plain = not any(self._empty)

    def holds(self) -> bool:
        """Whether nothing was replaced, added or taken away."""
        if not self._plain or any(self._empty) or not all(_same(d.values(), values) for d, values in self._held):
            return False
        if list(map(_memory, self._tensors)) != self._memory:
            return False
        return all(_same(d.values(), values) for d, values in self._attributes)


def _same(now: Iterable[object], before: list[object]) -> bool:
    now = list(now)
    return len(now) == len(before) and all(map(is_, now, before))


def _memory(t: Tensor) -> tuple[object, ...]:
    return t.data_ptr(), t.stride(), t.shape, t.dtype

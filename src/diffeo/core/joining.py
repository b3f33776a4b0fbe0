"""Neighbours of a chain that run as one operation (`kernels/vector_steps.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from diffeo.core.transform import Transform
from diffeo.functional import Context
from diffeo.kernels.dispatch import can_run
from diffeo.kernels.vector_steps import Step, group


class Joinable(ABC):
    """The optional role of a map of vectors that can run as one operation with the layers beside it."""

    @abstractmethod
    def as_step(self, like: Tensor, context: Context) -> Step | None:
        """What to run for vectors like these; None where that cannot be."""


def join_neighbours(parts: Sequence[Transform | None], contexts: Sequence[Context], x: Tensor) -> dict[int, list[Step]]:
    """Neighbours that run as one operation on the vectors x, by the first of them; None stands for what never does."""
    if not can_run(x, products=True):
        return {}
    like = x.new_empty(0, x.shape[-1])
    pairs = zip(parts, contexts, strict=True)
    return group([part.as_step(like, context) if isinstance(part, Joinable) else None for part, context in pairs])

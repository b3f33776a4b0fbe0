"""Random numbers of a batch: from one generator, or from one for each row, so that rows do not depend on each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Size, Tensor

Seeds = Generator | Sequence[Generator] | None
WHOLE = 16  # PyTorch draws normals in blocks of so many, and the last ones anew where a tensor ends within one


def standard_normal(shape: Size, like: Tensor, seeds: Seeds) -> Tensor:
    """Standard normal noise in the dtype and on the device of `like`."""
    return _drawn(torch.randn, shape, like, seeds)


def uniform(shape: Size, like: Tensor, seeds: Seeds) -> Tensor:
    """Noise in [0, 1) in the dtype and on the device of `like`."""
    return _drawn(torch.rand, shape, like, seeds)


class OneGeneratorError(ValueError):
    """A density that draws all rows from one generator was given several."""


def only(seeds: Seeds) -> Generator | None:
    """The one generator, where rows can't have theirs.

    Raises:
        OneGeneratorError: several generators.
    """
    if seeds is None or isinstance(seeds, Generator):
        return seeds
    raise OneGeneratorError("this density draws all rows from one generator, and takes no list of them")


def check_seeds(seeds: Seeds, batch: Size) -> None:
    """Refuse generators that are not one for each row of the batch."""
    if seeds is not None and not isinstance(seeds, Generator) and len(seeds) != math.prod(batch):
        raise ValueError(f"expected one generator, or a list of {math.prod(batch)}, one for each row; got {len(seeds)}")


def _drawn(draw: Callable[..., Tensor], shape: Size, like: Tensor, seeds: Seeds) -> Tensor:
    if seeds is None or isinstance(seeds, Generator) or not seeds:
        return draw(shape, dtype=like.dtype, device=like.device, generator=seeds or None)
    # the first numbers of a row are the same however many follow: a longer row begins as a shorter one
    each = math.prod(shape) // len(seeds)
    count = -(-each // WHOLE) * WHOLE
    rows = [draw(count, dtype=like.dtype, device=like.device, generator=one)[:each] for one in seeds]
    return torch.stack(rows).reshape(shape)

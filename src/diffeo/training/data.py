"""What `fit` trains on: rows in memory, map-style datasets, loaders; checked before any work is done.

Rows of Parquet files are in `parquet`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

Batch = tuple[Tensor, ...]


class Source(Protocol):
    """Rows that can be fetched by index."""

    def __len__(self) -> int: ...
    def rows(self, index: Tensor) -> Batch: ...


class Table(NamedTuple):
    """Rows held as tensors: x, the context if there is one, and the weight of each row if they differ."""

    tensors: Batch
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tensors[0])

    def rows(self, index: Tensor) -> Batch:
        return tuple(t.index_select(0, index) for t in self.tensors)

    def take(self, index: Tensor) -> Table:
        return Table(self.rows(index), None if self.weights is None else self.weights.index_select(0, index))

    def weighted_rows(self) -> Batch:
        """As many rows, each as often as its weight says (systematic resampling): for statistics of the data."""
        if self.weights is None:
            return self.tensors
        mass = self.weights.double().cumsum(0)
        at = (torch.arange(len(self), dtype=torch.float64, device=mass.device) + 0.5) * (mass[-1] / len(self))
        return self.rows(torch.searchsorted(mass, at).clamp_max(len(self) - 1))

    def to(self, device: torch.device) -> Table:
        weights = None if self.weights is None else self.weights.to(device)
        return Table(tuple(t.to(device) for t in self.tensors), weights)


class Indexed(NamedTuple):
    """A map-style dataset, collated a batch at a time."""

    dataset: Dataset
    index: Tensor
    dtype: torch.dtype
    weights: None = None

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, index: Tensor) -> Batch:
        return as_batch(default_collate([self.dataset[i] for i in self.index[index.cpu()].tolist()]), self.dtype)

    def take(self, index: Tensor) -> Indexed:
        return Indexed(self.dataset, self.index[index], self.dtype)


def as_batch(batch: Any, dtype: torch.dtype) -> Batch:
    """A loader's batch as a tuple of tensors, floats in the training dtype."""
    parts = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
    if not all(isinstance(t, Tensor) for t in parts):
        raise ValueError(f"fit: a batch must be x or (x, context), tensors; got {[type(t).__name__ for t in parts]}")
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in parts)


def as_source(x: Any, context: Any, weights: Any, dtype: torch.dtype) -> Table | Indexed | DataLoader:
    """The data in the form that the loop uses, or a ValueError that says what is wrong with it."""
    if isinstance(x, DataLoader | Dataset) and not isinstance(x, TensorDataset):
        if context is not None or weights is not None:
            raise ValueError("fit: a Dataset or DataLoader gives (x, context) itself; weights need rows in memory")
        if not isinstance(x, DataLoader) and isinstance(x, IterableDataset):
            raise ValueError("fit: an IterableDataset has no length; wrap it in a DataLoader over one that has")
        return x if isinstance(x, DataLoader) else Indexed(x, torch.arange(len(x)), dtype)  # type: ignore[arg-type]
    if isinstance(x, TensorDataset):
        given: list[Tensor] = list(x.tensors)
        if not 1 <= len(given) <= 2:
            raise ValueError(f"fit: a TensorDataset holds x, or x and context; got {len(given)} tensors")
        x, context = given[0], given[1] if len(given) == 2 else context
    rows = [as_rows("x", x, dtype)]
    if isinstance(context, Mapping):
        raise ValueError("fit: the context of rows in memory is one array (n, context), not a dict")
    if context is not None:
        rows.append(as_rows("context", context, dtype))
        if len(rows[1]) != len(rows[0]):
            raise ValueError(f"fit: x has {len(rows[0])} rows, but the context has {len(rows[1])}")
    if weights is not None:
        weights = as_rows("weights", weights, dtype)
        if weights.shape != rows[0].shape[:1]:
            raise ValueError(f"fit: expected one weight for each of {len(rows[0])} rows, got {tuple(weights.shape)}")
        if (weights < 0).any() or not weights.sum() > 0:
            raise ValueError("fit: weights must be at least 0, with a positive sum")
    return Table(tuple(rows), weights)


def as_rows(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    """A table as a tensor: numbers only, all finite, and told apart in the training dtype."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"fit: {name} must hold numbers, got an array of dtype {array.dtype}")
        value = torch.from_numpy(np.array(array, copy=True))
    if value.ndim == 0 or len(value) == 0:
        raise ValueError(f"fit: {name} has no rows (shape {tuple(value.shape)})")
    if not value.is_floating_point():
        if value.ndim > 2:  # images stay integers, for dequantized densities
            return value
        value = value.double()
    check_finite(name, value)
    return resolved(name, value, dtype)


def resolved(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in the training dtype, unless it cannot resolve the spread of some columns of a table."""
    if value.ndim == 2 and value.dtype != dtype:
        exact = value.double()
        spread = exact.std(0, correction=0)
        lost = ((exact - value.to(dtype).double()).abs().amax(0) > 1e-3 * spread) & (spread > 0)
        if lost.any():
            raise ValueError(
                f"fit: columns {lost.nonzero()[:, 0].tolist()} of {name} vary too little around a large value for "
                f"{str(dtype).removeprefix('torch.')}; subtract an offset, or pass precision='64-true'"
            )
    return value.to(dtype)


def check_finite(name: str, value: Tensor) -> None:
    """Refuse NaN and infinities, counted by column."""
    bad = ~value.isfinite()
    if not bad.any():
        return
    where = ""
    if value.ndim == 2:
        counts = bad.sum(0)
        where = " (" + ", ".join(f"column {i}: {int(counts[i])}" for i in counts.nonzero()[:, 0].tolist()[:8]) + ")"
    raise ValueError(f"fit: {int(bad.sum())} values of {name} are NaN or infinite{where}; drop or fill those rows")


def split(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation rows, drawn with this seed."""
    if not 0 <= share < 1:
        raise ValueError(f"fit: validation must be a share in [0, 1) or held-out rows, got {share}")
    held = round(n * share) if share else 0
    if share and n >= 2:
        held = min(max(held, 1), n - 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values


def batch_index(n: int, batch_size: int, seed: int, step: int) -> Iterator[Tensor]:
    """Row indices of batch after batch from the given step on, an own permutation for each epoch.

    The permutation depends on seed and epoch only, so a resumed run continues exactly; rows that do not fill a last
    batch wait for another epoch.
    """
    per_epoch = max(1, n // batch_size)
    while True:
        epoch, at = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(n, generator=generator)
        for i in range(at, per_epoch):
            yield order[i * batch_size : (i + 1) * batch_size]
        step = (epoch + 1) * per_epoch

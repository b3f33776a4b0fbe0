"""What `fit` trains on: the role `Source`, and its kinds: rows in memory, datasets, loaders.

Parquet files are in `parquet`.
Everything is checked before any work is done. A batch is `(x,)` or `(x, context)`, where x is a tensor and the context
a tensor or a dict of tensors.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from diffeo.functional import NARROWEST, rows_of_block
from diffeo.kernels.private import tree_leaves, tree_map

Batch = tuple[Any, ...]
Collate = Callable[[list[Any]], Any]
WHOLE = slice(None)
EVALUATED = 2**18  # numbers scored at once
SHOWN = 1 << 22  # numbers of images or sequences, at most, that data-dependent layers see
POOL, JITTER = 32, 0.1  # batches whose rows are sorted by length, and by how much lengths are blurred for that
ORDINARY = 0.9  # share of the examples, the shorter ones, that data-dependent layers see: a long one pads the others
INITIAL = 100_000  # rows that data-dependent layers see of a source that is not in memory


class Source(ABC):
    """Rows to train on, in an order that seed and step fix, so that a fit continues exactly where it stopped.

    Attributes:
        batch_size: of sources that make batches by themselves, with `steps_per_epoch`; else None.
        continues: whether `batches` can begin at any step; a fit with a checkpoint needs that.
        weights: the weight of each row, where they differ.
    """

    batch_size: int | None = None
    steps_per_epoch: int | None = None
    continues: bool = True
    weights: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(
        self, batch_size: int, seed: int, step: int, part: slice = WHOLE
    ) -> Iterator[tuple[Tensor | None, Batch]]:
        """Batch after batch from this step on, for ever: the numbers of its rows, where they have some, and the rows.

        `part` says which rows of each batch are wanted, by a process that shares it with others.
        """

    @abstractmethod
    def sample(self) -> Batch:
        """Rows for layers that depend on data, at most `INITIAL` where they are not in memory."""

    @abstractmethod
    def hold_out(self, share: float, seed: int) -> tuple[Source, Source | None, Tensor | None]:
        """The rows left for training, those held out, and the numbers of the former in this source; None for all."""

    def blocks(self) -> Iterator[Batch]:
        """All rows, some at a time, always in the same order, for evaluation."""
        raise ValueError("fit: held-out rows must be in memory or a Dataset")

    def to(self, device: torch.device) -> Source:
        """The source with what it keeps in memory on this device."""
        return self

    def typed(self, dtype: torch.dtype) -> Source:
        """The source with its numbers in this dtype, for those that users make themselves."""
        return self

    @property
    def fingerprint(self) -> str:
        """What tells these rows from others; of what is not in memory, only what can be told without reading it."""
        return ""


class Rows(Source):
    """Rows in memory: x, the context if there is one (a tensor, or a dict of tensors), and weights if they differ."""

    def __init__(self, tensors: Batch, weights: Tensor | None = None):
        self.tensors, self.weights = tensors, weights

    def __len__(self) -> int:
        return len(self.tensors[0])

    def rows(self, index: Tensor) -> Batch:
        """The rows of these numbers."""
        return tree_map(lambda t: t.index_select(0, index), self.tensors)

    def batches(self, batch_size: int, seed: int, step: int, part: slice = WHOLE) -> Iterator[tuple[Tensor, Batch]]:
        for index in batch_index(len(self), batch_size, seed, step):
            index = index[part].to(self.tensors[0].device)
            yield index, self.rows(index)

    def sample(self) -> Batch:
        """All rows, each as often as its weight says (systematic resampling); of images evenly spaced ones."""
        if self.weights is None:
            x = self.tensors[0]
            n = min(len(x), max(1, SHOWN * len(x) // x.numel())) if x.ndim > 2 else len(x)
            return self.tensors if n == len(x) else self.rows(torch.arange(n, device=x.device) * len(x) // n)
        mass = self.weights.double().cumsum(0)
        at = (torch.arange(len(self), dtype=torch.float64, device=mass.device) + 0.5) * (mass[-1] / len(self))
        return self.rows(torch.searchsorted(mass, at).clamp_max(len(self) - 1))

    def take(self, index: Tensor) -> Rows:
        """These rows alone."""
        return Rows(self.rows(index), None if self.weights is None else self.weights.index_select(0, index))

    def hold_out(self, share: float, seed: int) -> tuple[Rows, Rows | None, Tensor | None]:
        kept, held = split(len(self), share, seed)
        if not len(held):
            return self, None, None
        return self.take(kept), self.take(held), kept

    def blocks(self) -> Iterator[Batch]:
        size = rows_of_block(EVALUATED, self.tensors[0].shape[1:])
        for start in range(0, len(self), size):
            yield tree_map(lambda t, start=start: t[start : start + size], self.tensors)

    def to(self, device: torch.device) -> Rows:
        return Rows(move(self.tensors, device), None if self.weights is None else self.weights.to(device))

    @property
    def fingerprint(self) -> str:
        sha = hashlib.sha256()
        for t in tree_leaves((self.tensors, self.weights)):
            if t is not None:
                sha.update(t.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


class Examples(Source):
    """A map-style dataset, whose examples a collate function joins to a batch, padded where their lengths differ.

    If the dataset has an attribute `lengths`, examples of similar length come together.
    """

    def __init__(self, dataset: Dataset, index: Tensor, dtype: torch.dtype, collate: Collate):
        self.dataset, self.index, self.dtype, self.collate = dataset, index, dtype, collate
        lengths = getattr(dataset, "lengths", None)
        if lengths is not None and len(lengths) != len(dataset):  # type: ignore[arg-type]
            raise ValueError(f"fit: {len(lengths)} lengths of {len(dataset)} examples")  # type: ignore[arg-type]
        self.lengths = None if lengths is None else torch.as_tensor(lengths, dtype=torch.float64).cpu()[index]

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, index: Tensor) -> Batch:
        """The examples of these numbers, joined."""
        return as_batch(self.collate([self.dataset[i] for i in self.index[index.cpu()].tolist()]), self.dtype)

    def batches(self, batch_size: int, seed: int, step: int, part: slice = WHOLE) -> Iterator[tuple[Tensor, Batch]]:
        for index in batch_index(len(self), batch_size, seed, step, self.lengths):
            yield index[part], self.rows(index[part])

    def sample(self) -> Batch:
        """Examples evenly spaced; of images and sequences as many as hold `SHOWN` numbers, the longest left out."""
        if self.lengths is not None:
            limit = self.lengths.kthvalue(max(1, int(ORDINARY * len(self)))).values
            ordinary = (self.lengths <= limit).nonzero()[:, 0]
            n = min(len(ordinary), INITIAL, max(1, int(SHOWN / self._numbers(self.lengths, float(limit)))))
            return self.rows(ordinary[torch.arange(n) * len(ordinary) // n])
        x = self.rows(torch.zeros(1, dtype=torch.long))[0]
        n = min(len(self), most_shown(x.shape[1:]))
        return self.rows(torch.arange(n) * len(self) // n)

    def hold_out(self, share: float, seed: int) -> tuple[Examples, Examples | None, Tensor]:
        kept, held = (
            Examples(self.dataset, self.index[i], self.dtype, self.collate) for i in split(len(self), share, seed)
        )
        return kept, held if len(held) else None, kept.index

    def blocks(self) -> Iterator[Batch]:
        """All examples, some at a time: in their order, or from the shortest to the longest."""
        if self.lengths is not None:
            yield from map(self.rows, self._similar(self.lengths))
            return
        size = rows_of_block(EVALUATED, self.rows(torch.zeros(1, dtype=torch.long))[0].shape[1:])
        for start in range(0, len(self), size):
            yield self.rows(torch.arange(start, min(start + size, len(self))))

    def _similar(self, lengths: Tensor) -> Iterator[Tensor]:
        """Numbers of examples of similar length, as many as hold `EVALUATED` numbers with their padding."""
        order, start = lengths.argsort(stable=True), 0
        each = self._numbers(lengths, lengths[order]).tolist() if len(order) else []
        for end in range(1, len(order) + 1):
            if end == len(order) or (end + 1 - start) * each[end] > EVALUATED:
                yield order[start:end]
                start = end

    def _numbers(self, lengths: Tensor, length: Any) -> Any:
        """About how many numbers examples of this length hold, counted as in `rows_of_block`."""
        longest = lengths.argmax()
        of_longest = self.rows(longest.reshape(1))[0].numel()
        return (torch.as_tensor(length) * of_longest / lengths[longest].clamp_min(1e-9)).clamp_min(NARROWEST)

    @property
    def fingerprint(self) -> str:
        first = self.rows(torch.zeros(1, dtype=torch.long)) if len(self) else ()
        lengths = None if self.lengths is None else self.lengths.tolist()
        return hashlib.sha256(repr((len(self), first, lengths)).encode()).hexdigest()[:16]


class Loaded(Source):
    """A loader, taken as it is: its batches, in its order."""

    continues = False

    def __init__(self, loader: DataLoader, dtype: torch.dtype):
        self.loader, self.dtype = loader, dtype
        self.batch_size, self.steps_per_epoch = loader.batch_size, len(loader)

    def __len__(self) -> int:
        return len(self.loader) * (self.batch_size or 1)

    def batches(self, batch_size: int, seed: int, step: int, part: slice = WHOLE) -> Iterator[tuple[None, Batch]]:
        while True:
            for batch in self.loader:
                yield None, as_batch(batch, self.dtype)

    def sample(self) -> Batch:
        seen: list[Batch] = []
        for batch in self.loader:
            seen.append(as_batch(batch, self.dtype))
            if sum(len(b[0]) for b in seen) >= most_shown(seen[0][0].shape[1:]):
                break
        if len({tuple(t.shape[1:]) for b in seen for t in (b[0],)}) > 1:
            return seen[0]  # padded to other lengths, they do not join
        return tree_map(lambda *parts: torch.cat(parts), *seen)

    def hold_out(self, share: float, seed: int) -> tuple[Loaded, None, None]:
        if share:
            raise ValueError("fit: a DataLoader cannot be split; pass validation=(x, context), or validation=0")
        return self, None, None


def most_shown(event: Sequence[int]) -> int:
    """How many examples of this shape initialise data-dependent layers, of a source that is not in memory."""
    return INITIAL if len(event) <= 1 else min(INITIAL, max(1, SHOWN // math.prod(event)))


def move(batch: Batch, device: torch.device) -> Batch:
    """The batch on this device."""
    return tree_map(lambda t: t.to(device), batch)


def as_batch(batch: Any, dtype: torch.dtype) -> Batch:
    """A batch as a tuple of x and, if there is one, the context; floats in the training dtype."""
    parts = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
    leaves = [t for part in parts for t in (part.values() if isinstance(part, Mapping) else (part,))]
    if not 1 <= len(parts) <= 2 or isinstance(parts[0], Mapping) or not all(isinstance(t, Tensor) for t in leaves):
        raise ValueError(
            "fit: a batch must be x or (x, context), tensors, the context perhaps a dict of tensors; got "
            f"{[type(t).__name__ for t in parts]}"
        )
    return tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, tuple(_as_dict(part) for part in parts))


def _as_dict(part: Any) -> Any:
    return dict(part) if isinstance(part, Mapping) else part


def as_source(x: Any, context: Any, weights: Any, dtype: torch.dtype, collate: Collate | None = None) -> Source:
    """The data in the form that the loop uses, or a ValueError that says what is wrong with it."""
    if isinstance(x, Source):
        if context is not None or weights is not None:
            raise ValueError(f"fit: {type(x).__name__} names the context itself; weights need rows in memory")
        return x.typed(dtype)
    if isinstance(x, DataLoader | Dataset) and not isinstance(x, TensorDataset):
        if context is not None or weights is not None:
            raise ValueError("fit: a Dataset or DataLoader gives (x, context) itself; weights need rows in memory")
        if not isinstance(x, DataLoader) and isinstance(x, IterableDataset):
            raise ValueError("fit: an IterableDataset has no length; wrap it in a DataLoader over one that has")
        if isinstance(x, DataLoader):
            if collate is not None:
                raise ValueError("fit: a DataLoader has a collate function of its own")
            return Loaded(x, dtype)
        return Examples(x, torch.arange(len(x)), dtype, collate or default_collate)  # type: ignore[arg-type]
    if collate is not None:
        raise ValueError("fit: collate= is for a Dataset, whose examples it joins to a batch")
    if isinstance(x, TensorDataset):
        given: list[Tensor] = list(x.tensors)
        if not 1 <= len(given) <= 2:
            raise ValueError(f"fit: a TensorDataset holds x, or x and context; got {len(given)} tensors")
        x, context = given[0], given[1] if len(given) == 2 else context
    rows: list[Any] = [as_rows("x", x, dtype)]
    if context is not None:
        rows.append(_context_rows(context, len(rows[0]), dtype))
    if weights is not None:
        weights = as_rows("weights", weights, dtype)
        if weights.shape != rows[0].shape[:1]:
            raise ValueError(f"fit: expected one weight for each of {len(rows[0])} rows, got {tuple(weights.shape)}")
        if (weights < 0).any() or not weights.sum() > 0:
            raise ValueError("fit: weights must be at least 0, with a positive sum")
    return Rows(tuple(rows), weights)


def _context_rows(context: Any, n: int, dtype: torch.dtype) -> Any:
    """The context of n rows: an array, or a dict of arrays, each with a row for each of them."""
    entries = context if isinstance(context, Mapping) else {"": context}
    found: dict[str, Tensor] = {}
    for name, value in entries.items():
        who = f"context[{name!r}]" if name else "context"
        kept = torch.as_tensor(value) if name == "mask" else None
        found[name] = kept if kept is not None and kept.dtype == torch.bool else as_rows(who, value, dtype)
        if len(found[name]) != n:
            raise ValueError(f"fit: x has {n} rows, but {'the ' if not name else ''}{who} has {len(found[name])}")
    return found if isinstance(context, Mapping) else found[""]


def padded(examples: list[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Examples of different lengths as one batch, for `fit(..., collate=diffeo.training.padded)`: padded, with a mask.

    An example is x of shape (length, *rest), or (x, context) with a dict of tensors. The batch is x, of shape (n,
    longest, *rest) with zeros where an example has ended, and its context with the entry `"mask"`, (n, longest, 1, …),
    True where it has not. Entries of the context that are as long as x are padded too; the others are stacked.

    >>> import torch, diffeo
    >>> x, context = diffeo.training.padded([torch.ones(2, 3), torch.ones(4, 3)])
    >>> x.shape, context["mask"].squeeze(-1).sum(1)
    (torch.Size([2, 4, 3]), tensor([2, 4]))
    """
    pairs = [example if isinstance(example, tuple | list) else (example, {}) for example in examples]
    xs = [torch.as_tensor(x) for x, _ in pairs]
    lengths = torch.tensor([len(x) for x in xs])
    x = torch.nn.utils.rnn.pad_sequence(xs, batch_first=True)
    context: dict[str, Tensor] = {}
    for name in pairs[0][1]:
        values = [torch.as_tensor(c[name]) for _, c in pairs]
        aligned = all(v.ndim and len(v) == n for v, n in zip(values, lengths.tolist(), strict=True))
        differ = len({v.shape for v in values}) > 1
        context[name] = (
            torch.nn.utils.rnn.pad_sequence(values, batch_first=True) if aligned and differ else torch.stack(values)
        )
    real = torch.arange(x.shape[1]) < lengths[:, None]
    return x, {**context, "mask": real.reshape(*real.shape, *(1 for _ in x.shape[2:]))}


def as_rows(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    """Rows as a tensor: numbers only, all finite, and told apart in the training dtype."""
    if isinstance(value, Tensor):
        value = value.clone() if value.is_inference() else value.detach()  # data: whatever made them is not trained
    else:
        array = as_array(name, value)
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


def as_array(name: str, value: Any) -> np.ndarray:
    """What holds numbers as an array of them: arrays, DataFrames of any dtypes that are numeric, sequences."""
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            count = int(np.ma.getmaskarray(value).sum())
            raise ValueError(f"fit: {count} values of {name} are masked, so missing; drop or fill those rows first")
        value = value.data
    array = np.asarray(value)
    if array.dtype == object and hasattr(value, "to_numpy"):  # nullable and Arrow dtypes; missing values become NaN
        try:
            array = value.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ValueError(f"fit: {name} must hold numbers; convert its columns by astype(float) ({error})") from None
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)  # PyTorch has no long doubles
    return array.astype(array.dtype.newbyteorder("="), copy=False)


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


def batch_index(n: int, batch_size: int, seed: int, step: int, lengths: Tensor | None = None) -> Iterator[Tensor]:
    """Row indices of batch after batch from the given step on, an own permutation for each epoch.

    The permutation depends on seed and epoch only, so a resumed run continues exactly; rows that do not fill a last
    batch wait for another epoch. Where rows have lengths, those of `POOL` batches are sorted by them before they are
    parted, and the batches shuffled.
    """
    per_epoch = max(1, n // batch_size)
    while True:
        epoch, at = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(n, generator=generator)
        if lengths is not None:
            pools = []
            for pool in order[: per_epoch * batch_size].split(POOL * batch_size):
                # not always the same examples together
                about = lengths[pool] * (1 + JITTER * torch.rand(len(pool), generator=generator, dtype=torch.float64))
                batches = pool[about.argsort(stable=True)].split(batch_size)
                pools += [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
            order = torch.cat(pools)
        for i in range(at, per_epoch):
            yield order[i * batch_size : (i + 1) * batch_size]
        step = (epoch + 1) * per_epoch

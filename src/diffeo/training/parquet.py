"""Rows of Parquet files that need not fit into memory: a few row groups at a time, shuffled, read ahead."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffeo.training.source import INITIAL, WHOLE, Batch, Rows, Source, check_finite, resolved

if TYPE_CHECKING:
    from pyarrow.dataset import ParquetFileFragment

HELD_ROWS = 100_000  # most rows that are held out
SAMPLED_GROUPS = 64  # row groups that held-out rows and those for data-dependent layers come from
HELD, SAMPLED = 1, 2


class ParquetRows(Source):
    """Rows of a Parquet file or folder as data for `diffeo.fit`, of which only some are in memory at a time.

    Each epoch goes through the row groups in a random order. As many as hold `shuffle_rows` rows are read together,
    while the training works on those before, and their rows are shuffled; so a batch mixes rows of the same read only,
    and a table that is sorted wants many small row groups. Up to a batch of rows of each read wait for another epoch.

    Args:
        path: a file, a folder of files, or a list of files.
        columns: names of the columns of x; all but those of the context by default. Numbers only.
        context: names of the columns of the context.
        shuffle_rows: rows read and shuffled together, at least; larger mixes better and needs more memory.

    Raises:
        ValueError: no such columns, columns that are not numbers, missing values (as far as the files' statistics tell
            of them; the others are found when they are read).

    Cost: memory for two reads, one of them twice while it is shuffled. A read has `shuffle_rows` rows (those of eight
    batches, if these are more), and up to half as many again and a row group more.

    >>> import diffeo, pandas as pd, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 0.5]}).to_parquet(f"{folder}/rows.parquet")
    ...     rows = diffeo.ParquetRows(folder, context=["b"])
    ...     len(rows), rows.columns
    (3, ['a'])
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        columns: Sequence[str] | None = None,
        context: Sequence[str] = (),
        shuffle_rows: int = 200_000,
    ):
        import pyarrow.dataset as ds

        if isinstance(columns, str) or isinstance(context, str):
            raise ValueError("ParquetRows: columns and context are lists of names, not one string")
        if shuffle_rows < 1:
            raise ValueError(f"ParquetRows: expected shuffle_rows of at least 1, got {shuffle_rows}")
        paths = [os.fspath(p) for p in path] if isinstance(path, Sequence) and not isinstance(path, str) else path
        dataset = ds.dataset(paths if isinstance(paths, list) else os.fspath(paths), format="parquet")
        self.context = list(context)
        self.columns = [c for c in dataset.schema.names if c not in self.context] if columns is None else list(columns)
        self.shuffle_rows = shuffle_rows
        self.dtype = torch.float32
        _check_columns(
            dataset.schema, self.columns, self.context, os.fspath(paths[0]) if isinstance(paths, list) else paths
        )
        self._groups: list[ParquetFileFragment] = []
        for fragment in dataset.get_fragments():
            _check_columns(fragment.physical_schema, self.columns, self.context, fragment.path)
            self._groups += [group for group in fragment.split_by_row_group() if group.row_groups[0].num_rows]
        self._sizes = [group.row_groups[0].num_rows for group in self._groups]
        self._starts = [0, *accumulate(self._sizes)]
        if not self._starts[-1]:
            raise ValueError(f"ParquetRows: no rows in {path}")
        _check_missing(self._groups, {*self.columns, *self.context})
        self._held: dict[int, Tensor] = {}  # by row group, which of its rows are held out
        self._sample: Batch | None = None  # rows for layers that depend on data

    def __len__(self) -> int:
        """Rows to train on: all that are not held out."""
        return self._starts[-1] - sum(int(mask.sum()) for mask in self._held.values())

    @property
    def fingerprint(self) -> str:
        """What tells these rows from others, without reading them."""
        seen = repr((self.columns, self.context, self.shuffle_rows, self._sizes))
        return hashlib.sha256(seen.encode()).hexdigest()[:16]

    def typed(self, dtype: torch.dtype) -> ParquetRows:
        rows = self._copy()
        rows.dtype = dtype
        return rows

    def _copy(self) -> ParquetRows:
        return copy.copy(self)

    def sample(self) -> Batch:
        if self._sample is None:
            raise ValueError("fit: ParquetRows take their sample when rows are held out")
        return self._sample

    def hold_out(self, share: float, seed: int) -> tuple[ParquetRows, Rows | None, None]:
        """The rows left for training, with a sample of them, and those held out.

        Both come from at most 64 random row groups, of which no more than half is held out. These are all read.
        """
        if not 0 <= share < 1:
            raise ValueError(f"fit: validation must be a share in [0, 1) or held-out rows, got {share}")
        rows, dtype = self._copy(), self.dtype
        rows._held = {}
        random = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self._groups), generator=random)[:SAMPLED_GROUPS].tolist()
        among = sum(self._sizes[g] for g in chosen)
        wanted = min(round(share * len(self)), HELD_ROWS, among // 2)
        wanted = max(wanted, 1) if share and among > 1 else 0
        order = torch.randperm(among, generator=random)  # of the rows of these groups: held out, sample, the rest
        role = torch.zeros(among, dtype=torch.int8)
        role[order[:wanted]] = HELD
        role[order[wanted : wanted + INITIAL]] = SAMPLED
        held: list[Batch] = []
        sample: list[Batch] = []
        for g, roles in zip(chosen, role.split([self._sizes[g] for g in chosen]), strict=True):
            values = self._read([g], torch.float64)
            rows._held[g] = roles == HELD
            held.append(tuple(t[roles == HELD] for t in values))
            sample.append(tuple(t[roles == SAMPLED] for t in values))
        rows._sample = tuple(resolved("the rows", t, dtype) for t in _joined(sample))
        return rows, Rows(tuple(t.to(dtype) for t in _joined(held))) if wanted else None, None

    def batches(self, batch_size: int, seed: int, step: int, part: slice = WHOLE) -> Iterator[tuple[Tensor, Batch]]:
        with ThreadPoolExecutor(1, thread_name_prefix="diffeo-parquet") as reader:
            ahead = None
            for epoch, number, groups, skip in self._reads(batch_size, seed, step):
                following = reader.submit(self._shuffled, groups, seed, epoch, number), skip
                if ahead is not None:
                    yield from _cut(ahead[0].result(), ahead[1], batch_size, part)
                ahead = following

    def _reads(self, batch_size: int, seed: int, step: int) -> Iterator[tuple[int, int, list[int], int]]:
        """Which row groups are read together: epoch, number of the read in it, groups, batches of it to skip."""
        epoch = 0
        while True:
            order = torch.randperm(len(self._groups), generator=_generator(seed, epoch, 0)).tolist()
            reads: list[list[int]] = [[]]
            gathered = 0
            enough = max(self.shuffle_rows, 8 * batch_size)  # fewer batches would leave too many rows over
            for g in order:
                if gathered >= enough:
                    reads.append([])
                    gathered = 0
                reads[-1].append(g)
                gathered += self._left(g)
            if len(reads) > 1 and gathered < enough / 2:  # a small rest goes with those before
                reads[-2:] = [reads[-2] + reads[-1]]
            counts = [sum(map(self._left, groups)) // batch_size for groups in reads]
            if not any(counts):  # all rows are fewer than a batch
                counts = [1]
            for number, (groups, count) in enumerate(zip(reads, counts, strict=True)):
                if step < count:
                    yield epoch, number, groups, step
                step = max(0, step - count)
            epoch += 1

    def _left(self, g: int) -> int:
        return self._sizes[g] - (int(self._held[g].sum()) if g in self._held else 0)

    def _shuffled(self, groups: list[int], seed: int, epoch: int, number: int) -> tuple[Tensor, Batch]:
        values = self._read(groups, self.dtype)
        numbers = torch.cat([torch.arange(self._starts[g], self._starts[g + 1]) for g in groups])
        kept = ~torch.cat([self._held.get(g, torch.zeros(self._sizes[g], dtype=torch.bool)) for g in groups])
        left = kept.nonzero()[:, 0]
        order = left[torch.randperm(len(left), generator=_generator(seed, epoch, number + 1))]
        return numbers[order], tuple(t[order] for t in values)

    def _read(self, groups: list[int], dtype: torch.dtype) -> Batch:
        """All rows of these groups: x, and the context if there is one."""
        parts: list[Batch] = []
        for g in groups:
            table = self._groups[g].to_table(columns=[*self.columns, *self.context])
            rows = np.empty((table.num_rows, table.num_columns), np.float64)
            for i, column in enumerate(table.columns):
                if column.null_count:
                    raise ValueError(
                        f"fit: {column.null_count} values of column {table.column_names[i]!r} are missing in "
                        f"{self._groups[g].path}; drop or fill those rows"
                    )
                rows[:, i] = column.to_numpy()
            whole = torch.from_numpy(rows).to(dtype)
            check_finite(f"{[*self.columns, *self.context]} in {self._groups[g].path}", whole)
            n = len(self.columns)
            parts.append((whole[:, :n], whole[:, n:]) if self.context else (whole,))
        return _joined(parts)


def _cut(read: tuple[Tensor, Batch], skip: int, batch_size: int, part: slice) -> Iterator[tuple[Tensor, Batch]]:
    numbers, rows = read
    for i in range(skip, max(1, len(numbers) // batch_size)):
        cut = slice(i * batch_size, (i + 1) * batch_size)
        yield numbers[cut][part], tuple(t[cut][part] for t in rows)


def _joined(parts: list[Batch]) -> Batch:
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def _generator(seed: int, epoch: int, number: int) -> torch.Generator:
    state = np.random.SeedSequence([seed % 2**63, epoch, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def _check_columns(schema: Any, columns: list[str], context: list[str], path: Any) -> None:
    import pyarrow.types as kinds

    names = [*columns, *context]
    unknown = [c for c in names if c not in schema.names]
    if unknown:
        raise ValueError(f"ParquetRows: no columns {unknown} in {path}; there are {schema.names}")
    twice = sorted({c for c in names if names.count(c) > 1})
    if twice or not columns:
        raise ValueError(f"ParquetRows: columns {twice} are named twice" if twice else "ParquetRows: no columns")
    for name in names:
        kind = schema.field(name).type
        if not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)):
            raise ValueError(f"ParquetRows: column {name!r} of {path} holds {kind}, not numbers; pass columns=")


def _check_missing(groups: list[ParquetFileFragment], columns: set[str]) -> None:
    """Missing values that the statistics of the files know of, by column."""
    missing: dict[str, int] = {}
    for group in groups:
        metadata = group.metadata.row_group(group.row_groups[0].id)
        for i in range(metadata.num_columns):
            chunk = metadata.column(i)
            if chunk.path_in_schema in columns and chunk.statistics is not None and chunk.statistics.null_count:
                missing[chunk.path_in_schema] = missing.get(chunk.path_in_schema, 0) + chunk.statistics.null_count
    if missing:
        counts = ", ".join(f"{name}: {count}" for name, count in sorted(missing.items()))
        raise ValueError(f"ParquetRows: missing values ({counts}); drop or fill those rows")

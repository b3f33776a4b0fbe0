"""Tables of any size, batch by batch: for iterators of Arrow batches, and for frameworks that map over batches."""

# pandas' and pyarrow's annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from diffeo.files import load
from diffeo.tables import TableDensity

LOG_DENSITY, PERCENTILE = "log_density", "percentile"


class BatchScorer:
    """Batches in, the same batches with columns `log_density` (nats) and `percentile` out, row for row.

    A call takes and returns one batch: a DataFrame, a `pyarrow.Table` or `RecordBatch`, or a dict of arrays; that is
    what Ray Data's `map_batches` passes. `over` takes and returns an iterator of batches, as Spark's `mapInArrow` and
    `mapInPandas` do. Given the path of a model file, the scorer is small to send to other processes, and each copy that
    arrives there reads the file once.

    Args:
        model: a `TableDensity`, or the path of a saved one.

    Raises:
        ValueError: a batch that the model cannot score (see `TableDensity.log_prob`), or one that has a column of that
            name already.

    Cost: that of `TableDensity.log_prob`; memory is that of one batch.

    >>> import numpy as np, pandas as pd, diffeo
    >>> table = pd.DataFrame({"x": np.random.default_rng(0).normal(size=200)})
    >>> model = diffeo.fit_table(table, recipe="gaussian", progress=False)
    >>> score = diffeo.BatchScorer(model)
    >>> [len(batch) for batch in score.over([table[:50], table[50:]])]
    [50, 150]
    """

    def __init__(self, model: TableDensity | str | os.PathLike[str]):
        self._given = model if isinstance(model, TableDensity) else os.fspath(model)

    def __call__(self, batch: Any) -> Any:
        """One batch."""
        if isinstance(batch, pd.DataFrame):
            return batch.assign(**self._score(batch))
        if isinstance(batch, Mapping):
            return {**batch, **self._score(pd.DataFrame({name: _column(values) for name, values in batch.items()}))}
        import pyarrow as pa

        if not isinstance(batch, pa.Table | pa.RecordBatch):
            raise ValueError(
                f"BatchScorer: expected a DataFrame, an Arrow table or batch, or a dict of arrays, got {type(batch)}"
            )
        scores = self._score(batch.to_pandas())
        for name, values in scores.items():
            batch = batch.append_column(name, pa.array(values))
        return batch

    def over(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Batch after batch."""
        for batch in batches:
            yield self(batch)

    @cached_property
    def _model(self) -> TableDensity:
        if isinstance(self._given, TableDensity):
            return self._given
        model = load(self._given)
        if not isinstance(model, TableDensity):
            raise ValueError(f"{self._given}: a flow of tensors, not a model of a table")
        return model

    def _score(self, table: pd.DataFrame) -> dict[str, np.ndarray]:
        there = [name for name in (LOG_DENSITY, PERCENTILE) if name in table]
        if there:
            raise ValueError(f"BatchScorer: the batch has a column {there[0]!r} already")
        log_p = self._model.log_prob(table)
        return {LOG_DENSITY: log_p.to_numpy(), PERCENTILE: self._model.percentile(log_p)}

    def __getstate__(self) -> dict[str, Any]:
        return {"_given": self._given}


def _column(values: Any) -> Any:
    """A column of a dict of arrays as pandas holds it: text of NumPy's fixed width becomes ordinary text."""
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind == "U" else array

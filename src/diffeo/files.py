"""Model files, whatever they hold: densities of tensors, densities of tables, estimators."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from diffeo.core import Density
from diffeo.recipes import registry
from diffeo.storage import read_tensors

if TYPE_CHECKING:
    from diffeo.estimators.base import FlowEstimator
    from diffeo.tables import TableDensity

TABLE = "table"  # the note that holds a table's schema


def save(
    model: Density | TableDensity | FlowEstimator, path: str | os.PathLike[str], notes: Mapping[str, Any] | None = None
) -> None:
    """Write a density made by a recipe, that of a table, or a fitted estimator to one safetensors file: no pickle.

    The write is atomic: a temporary file beside it, then a rename.

    Args:
        model: made by a recipe or by `fit_table`, or an estimator after its `fit`.
        path: where to, usually `*.safetensors`.
        notes: JSON data to keep beside it; `read_notes` gives it back.

    Raises:
        ValueError: the density was made by hand or changed afterwards, an argument cannot be written, or the estimator
            is not fitted.

    >>> import diffeo, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> diffeo.save(diffeo.maf(3), path)
    >>> diffeo.load(path).recipe.name
    'maf'
    """
    if isinstance(model, Density):
        return registry.save(model, path, notes)
    if hasattr(model, "schema"):
        kept = {**model.notes, **(notes or {}), TABLE: model.schema.to_json()}  # pyright: ignore
        return registry.save(model.density, path, kept)  # pyright: ignore
    from diffeo.estimators.base import FlowEstimator
    from diffeo.estimators.files import save_estimator

    if not isinstance(model, FlowEstimator):
        raise ValueError(
            f"save: expected a density, the density of a table, or an estimator, got {type(model).__name__}"
        )
    return save_estimator(model, path, notes)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Any:
    """Read what `save` wrote: a `Density`, a `TableDensity` where the file holds a table's, or an estimator.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, altered, not diffeo's, newer than this version, or names a recipe that is
            not registered (import the module that registers it first).
    """
    tensors, header = read_tensors(path)
    if "estimator" in header:
        from diffeo.estimators.files import load_estimator

        return load_estimator(tensors, header, path)
    density, notes = registry.unpack(tensors, header, path, device), registry.notes_of(header)
    if TABLE not in notes:
        return density
    from diffeo.tables import Schema, TableDensity

    return TableDensity(Schema.from_json(notes.pop(TABLE)), density, notes)

"""Model files, whatever they hold: densities of tensors, and densities of tables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from diffeo.core import Density
from diffeo.recipes import registry

if TYPE_CHECKING:
    from diffeo.tables import TableDensity

TABLE = "table"  # the note that holds a table's schema


def save(model: Density | TableDensity, path: str | os.PathLike[str], notes: Mapping[str, Any] | None = None) -> None:
    """Write a density made by a recipe, or the density of a table, to one safetensors file: no pickle.

    The write is atomic: a temporary file beside it, then a rename.

    Args:
        model: made by a recipe, or by `fit_table`.
        path: where to, usually `*.safetensors`.
        notes: JSON data to keep beside it; `read_notes` gives it back.

    Raises:
        ValueError: the density was made by hand or changed afterwards, or an argument of its recipe cannot be written.

    >>> import diffeo, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> diffeo.save(diffeo.maf(3), path)
    >>> diffeo.load(path).recipe.name
    'maf'
    """
    if isinstance(model, Density):
        return registry.save(model, path, notes)
    kept = {**model.notes, **(notes or {}), TABLE: model.schema.to_json()}
    return registry.save(model.density, path, kept)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Any:
    """Read what `save` wrote: a `Density`, or a `TableDensity` where the file holds a table's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, altered, not diffeo's, newer than this version, or names a recipe that is
            not registered (import the module that registers it first).
    """
    density, notes = registry.load_with_notes(path, device)
    if TABLE not in notes:
        return density
    from diffeo.tables import Schema, TableDensity

    return TableDensity(Schema.from_json(notes.pop(TABLE)), density, notes)

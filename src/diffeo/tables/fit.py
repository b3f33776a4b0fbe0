"""`diffeo.fit_table`: from a DataFrame to its density."""

# pandas' and scikit-learn's annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from diffeo.recipes import check_options, mixed, recipes
from diffeo.tables.dtypes import rare, refuse_strange
from diffeo.tables.frames import as_pandas, kind_of
from diffeo.tables.model import TableDensity
from diffeo.tables.schema import Schema, check_complete, learn_schema
from diffeo.training import Blurred, FitResult, fit
from diffeo.training.source import as_rows, split

AUTO = "nsf_ar"
HELD_OUT = 50  # rows that validate and rank, where there are few
RANKED_ROWS = 20_000  # held-out rows that percentiles are taken from


def fit_table(
    table: pd.DataFrame,
    *,
    given: Sequence[Any] = (),
    kinds: Mapping[Any, Any] | None = None,
    missing: str = "error",
    unseen: str = "error",
    recipe: str = "auto",
    options: Mapping[str, Any] | None = None,
    validation: float | pd.DataFrame | None = None,
    weights: Any = None,
    vocabulary: pd.DataFrame | None = None,
    blur: float = 0.0,
    seed: int = 0,
    on_schema: Callable[[Schema], None] | None = None,
    **training: Any,
) -> TableDensity:
    """Fit the density of a table's rows, or of some columns given others; columns as they come.

    Numbers, positive and bounded numbers, whole and rounded values, categories, booleans, dates and constant columns
    are recognised from dtype and training values.

    Args:
        table: rows to learn from: a DataFrame of pandas or polars, or an Arrow table; samples are of the same kind.
        given: names of columns that the others are conditional on.
        kinds: overrides what is recognised, by column name: "continuous", "positive", "whole" or "category"; "number"
            for whole or continuous, without bounds; or bounds (low, high) with None for an open side.
        missing: "error", or "drop" to leave out rows with missing or infinite values.
        unseen: what categories that training did not hold are for the model: "error", or "level" to give each column of
            text or categories one more for all of them, so that such rows have a density. A share of the training rows
            stands for them, that of the categories in one row only, but at least 1 % and at most half. Samples hold
            known ones only.
        recipe: which flow the numbers get; "auto" is `nsf_ar`.
        options: arguments of that recipe, such as `layers` or `hidden`.
        validation: share of rows held out, or held-out rows; None is a tenth, but 50 rows where these are at most a
            quarter: early stopping and percentiles go by them.
        weights: weight of each row of `table`, ≥ 0, in training and, of the share held out, in validation; where
            `validation` is rows, those of `table` or a pair: of `table` and of `validation`.
        vocabulary: further rows whose categories the model should know (those of `validation` are known anyway); with
            `unseen="level"`, categories are those of the training rows alone.
        blur: standard deviation, in whitened units, of Gaussian noise added to the numbers in training, ≥ 0: densities
            stay finite and smooth at repeated values, which is what one wants of a score for outliers.
        seed: of weights, split and batches.
        on_schema: called with what the columns were taken for, before training.
        **training: passed on to `diffeo.fit`.

    Returns:
        A `TableDensity`; its `result` is the `FitResult`.

    Raises:
        ValueError: before any training: missing values (counted by column), unknown names, unsupported columns, too few
            rows.

    >>> import pandas as pd, diffeo
    >>> rows = pd.DataFrame({"size": [1.5, 2.5, 2.0, 3.0] * 25, "kind": ["a", "b"] * 50})
    >>> model = diffeo.fit_table(rows, recipe="maf", steps=10, progress=False)
    >>> model
    TableDensity(size: whole steps of 0.5, kind: 2 categories)
    """
    if not blur >= 0:
        raise ValueError(f"fit_table: expected blur of at least 0, got {blur}")
    if missing not in ("error", "drop"):
        raise ValueError(f"fit_table: missing must be 'error' or 'drop', got {missing!r}")
    if unseen not in ("error", "level"):
        raise ValueError(f"fit_table: unseen must be 'error' or 'level', got {unseen!r}")
    kind, dtypes = kind_of(table), rare(table) if isinstance(table, pd.DataFrame) else []
    table = as_pandas(table, "fit_table")
    if validation is None:
        validation = max(0.1, min(0.25, HELD_OUT / max(1, len(table))))
    if not isinstance(validation, float | int | None):
        validation = as_pandas(validation, "fit_table: validation")
    if vocabulary is not None:
        vocabulary = as_pandas(vocabulary, "fit_table: vocabulary")
    name = find_table_recipe(recipe, options or {})
    parts = [table, *([validation] if isinstance(validation, pd.DataFrame) else [])]
    pair = weights if isinstance(weights, tuple) and len(parts) == 2 and len(weights) == 2 else (weights, None)
    masses = [_masses(given, part) for given, part in zip(pair, parts, strict=False)]
    for part in parts:
        for column, dtype in zip(part.columns, part.dtypes, strict=True):
            refuse_strange(column, dtype)
    if missing == "drop":
        kept = [part.replace([np.inf, -np.inf], np.nan).notna().all(axis=1) for part in parts]
        parts = [part[rows] for part, rows in zip(parts, kept, strict=True)]
        masses = [None if mass is None else mass[rows.to_numpy()] for mass, rows in zip(masses, kept, strict=True)]
    for part in parts:
        check_complete(part, hint='drop or fill those rows first, or pass missing="drop"')
    if len(parts) == 2:
        train, held = parts
    else:
        places = [index.numpy() for index in split(len(parts[0]), validation, seed)]  # type: ignore[arg-type]
        train, held = (parts[0].iloc[place] for place in places)
        masses = [None if masses[0] is None else masses[0][place] for place in places]
    if len(train) < 2:
        raise ValueError(f"fit_table: expected at least 2 training rows, got {len(train)}")
    known = pd.concat([train, held, *([] if vocabulary is None else [vocabulary])])
    if blur:  # noise would cross a bound
        free = {c: "number" for c in train if c not in given and _is_number(train[c])}
        kinds = {**free, **(kinds or {})}
    schema, remarks = learn_schema(train, given, kinds, known, unseen == "level")
    if blur and any(n.low is not None or n.high is not None for n in schema.numbers):
        raise ValueError("fit_table: blurred rows would cross bounds; leave out blur, or the kinds with bounds")
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    if on_schema is not None:
        on_schema(schema)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        density = mixed(**schema.recipe_arguments(), flow=name, options=dict(options or {}))
    train = schema.hide_some(train, seed)
    rows, contexts = zip(*((schema.encode(part), schema.encode_given(part)) for part in (train, held)), strict=True)
    result = fit(
        density
        if not blur or not schema.numbers
        else Blurred(density, blur * _standard_deviations(rows[0], len(schema.levels))),
        rows[0],
        contexts[0],
        weights=masses[0],
        validation=(rows[1], contexts[1], masses[1]) if len(held) else 0,
        seed=seed,
        **training,
    )
    result = _in_table_units(result, *(float(schema.log_volumes(part).mean()) if len(part) else 0.0 for part in rows))
    model = TableDensity(schema, density)
    model.result = result
    part = 1 if len(held) else 0
    some = np.random.default_rng(seed).permutation(len(rows[part]))[:RANKED_ROWS]
    context = None if contexts[part] is None else torch.from_numpy(contexts[part][some])
    model.notes = {
        "frame": kind,
        "dtypes": dtypes,
        "flow": name,
        "rows": {"train": len(train), "validation": len(held)},
        "fit": {k: v for k, v in asdict(result).items() if k != "history"},
        "history": result.history,
    }
    model.rank_among(model.score(torch.from_numpy(rows[part][some]), context).numpy(), held_out=bool(len(held)))
    return model


def find_table_recipe(name: str, options: Iterable[str] = ()) -> str:
    """The recipe for the numbers of a table, which takes these options, or an error that lists those there are."""
    name = AUTO if name == "auto" else name
    if name not in table_recipes():
        also = ""
        if name in recipes():
            also = f"{name!r} is no density of vectors, or does not say so by @diffeo.recipe(events='vectors'); "
        raise ValueError(f"{also or f'unknown recipe {name!r}; '}there are {', '.join(table_recipes())}")
    check_options(name, options, apart=("features", "context"))
    return name


def table_recipes() -> list[str]:
    """Names of the recipes that can model the numbers of a table."""
    return list(recipes("vectors"))


def _masses(weights: Any, rows: pd.DataFrame) -> np.ndarray | None:
    """Weights as an array, one for each row."""
    if weights is None:
        return None
    mass = as_rows("weights", weights, torch.float64).numpy()
    if mass.shape != (len(rows),):
        raise ValueError(f"fit_table: expected a weight for each of {len(rows)} rows, got shape {mass.shape}")
    return mass


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)


def _standard_deviations(rows: np.ndarray, categories: int) -> torch.Tensor:
    """Cholesky factor of the shrunk covariance of the numbers, zero for the codes of categories."""
    from sklearn.covariance import ledoit_wolf

    numbers = rows[:, categories:]
    scale = numbers.std(0)
    covariance, _ = ledoit_wolf((numbers - numbers.mean(0)) / scale, assume_centered=True)
    factor = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(scale))) * scale[:, None]
    whole = np.zeros((rows.shape[1],) * 2)
    whole[categories:, categories:] = factor
    return torch.from_numpy(whole).float()


def _in_table_units(result: FitResult, train: float, held: float) -> FitResult:
    """The losses of encoded rows as losses of the table's, by the mean log-volumes of both."""
    volumes = {"train_loss": train, "validation_loss": held}
    history = [
        {k: v if v is None or k not in volumes else v + volumes[k] for k, v in entry.items()}
        for entry in result.history
    ]
    loss = result.validation_loss
    return replace(result, history=history, validation_loss=None if loss is None else loss + held)

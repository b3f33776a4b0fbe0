"""Fitted estimators as one safetensors file: their parameters and attributes as JSON, their densities as tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from diffeo.core import Density
from diffeo.estimators.base import FlowEstimator
from diffeo.recipes import registry
from diffeo.storage import from_json, to_json, write_tensors
from diffeo.tables import Schema, TableDensity

EXTRA = "extra"  # prefix of tensors that belong to no density
# attributes that are of the fit alone, or written as tensors
LEFT_OUT = ("result_", "unseen_scores_", "model_", "models_", "crowds_", "flow_", "uncalibrated_")


def save_estimator(estimator: FlowEstimator, path: str | os.PathLike[str], notes: Mapping[str, Any] | None) -> None:
    """Write a fitted estimator.

    Raises:
        ValueError: it is not fitted, or a parameter cannot be written, such as a `RandomState`.
    """
    name = type(estimator).__name__
    from diffeo import estimators

    if getattr(estimators, name, None) is not type(estimator):
        raise ValueError(f"save: {name} is a class of its own, which a file cannot rebuild; use pickle or joblib")
    if not hasattr(estimator, "n_features_in_"):
        raise ValueError(f"save: this {name} is not fitted; call its fit first")
    state = {k: v for k, v in vars(estimator).items() if k.endswith("_") and k not in LEFT_OUT}
    tensors: dict[str, Tensor] = {}
    headers: list[dict[str, str]] = []
    for i, member in enumerate(estimator.members()):
        density, kept = (member, {}) if isinstance(member, Density) else (member.density, {**member.notes})
        if isinstance(member, TableDensity):
            kept["table"] = member.schema.to_json()
        part, header = registry.pack(density, kept)
        tensors |= {f"{i}.{k}": t for k, t in part.items()}
        headers.append(header)
    tensors |= {f"{EXTRA}.{k}": t.contiguous() for k, t in estimator.extras().items()}
    about = {"class": name, "parameters": estimator.get_params(), "state": {k: _written(v) for k, v in state.items()}}
    header = {"estimator": to_json(about), "members": to_json(headers), "notes": to_json(dict(notes or {}))}
    write_tensors(path, tensors, {**registry.versions(), **header})


def load_estimator(tensors: dict[str, Tensor], header: dict[str, str], path: str | os.PathLike[str]) -> FlowEstimator:
    """The estimator that `save_estimator` wrote; its `result_` is None."""
    from diffeo import estimators

    about = from_json(header["estimator"])
    parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in about["parameters"].items()}
    estimator: FlowEstimator = getattr(estimators, about["class"])(**parameters)
    for name, value in about["state"].items():
        setattr(estimator, name, _read(value))
    members: list[Any] = []

    def of(prefix: str) -> dict[str, Tensor]:
        return {k.partition(".")[2]: t for k, t in tensors.items() if k.partition(".")[0] == prefix}

    for i, part in enumerate(from_json(header["members"])):
        density, notes = registry.unpack(of(str(i)), part, path, "cpu"), from_json(part["notes"])
        table = notes.pop("table", None)
        members.append(density if table is None else TableDensity(Schema.from_json(table), density, notes))
    estimator.set_members(members, of(EXTRA))
    return estimator


def _written(value: Any) -> Any:
    """An attribute as JSON data."""
    if isinstance(value, np.ndarray):
        return {"array": [_written(v) for v in value.tolist()], "of": str(value.dtype)}
    if isinstance(value, Schema):
        return {"schema": value.to_json()}
    if hasattr(value, "isoformat"):
        return {"moment": value.isoformat()}
    return value.item() if isinstance(value, np.generic) else value


def _read(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.array([_read(v) for v in value["array"]], dtype=value["of"])
    if "schema" in value:
        return Schema.from_json(value["schema"])
    import pandas as pd

    return pd.Timestamp(value["moment"])

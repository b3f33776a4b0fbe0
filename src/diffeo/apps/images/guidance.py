"""Samples of a class, pushed away from those of no class."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

from diffeo.core import Density
from diffeo.nets import Guided
from diffeo.transforms import Autoregressive

Model = TypeVar("Model", bound=Density)


def guided(model: Model, weight: float = 1.0) -> Model:
    """A copy of a model of classes whose layers are `diffeo.nets.Guided`: pictures that show their class more clearly.

    Args:
        model: of `diffeo.tarflow` with `classes`, trained with `drop`.
        weight: of the push, at least 0.

    Raises:
        ValueError: a model without autoregressive layers that read classes.
    """
    model = deepcopy(model)
    layers = [part for part in model.modules() if isinstance(part, Autoregressive) and part.net.reads]
    if not layers:
        raise ValueError("guided: this model has no autoregressive layers that read classes; see diffeo.tarflow")
    for layer in layers:
        layer.net = Guided(layer.net, weight)
    return model

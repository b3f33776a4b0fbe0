"""A density at a context, seen as a distribution of `torch.distributions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from diffeo.core.density import Density, Preimage
from diffeo.functional import Context, as_size, context_batch, context_features


class Given(Distribution):
    """`density.given(context)`: batch shape from the context, event shape from the density.

    Arguments are validated whatever torch's global default is (the first use of `torch.compile` turns that off).

    `sample(shape)` draws `(*shape, *batch_shape, *event_shape)`, as torch's distributions do; `support` is declared, so
    `Independent` and `TransformedDistribution` accept it. The context must already be encoded.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012 # pyright: ignore (the name and type are torch's)

    def __init__(
        self,
        density: Density,
        context: Context = None,
        batch_shape: Size | None = None,
        validate_args: bool = True,
    ):
        self.density = density
        self.context = context
        batch_shape = context_batch(context) if batch_shape is None else batch_shape
        super().__init__(batch_shape, density.event_shape(context), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.density.has_rsample

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        support = self.density.support
        return support.at(self.context) if isinstance(support, Preimage) else support

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        batch = Size(torch.broadcast_shapes(self.batch_shape, value.shape[: value.ndim - len(self.event_shape)]))  # pyright: ignore
        return self.density(value.expand(batch + self.event_shape), self.context)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        return self.density.sample(self._whole(sample_shape), self.context)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self.density.rsample(self._whole(sample_shape), self.context)

    def _whole(self, sample_shape: Any) -> Size:
        return as_size(sample_shape) + self.batch_shape

    def expand(self, batch_shape: Any, _instance: Given | None = None) -> Given:
        batch_shape = as_size(batch_shape)
        context, features = self.context, context_features(self.context)
        if features is not None:
            features = features.expand(*batch_shape, features.shape[-1])
            context = {**context, "features": features} if isinstance(context, Mapping) else features
        return Given(self.density, context, batch_shape, validate_args=self._validate_args)

    def __repr__(self) -> str:
        return (
            f"{type(self.density).__name__}.given(batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )

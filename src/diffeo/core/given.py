"""A density at a context, seen as a distribution of `torch.distributions`; and where a flow lives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Size, Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from diffeo.core.transform import Transform
from diffeo.functional import (
    Context,
    as_size,
    joined,
)


class Preimage(Constraint):
    """The events that a transform, at a context, maps into the support of the base."""

    def __init__(self, transform: Transform, inner: Constraint, event_dim: int, context: Context = None):
        self.transform, self.inner, self._event_dim, self.context = transform, inner, event_dim, context

    def at(self, context: Context) -> Preimage:
        """The same at another context."""
        return Preimage(self.transform, self.inner, self._event_dim, context)

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return self._event_dim

    def check(self, value: Tensor) -> Tensor:
        z, _ = self.transform(value, self.context)
        inside = cast(Tensor, self.inner.check(z))  # pyright: ignore[reportUnknownMemberType]
        domain = cast(Tensor, self.transform.domain.check(value))  # pyright: ignore[reportUnknownMemberType]
        extra = domain.ndim - inside.ndim  # the domain may be one of coordinates
        return inside & (domain.flatten(-extra).all(-1) if extra > 0 else domain)


class Given(Distribution):
    """`density.given(context)`: batch shape from the context, event shape from the density.

    Arguments are validated whatever torch's global default is (the first use of `torch.compile` turns that off).

    `sample(shape)` draws `(*shape, *batch_shape, *event_shape)`, as torch's distributions do; `support` is declared, so
    `Independent` and `TransformedDistribution` accept it. The context must already be encoded.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012 # pyright: ignore (the name and type are torch's)

    def __init__(
        self,
        density: Any,  # a `Density`, which is above this file
        context: Context = None,
        batch_shape: Size = Size(),
        validate_args: bool = True,
    ):
        self.density = density
        self.context = context
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
        batch = Size(joined(self.batch_shape, value.shape[: value.ndim - len(self.event_shape)]))  # pyright: ignore
        return self.density(value.expand(batch + self.event_shape), self.context)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        return self.density.sample(self._whole(sample_shape), self.context)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self.density.rsample(self._whole(sample_shape), self.context)

    def _whole(self, sample_shape: Any) -> Size:
        return as_size(sample_shape) + self.batch_shape

    def expand(self, batch_shape: Any, _instance: Given | None = None) -> Given:
        batch_shape = as_size(batch_shape)
        context, reads = self.context, self.density.context_dims()

        def expand(name: str, t: Tensor) -> Tensor:
            return t.expand(*batch_shape, *t.shape[max(0, t.ndim - reads[name]) :])

        if isinstance(context, Mapping):
            context = {name: expand(name, t) for name, t in context.items()}
        elif context is not None:
            context = expand("features", context)
        return Given(self.density, context, batch_shape, validate_args=self._validate_args)

    def __repr__(self) -> str:
        return (
            f"{type(self.density).__name__}.given(batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )

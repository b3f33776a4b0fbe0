"""Exchangeable events: independent draws from one density, such as the points of a set."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core import Density
from diffeo.functional import Context, LogProb, as_event, at_positions, check_event, context_mask, masked_event
from diffeo.noise import Seeds


class Repeated(Density):
    """log p(x₁ … xₙ | c) = Σᵢ log p(xᵢ | c): a set of points that are drawn independently, given the context.

    Points that the mask leaves out, whatever they hold, add nothing, and are zero in samples.

    Args:
        density: of one point.
        count: n; None for any number, which samples take from the mask of the context.

    Raises:
        ValueError: samples of any number of points without a mask.

    Cost: that of the density, for each point.

    >>> import torch, diffeo
    >>> points = diffeo.Repeated(diffeo.Normal(3), 100)
    >>> points.sample(5).shape, points(torch.zeros(5, 100, 3)).shape
    (torch.Size([5, 100, 3]), torch.Size([5]))
    """

    def __init__(self, density: Density, count: int | None = None):
        super().__init__()
        self.density = density
        self.event_ndim = density.event_ndim + 1
        self.event = None if density.event is None else (*as_event((count,), self), *density.event)
        self.exact, self.has_rsample = density.exact, density.has_rsample
        self._count = count
        self._reads = {**density.context_dims(), "mask": self.event_ndim}

    def context_dims(self) -> dict[str, int]:
        return self._reads

    @property
    def support(self) -> Constraint:
        return constraints.independent(self.density.support, 1)

    def event_shape(self, context: Context = None) -> Size:
        inner = self.density.event_shape(self._of_points(context)[0])
        return Size((self._points(context), *inner))

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "Repeated")
        inner, real = self._of_points(context)
        if real is None:
            return self.density(x, inner).sum(-1)
        log_p = self.density(torch.where(self._wide(real), x, 0.0), inner)
        return torch.where(real, log_p, 0.0).sum(-1)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        inner, real = self._of_points(context)
        x = self.density.draw(Size((*shape, self._points(context))), inner, temperature, generator)
        return x if real is None else torch.where(self._wide(real), x, 0.0)

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Set the density of a point from all real points of the training rows."""
        inner, real = self._of_points(context)
        batch = x.shape[: x.ndim - self.event_ndim + 1]
        rows = x.reshape(-1, *x.shape[len(batch) :])
        keep = None if real is None else real.expand(batch).reshape(-1)

        def flat(name: str, t: Tensor) -> Tensor:
            event = t.shape[max(0, t.ndim - self._reads.get(name, 1)) :]
            t = t.expand(*batch, *event).reshape(-1, *event)
            return t if keep is None else t[keep]

        if isinstance(inner, Mapping):
            inner = {name: flat(name, t) for name, t in inner.items()}
        elif inner is not None:
            inner = flat("features", inner)
        self.density.initialize(rows if keep is None else rows[keep], inner)

    def _of_points(self, context: Context) -> tuple[Context, Tensor | None]:
        """The context of each point, and which points are real, (*batch, n)."""
        mask, wide = context_mask(context), at_positions(context, self._reads, 1)
        if mask is None or wide is None or isinstance(wide, Tensor):
            return wide, None
        rest = {name: t for name, t in wide.items() if name != "mask"}
        return rest or None, mask.flatten(-self.density.event_ndim).all(-1) if self.density.event_ndim else mask

    def _points(self, context: Context) -> int:
        real = self._of_points(context)[1]
        return masked_event((self._count,), None if real is None else {"mask": real}, "Repeated")[0]

    def _wide(self, real: Tensor) -> Tensor:
        return real[(..., *(None,) * self.density.event_ndim)]

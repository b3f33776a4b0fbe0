"""Layers in which one part of the event sets a scalar map on another: couplings and autoregressive layers."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from diffeo.core import Joinable, Transform, Univariate
from diffeo.functional import (
    Context,
    check_event,
    context_mask,
    joined,
    narrowed,
    sum_event,
)
from diffeo.kernels import conditioned, scalars, vector_steps
from diffeo.kernels.perceptron import Perceptron
from diffeo.kernels.private import has_hooks
from diffeo.kernels.vector_steps import Step

STEPS = ("forward", "inverse", "map", "params", "map_scalars", "spare", "visible", "take", "put", "places")


class Conditioned(Transform, Joinable):
    """z_b = u(x_b; net(x_a, context)) and the rest unchanged, where a and b are parts of the event along a dim.

    log|det ∂z/∂x| = Σ_b log|u'(x_b)|, where no element of b sees itself or later ones. A class of this kind says how x
    comes apart into a and b (`take`), how they come together (`put`), and which `places` of a vector they are. Masked
    positions stay as they are, add no log-det, and the net sees zeros there.

    Args:
        net: conditioner `(x_a, context) -> params`, shape `(*x_b.shape, n_params)`.
        univariate: the scalar map on each element of x_b.
        size: of the event along `dim`.
        dim: the dim along which the event comes apart, counted from the end: −1 for the features of a vector or of each
            frame of a sequence, −3 for the channels of an image.
        event_ndim: dims of the event; the others may have any size. Default: from `dim` on.

    Raises:
        ValueError: a dim that the event does not have.
    """

    def __init__(self, net: nn.Module, univariate: Univariate, size: int | None, dim: int, event_ndim: int | None):
        super().__init__()
        ndim = -dim if event_ndim is None else event_ndim
        if not -ndim <= dim < 0:
            raise ValueError(
                f"{type(self).__name__}: expected a dim of the event from the end, −{ndim} … −1, got {dim}"
            )
        self.net, self.univariate, self.dim = net, univariate, dim
        self.event_ndim = self.event_ndim_out = ndim
        self.event = tuple(size if i == ndim + dim else None for i in range(ndim))
        self.domain = constraints.independent(univariate.domain, ndim)
        self.codomain = constraints.independent(univariate.codomain, ndim)
        self.exact_inverse = univariate.exact_inverse
        self.traceable = univariate.traceable and getattr(net, "traceable", True)
        self.has_own_steps = _has_own_steps(type(self))

    @abstractmethod
    def take(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_a and x_b."""

    @abstractmethod
    def put(self, a: Tensor, b: Tensor) -> Tensor:
        """The whole from x_a and x_b."""

    @property
    @abstractmethod
    def places(self) -> tuple[Tensor, Tensor]:
        """Which coordinates of a vector the net reads, and which the scalar map changes, in their order."""

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.map(x, context, "forward")

    def map(self, x: Tensor, context: Context, direction: str) -> tuple[Tensor, Tensor]:
        """x with one direction of the scalar map applied to x_b, given x_a; and its log-det."""
        check_event(x, self.event, type(self).__name__)
        a, b = self.take(x)
        plain = (
            not self.has_own_steps
            and self.dim == -1
            and context_mask(context) is None
            and narrowed(x, self.net).dtype == x.dtype
        )
        if plain and hasattr(self.net, "as_perceptron"):
            inverse = direction == "inverse"
            found = conditioned.map_vector(self.net, self.univariate, x, a, context, *self.places, inverse)
            if found is not None:
                return found[0], sum_event(found[1], self.event_ndim - 1)
        mapped, logdet = self.map_scalars(b, self.params(a, b, context), context, direction)
        return self.put(a, mapped), sum_event(logdet, self.event_ndim)

    def as_step(self, like: Tensor, context: Context) -> Step | None:
        describe = getattr(self.net, "as_perceptron", None)
        if describe is None or self.has_own_steps or has_hooks(self) or has_hooks(self.net):
            return None
        if (self.dim, self.event_ndim) != (-1, 1) or context_mask(context) is not None:
            return None
        if self.event != like.shape[-1:] or self.net.n_params != self.univariate.n_params:
            return None
        job: Perceptron | None = describe(self.take(like)[0], context, enter=False)
        if job is None or job.x.dtype != like.dtype:
            return None
        sees, changes = self.places
        if job.x.shape[-1] != len(sees) or len(job.biases[-1]) != self.univariate.n_params * len(changes):
            return None
        scalars.show_settings(self.univariate, like)
        library = vector_steps.find_library(self.univariate, job.activation, like.dtype)
        step = Step(job.weights, job.biases, 0.0, library, job.bounds, sees, changes)
        return None if library is None else step

    def params(self, a: Tensor, b: Tensor, context: Context) -> Tensor:
        """The parameters of each element of x_b, in its dtype."""
        params = self.net(narrowed(self.visible(a, context), self.net), context)
        expected = (b.shape[self.dim], self.univariate.n_params)
        if params.ndim <= -self.dim or (params.shape[self.dim - 1], params.shape[-1]) != expected:
            raise ValueError(
                f"{type(self).__name__}: expected {expected[1]} parameters for each of {expected[0]} from the net, "
                f"shape (*x_b.shape, {expected[1]}), but got {tuple(params.shape)} for x_b with {tuple(b.shape)}"
            )
        return params.to(b.dtype)

    def map_scalars(self, b: Tensor, params: Tensor, context: Context, direction: str) -> tuple[Tensor, Tensor]:
        """x_b over the batch of its parameters too, mapped; and the log-slope of each element."""
        b = b.expand(joined(b.shape, params.shape[:-1]))
        found = scalars.map_scalars(self.univariate, b, params, direction == "inverse")
        if found is None:
            found = self.univariate(b, params) if direction == "forward" else self.univariate.inverse(b, params)
        mapped, logdet = found
        return self.spare(b, mapped, logdet, context)

    def spare(self, b: Tensor, mapped: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """What the scalar map made of x_b, with padding as it was."""
        mask = context_mask(context)
        if mask is None:
            return mapped, logdet
        mask = self.take(self._wide(mask))[1]
        return torch.where(mask, mapped, b), torch.where(mask, logdet, 0.0)

    def visible(self, a: Tensor, context: Context) -> Tensor:
        """What the net may see of x_a: padding, whatever it holds, counts as zero."""
        mask = context_mask(context)
        return a if mask is None else torch.where(self.take(self._wide(mask))[0], a, 0.0)

    def _wide(self, mask: Tensor) -> Tensor:
        """The mask over the whole of `dim`."""
        size = (self.event or ())[self.dim]
        if size is None or mask.shape[self.dim] == size:
            return mask
        return mask.expand(*mask.shape[: mask.ndim + self.dim], size, *mask.shape[mask.ndim + self.dim + 1 :])


def _has_own_steps(kind: type) -> bool:
    """Whether a class of one's own replaces a step, which kernels that take several at once would pass over."""
    owners = (next(c for c in kind.__mro__ if name in vars(c)) for name in STEPS)
    return any(not owner.__module__.startswith("diffeo.") for owner in owners)

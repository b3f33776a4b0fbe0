"""The bijection role: `Transform`, and `Univariate`, a scalar map whose context is its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.functional import Context, Event
from diffeo.kernels.compiling import compile_method

OTHER = {"forward": "inverse", "inverse": "forward"}


class Transform(nn.Module, ABC):
    """A bijection z = f(x | context) whose log|det dz/dx| comes with the value.

    `forward` is the normalizing direction (data to noise), `inverse` the generative one. x has shape
    `(*batch, *event)` with any number of batch dims; logdet has shape `(*batch,)`, is a sum over the event, at
    least float32, and the inverse's is the negative of the forward's. A transform that needs no context ignores it.

    Attributes:
        event_ndim: trailing dims of x that form one event.
        event_ndim_out: the same for z.
        event: the event shape that the transform was built for, None for dims of any size; None where any will do.
        domain, codomain: constraints of `torch.distributions` on single coordinates or on events.
        exact_inverse: the inverse is a closed form.
        exact_logdet: False where the log-det is an unbiased estimate while training.
        traceable: False where `torch.compile` and `vmap` cannot follow, as in adaptive solvers.
        stepwise: the directions that run through many small steps, so that layers are compiled one by one.
    """

    event_ndim: int = 0
    event_ndim_out: int = 0
    event: Event | None = None
    domain: Constraint = constraints.real
    codomain: Constraint = constraints.real
    exact_inverse: bool = True
    exact_logdet: bool = True
    traceable: bool = True
    stepwise: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise: z and log|det dz/dx|."""

    @abstractmethod
    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data: x and log|det dx/dz|."""

    def output_shape(self, event: Event) -> Event:
        """Event shape of z for an x with this event shape; what is None stays unknown."""
        return event

    def input_shape(self, event: Event) -> Event:
        """Event shape of x for a z with this event shape."""
        return event

    def map_context(self, context: Context) -> Context:
        """The context as the next transform needs it (a Squeeze folds entries that are aligned with time or pixels)."""
        return context

    def unmap_context(self, context: Context) -> Context:
        """The context that `map_context` makes this one of, which `Inverse` needs: here its entries are unfolded."""
        return context

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Set what depends on data from a batch of training rows; once, before training."""

    @property
    def wants_rows(self) -> bool:
        """Whether `initialize` sets anything."""
        return type(self).initialize is not Transform.initialize

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile both directions, in place; see `Density.compile`."""
        for direction in OTHER:
            self.compile_direction(direction)

    def compile_direction(self, direction: str) -> None:
        """Compile "forward" or "inverse", in place; a numerical inverse stays eager, and stops early."""
        if direction == "forward" or self.exact_inverse:
            compile_method(self, direction)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles run eagerly, as with any compiled module."""
        return {k: v for k, v in super().__getstate__().items() if k not in (*OTHER, "_compiled")}


class Univariate(Transform):
    """A monotone scalar map whose context holds its parameters, shape `(*x.shape, n_params)` or what broadcasts to it.

    With zero parameters it is the identity (or near it), so that a zero-initialised conditioner starts there. Written
    once, it works in `Elementwise`, `Coupling` and `Autoregressive`. A map without parameters (`n_params = 0`) ignores
    its context and may stand in a `Chain` by itself.
    """

    n_params: int = 0

    def params(self, context: Context) -> Tensor:
        """The parameters, shape `(*batch, n_params)`, or an error that says what was expected."""
        if not isinstance(context, Tensor) or context.shape[-1:] != (self.n_params,):
            got = tuple(context.shape) if isinstance(context, Tensor) else context
            raise ValueError(
                f"{type(self).__name__}: expected parameters of shape (*x.shape, {self.n_params}), got {got}"
            )
        return context

    def initial_params(self, x: Tensor) -> Tensor | None:
        """Parameters to start from, shape (D, n_params), for training rows x of shape (n, D); None for zeros."""
        return None


class Inverse(Transform):
    """The same bijection with the directions swapped: the forward of `Inverse(t)` is `t.inverse`.

    An inverse autoregressive flow is the `Inverse` of a masked autoregressive one. Cost: that of `t`, swapped.

    >>> import torch, diffeo
    >>> t = diffeo.Inverse(diffeo.Exp())
    >>> t(torch.tensor(1.0))[0]
    tensor(0.)
    """

    def __init__(self, transform: Transform):
        super().__init__()
        self.transform = transform
        self.event_ndim, self.event_ndim_out = transform.event_ndim_out, transform.event_ndim
        self.event = None if transform.event is None else transform.output_shape(transform.event)
        self.domain, self.codomain = transform.codomain, transform.domain
        self.exact_inverse = transform.exact_inverse
        self.exact_logdet = transform.exact_logdet
        self.traceable = transform.traceable
        self.stepwise = frozenset(OTHER[direction] for direction in transform.stepwise)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, self.transform.unmap_context(context))

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.transform(z, self.transform.unmap_context(context))

    def map_context(self, context: Context) -> Context:
        return self.transform.unmap_context(context)

    def unmap_context(self, context: Context) -> Context:
        return self.transform.map_context(context)

    def compile_direction(self, direction: str) -> None:
        self.transform.compile_direction(OTHER[direction])

    def output_shape(self, event: Event) -> Event:
        return self.transform.input_shape(event)

    def input_shape(self, event: Event) -> Event:
        return self.transform.output_shape(event)

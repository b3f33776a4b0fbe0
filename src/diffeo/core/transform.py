"""The bijection role: `Transform`, and `Univariate`, a scalar map whose context is its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core.compiling import compiled
from diffeo.functional import Context


class Rebuilt(NamedTuple):
    """An input found from its output, and the way from one to the other once more, for autograd to follow."""

    x: Tensor
    leaves: tuple[Tensor, ...]  # what the graph starts from
    z: Tensor
    logdet: Tensor
    join: Callable[[tuple[Tensor, ...]], Tensor]  # the gradient of x from those of the leaves


class Transform(nn.Module, ABC):
    """A bijection z = f(x | context) whose log|det dz/dx| comes with the value.

    `forward` is the normalizing direction (data to noise), `inverse` the generative one. x has shape
    `(*batch, *event)` with any number of batch dims; logdet has shape `(*batch,)`, is a sum over the event, at
    least float32, and the inverse's is the negative of the forward's. A transform that needs no context ignores it.

    Attributes:
        event_ndim: trailing dims of x that form one event.
        event_ndim_out: the same for z.
        event: the event shape that the transform was built for; None where any will do.
        domain, codomain: constraints of `torch.distributions` on single coordinates or on events.
        exact_inverse: the inverse is a closed form.
        exact_logdet: False where the log-det is an unbiased estimate while training.
        traceable: False where `torch.compile` and `vmap` cannot follow, as in adaptive solvers.
        stepwise_forward, stepwise_inverse: this direction runs through many small steps, so layers are compiled one by
            one.
    """

    event_ndim: int = 0
    event_ndim_out: int = 0
    event: Size | None = None
    domain: Constraint = constraints.real
    codomain: Constraint = constraints.real
    exact_inverse: bool = True
    exact_logdet: bool = True
    traceable: bool = True
    stepwise_forward: bool = False
    stepwise_inverse: bool = False
    _compiled_inverse: Callable[..., tuple[Tensor, Tensor]] | None = None

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise: z and log|det dz/dx|."""

    @abstractmethod
    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data: x and log|det dx/dz|."""

    def output_shape(self, event: Size) -> Size:
        """Event shape of z for an x with this event shape."""
        return event

    def input_shape(self, event: Size) -> Size:
        """Event shape of x for a z with this event shape."""
        return event

    def map_context(self, context: Context) -> Context:
        """The context as the next transform needs it (a Squeeze folds entries that are aligned with time or pixels)."""
        return context

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Set what depends on data from a batch of training rows; once, before training."""

    def rebuild(self, z: Tensor, context: Context = None) -> Rebuilt | None:
        """For `memory="invert"`: x from z, and the forward pass again, where the two share work; None where not."""
        return None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile both directions, in place; see `Density.compile`."""
        self.compile_forward()
        self.compile_inverse()

    def compile_forward(self) -> None:
        """Compile calls of this transform."""
        self._compiled_call_impl = compiled(self._call_impl)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]

    def compile_inverse(self) -> None:
        """Compile the inverse, as `invert` runs it; a numerical one stays eager, where it ends when it is found."""
        if self.exact_inverse:
            self._compiled_inverse = compiled(self.inverse)

    def invert(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """The inverse, compiled if `compile` was called: what calling the transform is to `forward`."""
        return (self._compiled_inverse or self.inverse)(z, context)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles run eagerly, as with any compiled module."""
        return {name: value for name, value in super().__getstate__().items() if name != "_compiled_inverse"}


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

    def recall(self, x: Tensor, z: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """`self(x, context)` with its gradient, where z and logdet, found before, are what it gives."""
        return self(x, context)

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
        self.stepwise_forward, self.stepwise_inverse = transform.stepwise_inverse, transform.stepwise_forward

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.transform.invert(x, context)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.transform(z, context)

    def compile_forward(self) -> None:
        self.transform.compile_inverse()

    def compile_inverse(self) -> None:
        self.transform.compile_forward()

    def output_shape(self, event: Size) -> Size:
        return self.transform.input_shape(event)

    def input_shape(self, event: Size) -> Size:
        return self.transform.output_shape(event)

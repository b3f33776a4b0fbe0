"""The density role."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core.given import Given
from diffeo.functional import (
    Context,
    Event,
    as_size,
    check_batch,
    check_precision,
    context_batch,
    context_mask,
    declared_reads,
    refuse_context,
)
from diffeo.kernels.compiling import compile_method
from diffeo.noise import Seeds, check_seeds
from diffeo.storage import RecipeCall


class Density(nn.Module, ABC):
    """A normalised density. Calling it gives the log-density: `density(x, context)`, shape `(*batch,)`.

    A new density declares `event` and implements `forward` and `draw`; where the shape of an event depends on the
    context, it also implements `event_shape`, and may declare `event_ndim` alone.

    Attributes:
        event: the event shape, None for dims that depend on the context; None where only their number is known.
        exact: False where `forward` gives a bound or an estimate.
        has_rsample: False where samples carry no gradient.
        recipe: the recipe that made the density and its arguments; None where it was made by hand.
    """

    event: Event | None = None
    exact: bool = True
    has_rsample: bool = True
    recipe: RecipeCall | None = None

    @cached_property
    def event_ndim(self) -> int:
        """Trailing dims of x that form one event."""
        if self.event is None:
            raise TypeError(f"{type(self).__name__} declares neither event nor event_ndim")
        return len(self.event)

    def event_shape(self, context: Context = None) -> Size:
        """Shape of one event; overridden where it depends on the context, as the length of a sentence does."""
        if self.event is None or None in self.event:
            raise TypeError(f"{type(self).__name__} does not say what shape its events have at a context")
        return Size(self.event)  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Log-density of x, shape `(*batch,)`, in nats."""

    @abstractmethod
    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        """Samples of batch shape `shape`, against which the context broadcasts, with gradient where there is one.

        A list of generators has one for each row; the functions of `diffeo.noise` draw from either.
        """

    def draw_with_log_prob(
        self, shape: Size, context: Context, temperature: float, generator: Seeds
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-density."""
        x = self.draw(shape, context, temperature, generator)
        return x, self(x, context)

    @property
    def support(self) -> Constraint:
        """Where the density lives, as a constraint of `torch.distributions`."""
        return constraints.independent(constraints.real, self.event_ndim)

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Set what depends on data from a batch of training rows; once, before training."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile log-density and sampling in place, with `torch.compile`; arguments are ignored.

        The log-density becomes one compiled function; so does sampling, but for autoregressive directions, where the
        run of a layer is compiled, or, with more than 8 features, a block of its steps. The first call of each takes
        seconds to two minutes (less once Inductor's cache on disk is warm), and so does the first far larger batch;
        other batch sizes take none. Copies and saved files are not compiled. Without a C++ compiler nothing happens,
        and the log says so. Compile again after changing the structure of the flow.
        """
        self.compile_log_prob()
        for part in self.modules():
            if isinstance(part, Density):
                part.compile_sampling()

    def compile_log_prob(self) -> None:
        """Compile the log-density, in place."""
        compile_method(self, "forward")

    def compile_sampling(self) -> None:
        """Compile what is slow in sampling, in place; nothing in a plain density."""

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles run eagerly, as with any compiled module."""
        return {k: v for k, v in super().__getstate__().items() if k != "forward"}

    def context_dims(self) -> dict[str, int]:
        """How many trailing dims of each entry of a context are its event, as the modules that read it declare.

        A module declares it by an attribute `reads`, such as `{"features": 1, "image": 3}`; a mask has the dims of x.

        Raises:
            ValueError: two modules declare the same entry differently.
        """
        return {"features": 1, **declared_reads(self), "mask": self.event_ndim}

    def check_context(self, context: Context) -> None:
        """Refuse a context that nothing would read, as far as the recipe says, and one in another precision.

        Raises:
            ValueError: a mask of fewer dims than events have; the recipe was called with `context=0` or `classes=0`, or
                weights and context are float32 and float64.
        """
        if context is not None:
            mask = context_mask(context)
            if mask is not None and mask.ndim < self.event_ndim:
                raise ValueError(f"a mask of events of {self.event_ndim} dims has as many, got {tuple(mask.shape)}")
            own, made = next(self.parameters(), None), self.recipe
            if made is not None and made.arguments.get("context") == 0:
                refuse_context(context, made.name, "context")
            if made is not None and made.arguments.get("classes") == 0 and "features" not in declared_reads(self):
                refuse_context(context, made.name, "classes")
            if own is not None:
                check_precision(context, own.dtype, type(self).__name__)

    def log_prob(self, x: Tensor, context: Context = None) -> Tensor:
        """Log-density of x in nats, shape `(*batch,)`: the same as calling the density."""
        return self(x, context)

    @torch.no_grad()
    def sample(
        self,
        shape: int | tuple[int, ...] | Size = (),
        context: Context = None,
        *,
        temperature: float = 1.0,
        generator: Seeds = None,
    ) -> Tensor:
        """Samples without gradient, shape `(*shape, *event)`.

        Args:
            shape: the whole batch shape; the context broadcasts against it, as with numpy's `size=`.
            context: what to condition on.
            temperature: scales the base, ≥ 0; 0 gives its mode.
            generator: source of randomness, so that seeds reproduce; or a list, one for each row of the batch, so that
                on the CPU a row is the same, up to rounding, whatever is drawn beside it and, where noise is drawn
                once and its first dim is the one that is padded, as in sequences, however long the others are.
                Mixtures and Student's t take no list.

        Raises:
            ValueError: the context's batch does not fit `shape`, or the temperature is negative; generators that are
                not one for each row, or of a base that takes no list.
        """
        return self.draw(*self._request(shape, context, temperature, generator), generator)

    def rsample(
        self,
        shape: int | tuple[int, ...] | Size = (),
        context: Context = None,
        *,
        temperature: float = 1.0,
        generator: Seeds = None,
    ) -> Tensor:
        """Reparameterised samples, which carry the gradient; otherwise as `sample`."""
        self._require_rsample()
        return self.draw(*self._request(shape, context, temperature, generator), generator)

    def sample_and_log_prob(
        self,
        shape: int | tuple[int, ...] | Size = (),
        context: Context = None,
        *,
        temperature: float = 1.0,
        generator: Seeds = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-density from one pass, with gradient.

        The log-density is that of the untempered model. Where samples are not reparameterised (`has_rsample` is False)
        they carry no gradient, and the log-density takes a second pass.
        """
        request = self._request(shape, context, temperature, generator)
        if self.has_rsample:
            return self.draw_with_log_prob(*request, generator)
        with torch.no_grad():  # part of a gradient would be worse than none
            x = self.draw(*request, generator)
        return x, self(x, context)

    def given(self, context: Context = None) -> Given:
        """This density at a context as a `torch.distributions.Distribution`, with torch's shape rules.

        The batch shape is that of the context. An encoder runs once, here.
        """
        self.check_context(context)
        return Given(self, context, context_batch(context, self.context_dims()))

    def _request(
        self, shape: int | tuple[int, ...] | Size, context: Context, temperature: float, generator: Seeds
    ) -> tuple[Size, Context, float]:
        shape = as_size(shape)
        check_seeds(generator, shape)
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        self.check_context(context)
        if context is not None:
            check_batch(shape, context_batch(context, self.context_dims()))
        return shape, context, temperature

    def _require_rsample(self) -> None:
        if not self.has_rsample:
            raise ValueError(
                f"{type(self).__name__} has no reparameterised samples; use sample(), or another base "
                "(nsf, nsf_ar and sphere: components=0)"
            )

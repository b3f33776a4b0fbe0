"""The density role: `Density`, and `Flow`, a base density pulled back through a transform."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core.compiling import compiled
from diffeo.core.transform import Transform
from diffeo.functional import Context, as_size, check_event, context_batch, in_blocks, is_real

if TYPE_CHECKING:
    from diffeo.core.given import Given


class RecipeCall(NamedTuple):
    """Which recipe made a density, and with which arguments."""

    name: str
    arguments: dict[str, Any]


class Density(nn.Module, ABC):
    """A normalised density. Calling it gives the log-density: `density(x, context)`, shape `(*batch,)`.

    A new density implements `event_shape`, `forward` and `draw`.

    Attributes:
        exact: False where `forward` gives a bound or an estimate.
        has_rsample: False where samples carry no gradient.
        recipe: the recipe that made the density and its arguments; None where it was made by hand.
    """

    exact: bool = True
    has_rsample: bool = True
    recipe: RecipeCall | None = None

    @abstractmethod
    def event_shape(self, context: Context = None) -> Size:
        """Shape of one event; it may depend on the context, as the length of a sentence does."""

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Log-density of x, shape `(*batch,)`, in nats."""

    @abstractmethod
    def draw(self, shape: Size, context: Context, temperature: float, generator: Generator | None) -> Tensor:
        """Samples of batch shape `shape`, against which the context broadcasts, with gradient where there is one."""

    def draw_with_log_prob(
        self, shape: Size, context: Context, temperature: float, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-density."""
        x = self.draw(shape, context, temperature, generator)
        return x, self(x, context)

    @property
    def support(self) -> Constraint:
        """Where the density lives, as a constraint of `torch.distributions`."""
        return constraints.independent(constraints.real, len(self.event_shape()))

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Set what depends on data from a batch of training rows; once, before training."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile log-density and sampling in place, with `torch.compile`; arguments are ignored.

        The log-density becomes one compiled function; so does sampling, but for autoregressive directions, where the
        run of a layer is compiled, or, with more than 8 features, a block of its steps. The first call of each takes
        seconds to two minutes (less once Inductor's cache on disk is warm), other batch sizes none. Copies and saved
        files are not compiled. Without a C++ compiler nothing happens, and the log says so. Compile again after
        changing the structure of the flow.
        """
        self._compiled_call_impl = compiled(self._call_impl)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        for part in self.modules():
            if isinstance(part, Flow):
                part.compile_sampling()

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
        generator: Generator | None = None,
    ) -> Tensor:
        """Samples without gradient, shape `(*shape, *event)`.

        Args:
            shape: the whole batch shape; the context broadcasts against it, as with numpy's `size=`.
            context: what to condition on.
            temperature: scales the base, ≥ 0; 0 gives its mode.
            generator: source of randomness, so that seeds reproduce.

        Raises:
            ValueError: the context's batch does not fit `shape`, or the temperature is negative.
        """
        return self.draw(*_request(shape, context, temperature), generator)

    def rsample(
        self,
        shape: int | tuple[int, ...] | Size = (),
        context: Context = None,
        *,
        temperature: float = 1.0,
        generator: Generator | None = None,
    ) -> Tensor:
        """Reparameterised samples, which carry the gradient; otherwise as `sample`."""
        self._require_rsample()
        return self.draw(*_request(shape, context, temperature), generator)

    def sample_and_log_prob(
        self,
        shape: int | tuple[int, ...] | Size = (),
        context: Context = None,
        *,
        temperature: float = 1.0,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-density from one pass, with gradient.

        The log-density is that of the untempered model. Where samples are not reparameterised (`has_rsample` is False)
        they carry no gradient, and the log-density takes a second pass.
        """
        request = _request(shape, context, temperature)
        if self.has_rsample:
            return self.draw_with_log_prob(*request, generator)
        with torch.no_grad():  # part of a gradient would be worse than none
            x = self.draw(*request, generator)
        return x, self(x, context)

    def given(self, context: Context = None) -> Given:
        """This density at a context as a `torch.distributions.Distribution`, with torch's shape rules.

        The batch shape is that of the context. An encoder runs once, here.
        """
        from diffeo.core.given import Given

        return Given(self, context)

    def _require_rsample(self) -> None:
        if not self.has_rsample:
            raise ValueError(
                f"{type(self).__name__} has no reparameterised samples; use sample(), or another base "
                "(nsf, nsf_ar and sphere: components=0)"
            )


class Flow(Density):
    """A density whose samples are base samples pushed through the inverse of a transform.

    log p(x | c) = log p_base(z | c') + log|det ∂z/∂x|, z = transform(x, c'), c' = encoder(c)

    Args:
        transform: data to noise.
        base: a density over z; it receives the encoded context too.
        encoder: maps the context to what transform and base read; it runs once a call.

    Cost: one forward pass of the transform for a density, one inverse pass for samples.

    "Normalizing Flows for Probabilistic Modeling and Inference" (Papamakarios et al., 2021),
    https://arxiv.org/abs/1912.02762

    >>> import torch, diffeo
    >>> flow = diffeo.Flow(diffeo.Exp(), diffeo.Uniform(1.0, 2.0))   # x = log z
    >>> flow(torch.tensor(0.5)).exp()                                # dz/dx = e^x
    tensor(1.6487)
    """

    def __init__(self, transform: Transform, base: Density, encoder: nn.Module | None = None):
        super().__init__()
        self.transform = transform
        self.base = base
        self.encoder = encoder
        if is_real(base.support) and not is_real(transform.codomain):
            raise ValueError(
                f"Flow: {type(transform).__name__} ends in {transform.codomain}, where the base {type(base).__name__}, "
                "which covers the whole line, cannot follow; use a base on that domain, or swap the map with Inverse"
            )
        self.exact = base.exact
        self.has_rsample = base.has_rsample
        if transform.event is not None and transform.output_shape(transform.event) != base.event_shape():
            raise ValueError(
                f"Flow: the transform gives events of shape {tuple(transform.output_shape(transform.event))}, "
                f"but the base {type(base).__name__} has {tuple(base.event_shape())}"
            )

    def event_shape(self, context: Context = None) -> Size:
        context = self.transform.map_context(self.encode(context))
        return self.transform.input_shape(self.base.event_shape(context))

    @property
    def support(self) -> Constraint:
        inner = self.base.support
        if not is_real(inner):
            return Preimage(self.transform, inner, len(self.event_shape()))
        missing = len(self.event_shape()) - self.transform.domain.event_dim
        return constraints.independent(self.transform.domain, missing) if missing else self.transform.domain

    def encode(self, context: Context) -> Context:
        """The context as transform and base read it."""
        return context if self.encoder is None or context is None else self.encoder(context)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        self._check_input(x)
        context = self.encode(context)
        z, logdet = self.transform(x, context)
        log_base = self.base(z, self.transform.map_context(context))
        return log_base + self._over_base_batch(logdet, log_base)

    def _check_input(self, x: Tensor) -> None:
        """Refuse what would otherwise fail deep inside: NumPy arrays, wrong shapes, another precision."""
        who = type(self).__name__
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"{who}: expected a tensor, got {type(x).__name__}; use torch.as_tensor(x).float()")
        check_event(x, self.transform.event, who)
        own = next(self.parameters(), None)
        if own is not None and {x.dtype, own.dtype} == {torch.float32, torch.float64}:
            raise ValueError(f"{who}: x is {x.dtype}, the weights are {own.dtype}; use x.float() or flow.double()")

    def draw(self, shape: Size, context: Context, temperature: float, generator: Generator | None) -> Tensor:
        context = self.encode(context)
        z = self.base.draw(shape, self.transform.map_context(context), temperature, generator)
        return self.transform.invert(z, context)[0]

    def draw_with_log_prob(
        self, shape: Size, context: Context, temperature: float, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        context = self.encode(context)
        z, log_base = self.base.draw_with_log_prob(shape, self.transform.map_context(context), temperature, generator)
        x, logdet = self.transform.invert(z, context)
        return x, log_base - self._over_base_batch(logdet, log_base)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        if self.transform.stepwise_forward:
            self.transform.compile_forward()
            self.compile_sampling()
        else:
            super().compile()

    def compile_sampling(self) -> None:
        """Compile the inverse of the transform, as sampling runs it."""
        self.transform.compile_inverse()

    def _over_base_batch(self, logdet: Tensor, log_base: Tensor) -> Tensor:
        """Fold log-det dims that are batch to the transform, but event to the base, as under an elementwise map."""
        extra = logdet.ndim - log_base.ndim
        return logdet.flatten(-extra).sum(-1) if extra > 0 else logdet

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Set the data-dependent layers (and base, and encoder) from training rows; `fit` calls it."""
        if context is not None and self.encoder is not None and hasattr(self.encoder, "initialize"):
            self.encoder.initialize(context)  # pyright: ignore[reportCallIssue]
        context = self.encode(context)
        self.transform.initialize(x, context)
        if type(self.base).initialize is not Density.initialize:
            z = in_blocks(self.transform, x, context, self.transform.event_ndim)
            self.base.initialize(z, self.transform.map_context(context))

    def given(self, context: Context = None) -> Given:
        from diffeo.core.given import Given

        encoded = self.encode(context)
        return Given(Flow(self.transform, self.base) if self.encoder is not None else self, encoded)


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


def _request(shape: int | tuple[int, ...] | Size, context: Context, temperature: float) -> tuple[Size, Context, float]:
    shape = as_size(shape)
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    batch = context_batch(context)
    fits = len(batch) <= len(shape) and all(c in (1, s) for c, s in zip(reversed(batch), reversed(shape), strict=False))
    if not fits:
        full = tuple(shape) + tuple(batch)
        raise ValueError(
            f"sample: shape {tuple(shape)} is the whole batch, but the context has batch shape {tuple(batch)}: "
            f"use {full}, or given(c)"
        )
    return shape, context, temperature

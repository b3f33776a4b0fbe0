"""`Flow`: a base density pulled back through a transform."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core.density import Density
from diffeo.core.given import Given, Preimage
from diffeo.core.transform import Transform
from diffeo.functional import (
    Context,
    Event,
    check_event,
    context_mask,
    declared_reads,
    entries,
    in_blocks,
    is_real,
    keep_masked,
    meet,
    show_event,
    visible,
)
from diffeo.noise import Seeds

FAR = 1e9  # beyond it a density that overflows to NaN is zero; nearer, NaN says that the weights are wrong


class Flow(Density):
    """A density whose samples are base samples pushed through the inverse of a transform.

    log p(x | c) = log p_base(z | c') + log|det ∂z/∂x|, z = transform(x, c'), c' = encoder(c)

    Args:
        transform: data to noise.
        base: a density over z; it receives the encoded context too.
        encoder: maps the context to what transform and base read; it runs once a call. A mask is that of x, and stays;
            an encoder that has `"mask"` in its `reads` gives the mask of x itself, if there is one.

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
        self.event_ndim = max(base.event_ndim - transform.event_ndim_out, 0) + transform.event_ndim
        self.event = self._meet()

    def _meet(self) -> Event | None:
        """What is known of the event, from the transform and from the base."""
        transform, base = self.transform, self.base
        given = None if transform.event is None else transform.output_shape(transform.event)
        met = base.event if given is None else given if base.event is None else meet(given, base.event)
        if met is None and given is not None and base.event is not None:
            raise ValueError(
                f"Flow: the transform gives events of shape {show_event(given)}, "
                f"but the base {type(base).__name__} has {show_event(base.event)}"
            )
        event = None if met is None else transform.input_shape(met)
        return event if event is not None and len(event) == self.event_ndim else None

    def event_shape(self, context: Context = None) -> Size:
        if self.event is not None and None not in self.event:
            return Size(self.event)  # pyright: ignore[reportArgumentType]
        context = self.transform.map_context(self.encode(context))
        return Size(self.transform.input_shape(self.base.event_shape(context)))  # pyright: ignore[reportArgumentType]

    def context_dims(self) -> dict[str, int]:
        inner = {"features": 1, **declared_reads(self.transform), **declared_reads(self.base)}
        own = {} if self.encoder is None else declared_reads(self.encoder)  # it reads the context as it comes
        return {**inner, **own, "mask": self.event_ndim}

    @property
    def support(self) -> Constraint:
        inner = self.base.support
        if not is_real(inner):
            return Preimage(self.transform, inner, self.event_ndim)
        missing = self.event_ndim - self.transform.domain.event_dim
        return constraints.independent(self.transform.domain, missing) if missing else self.transform.domain

    def encode(self, context: Context) -> Context:
        """The context as transform and base read it; its mask stays, unless the encoder says that it reads it."""
        if self.encoder is None or context is None:
            return context
        found: Context = self.encoder(context)
        mask = None if "mask" in declared_reads(self.encoder) else context_mask(context)
        return found if mask is None else {"mask": mask, **entries(found)}

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        self._check_input(x)
        self.check_context(context)
        context = self.encode(context)
        x = visible(x, context)
        z, logdet = self.transform(x, context)
        z, logdet = self._keep(x, z, logdet, context)
        log_base = self.base(z, self.transform.map_context(context))
        found = log_base + self._over_base_batch(logdet, log_base)
        return torch.where(found.isnan() & self._is_far(x), -torch.inf, found)

    def _is_far(self, x: Tensor) -> Tensor:
        """Whether an event is so far out that layers may have overflowed, ∞ − ∞, on its way to noise."""
        size = x.detach().abs()
        return (size.flatten(-self.event_ndim).amax(-1) if self.event_ndim else size) > FAR

    def _check_input(self, x: Tensor) -> None:
        """Refuse what would otherwise fail deep inside: NumPy arrays, wrong shapes, another precision."""
        who = type(self).__name__
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"{who}: expected a tensor, got {type(x).__name__}; use torch.as_tensor(x).float()")
        check_event(x, self.event, who)
        own = next(self.parameters(), None)
        if own is not None and {x.dtype, own.dtype} == {torch.float32, torch.float64}:
            raise ValueError(f"{who}: x is {x.dtype}, the weights are {own.dtype}; use x.float() or flow.double()")

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        context = self.encode(context)
        z = self.base.draw(shape, self.transform.map_context(context), temperature, generator)
        x, logdet = self.transform.inverse(z, context)
        return self._keep(z, x, logdet, context)[0]

    def draw_with_log_prob(
        self, shape: Size, context: Context, temperature: float, generator: Seeds
    ) -> tuple[Tensor, Tensor]:
        context = self.encode(context)
        z, log_base = self.base.draw_with_log_prob(shape, self.transform.map_context(context), temperature, generator)
        x, logdet = self.transform.inverse(z, context)
        x, logdet = self._keep(z, x, logdet, context)
        return x, log_base - self._over_base_batch(logdet, log_base)

    def compile_log_prob(self) -> None:
        if "forward" in self.transform.stepwise:
            self.transform.compile_direction("forward")
        else:
            super().compile_log_prob()

    def compile_sampling(self) -> None:
        self.transform.compile_direction("inverse")

    def _keep(self, x: Tensor, z: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """What the transform gives; scalars that a mask leaves out stay, which maps of scalars leave to their owner."""
        return (z, logdet) if self.transform.event_ndim else keep_masked(x, z, logdet, context)

    def _over_base_batch(self, logdet: Tensor, log_base: Tensor) -> Tensor:
        """Fold log-det dims that are batch to the transform, but event to the base, as under an elementwise map."""
        extra = logdet.ndim - log_base.ndim
        return logdet.flatten(-extra).sum(-1) if extra > 0 else logdet

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Set the data-dependent layers (and base, and encoder) from training rows; `fit` calls it."""
        self.check_context(context)
        if context is not None and self.encoder is not None and hasattr(self.encoder, "initialize"):
            self.encoder.initialize(context)  # pyright: ignore[reportCallIssue]
        context = self.encode(context)
        self.transform.initialize(x, context)
        if type(self.base).initialize is not Density.initialize:
            z = in_blocks(self.transform, x, context, self.transform.event_ndim)
            self.base.initialize(z, self.transform.map_context(context))

    def given(self, context: Context = None) -> Given:
        if self.encoder is None:
            return super().given(context)
        inner, context = Flow(self.transform, self.base), self.encode(context)
        if isinstance(context, Mapping):  # an encoder may say more than these read, such as where letters are
            reads = inner.context_dims()
            context = {name: t for name, t in context.items() if name in reads}
        return inner.given(context)

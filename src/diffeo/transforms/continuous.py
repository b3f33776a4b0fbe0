"""Continuous flows: the solution of an ordinary differential equation as a bijection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    check_event,
    context_features,
    full_precision,
    joined,
    narrowed,
)
from diffeo.nets import VectorField
from diffeo.solvers import Integrator
from diffeo.transforms.masks import keep_rows

EXACT = 16  # features up to which training takes the trace itself, too
TRACES = ("auto", "exact", "hutchinson")


class Continuous(Transform):
    """z = x(0), where dx/dt = v(t, x) and x(1) = x: noise at time 0 flows to data at time 1.

    log|det ∂z/∂x| = −∫₀¹ tr ∂v/∂x dt, from the same solve. The trace is exact, or εᵀ(∂v/∂x)ε with a Gaussian ε that is
    drawn once for each solve (Hutchinson, FFJORD). The network starts at zero, and the map as the identity.

    Args:
        field: v, a `diffeo.nets.VectorField` or a module with its two methods.
        trace: "exact", "hutchinson" while training (and exact in `eval()`), or "auto": exact up to 16 features.
        integrator: how the equation is solved.

    Raises:
        ValueError: an unknown trace.

    Cost: one evaluation of v and of D tangents (one for Hutchinson) for every stage of the solver: `evaluations` counts
    them. Both directions cost about the same.

    "FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models" (Grathwohl et al., 2019),
    https://arxiv.org/abs/1810.01367

    >>> import torch, diffeo
    >>> diffeo.Continuous(diffeo.nets.VectorField(3))(torch.ones(5, 3))[1].shape
    torch.Size([5])
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    exact_inverse = False
    traceable = False

    def __init__(self, field: VectorField, *, trace: str = "auto", integrator: Integrator | None = None):
        super().__init__()
        if trace not in TRACES:
            raise ValueError(f"Continuous: trace must be one of {', '.join(TRACES)}, got {trace!r}")
        self.event = Size((field.features,))
        self.field, self.trace = field, trace
        self.integrator = Integrator() if integrator is None else integrator
        self.exact_logdet = trace == "exact" or (trace == "auto" and field.features <= EXACT)

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        z, logdet, *_ = self._solve(x, context, 1.0, 0.0)
        return keep_rows(x, z, logdet, context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        x, logdet, *_ = self._solve(z, context, 0.0, 1.0)
        return keep_rows(z, x, logdet, context)

    def with_costs(self, x: Vector, context: Context = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z and its log-det, with ∫ |v|² dt and ∫ |(∂v/∂x) ε|² dt along the way, ε Gaussian: what bends a path."""
        z, logdet, kinetic, jacobian = self._solve(x, context, 1.0, 0.0, costs=True)
        return z, logdet, -kinetic, -jacobian  # time ran backwards

    def path(self, z: Vector, times: Sequence[float], context: Context = None) -> Tensor:
        """Where noise z is at each of the times, increasing in [0, 1]: shape (len(times), *batch, D)."""
        if not times or not all(a <= b for a, b in pairwise((0.0, *times, 1.0))):
            raise ValueError(f"path: expected increasing times in [0, 1], got {list(times)}")
        places, now = [], 0.0
        for time in times:
            if time > now:
                moved, logdet, *_ = self._solve(z, context, now, time)
                z, now = keep_rows(z, moved, logdet, context)[0], time
            places.append(z)
        return torch.stack(torch.broadcast_tensors(*places))

    def evaluations(self, x: Vector, context: Context = None, inverse: bool = False) -> int:
        """How often a solve from x (or from z, with `inverse`) evaluates v."""
        count = [0]
        ends = (0.0, 1.0) if inverse else (1.0, 0.0)
        with torch.no_grad():
            self._solve(x, context, *ends, count=count)
        return count[0]

    def _linearize(self, t: Tensor, x: Tensor, context: Context) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """v and how it pushes tangents, in the dtype of x."""
        v, push = self.field.linearize(narrowed(t, self.field), narrowed(x, self.field), context)
        return v.to(x.dtype), lambda tangents: push(tangents.to(v.dtype)).to(x.dtype)

    def _solve(
        self,
        x: Tensor,
        context: Context,
        start: float,
        end: float,
        costs: bool = False,
        count: list[int] | None = None,
    ) -> tuple[Tensor, ...]:
        check_event(x, self.event, "Continuous")
        features = context_features(context)
        if features is not None:  # one x for each row of the context
            x = x.expand(*joined(x.shape[:-1], features.shape[:-1]), -1)
        exact = self.exact_logdet or not self.training
        noise = None if exact and not costs else torch.randn_like(x).unsqueeze(-1)
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(*x.shape, -1)

        def motion(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if count is not None:
                count[0] += 1
            v, push = self._linearize(t, state[0], context)
            along = None if noise is None else push(noise)
            if exact or noise is None or along is None:
                trace = push(eye).diagonal(dim1=-2, dim2=-1).sum(-1)
            else:
                trace = (noise * along).sum((-2, -1))
            if not costs or along is None:
                return v, trace
            return v, trace, v.square().sum(-1), along.square().sum((-2, -1))

        zero = torch.zeros_like(x[..., 0])
        state = (x, zero, zero, zero) if costs else (x, zero)
        depends = [*self.field.parameters(), *([features] if features is not None else [])]
        with full_precision(x):
            return self.integrator.solve(motion, state, start, end, depends)

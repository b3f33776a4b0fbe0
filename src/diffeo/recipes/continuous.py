"""Continuous flows."""

from __future__ import annotations

from collections.abc import Sequence

from diffeo.core import Flow
from diffeo.nets import VectorField
from diffeo.recipes.parts import flow
from diffeo.recipes.registry import recipe
from diffeo.solvers import Integrator
from diffeo.transforms import Continuous, Whiten


@recipe(events="vectors")
def ffjord(
    features: int,
    *,
    context: int = 0,
    hidden: Sequence[int] = (64, 64, 64),
    trace: str = "auto",
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-6,
    steps: int = 20,
    adjoint: bool = False,
) -> Flow:
    """FFJORD: noise carried to data along a vector field, trained by likelihood or, much faster, by `FlowMatching`.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        hidden: widths of the hidden layers of the field.
        trace: "exact", "hutchinson" while training, or "auto": exact up to 16 features.
        method: an adaptive solver ("dopri5", "dopri8", "bosh3", "adaptive_heun"), or one with fixed steps ("rk4",
            "midpoint", "euler").
        rtol, atol: tolerances of adaptive solvers.
        steps: of solvers with fixed steps.
        adjoint: gradients from the adjoint equation, in memory that does not grow with the number of steps.

    Cost: as many evaluations of the field as the solver takes, for a density or a sample.

    "FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models" (Grathwohl et al., 2019),
    https://arxiv.org/abs/1810.01367

    >>> import torch, diffeo
    >>> diffeo.ffjord(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    field = VectorField(features, context=context, hidden=hidden)
    integrator = Integrator(method, rtol, atol, steps, adjoint)
    return flow(features, context, [Whiten(features), Continuous(field, trace=trace, integrator=integrator)])

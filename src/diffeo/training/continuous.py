"""Objectives for continuous flows: straighter paths, and training without solving an equation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from diffeo.core import Chain, Density, Flow, Objective
from diffeo.functional import Context
from diffeo.transforms import Continuous

COUPLINGS = ("independent", "transport")
PAIRED = 256  # rows that are paired with each other


class RegularizedLikelihood(Objective):
    """−log p(x) + a ∫ |v|² dt + b ∫ |(∂v/∂x) ε|² dt: maximum likelihood with paths that are short and straight.

    Args:
        flow: a `Flow` with `Continuous` layers, such as `diffeo.ffjord` makes.
        kinetic: a, ≥ 0.
        jacobian: b, ≥ 0.

    Raises:
        ValueError: a flow without continuous layers; negative weights.

    "How to Train Your Neural ODE: the World of Jacobian and Kinetic Regularization" (Finlay et al., 2020),
    https://arxiv.org/abs/2002.02798

    >>> import torch, diffeo
    >>> diffeo.RegularizedLikelihood(diffeo.ffjord(2))(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(self, flow: Flow, kinetic: float = 0.01, jacobian: float = 0.01):
        super().__init__()
        if kinetic < 0 or jacobian < 0:
            raise ValueError(f"RegularizedLikelihood: expected weights >= 0, got {kinetic} and {jacobian}")
        _continuous_parts(flow, "RegularizedLikelihood")
        self.flow, self.kinetic, self.jacobian = flow, kinetic, jacobian

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        if not self.training:
            return -self.flow(x, context)
        encoded = self.flow.encode(context)
        transform, loss = self.flow.transform, torch.zeros(())
        if not isinstance(transform, Chain):
            transform = Chain(transform)
        for i, (part, context) in enumerate(zip(transform.parts, transform.contexts(encoded), strict=True)):
            if isinstance(part, Continuous):
                x, logdet, kinetic, jacobian = part.with_costs(x, context)
                costs = self.kinetic * kinetic + self.jacobian * jacobian - logdet
                loss = loss + transform.fold(i, costs)
            else:
                x, logdet = transform.run(i, x, context)
                loss = loss - logdet
        return loss - self.flow.base(x, transform.map_context(encoded))


class FlowMatching(Objective):
    """|v(t, x_t) − (x₁ − x₀)|², x_t = (1 − t) x₀ + t x₁, t uniform: the field learns straight paths, without a solver.

    x₁ are the rows as the layers before the continuous one give them (these are set by the training rows, and not
    trained), x₀ samples of the base. Afterwards densities and samples are those of the flow, as ever. The loss is a
    squared error and no log-density.

    Args:
        flow: a `Flow` whose last layer, and no other, is `Continuous`, such as `diffeo.ffjord` makes.
        coupling: "independent", or "transport": x₀ and x₁ of a batch are paired so that their squared distances are
            least in all (256 rows at a time, as the cost grows with their cube), which makes paths straighter; not for
            conditional flows.

    Raises:
        ValueError: another kind of flow; an unknown coupling; transport with a context.

    Cost: one evaluation of the field for each row.

    "Flow Matching for Generative Modeling" (Lipman et al., 2023), https://arxiv.org/abs/2210.02747; "Improving and
    Generalizing Flow-Based Generative Models with Minibatch Optimal Transport" (Tong et al., 2024),
    https://arxiv.org/abs/2302.00482

    >>> import torch, diffeo
    >>> flow = diffeo.ffjord(2)
    >>> result = diffeo.fit(diffeo.FlowMatching(flow), torch.randn(200, 2), steps=10)
    >>> flow(torch.zeros(2)).shape
    torch.Size([])
    """

    in_nats = False

    def __init__(self, flow: Flow, coupling: str = "independent"):
        super().__init__()
        if coupling not in COUPLINGS:
            raise ValueError(f"FlowMatching: coupling must be one of {', '.join(COUPLINGS)}, got {coupling!r}")
        parts = _parts(flow)
        if _continuous_parts(flow, "FlowMatching") != parts[-1:]:
            raise ValueError("FlowMatching: expected a flow whose last layer, and no other, is Continuous")
        self.flow, self.coupling = flow, coupling

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        encoded = self.flow.encode(context)
        if self.coupling == "transport" and context is not None:
            raise ValueError("FlowMatching: pairs of least distance would mix the contexts; use coupling='independent'")
        *before, last = _parts(self.flow)
        with torch.no_grad():  # or layers before would shrink the paths by shrinking the data
            for part in before:
                x, _ = part(x, encoded)
                encoded = part.map_context(encoded)
        # held-out rows always meet the same noise, so that evaluations can be compared
        generator = None if self.training else Generator(x.device).manual_seed(1)
        noise = self.flow.base.sample(x.shape[:-1], encoded, generator=generator).to(x)
        t = torch.rand(x.shape[:-1], generator=generator, dtype=x.dtype, device=x.device)
        if self.coupling == "transport":
            noise = torch.cat([_paired(a, b) for a, b in zip(noise.split(PAIRED), x.split(PAIRED), strict=True)])
        at = noise + t.unsqueeze(-1) * (x - noise)
        return (last.field(t, at, encoded) - (x - noise)).square().sum(-1)


def _parts(flow: Flow) -> list[Any]:
    return list(flow.transform.parts) if isinstance(flow.transform, Chain) else [flow.transform]


def _continuous_parts(flow: Density, who: str) -> list[Continuous]:
    if not isinstance(flow, Flow):
        raise ValueError(f"{who}: expected a Flow with a Continuous layer, got {type(flow).__name__}")
    found = [part for part in _parts(flow) if isinstance(part, Continuous)]
    if not found:
        raise ValueError(f"{who}: the flow has no Continuous layer")
    return found


def _paired(noise: Tensor, x: Tensor) -> Tensor:
    """The noise in the order that pairs it with x at the least total squared distance."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x.detach().double(), noise.double()).square()
    return noise[torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(x.device)]

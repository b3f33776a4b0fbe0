"""Flows of residual maps x + g(x) with g a contraction, from data to noise."""

from __future__ import annotations

from collections.abc import Sequence

from diffeo.core import Flow, Transform
from diffeo.nets import LipschitzMLP
from diffeo.recipes.parts import flow
from diffeo.recipes.registry import recipe
from diffeo.transforms import ActNorm, Residual, Whiten


@recipe(events="vectors")
def residual_flow(
    features: int,
    *,
    context: int = 0,
    layers: int = 12,
    hidden: Sequence[int] = (128, 128),
    lipschitz: float = 0.97,
) -> Flow:
    """Residual flow: layers x + g(x) with contractions g, free networks otherwise.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of residual layers, each before an `ActNorm`.
        hidden: widths of the hidden layers of each g.
        lipschitz: constant of each g, in (0, 1).

    Cost: a density takes D passes of each network (estimated while training where D > 16, and
    always where D > 256); a sample a fixed-point
    iteration for each layer.

    "Residual Flows for Invertible Generative Modeling" (Chen et al., 2019), https://arxiv.org/abs/1906.02735

    >>> import torch, diffeo
    >>> diffeo.residual_flow(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    parts: list[Transform] = [Whiten(features)]
    for _ in range(layers):
        net = LipschitzMLP(features, context=context, hidden=hidden, lipschitz=lipschitz)
        parts += [Residual(net), ActNorm(features)]
    return flow(features, context, parts)

"""Flows of maps x + g(x) with g of low rank, from noise to data."""

from __future__ import annotations

from diffeo.core import Flow
from diffeo.recipes.parts import flow
from diffeo.recipes.registry import recipe
from diffeo.transforms import Planar, Radial, Sylvester, Whiten


@recipe(events="vectors")
def planar(features: int, *, context: int = 0, layers: int = 32) -> Flow:
    """Planar flow: noise is pushed along one direction after another.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of planar maps.

    Cost: O(D) for each layer; samples in closed form, a density solves a scalar equation for each layer.

    "Variational Inference with Normalizing Flows" (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770

    >>> import torch, diffeo
    >>> diffeo.planar(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    return flow(features, context, [Whiten(features), *(Planar(features, context) for _ in range(layers))])


@recipe(events="vectors")
def radial(features: int, *, context: int = 0, layers: int = 32) -> Flow:
    """Radial flow: noise is drawn towards one point after another, or pushed away.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of radial maps.

    Cost: O(D) for each layer in either direction, closed form.

    "Variational Inference with Normalizing Flows" (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770

    >>> import torch, diffeo
    >>> diffeo.radial(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    return flow(features, context, [Whiten(features), *(Radial(features, context) for _ in range(layers))])


@recipe(events="vectors")
def sylvester(
    features: int, *, context: int = 0, layers: int = 16, rank: int | None = None, kind: str = "orthogonal"
) -> Flow:
    """Sylvester flow: planar maps along several orthogonal directions at once.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of Sylvester maps.
        rank: directions of each map, 1 to D; default D.
        kind: "orthogonal", "householder" or "triangular".

    Cost: O(D · rank) for each layer; samples in closed form, a density solves `rank` scalar equations for each layer.

    "Sylvester Normalizing Flows for Variational Inference" (van den Berg et al., 2018), https://arxiv.org/abs/1803.05649

    >>> import torch, diffeo
    >>> diffeo.sylvester(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    layer = [Sylvester(features, rank, kind, context) for _ in range(layers)]
    return flow(features, context, [Whiten(features), *layer])

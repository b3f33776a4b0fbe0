"""Couplings and autoregressive layers with any scalar map, by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffeo.core import Flow, Transform
from diffeo.recipes.parts import alternate, autoregressive, coupling, flow, scalar_map
from diffeo.recipes.registry import recipe
from diffeo.transforms import LULinear, Standardize, Whiten


@recipe(events="vectors")
def coupling_flow(
    features: int,
    *,
    univariate: str = "Affine",
    univariate_options: Mapping[str, Any] | None = None,
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    components: int = 0,
    dropout: float = 0.0,
    residual: bool = False,
) -> Flow:
    """Couplings over alternating halves with any scalar map, and learned linear maps between.

    Args:
        features: D, at least 1.
        univariate: name of the scalar map, such as "Affine" or "MixtureCDF": one of the real line onto itself.
        univariate_options: its arguments, such as `{"components": 4}`.
        context: width of the context; 0 for none.
        layers: number of couplings.
        hidden: widths of the hidden layers of each conditioner.
        components: largest number of Gaussians in the base, a mixture that `initialize` fits first; 0 for a standard
            normal.
        dropout: probability of dropping a hidden unit while training.
        residual: residual blocks in the conditioners.

    Raises:
        ValueError: no such scalar map.

    Cost: one pass for a density, one for a sample; a search for each scalar where the map has no closed inverse.

    "Density estimation using Real NVP" (Dinh et al., 2016), https://arxiv.org/abs/1605.08803

    >>> import torch, diffeo
    >>> diffeo.coupling_flow(3, univariate="MixtureCDF")(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"dropout": dropout, "residual": residual}
    parts: list[Transform] = [Whiten(features)]
    for i in range(layers):
        scalar = scalar_map(univariate, univariate_options)
        parts += [coupling(alternate(features, i), scalar, context, hidden, options), LULinear(features)]
    return flow(features, context, parts, components)


@recipe(events="vectors")
def autoregressive_flow(
    features: int,
    *,
    univariate: str = "Affine",
    univariate_options: Mapping[str, Any] | None = None,
    context: int = 0,
    layers: int = 3,
    hidden: Sequence[int] = (128, 128),
    mix: bool = False,
    components: int = 0,
    adjacency: Tensor | None = None,
    dropout: float = 0.0,
    residual: bool = False,
) -> Flow:
    """Autoregressive layers with any scalar map, the order of the coordinates turned round between them.

    Args:
        features: D, at least 1.
        univariate: name of the scalar map, such as "Affine" or "Bernstein": one of the real line onto itself.
        univariate_options: its arguments, such as `{"degree": 12}`.
        context: width of the context; 0 for none.
        layers: number of autoregressive layers.
        hidden: widths of the hidden layers of each MADE.
        mix: learned linear maps between the layers.
        components: largest number of Gaussians in the base, a mixture that `initialize` fits first; 0 for a standard
            normal.
        adjacency: (D, D) booleans, which coordinate may depend on which, the same in every layer; instead of orders.
        dropout: probability of dropping a hidden unit while training.
        residual: residual blocks in the conditioners.

    Raises:
        ValueError: no such scalar map.

    Cost: one pass for a density; a sample takes D steps for each layer, each hidden unit computed once.

    "Masked Autoregressive Flow for Density Estimation" (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057

    >>> import torch, diffeo
    >>> diffeo.autoregressive_flow(3, univariate="LinearSpline")(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"dropout": dropout, "residual": residual, "adjacency": adjacency}
    first: list[Transform] = [Whiten(features) if adjacency is None else Standardize(features)]
    scalar = scalar_map(univariate, univariate_options)
    parts = autoregressive(features, scalar, context, layers, hidden, options, mix=mix)
    return flow(features, context, [*first, *parts], components)

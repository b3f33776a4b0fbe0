"""Flows made of monotone networks, polynomials and mixtures, whose inverses are found numerically."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from diffeo.core import Flow, Transform
from diffeo.recipes.generic import autoregressive_flow
from diffeo.recipes.parts import coupling, flow
from diffeo.recipes.registry import recipe
from diffeo.transforms import (
    BlockAutoregressive,
    Elementwise,
    Gaussianize,
    Householder,
    MixtureCDF,
    Whiten,
)


@recipe(events="vectors")
def naf(
    features: int,
    *,
    context: int = 0,
    layers: int = 3,
    hidden: Sequence[int] = (128, 128),
    units: int = 16,
    depth: int = 2,
    dense: bool = False,
) -> Flow:
    """NAF: autoregressive layers whose scalar maps are small monotone networks of sigmoids.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of autoregressive layers; the order is turned round between them.
        hidden: widths of the hidden layers of each MADE.
        units: sigmoids of each layer of a scalar map.
        depth: layers of a scalar map.
        dense: dense maps (DDSF), with units² weights for each layer, instead of deep ones (DSF).

    Cost: one pass for a density; a sample takes D steps for each layer, each a Newton search.

    "Neural Autoregressive Flows" (Huang et al., 2018), https://arxiv.org/abs/1804.00779

    >>> import torch, diffeo
    >>> diffeo.naf(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    name, options = "DenseSigmoidal" if dense else "DeepSigmoidal", {"units": units, "layers": depth}
    return autoregressive_flow(
        features, univariate=name, univariate_options=options, context=context, layers=layers, hidden=hidden
    )


@recipe(events="vectors")
def unaf(
    features: int,
    *,
    context: int = 0,
    layers: int = 3,
    hidden: Sequence[int] = (128, 128),
    embedding: int = 8,
    integrand: Sequence[int] = (64, 64),
    nodes: int = 32,
) -> Flow:
    """UNAF, or UMNN-MAF: autoregressive layers whose scalar maps are integrals of a positive network.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of autoregressive layers; the order is turned round between them.
        hidden: widths of the hidden layers of each MADE.
        embedding: numbers by which a MADE describes each map to the integrand.
        integrand: widths of the hidden layers of the integrand, one network for each layer.
        nodes: points of the quadrature.

    Cost: one pass for a density, `nodes` of the integrand; a sample takes D steps for each layer, each a Newton search.

    "Unconstrained Monotonic Neural Networks" (Wehenkel and Louppe, 2019), https://arxiv.org/abs/1908.05164

    >>> import torch, diffeo
    >>> diffeo.unaf(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    name, options = "UnconstrainedMonotonic", {"embedding": embedding, "hidden": integrand, "nodes": nodes}
    return autoregressive_flow(
        features, univariate=name, univariate_options=options, context=context, layers=layers, hidden=hidden
    )


@recipe(events="vectors")
def sos(
    features: int,
    *,
    context: int = 0,
    layers: int = 3,
    hidden: Sequence[int] = (128, 128),
    polynomials: int = 3,
    degree: int = 4,
) -> Flow:
    """SOS: autoregressive layers whose scalar maps are integrals of sums of squared polynomials.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of autoregressive layers; the order is turned round between them.
        hidden: widths of the hidden layers of each MADE.
        polynomials: squares in each sum.
        degree: of each polynomial; the maps have degree 2·degree + 1.

    Cost: one pass for a density; a sample takes D steps for each layer, each a Newton search.

    "Sum-of-Squares Polynomial Flow" (Jaini et al., 2019), https://arxiv.org/abs/1905.02325

    >>> import torch, diffeo
    >>> diffeo.sos(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"polynomials": polynomials, "degree": degree}
    return autoregressive_flow(
        features, univariate="SumOfSquares", univariate_options=options, context=context, layers=layers, hidden=hidden
    )


@recipe(events="vectors")
def bernstein(
    features: int,
    *,
    context: int = 0,
    layers: int = 3,
    hidden: Sequence[int] = (128, 128),
    degree: int = 16,
) -> Flow:
    """Autoregressive layers whose scalar maps are Bernstein polynomials.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of autoregressive layers; the order is turned round between them.
        hidden: widths of the hidden layers of each MADE.
        degree: of each polynomial.

    Cost: one pass for a density; a sample takes D steps for each layer, each a Newton search.

    "Short-Term Density Forecasting of Low-Voltage Load using Bernstein-Polynomial Normalizing Flows" (Arpogaus et al.,
    2022), https://arxiv.org/abs/2204.13939

    >>> import torch, diffeo
    >>> diffeo.bernstein(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"degree": degree}
    return autoregressive_flow(
        features, univariate="Bernstein", univariate_options=options, context=context, layers=layers, hidden=hidden
    )


@recipe(events="vectors")
def bnaf(features: int, *, context: int = 0, layers: int = 4, width: int = 8, depth: int = 2) -> Flow:
    """BNAF: layers that are one network each, autoregressive and monotone by the blocks of its weights.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of such networks; the order is turned round between them.
        width: units of each hidden layer for each coordinate.
        depth: hidden layers of each network.

    Cost: one pass for a density; a sample takes D Newton searches for each layer.

    "Block Neural Autoregressive Flow" (De Cao et al., 2019), https://arxiv.org/abs/1904.04676

    >>> import torch, diffeo
    >>> diffeo.bnaf(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    blocks = [BlockAutoregressive(features, width, depth, context, reverse=bool(i % 2)) for i in range(layers)]
    return flow(features, context, [Whiten(features), *blocks])


@recipe(events="vectors")
def gaussianization(
    features: int,
    *,
    context: int = 0,
    layers: int = 8,
    components: int = 8,
    hidden: Sequence[int] = (128, 128),
    layerwise: bool = False,
) -> Flow:
    """Gaussianization: rotations, and after each a map of every coordinate towards a normal, by its own marginal.

    Trained end to end, with mixtures of Gaussians as marginals; or built layer after layer from the training rows alone
    (`layerwise`), with random rotations and the marginals' quantiles, in one pass over the data; training may follow.

    Args:
        features: D, at least 1.
        context: width of the context that the mixtures depend on; 0 for none.
        layers: number of rotations with the maps after them.
        components: Gaussians for each marginal.
        hidden: widths of the hidden layers of the nets of the context.
        layerwise: set by `initialize`, so that a flow fits before any training.

    Raises:
        ValueError: a context together with `layerwise`.

    Cost: one pass for a density; a sample takes a Newton search for each layer, with `layerwise` one pass.

    "Gaussianization" (Chen and Gopinath, 2001), https://papers.nips.cc/paper/1856-gaussianization;
    "Gaussianization Flows" (Meng et al., 2020), https://arxiv.org/abs/2003.01941;
    "Iterative Gaussianization: from ICA to Random Rotations" (Laparra et al., 2011), https://arxiv.org/abs/1602.00229

    >>> import torch, diffeo
    >>> diffeo.gaussianization(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    if layerwise and context:
        raise ValueError("gaussianization: marginals built layer by layer cannot depend on a context")
    if layerwise:
        parts: list[Transform] = [Gaussianize(features)]
        for _ in range(layers if features > 1 else 0):
            rotation = Householder(features)
            nn.init.normal_(rotation.vectors)  # a random rotation, where pairs of equal vectors would be none
            parts += [rotation, Gaussianize(features)]
        return flow(features, context, parts)
    parts = [Whiten(features)]
    for _ in range(layers):
        univariate = MixtureCDF(components, "gaussian")
        if context:
            everything = torch.zeros(features, dtype=torch.bool)
            marginals: Transform = coupling(everything, univariate, context, hidden, {})
        else:
            marginals = Elementwise(univariate, features)
        rotation = Householder(features)
        parts += [rotation, marginals]
    return flow(features, context, parts)

"""Flows of the literature for vectors, as plain functions that return a `Flow`.

Every one begins with layers set from the training rows (`initialize`, which `fit` calls), so that densities are in the
user's units and an untrained flow already is a sensible fit:

    gaussian, nice, realnvp, maf, iaf   Standardize → Whiten: the fitted Gaussian
    nsf, nsf_ar                         Gaussianize → Whiten, with a mixture of Gaussians as the base
    ttf                                 Standardize by quartiles → the learned tails → Whiten

What follows starts as the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffeo.core import Flow, Inverse, Transform
from diffeo.recipes.parts import alternate, autoregressive, coupling, flow, mixture_size
from diffeo.recipes.registry import recipe
from diffeo.transforms import (
    Affine,
    Elementwise,
    Gaussianize,
    LULinear,
    RationalQuadraticSpline,
    Shift,
    Standardize,
    TailTransform,
    Whiten,
)


@recipe(events="vectors")
def gaussian(features: int, *, context: int = 0) -> Flow:
    """A full-covariance Gaussian, its covariance shrunk as by Ledoit and Wolf; the baseline of every table.

    With a context, mean and log-scales along the whitened axes are linear in the context and are trained.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.

    Cost: O(D²) for a density or a sample.

    >>> import torch, diffeo
    >>> flow = diffeo.gaussian(2)
    >>> flow.initialize(torch.randn(100, 2))
    >>> flow.sample(5).shape
    torch.Size([5, 2])
    """
    parts: list[Transform] = [Whiten(features)]
    if context:
        parts.append(coupling(torch.zeros(features, dtype=torch.bool), Affine(), context, (), {}))
    return flow(features, context, parts)


@recipe(events="vectors")
def nice(
    features: int,
    *,
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    dropout: float = 0.0,
    residual: bool = False,
) -> Flow:
    """NICE: additive couplings over alternating halves, then a learned scale for each coordinate.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of couplings.
        hidden: widths of the hidden layers of each conditioner.
        dropout: probability of dropping a hidden unit while training.
        residual: residual blocks in the conditioners.

    Cost: one pass for a density, one for a sample.

    "NICE: Non-linear Independent Components Estimation" (Dinh et al., 2014), https://arxiv.org/abs/1410.8516

    >>> import torch, diffeo
    >>> diffeo.nice(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"dropout": dropout, "residual": residual}
    parts: list[Transform] = [Whiten(features)]
    for i in range(layers):
        parts.append(coupling(alternate(features, i), Shift(), context, hidden, options))
    return flow(features, context, [*parts, Elementwise(Affine(), features)])


@recipe(events="vectors")
def realnvp(
    features: int,
    *,
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    dropout: float = 0.0,
    residual: bool = False,
) -> Flow:
    """RealNVP for vectors: affine couplings over alternating halves, with learned linear maps between.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of couplings.
        hidden: widths of the hidden layers of each conditioner.
        dropout: probability of dropping a hidden unit while training.
        residual: residual blocks in the conditioners.

    Cost: one pass for a density, one for a sample.

    "Density estimation using Real NVP" (Dinh et al., 2016), https://arxiv.org/abs/1605.08803

    >>> import torch, diffeo
    >>> diffeo.realnvp(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"dropout": dropout, "residual": residual}
    parts: list[Transform] = [Whiten(features)]
    for i in range(layers):
        parts += [coupling(alternate(features, i), Affine(), context, hidden, options), LULinear(features)]
    return flow(features, context, parts)


@recipe(events="vectors")
def maf(
    features: int,
    *,
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    adjacency: Tensor | None = None,
    dropout: float = 0.0,
    residual: bool = False,
) -> Flow:
    """MAF: affine autoregressive layers, the order of the coordinates turned round between them.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of autoregressive layers.
        hidden: widths of the hidden layers of each MADE.
        adjacency: (D, D) booleans, which coordinate may depend on which, the same in every layer; instead of orders.
        dropout: probability of dropping a hidden unit while training.
        residual: residual blocks in the conditioners.

    Cost: one pass for a density; a sample takes D steps for each layer, each hidden unit computed once.

    "Masked Autoregressive Flow for Density Estimation" (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057

    >>> import torch, diffeo
    >>> diffeo.maf(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"dropout": dropout, "residual": residual, "adjacency": adjacency}
    first = [Whiten(features)] if adjacency is None else [Standardize(features)]
    parts = autoregressive(features, Affine(), context, layers, hidden, options, mix=False)
    return flow(features, context, [*first, *parts])


@recipe(events="vectors")
def iaf(
    features: int,
    *,
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    residual: bool = False,
) -> Flow:
    """IAF: `maf` with its directions swapped, so that sampling is the fast one.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of autoregressive layers.
        hidden: widths of the hidden layers of each MADE.
        residual: residual blocks in the conditioners.

    Cost: one pass for a sample; a density takes D steps for each layer, each hidden unit computed once.

    "Improving Variational Inference with Inverse Autoregressive Flow" (Kingma et al., 2016),
    https://arxiv.org/abs/1606.04934

    >>> import torch, diffeo
    >>> diffeo.iaf(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"residual": residual}
    parts = autoregressive(features, Affine(), context, layers, hidden, options, mix=False)
    return flow(features, context, [Whiten(features), *(Inverse(part) for part in parts)])


@recipe(events="vectors")
def nsf(
    features: int,
    *,
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    bins: int = 8,
    bound: float = 8.0,
    components: int | None = None,
    dropout: float = 0.0,
    residual: bool = False,
) -> Flow:
    """Neural spline flow with couplings, RQ-NSF (C), with learned linear maps between.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of couplings.
        hidden: widths of the hidden layers of each conditioner.
        bins: pieces of each spline, at least 2.
        bound: half-width of the splines, in standard deviations.
        components: largest number of Gaussians in the base, a mixture that `initialize` fits first (64 of up to five
            features, else 8); 0 for a standard normal.
        dropout: probability of dropping a hidden unit while training.
        residual: residual blocks in the conditioners.

    Cost: one pass for a density, one for a sample.

    "Neural Spline Flows" (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    >>> import torch, diffeo
    >>> diffeo.nsf(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"dropout": dropout, "residual": residual}
    parts: list[Transform] = [Gaussianize(features), Whiten(features)]
    for i in range(layers):
        spline = RationalQuadraticSpline(bins, bound)
        parts += [coupling(alternate(features, i), spline, context, hidden, options), LULinear(features)]
    return flow(features, context, parts, mixture_size(features, components))


@recipe(events="vectors")
def nsf_ar(
    features: int,
    *,
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    bins: int = 8,
    bound: float = 8.0,
    components: int | None = None,
    adjacency: Tensor | None = None,
    dropout: float = 0.0,
    residual: bool = False,
    rotate: bool = False,
) -> Flow:
    """Autoregressive neural spline flow, RQ-NSF (AR); learned linear maps between layers, the order turned round.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of autoregressive layers.
        hidden: widths of the hidden layers of each MADE.
        bins: pieces of each spline, at least 2.
        bound: half-width of the splines, in standard deviations.
        components: largest number of Gaussians in the base, a mixture that `initialize` fits first (64 of up to five
            features, else 8); 0 for a standard normal.
        adjacency: (D, D) booleans, which coordinate may depend on which, the same in every layer; instead of orders.
        dropout: probability of dropping a hidden unit while training.
        residual: residual blocks in the conditioners.
        rotate: whiten before the columns are Gaussianized too, so that thin directions across columns are met first.

    Raises:
        ValueError: an adjacency together with `rotate`, which mixes the coordinates.

    Cost: one pass for a density; a sample takes D steps for each layer, each hidden unit computed once.

    "Neural Spline Flows" (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    >>> import torch, diffeo
    >>> diffeo.nsf_ar(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"dropout": dropout, "residual": residual, "adjacency": adjacency}
    if rotate and adjacency is not None:
        raise ValueError("nsf_ar: rotate mixes the coordinates, which an adjacency forbids")
    first: list[Transform] = [*([Whiten(features)] if rotate else []), Gaussianize(features)]
    if adjacency is None:
        first.append(Whiten(features))
    spline = RationalQuadraticSpline(bins, bound)
    parts = [*first, *autoregressive(features, spline, context, layers, hidden, options, mix=True)]
    return flow(features, context, parts, mixture_size(features, components))


@recipe(events="vectors")
def ttf(
    features: int,
    *,
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    bins: int = 8,
    bound: float = 8.0,
    dropout: float = 0.0,
    residual: bool = False,
) -> Flow:
    """TTF: a learned heaviness of each tail of each coordinate, then an autoregressive neural spline flow.

    For data whose extremes follow power laws, and have to: the tails of the other recipes for tables are the base's.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none; the tails do not depend on it.
        layers: number of autoregressive layers.
        hidden: widths of the hidden layers of each MADE.
        bins: pieces of each spline, at least 2.
        bound: half-width of the splines, in standard deviations.
        dropout: probability of dropping a hidden unit while training.
        residual: residual blocks in the conditioners.

    Cost: one pass for a density; a sample takes D steps for each layer, each hidden unit computed once.

    "Flexible Tails for Normalizing Flows" (Hickling and Prangle, 2024), https://arxiv.org/abs/2406.16971

    >>> import torch, diffeo
    >>> diffeo.ttf(3)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    options = {"dropout": dropout, "residual": residual}
    tails: list[Transform] = [Standardize(features, robust=True), Elementwise(TailTransform(), features)]
    spline = RationalQuadraticSpline(bins, bound)
    parts = autoregressive(features, spline, context, layers, hidden, options, mix=True)
    return flow(features, context, [*tails, Whiten(features), *parts])

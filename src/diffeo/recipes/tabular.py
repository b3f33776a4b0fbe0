"""Flows of the literature for vectors, as plain functions that return a `Flow`.

Every one begins with layers set from the training rows (`initialize`, which `fit` calls), so that densities are in the
user's units and an untrained flow already is a sensible fit:

    gaussian, nice, realnvp, maf, iaf   Standardize → Whiten: the fitted Gaussian
    nsf, nsf_ar                         Gaussianize → Whiten, with a mixture of Gaussians as the base

What follows starts as the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffeo.core import Chain, Flow, Inverse, Transform, Univariate
from diffeo.densities import GaussianMixture, Normal
from diffeo.nets import MADE, MLP, ContextScaler
from diffeo.recipes.registry import recipe
from diffeo.transforms import (
    Affine,
    Autoregressive,
    Coupling,
    Elementwise,
    Gaussianize,
    LULinear,
    RationalQuadraticSpline,
    Shift,
    Standardize,
    Whiten,
)


@recipe
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
        parts.append(_coupling(torch.zeros(features, dtype=torch.bool), Affine(), context, (), {}))
    return _flow(features, context, parts)


@recipe
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
        parts.append(_coupling(_alternate(features, i), Shift(), context, hidden, options))
    return _flow(features, context, [*parts, Elementwise(Affine(), features)])


@recipe
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
        parts += [_coupling(_alternate(features, i), Affine(), context, hidden, options), LULinear(features)]
    return _flow(features, context, parts)


@recipe
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
    parts = _autoregressive(features, Affine(), context, layers, hidden, options, mix=False)
    return _flow(features, context, [*first, *parts])


@recipe
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
    parts = _autoregressive(features, Affine(), context, layers, hidden, options, mix=False)
    return _flow(features, context, [Whiten(features), *(Inverse(part) for part in parts)])


@recipe
def nsf(
    features: int,
    *,
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    bins: int = 8,
    bound: float = 8.0,
    components: int = 8,
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
        components: largest number of Gaussians in the base, a mixture that `initialize` fits first; 0 for a standard
            normal.
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
        parts += [_coupling(_alternate(features, i), spline, context, hidden, options), LULinear(features)]
    return _flow(features, context, parts, components)


@recipe
def nsf_ar(
    features: int,
    *,
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    bins: int = 8,
    bound: float = 8.0,
    components: int = 8,
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
        components: largest number of Gaussians in the base, a mixture that `initialize` fits first; 0 for a standard
            normal.
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
    parts = [*first, *_autoregressive(features, spline, context, layers, hidden, options, mix=True)]
    return _flow(features, context, parts, components)


def _flow(features: int, context: int, parts: Sequence[Transform], components: int = 0) -> Flow:
    base = GaussianMixture(features, components) if components else Normal(features)
    return Flow(Chain(*parts), base, ContextScaler(context) if context else None)


def _alternate(features: int, i: int) -> Tensor:
    """Every other coordinate, the other half the next time; in one dimension nothing is left to condition on."""
    return torch.arange(features) % 2 == i % 2 if features > 1 else torch.zeros(1, dtype=torch.bool)


def _coupling(mask: Tensor, univariate: Univariate, context: int, hidden: Sequence[int], options: dict) -> Coupling:
    keeps = int(mask.sum())
    out = univariate.n_params * (len(mask) - keeps)
    return Coupling(mask, MLP(keeps, out, context=context, hidden=hidden, **options), univariate)


def _autoregressive(
    features: int, univariate: Univariate, context: int, layers: int, hidden: Sequence[int], options: dict, mix: bool
) -> list[Transform]:
    """Layers with the order turned round each time, and learned linear maps between them if `mix`.

    With an adjacency neither is possible: it is the same in every layer.
    """
    parts: list[Transform] = []
    free = options.get("adjacency") is None
    for i in range(layers):
        order = torch.arange(features) if i % 2 == 0 else torch.arange(features - 1, -1, -1)
        net = MADE(
            features, univariate.n_params, context=context, hidden=hidden, order=order if free else None, **options
        )
        parts += [Autoregressive(net, univariate), *([LULinear(features)] if mix and free else [])]
    return parts

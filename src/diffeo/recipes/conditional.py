"""A conditional density for regression: what is left open about a number once the covariates are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffeo.core import Chain, Flow
from diffeo.densities import Normal
from diffeo.nets import MLP
from diffeo.nets.encoder import PiecewiseLinear
from diffeo.recipes.registry import recipe
from diffeo.transforms import Asinh, Composed, Coupling, LocationScale, RationalQuadraticSpline, Standardize

WIDEST = 4096  # of the encoded context


@recipe(events="numbers given a context")
def regression(
    features: int = 1,
    *,
    context: int,
    hidden: Sequence[int] = (128, 128, 128),
    bins: int = 8,
    bound: float = 6.0,
    encoding: int = 32,
    dropout: float = 0.0,
) -> Flow:
    """A scalar given a context: one network sets location, scale and shape (a spline) of its distribution.

    z = spline(asinh-tailed((y − m(c)) e^{−s(c)}); θ(c)), standard normal: a location-scale regression whose residuals
    may have any shape. The base is a standard normal, so distribution function and quantiles are one pass.

    Args:
        features: 1; here so that it is called like every recipe.
        context: width of the context, at least 1.
        hidden: widths of the network's residual blocks, all equal.
        bins: pieces of the spline, at least 2.
        bound: half-width of the spline, in standard deviations.
        encoding: quantile bins of the piecewise-linear encoding of each context column, fewer where columns are many.
        dropout: probability of dropping a hidden unit while training.

    Raises:
        ValueError: more than one feature, or no context.

    Cost: one pass in either direction.

    "Neural Spline Flows" (Durkan et al., 2019), https://arxiv.org/abs/1906.04032; "On Embeddings for Numerical Features
    in Tabular Deep Learning" (Gorishniy et al., 2022), https://arxiv.org/abs/2203.05556

    >>> import torch, diffeo
    >>> flow = diffeo.regression(context=3)
    >>> flow(torch.zeros(5, 1), torch.randn(5, 3)).shape
    torch.Size([5])
    """
    if features != 1 or context < 1:
        raise ValueError(f"regression: expected 1 feature and a context, got features={features}, context={context}")
    encoder = PiecewiseLinear(context, max(1, min(encoding, WIDEST // context)))
    shape = Composed(LocationScale(), Asinh(), RationalQuadraticSpline(bins, bound))
    net = MLP(0, 1, n_params=shape.n_params, context=encoder.width, hidden=hidden, dropout=dropout, residual=True)
    layer = Coupling(torch.zeros(1, dtype=torch.bool), net, shape)
    return Flow(Chain(Standardize(1), layer), Normal(1), encoder)

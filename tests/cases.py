"""THE table: every public transform and density, with inputs. A new one is one line here.

A transform's case builds an instance from a seed, so that two seeds give two members of an ensemble that differ in
everything, permutations included, and says what x and context look like.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import diffeo
from diffeo.nets import MADE, MLP


class TransformCase(NamedTuple):
    build: Callable[[int], diffeo.Transform]
    x: Callable[[], Tensor]
    context: Callable[[], Tensor] | None = None


class DensityCase(NamedTuple):
    build: Callable[[], diffeo.Density]
    context: Tensor | None = None


def _seeded(build: Callable[[], diffeo.Transform]) -> Callable[[int], diffeo.Transform]:
    def make(seed: int) -> diffeo.Transform:
        torch.manual_seed(seed)
        return build()

    return make


def _normal(*shape: int, scale: float = 1.0) -> Callable[[], Tensor]:
    return lambda: scale * torch.randn(shape, generator=torch.Generator().manual_seed(3))


def _positive(*shape: int) -> Callable[[], Tensor]:
    return lambda: _normal(*shape)().exp()


def _unit(*shape: int) -> Callable[[], Tensor]:
    return lambda: 0.02 + 0.96 * torch.rand(shape, generator=torch.Generator().manual_seed(3))


def _fitted(layer: diffeo.Transform, features: int) -> diffeo.Transform:
    layer.initialize(torch.randn(400, features) @ torch.randn(features, features) * 2 + 3)
    return layer


def _univariate(univariate: Callable[[], diffeo.Univariate], x: Callable[[], Tensor]) -> TransformCase:
    return TransformCase(lambda seed: univariate(), x, _normal(6, univariate().n_params))


def _ar(univariate: diffeo.Univariate, features: int = 4, **options) -> diffeo.Transform:
    if "adjacency" not in options:
        options.setdefault("order", torch.randperm(features))
    return diffeo.Autoregressive(MADE(features, univariate.n_params, hidden=(16, 16), **options), univariate)


def _coupling(univariate: diffeo.Univariate, mask: list[bool], context: int = 0, **options) -> diffeo.Transform:
    keep = torch.tensor(mask)[torch.randperm(len(mask))]
    net = MLP(sum(mask), univariate.n_params * (len(mask) - sum(mask)), context=context, hidden=(16, 16), **options)
    return diffeo.Coupling(keep, net, univariate)


DAG = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
Spline = diffeo.RationalQuadraticSpline

TRANSFORMS: dict[str, TransformCase] = {
    "Affine": _univariate(diffeo.Affine, _normal(6)),
    "Shift": _univariate(diffeo.Shift, _normal(6)),
    "RationalQuadraticSpline": _univariate(Spline, _normal(6, scale=4.0)),
    "RationalQuadraticSpline of 3 narrow bins": _univariate(lambda: Spline(3, bound=2.0), _normal(6)),
    "SinhArcsinh": _univariate(diffeo.SinhArcsinh, _normal(6)),
    "Power": _univariate(diffeo.Power, _positive(6)),
    "LocationScale": _univariate(diffeo.LocationScale, _normal(6)),
    "Composed": _univariate(
        lambda: diffeo.Composed(diffeo.LocationScale(2.0), diffeo.Asinh(), diffeo.RationalQuadraticSpline(4)),
        _normal(6),
    ),
    "Asinh": TransformCase(lambda seed: diffeo.Asinh(), _normal(6)),
    "Exp": TransformCase(lambda seed: diffeo.Exp(), _normal(6)),
    "Softplus": TransformCase(lambda seed: diffeo.Softplus(), _normal(6)),
    "Sigmoid": TransformCase(lambda seed: diffeo.Sigmoid(), _normal(6)),
    "Logit": TransformCase(lambda seed: diffeo.Logit(), _unit(6)),
    "Tanh": TransformCase(lambda seed: diffeo.Tanh(), _normal(6)),
    "LeakyReLU": TransformCase(lambda seed: diffeo.LeakyReLU(0.3), _normal(6)),
    "Elementwise": TransformCase(lambda seed: diffeo.Elementwise(Spline(), 3), _normal(6, 3)),
    "Elementwise over a matrix": TransformCase(
        lambda seed: diffeo.Elementwise(diffeo.Affine(), (2, 3)), _normal(6, 2, 3)
    ),
    "Coupling affine": TransformCase(
        _seeded(lambda: _coupling(diffeo.Affine(), [True, False, True, False, False])), _normal(6, 5)
    ),
    "Coupling spline, context, residual": TransformCase(
        _seeded(lambda: _coupling(Spline(), [True, False, False], 2, residual=True, layer_norm=True)),
        _normal(6, 3),
        _normal(6, 2),
    ),
    "Coupling of one coordinate": TransformCase(_seeded(lambda: _coupling(diffeo.Affine(), [False])), _normal(6, 1)),
    "Coupling of one coordinate, context": TransformCase(
        _seeded(lambda: _coupling(Spline(), [False], 2)), _normal(6, 1), _normal(6, 2)
    ),
    "Autoregressive affine": TransformCase(_seeded(lambda: _ar(diffeo.Affine(), dropout=0.1)), _normal(6, 4)),
    "Autoregressive spline, context": TransformCase(
        _seeded(lambda: _ar(Spline(), context=2)), _normal(6, 4), _normal(6, 2)
    ),
    "Autoregressive residual, context": TransformCase(
        _seeded(lambda: _ar(diffeo.Affine(), context=2, residual=True)), _normal(6, 4), _normal(6, 2)
    ),
    "Autoregressive along a graph": TransformCase(_seeded(lambda: _ar(Spline(), adjacency=DAG)), _normal(6, 4)),
    "Autoregressive of one coordinate, context": TransformCase(
        _seeded(lambda: _ar(Spline(), features=1, context=2)), _normal(6, 1), _normal(6, 2)
    ),
    "Autoregressive without hidden layers": TransformCase(
        _seeded(lambda: diffeo.Autoregressive(MADE(3, 2, context=2, hidden=()), diffeo.Affine())),
        _normal(6, 3),
        _normal(6, 2),
    ),
    "Inverse": TransformCase(_seeded(lambda: diffeo.Inverse(_ar(diffeo.Affine()))), _normal(6, 4)),
    "Permute": TransformCase(_seeded(lambda: diffeo.Permute(torch.randperm(5))), _normal(6, 5)),
    "LULinear": TransformCase(lambda seed: diffeo.LULinear(4), _normal(6, 4)),
    "Householder": TransformCase(_seeded(lambda: diffeo.Householder(3)), _normal(6, 3)),
    "ActNorm": TransformCase(_seeded(lambda: _fitted(diffeo.ActNorm(3), 3)), _normal(6, 3)),
    "Standardize": TransformCase(_seeded(lambda: _fitted(diffeo.Standardize(3), 3)), _normal(6, 3)),
    "Whiten": TransformCase(_seeded(lambda: _fitted(diffeo.Whiten(3), 3)), _normal(6, 3)),
    "Regress": TransformCase(_seeded(lambda: diffeo.Regress(3, context=2)), _normal(6, 3), _normal(6, 2)),
    "Unconstrain": TransformCase(
        _seeded(lambda: diffeo.Unconstrain([0.0, None, None, 1.0], [None, None, 2.0, 3.0])),
        lambda: torch.stack([_positive(6)(), _normal(6)(), 2 - _positive(6)(), 1 + 2 * _unit(6)()], -1),
    ),
    "Gaussianize": TransformCase(_seeded(lambda: _fitted(diffeo.Gaussianize(3, bins=8), 3)), _normal(6, 3, scale=3.0)),
    "Chain": TransformCase(
        _seeded(
            lambda: diffeo.Chain(
                diffeo.LeakyReLU(),
                diffeo.Permute(torch.randperm(3)),
                _coupling(Spline(), [True, False, False], 2),
                diffeo.Tanh(),
            )
        ),
        _normal(6, 3),
        _normal(6, 2),
    ),
    "nsf": TransformCase(_seeded(lambda: diffeo.nsf(3, layers=2, hidden=(16, 16)).transform), _normal(6, 3)),
    "iaf": TransformCase(_seeded(lambda: diffeo.iaf(3, layers=2, hidden=(16, 16)).transform), _normal(6, 3)),
}


def _small(recipe: Callable[..., diffeo.Flow], features: int, **options) -> Callable[[], diffeo.Flow]:
    def build() -> diffeo.Flow:
        torch.manual_seed(0)
        flow = recipe(features, layers=2, hidden=(16, 16), **options)
        data = torch.randn(500, features) @ torch.randn(features, features) + 1
        flow.initialize(data, torch.randn(500, 2) if options.get("context") else None)
        return flow

    return build


def _gaussian() -> diffeo.Flow:
    flow = diffeo.gaussian(2)
    flow.initialize(torch.randn(300, 2) * torch.tensor([1.0, 5.0]))
    return flow


CONTEXT = torch.tensor([0.5, -1.0])

DENSITIES: dict[str, DensityCase] = {
    "Normal": DensityCase(lambda: diffeo.Normal(3)),
    "Normal of a scalar": DensityCase(lambda: diffeo.Normal(())),
    "DiagonalNormal": DensityCase(lambda: diffeo.DiagonalNormal(2)),
    "StudentT": DensityCase(lambda: diffeo.StudentT(1, df=4.0)),
    "StudentT in 2-D": DensityCase(lambda: diffeo.StudentT(2, df=6.0)),
    "Uniform": DensityCase(lambda: diffeo.Uniform(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 2.5]))),
    "GaussianMixture": DensityCase(lambda: diffeo.GaussianMixture(2, components=3)),
    "GaussianMixture of one": DensityCase(lambda: diffeo.GaussianMixture(1, components=1)),
    "Dequantized": DensityCase(lambda: diffeo.Dequantized(_wide())),
    "Categorical": DensityCase(lambda: diffeo.Categorical([5])),
    "Categorical of two, context": DensityCase(lambda: diffeo.Categorical([2, 3], context=2), CONTEXT),
    "Mixed": DensityCase(lambda: diffeo.Mixed(diffeo.Categorical([2]), diffeo.maf(2, context=2, layers=1))),
    "mixed, bounds": DensityCase(lambda: diffeo.mixed(2, low=[0.0, None], high=[None, 1.0], flow="maf")),
    "mixed, whole, context": DensityCase(
        lambda: diffeo.mixed(2, levels=[3], whole=[0], context=2, flow="maf", options={"layers": 1}), CONTEXT
    ),
    "regression": DensityCase(lambda: diffeo.regression(context=2, hidden=(16,), encoding=4), CONTEXT),
    "Flow": DensityCase(lambda: diffeo.Flow(diffeo.Exp(), diffeo.Uniform(torch.ones(1), torch.full((1,), 4.0)))),
    "gaussian": DensityCase(_gaussian),
    "nice": DensityCase(_small(diffeo.nice, 2)),
    "realnvp, context": DensityCase(_small(diffeo.realnvp, 2, context=2), CONTEXT),
    "maf": DensityCase(_small(diffeo.maf, 2)),
    "maf in 1-D": DensityCase(_small(diffeo.maf, 1)),
    "iaf": DensityCase(_small(diffeo.iaf, 2)),
    "nsf, context": DensityCase(_small(diffeo.nsf, 2, context=2), CONTEXT),
    "nsf in 1-D": DensityCase(_small(diffeo.nsf, 1)),
    "nsf in 3-D": DensityCase(_small(diffeo.nsf, 3)),
    "nsf_ar": DensityCase(_small(diffeo.nsf_ar, 2)),
    "nsf_ar, context": DensityCase(_small(diffeo.nsf_ar, 3, context=2), CONTEXT),
}


def _wide() -> diffeo.Flow:
    flow = diffeo.Flow(diffeo.Standardize(1), diffeo.DiagonalNormal(1))
    flow.initialize(torch.tensor([[-4.0], [10.0]]))
    return flow

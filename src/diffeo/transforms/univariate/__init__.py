"""Scalar maps: each works in `Elementwise`, `Coupling` and `Autoregressive`."""

from diffeo.transforms.univariate.affine import Affine, LocationScale, Shift
from diffeo.transforms.univariate.composed import Composed
from diffeo.transforms.univariate.integrated import Bernstein, SumOfSquares, UnconstrainedMonotonic
from diffeo.transforms.univariate.mixture import MixtureCDF
from diffeo.transforms.univariate.piecewise import CubicSpline, LinearSpline, QuadraticSpline, RationalLinearSpline
from diffeo.transforms.univariate.pointwise import (
    Asinh,
    Exp,
    LeakyReLU,
    Logit,
    Power,
    Sigmoid,
    SinhArcsinh,
    Softplus,
    Tanh,
)
from diffeo.transforms.univariate.sigmoidal import DeepSigmoidal, DenseSigmoidal
from diffeo.transforms.univariate.spline import BoundedSpline, CircularSpline, RationalQuadraticSpline
from diffeo.transforms.univariate.tail import TailTransform

__all__ = [
    "Affine",
    "Asinh",
    "Bernstein",
    "BoundedSpline",
    "CircularSpline",
    "Composed",
    "CubicSpline",
    "DeepSigmoidal",
    "DenseSigmoidal",
    "Exp",
    "LeakyReLU",
    "LinearSpline",
    "LocationScale",
    "Logit",
    "MixtureCDF",
    "Power",
    "QuadraticSpline",
    "RationalLinearSpline",
    "RationalQuadraticSpline",
    "Shift",
    "Sigmoid",
    "SinhArcsinh",
    "Softplus",
    "SumOfSquares",
    "TailTransform",
    "Tanh",
    "UnconstrainedMonotonic",
]

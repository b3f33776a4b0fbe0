"""Scalar maps: each works in `Elementwise`, `Coupling` and `Autoregressive`."""

from diffeo.transforms.univariate.affine import Affine as Affine
from diffeo.transforms.univariate.affine import LocationScale as LocationScale
from diffeo.transforms.univariate.affine import Shift as Shift
from diffeo.transforms.univariate.composed import Composed as Composed
from diffeo.transforms.univariate.pointwise import Asinh as Asinh
from diffeo.transforms.univariate.pointwise import Exp as Exp
from diffeo.transforms.univariate.pointwise import LeakyReLU as LeakyReLU
from diffeo.transforms.univariate.pointwise import Logit as Logit
from diffeo.transforms.univariate.pointwise import Power as Power
from diffeo.transforms.univariate.pointwise import Sigmoid as Sigmoid
from diffeo.transforms.univariate.pointwise import SinhArcsinh as SinhArcsinh
from diffeo.transforms.univariate.pointwise import Softplus as Softplus
from diffeo.transforms.univariate.pointwise import Tanh as Tanh
from diffeo.transforms.univariate.spline import RationalQuadraticSpline as RationalQuadraticSpline

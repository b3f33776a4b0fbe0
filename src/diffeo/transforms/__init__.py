"""Bijections; everything public here is also `diffeo.<name>`."""

from diffeo.transforms.autoregressive import Autoregressive as Autoregressive
from diffeo.transforms.coupling import Coupling as Coupling
from diffeo.transforms.elementwise import Elementwise as Elementwise
from diffeo.transforms.gaussianize import Gaussianize as Gaussianize
from diffeo.transforms.linear import Householder as Householder
from diffeo.transforms.linear import LULinear as LULinear
from diffeo.transforms.norm import ActNorm as ActNorm
from diffeo.transforms.norm import Standardize as Standardize
from diffeo.transforms.norm import Whiten as Whiten
from diffeo.transforms.permute import Permute as Permute
from diffeo.transforms.regress import Regress as Regress
from diffeo.transforms.unconstrain import Unconstrain as Unconstrain
from diffeo.transforms.univariate import Affine as Affine
from diffeo.transforms.univariate import Asinh as Asinh
from diffeo.transforms.univariate import Composed as Composed
from diffeo.transforms.univariate import Exp as Exp
from diffeo.transforms.univariate import LeakyReLU as LeakyReLU
from diffeo.transforms.univariate import LocationScale as LocationScale
from diffeo.transforms.univariate import Logit as Logit
from diffeo.transforms.univariate import Power as Power
from diffeo.transforms.univariate import RationalQuadraticSpline as RationalQuadraticSpline
from diffeo.transforms.univariate import Shift as Shift
from diffeo.transforms.univariate import Sigmoid as Sigmoid
from diffeo.transforms.univariate import SinhArcsinh as SinhArcsinh
from diffeo.transforms.univariate import Softplus as Softplus
from diffeo.transforms.univariate import Tanh as Tanh

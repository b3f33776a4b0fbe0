"""Normalizing flows for PyTorch: densities made of invertible, differentiable maps, trained by exact likelihood."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffeo import nets as nets
from diffeo.core import Chain as Chain
from diffeo.core import Density as Density
from diffeo.core import Flow as Flow
from diffeo.core import Incremental as Incremental
from diffeo.core import Inverse as Inverse
from diffeo.core import Objective as Objective
from diffeo.core import Transform as Transform
from diffeo.core import Univariate as Univariate
from diffeo.densities import Categorical as Categorical
from diffeo.densities import Dequantized as Dequantized
from diffeo.densities import DiagonalNormal as DiagonalNormal
from diffeo.densities import GaussianMixture as GaussianMixture
from diffeo.densities import Mixed as Mixed
from diffeo.densities import Normal as Normal
from diffeo.densities import StudentT as StudentT
from diffeo.densities import Uniform as Uniform
from diffeo.files import load as load
from diffeo.files import save as save
from diffeo.recipes import gaussian as gaussian
from diffeo.recipes import iaf as iaf
from diffeo.recipes import maf as maf
from diffeo.recipes import mixed as mixed
from diffeo.recipes import nice as nice
from diffeo.recipes import nsf as nsf
from diffeo.recipes import nsf_ar as nsf_ar
from diffeo.recipes import realnvp as realnvp
from diffeo.recipes import recipe as recipe
from diffeo.recipes import recipes as recipes
from diffeo.recipes import regression as regression
from diffeo.transforms import ActNorm as ActNorm
from diffeo.transforms import Affine as Affine
from diffeo.transforms import Asinh as Asinh
from diffeo.transforms import Autoregressive as Autoregressive
from diffeo.transforms import Composed as Composed
from diffeo.transforms import Coupling as Coupling
from diffeo.transforms import Elementwise as Elementwise
from diffeo.transforms import Exp as Exp
from diffeo.transforms import Gaussianize as Gaussianize
from diffeo.transforms import Householder as Householder
from diffeo.transforms import LeakyReLU as LeakyReLU
from diffeo.transforms import LocationScale as LocationScale
from diffeo.transforms import Logit as Logit
from diffeo.transforms import LULinear as LULinear
from diffeo.transforms import Permute as Permute
from diffeo.transforms import Power as Power
from diffeo.transforms import RationalQuadraticSpline as RationalQuadraticSpline
from diffeo.transforms import Regress as Regress
from diffeo.transforms import Shift as Shift
from diffeo.transforms import Sigmoid as Sigmoid
from diffeo.transforms import SinhArcsinh as SinhArcsinh
from diffeo.transforms import Softplus as Softplus
from diffeo.transforms import Standardize as Standardize
from diffeo.transforms import Tanh as Tanh
from diffeo.transforms import Unconstrain as Unconstrain
from diffeo.transforms import Whiten as Whiten
from diffeo.version import __version__ as __version__

if TYPE_CHECKING:
    from diffeo import interop as interop
    from diffeo import plotting as plotting
    from diffeo import tables as tables
    from diffeo import testing as testing
    from diffeo.batches import BatchScorer as BatchScorer
    from diffeo.estimators import FlowDensity as FlowDensity
    from diffeo.estimators import FlowOutlierDetector as FlowOutlierDetector
    from diffeo.estimators import FlowRegressor as FlowRegressor
    from diffeo.estimators import FlowTransformer as FlowTransformer
    from diffeo.onnx import export as export
    from diffeo.tables import TableDensity as TableDensity
    from diffeo.tables import fit_table as fit_table
    from diffeo.training import CompiledGradients as CompiledGradients
    from diffeo.training import FitResult as FitResult
    from diffeo.training import MaximumLikelihood as MaximumLikelihood
    from diffeo.training import NonFiniteError as NonFiniteError
    from diffeo.training import ParquetRows as ParquetRows
    from diffeo.training import fit as fit
    from diffeo.training import kl_monte_carlo as kl_monte_carlo

# what training needs loads when it is first used, so that `import diffeo` stays close to `import torch`
_LATER = {
    "BatchScorer": "diffeo.batches",
    "CompiledGradients": "diffeo.training",
    "FitResult": "diffeo.training",
    "MaximumLikelihood": "diffeo.training",
    "FlowDensity": "diffeo.estimators",
    "FlowOutlierDetector": "diffeo.estimators",
    "FlowRegressor": "diffeo.estimators",
    "FlowTransformer": "diffeo.estimators",
    "NonFiniteError": "diffeo.training",
    "ParquetRows": "diffeo.training",
    "TableDensity": "diffeo.tables",
    "export": "diffeo.onnx",
    "fit": "diffeo.training",
    "fit_table": "diffeo.tables",
    "kl_monte_carlo": "diffeo.training",
    "interop": "diffeo.interop",
    "plotting": "diffeo.plotting",
    "tables": "diffeo.tables",
    "testing": "diffeo.testing",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'diffeo' has no attribute {name!r}")
    module = import_module(_LATER[name])
    value = module if _LATER[name] == f"diffeo.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])

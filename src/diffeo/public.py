"""The public names. `import diffeo` offers them all, and loads this file when the first one is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffeo import nets as nets
from diffeo import solvers as solvers
from diffeo import targets as targets
from diffeo.core import Chain as Chain
from diffeo.core import Density as Density
from diffeo.core import Flow as Flow
from diffeo.core import Incremental as Incremental
from diffeo.core import Inverse as Inverse
from diffeo.core import Objective as Objective
from diffeo.core import Transform as Transform
from diffeo.core import Univariate as Univariate
from diffeo.densities import Aligned as Aligned
from diffeo.densities import Argmax as Argmax
from diffeo.densities import Categorical as Categorical
from diffeo.densities import ConditionalNormal as ConditionalNormal
from diffeo.densities import Dequantized as Dequantized
from diffeo.densities import DiagonalNormal as DiagonalNormal
from diffeo.densities import GaussianMixture as GaussianMixture
from diffeo.densities import Logistic as Logistic
from diffeo.densities import Mixed as Mixed
from diffeo.densities import Noisy as Noisy
from diffeo.densities import Normal as Normal
from diffeo.densities import Repeated as Repeated
from diffeo.densities import Resampled as Resampled
from diffeo.densities import StudentT as StudentT
from diffeo.densities import Uniform as Uniform
from diffeo.densities import UniformSphere as UniformSphere
from diffeo.densities import VonMisesFisherMixture as VonMisesFisherMixture
from diffeo.densities import bits_per_dim as bits_per_dim
from diffeo.files import load as load
from diffeo.files import save as save
from diffeo.kernels import compiled_kernels as compiled_kernels
from diffeo.recipes import autoregressive_flow as autoregressive_flow
from diffeo.recipes import bernstein as bernstein
from diffeo.recipes import bnaf as bnaf
from diffeo.recipes import coupling_flow as coupling_flow
from diffeo.recipes import ffjord as ffjord
from diffeo.recipes import flow_tts as flow_tts
from diffeo.recipes import flowpp as flowpp
from diffeo.recipes import flowtron as flowtron
from diffeo.recipes import gaussian as gaussian
from diffeo.recipes import gaussianization as gaussianization
from diffeo.recipes import glow as glow
from diffeo.recipes import glow_tts as glow_tts
from diffeo.recipes import iaf as iaf
from diffeo.recipes import maf as maf
from diffeo.recipes import mixed as mixed
from diffeo.recipes import naf as naf
from diffeo.recipes import nice as nice
from diffeo.recipes import nice_image as nice_image
from diffeo.recipes import nsf as nsf
from diffeo.recipes import nsf_ar as nsf_ar
from diffeo.recipes import parallel_wavenet as parallel_wavenet
from diffeo.recipes import planar as planar
from diffeo.recipes import radial as radial
from diffeo.recipes import realnvp as realnvp
from diffeo.recipes import realnvp_image as realnvp_image
from diffeo.recipes import recipe as recipe
from diffeo.recipes import recipes as recipes
from diffeo.recipes import regression as regression
from diffeo.recipes import residual_flow as residual_flow
from diffeo.recipes import residual_image as residual_image
from diffeo.recipes import sos as sos
from diffeo.recipes import sphere as sphere
from diffeo.recipes import srflow as srflow
from diffeo.recipes import sylvester as sylvester
from diffeo.recipes import tarflow as tarflow
from diffeo.recipes import torus as torus
from diffeo.recipes import ttf as ttf
from diffeo.recipes import unaf as unaf
from diffeo.recipes import unit_box as unit_box
from diffeo.recipes import waveflow as waveflow
from diffeo.recipes import waveglow as waveglow
from diffeo.recipes import wavenet as wavenet
from diffeo.solvers import alignment_posteriors as alignment_posteriors
from diffeo.solvers import ctc_alignment_loss as ctc_alignment_loss
from diffeo.solvers import guided_alignment_loss as guided_alignment_loss
from diffeo.solvers import monotonic_alignment as monotonic_alignment
from diffeo.transforms import ActNorm as ActNorm
from diffeo.transforms import Along as Along
from diffeo.transforms import Autoregressive as Autoregressive
from diffeo.transforms import BlockAutoregressive as BlockAutoregressive
from diffeo.transforms import Checkerboard as Checkerboard
from diffeo.transforms import Continuous as Continuous
from diffeo.transforms import Conv1x1 as Conv1x1
from diffeo.transforms import Coupling as Coupling
from diffeo.transforms import Elementwise as Elementwise
from diffeo.transforms import Equalize as Equalize
from diffeo.transforms import ExpLinear as ExpLinear
from diffeo.transforms import FixedLinear as FixedLinear
from diffeo.transforms import Fold as Fold
from diffeo.transforms import Gaussianize as Gaussianize
from diffeo.transforms import Grouped as Grouped
from diffeo.transforms import Haar as Haar
from diffeo.transforms import Householder as Householder
from diffeo.transforms import LinearPrediction as LinearPrediction
from diffeo.transforms import LULinear as LULinear
from diffeo.transforms import Multiscale as Multiscale
from diffeo.transforms import Partial as Partial
from diffeo.transforms import Patches as Patches
from diffeo.transforms import Permute as Permute
from diffeo.transforms import Planar as Planar
from diffeo.transforms import Radial as Radial
from diffeo.transforms import Regress as Regress
from diffeo.transforms import Reshape as Reshape
from diffeo.transforms import Residual as Residual
from diffeo.transforms import Reverse as Reverse
from diffeo.transforms import SphereToCylinder as SphereToCylinder
from diffeo.transforms import Squeeze as Squeeze
from diffeo.transforms import Standardize as Standardize
from diffeo.transforms import Sylvester as Sylvester
from diffeo.transforms import TriangularLinear as TriangularLinear
from diffeo.transforms import Unconstrain as Unconstrain
from diffeo.transforms import Whiten as Whiten
from diffeo.transforms import prepare_inference as prepare_inference
from diffeo.transforms import qr_linear as qr_linear
from diffeo.transforms import svd_linear as svd_linear
from diffeo.transforms.univariate import *  # noqa: F403 (a scalar map is exported in one place)
from diffeo.version import __version__ as __version__

if TYPE_CHECKING:
    from diffeo import interop as interop
    from diffeo import plotting as plotting
    from diffeo import tables as tables
    from diffeo import testing as testing
    from diffeo import training as training
    from diffeo.batches import BatchScorer as BatchScorer
    from diffeo.estimators import FlowDensity as FlowDensity
    from diffeo.estimators import FlowOutlierDetector as FlowOutlierDetector
    from diffeo.estimators import FlowRegressor as FlowRegressor
    from diffeo.estimators import FlowTransformer as FlowTransformer
    from diffeo.onnx import export as export
    from diffeo.tables import TableDensity as TableDensity
    from diffeo.tables import fit_table as fit_table
    from diffeo.training import CompiledGradients as CompiledGradients
    from diffeo.training import Distillation as Distillation
    from diffeo.training import FitResult as FitResult
    from diffeo.training import FlowMatching as FlowMatching
    from diffeo.training import ForwardKL as ForwardKL
    from diffeo.training import Importance as Importance
    from diffeo.training import MaximumLikelihood as MaximumLikelihood
    from diffeo.training import NonFiniteError as NonFiniteError
    from diffeo.training import ParquetRows as ParquetRows
    from diffeo.training import RegularizedLikelihood as RegularizedLikelihood
    from diffeo.training import RenyiBound as RenyiBound
    from diffeo.training import ReverseKL as ReverseKL
    from diffeo.training import fit as fit
    from diffeo.training import importance as importance
    from diffeo.training import importance_weighted_bound as importance_weighted_bound
    from diffeo.training import kl_monte_carlo as kl_monte_carlo

# what training needs loads when it is first used, so that these names load hardly slower than torch
_LATER = {
    "BatchScorer": "diffeo.batches",
    "CompiledGradients": "diffeo.training",
    "Distillation": "diffeo.training",
    "FlowMatching": "diffeo.training",
    "ForwardKL": "diffeo.training",
    "RegularizedLikelihood": "diffeo.training",
    "Importance": "diffeo.training",
    "RenyiBound": "diffeo.training",
    "ReverseKL": "diffeo.training",
    "importance": "diffeo.training",
    "importance_weighted_bound": "diffeo.training",
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
    "training": "diffeo.training",
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

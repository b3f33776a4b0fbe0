"""Training: objectives and the loop that minimises them."""

from diffeo.training.compiling import CompiledGradients as CompiledGradients
from diffeo.training.continuous import FlowMatching as FlowMatching
from diffeo.training.continuous import RegularizedLikelihood as RegularizedLikelihood
from diffeo.training.diagnosis import NonFiniteError as NonFiniteError
from diffeo.training.distillation import Distillation as Distillation
from diffeo.training.fitting import fit as fit
from diffeo.training.importance_weights import Importance as Importance
from diffeo.training.importance_weights import importance as importance
from diffeo.training.objectives import Blurred as Blurred
from diffeo.training.objectives import MaximumLikelihood as MaximumLikelihood
from diffeo.training.objectives import kl_monte_carlo as kl_monte_carlo
from diffeo.training.parquet import ParquetRows as ParquetRows
from diffeo.training.result import FitResult as FitResult
from diffeo.training.source import padded as padded
from diffeo.training.variational import ForwardKL as ForwardKL
from diffeo.training.variational import RenyiBound as RenyiBound
from diffeo.training.variational import ReverseKL as ReverseKL
from diffeo.training.variational import importance_weighted_bound as importance_weighted_bound

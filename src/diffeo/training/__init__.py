"""Training: objectives and the loop that minimises them."""

from diffeo.training.compiling import CompiledGradients as CompiledGradients
from diffeo.training.diagnosis import NonFiniteError as NonFiniteError
from diffeo.training.fit import fit as fit
from diffeo.training.objectives import Blurred as Blurred
from diffeo.training.objectives import MaximumLikelihood as MaximumLikelihood
from diffeo.training.objectives import kl_monte_carlo as kl_monte_carlo
from diffeo.training.parquet import ParquetRows as ParquetRows
from diffeo.training.result import FitResult as FitResult

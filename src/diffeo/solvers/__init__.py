"""Numerical solvers behind the maps that have no closed form."""

from diffeo.solvers.alignment import (
    alignment_posteriors,
    ctc_alignment_loss,
    guided_alignment_loss,
    letters_of,
    monotonic_alignment,
)
from diffeo.solvers.fixed_point import solve_residual
from diffeo.solvers.ode import Integrator
from diffeo.solvers.roots import UnsolvedError, invert_increasing, solve_increasing

__all__ = [
    "Integrator",
    "UnsolvedError",
    "alignment_posteriors",
    "ctc_alignment_loss",
    "guided_alignment_loss",
    "invert_increasing",
    "letters_of",
    "monotonic_alignment",
    "solve_increasing",
    "solve_residual",
]

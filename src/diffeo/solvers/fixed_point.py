"""Fixed points of contractions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffeo.kernels.dispatch import is_traced
from diffeo.solvers.roots import UnsolvedError

EAGER, TRACED = 1000, 100  # evaluations at most; a traced run makes all of them


def solve_residual(g: Callable[[Tensor], Tensor], z: Tensor, who: str, tol: float = 1e-5) -> Tensor:
    """x with x + g(x) = z, for a contraction g of vectors, by x ← z − g(x); without gradient.

    Args:
        g: a contraction of the last dim.
        z: values to reach.
        who: for messages.
        tol: largest residual |x + g(x) − z| / (1 + |z|) of a coordinate, > 0.

    Raises:
        UnsolvedError: the residual stays above it. Traced runs (compiled, or under vmap) give NaN there instead.

    Cost: log(precision) / log(Lipschitz constant) evaluations of g, at most 1,000; traced always 100.
    """
    eps = torch.finfo(z.dtype).eps
    x, traced = z, is_traced()
    error = torch.full_like(z, torch.inf)
    for _ in range(TRACED if traced else EAGER):
        following = z - g(x)
        # the step is the residual of the x before it
        error = (following - x).abs() / (1 + z.abs())
        x = following
        if not traced and not bool((error > 4 * eps).any()):
            break
    unsolved = error > tol
    if traced:
        return torch.where(unsolved, torch.nan, x)
    if bool(unsolved.any()):
        raise UnsolvedError(
            f"{who}: the inverse has a residual |x + g(x) - z| of up to {float(error.max()):.1e} (1 + |z|), "
            f"beyond {tol:.1e}, after {EAGER} evaluations"
        )
    return x

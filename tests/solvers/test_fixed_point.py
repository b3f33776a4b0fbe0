"""Fixed points of contractions, in the number of evaluations that traced runs make, too."""

from __future__ import annotations

import pytest
import torch

from diffeo.solvers import UnsolvedError, solve_residual


def contraction(x):
    """Of Lipschitz constant 0.8."""
    return 0.8 * torch.sin(x).flip(-1)


def test_traced_runs_find_what_others_find():
    z = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(6, 2)
    x = solve_residual(contraction, z, "contraction")
    assert torch.allclose(x + contraction(x), z, atol=1e-12)
    assert torch.allclose(torch.vmap(lambda z: solve_residual(contraction, z, "contraction"))(z), x, atol=1e-9)


def test_what_is_no_contraction_is_an_error_or_nan_where_it_is_traced():
    z = torch.ones(3, 2)
    with pytest.raises(UnsolvedError, match="residual"):
        solve_residual(lambda x: 2 * x, z, "no contraction")
    found = torch.vmap(lambda z: solve_residual(lambda x: 2 * x, z, "no contraction"))(z)
    assert found.isnan().all()

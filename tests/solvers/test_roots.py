"""Roots of increasing functions: found wherever they lie, differentiable, and never silently wrong."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.solvers import UnsolvedError, invert_increasing, solve_increasing


def cube(x):
    """x³ + x/1000, and its log-slope."""
    return x**3 + 1e-3 * x, (3 * x * x + 1e-3).log()


def steps(x):
    """Nearly flat between steep places: where Newton alone runs away."""
    return x + 0.999 * torch.sin(x), torch.log1p(0.999 * torch.cos(x))


@pytest.mark.parametrize("f", [cube, steps])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roots_are_found_at_any_distance(f, dtype):
    x = torch.cat([-torch.logspace(-3, 6, 200), torch.zeros(1), torch.logspace(-3, 6, 200)]).to(dtype)
    z = f(x)[0]
    found = solve_increasing(f, z, "f")
    residual = (f(found)[0] - z).abs() / (1 + z.abs())
    assert residual.max() < 50 * torch.finfo(dtype).eps


def test_the_bracket_grows_from_any_start():
    z = torch.full((3,), 5.0)
    start = torch.tensor([-1e6, 0.0, 1e6])
    assert torch.allclose(solve_increasing(cube, z, "cube", start), torch.tensor(1.7098), atol=1e-4)


def test_gradients_are_implicit():
    params = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    z = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)

    def ridge(x, p):
        a, b = p.unbind(-1)
        h = (x + b).tanh()
        return x + a * h, torch.log1p(a * (1 - h * h))

    assert torch.autograd.gradcheck(lambda z, p: invert_increasing(ridge, z, p, "ridge"), (z, params))


def test_what_has_no_root_is_an_error_that_states_the_residual():
    with pytest.raises(UnsolvedError, match=r"bounded: the inverse of 1 of 2 scalars has a residual .* of up to"):
        solve_increasing(lambda x: (x.tanh(), -2 * x.cosh().log()), torch.tensor([0.5, 2.0]), "bounded")


def test_traced_runs_give_nan_where_there_is_no_root():
    def solve(z):
        return solve_increasing(lambda x: (x.tanh(), -2 * x.cosh().log()), z, "bounded")

    found = torch.vmap(solve)(torch.tensor([[0.5], [2.0]]))
    assert torch.allclose(found[0], torch.tensor([0.5]).atanh(), atol=1e-5)
    assert found[1].isnan().all()


def test_nan_stays_nan():
    found = solve_increasing(cube, torch.tensor([float("nan"), 8.0]), "cube")
    assert found[0].isnan()
    assert torch.isclose(found[1], torch.tensor(2.0), atol=1e-3)


def test_a_numerical_inverse_is_exact_far_out():
    """Where sigmoids saturate and distribution functions underflow."""
    torch.manual_seed(0)
    z = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], dtype=torch.float64)
    for u in (diffeo.DeepSigmoidal(), diffeo.MixtureCDF(5), diffeo.MixtureCDF(5, "gaussian"), diffeo.SumOfSquares()):
        params = torch.randn(5, u.n_params, dtype=torch.float64)
        u.double()
        x, logdet = u.inverse(z, params)
        back, forward_logdet = u(x, params)
        assert torch.allclose(back, z, rtol=1e-9, atol=1e-9), type(u).__name__
        assert torch.allclose(logdet, -forward_logdet, atol=1e-8), type(u).__name__


@pytest.mark.parametrize("name", ["planar", "sylvester", "gaussianization", "tail"])
def test_second_derivatives_of_densities(name):
    """Numerical inverses stand in the way of these; they must not be wrong in silence."""
    torch.manual_seed(0)
    flows = {
        "planar": lambda: diffeo.planar(2, layers=3),
        "sylvester": lambda: diffeo.sylvester(2, layers=2),
        "gaussianization": lambda: diffeo.gaussianization(2, layers=2, components=3),
        "tail": lambda: diffeo.Flow(diffeo.Elementwise(diffeo.TailTransform(), 2), diffeo.Normal(2)),
    }
    flow = diffeo.testing.perturbed(flows[name]()).double()
    x = torch.tensor([0.7, -0.4], dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(flow, x)

    def slope(x):
        return torch.autograd.functional.jacobian(flow, x)

    step = 1e-4 * torch.eye(2, dtype=torch.float64)
    by_steps = torch.stack([(slope(x + d) - slope(x - d)) / 2e-4 for d in step])
    assert torch.allclose(hessian, by_steps, atol=1e-5)

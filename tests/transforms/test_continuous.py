"""Continuous flows: solvers, traces, gradients of both kinds, paths."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.solvers import Integrator
from diffeo.testing import perturbed


def layer(features=2, **options):
    torch.manual_seed(0)
    field = diffeo.nets.VectorField(features, hidden=(16, 16))
    return perturbed(diffeo.Continuous(field, **options))


X = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))


def test_adjoint_gradients_agree_with_direct_ones():
    gradients = []
    for adjoint in (False, True):
        t = layer(integrator=Integrator(rtol=1e-9, atol=1e-9, adjoint=adjoint)).double()
        z, logdet = t(X.double())
        (z.square().sum() + logdet.sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in t.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_adjoint_gradients_reach_the_context():
    field = diffeo.nets.VectorField(2, context=1, hidden=(8,))
    context = torch.randn(16, 1, dtype=torch.float64, requires_grad=True)
    found = []
    for adjoint in (False, True):
        torch.manual_seed(0)
        t = perturbed(diffeo.Continuous(field, integrator=Integrator(rtol=1e-9, atol=1e-9, adjoint=adjoint))).double()
        found.append(torch.autograd.grad(t(X.double(), context)[0].sum(), context)[0])
    assert found[0].abs().max() > 1e-3
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)


def test_estimated_traces_have_the_right_mean():
    t = layer(trace="hutchinson", integrator=Integrator("rk4", steps=8))
    exact = t(X)[1]
    t.train()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([t(X.repeat(200, 1))[1].view(200, 16).mean(0) for _ in range(30)])
    error = draws.std(0) / len(draws) ** 0.5
    assert (error > 0).all()
    assert ((draws.mean(0) - exact).abs() < 5 * error).all()


@torch.no_grad()
def test_finer_solvers_evaluate_more_and_err_less():
    exact = layer(integrator=Integrator(rtol=1e-10, atol=1e-10)).double()(X.double())[1]
    errors, counts = [], []
    for steps in (2, 4, 8):
        t = layer(integrator=Integrator("rk4", steps=steps)).double()
        errors.append(float((t(X.double())[1] - exact).abs().max()))
        counts.append(t.evaluations(X.double()))
    assert counts == [8, 16, 32]
    assert errors[0] > 8 * errors[1] > 64 * errors[2]  # of fourth order
    loose, tight = (layer(integrator=Integrator(rtol=tol, atol=tol)) for tol in (1e-2, 1e-5))
    assert loose.evaluations(X) < tight.evaluations(X)
    assert tight.evaluations(X, inverse=True) > 0


@torch.no_grad()
def test_a_row_does_not_profit_from_easy_neighbours():
    t = layer(integrator=Integrator(rtol=1e-3, atol=1e-3)).double()
    hard, easy = 4 * X[:1].double(), torch.zeros(500, 2, dtype=torch.float64)
    exact = layer(integrator=Integrator(rtol=1e-10, atol=1e-10)).double()(hard)[1]
    alone = float((t(hard)[1] - exact).abs())
    among = float((t(torch.cat([hard, easy]))[1][:1] - exact).abs())
    assert among <= 2 * alone + 1e-6


def test_nan_rows_are_an_error_that_says_so():
    with pytest.raises(diffeo.solvers.UnsolvedError, match="NaN"):
        layer()(torch.tensor([[0.0, float("nan")]]))


def test_paths_lead_from_noise_to_samples():
    torch.manual_seed(0)
    layer = diffeo.ffjord(2, hidden=(16, 16)).transform.parts[1]
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    z = torch.randn(7, 2)
    with torch.no_grad():
        path = layer.path(z, (0.0, 0.3, 1.0))
        assert path.shape == (3, 7, 2)
        assert torch.equal(path[0], z)
        assert (path[1] - z).abs().max() > 0.05
        torch.testing.assert_close(path[-1], layer.inverse(z)[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="increasing times"):
        layer.path(z, (0.5, 0.2))

"""Perceptrons: of a context alone, of angles, and structures that are refused."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.nets import MADE, MLP
from diffeo.testing import perturbed


def test_bad_structures_are_refused():
    with pytest.raises(ValueError, match="order of 0 … 2"):
        MADE(3, 2, order=[0, 0, 1])
    cycle = torch.tensor([[0, 1], [1, 0]], dtype=torch.bool)
    with pytest.raises(ValueError, match=r"acyclic, but coordinates \[0, 1\]"):
        MADE(2, 2, adjacency=cycle)
    with pytest.raises(ValueError, match="equal widths"):
        MLP(3, 2, hidden=(8, 16), residual=True)
    with pytest.raises(ValueError, match="nothing is transformed"):
        diffeo.Coupling(torch.tensor([True]), MLP(1, 1, n_params=2), diffeo.Affine())


def test_a_network_of_the_context_alone_runs_once_for_many_x():
    net = perturbed(MLP(0, 3, context=2, hidden=(8,)))
    assert net(torch.zeros(5, 7, 0), torch.randn(5, 1, 2)).shape == (5, 1, 3)
    net = perturbed(MLP(0, 1, n_params=2, context=2))
    layer = diffeo.Coupling(torch.zeros(1, dtype=torch.bool), net, diffeo.Affine())
    x, c = torch.randn(5, 7, 1), torch.randn(5, 1, 2)
    z, logdet = layer(x, c)
    apart, logdet_apart = layer(x, c.expand(5, 7, 2).clone())
    assert torch.allclose(z, apart, atol=1e-6)
    assert torch.allclose(logdet, logdet_apart, atol=1e-6)
    assert torch.allclose(layer.inverse(z, c)[0], x, atol=1e-5)


def test_a_net_without_context_ignores_one_in_both_directions():
    layer = perturbed(diffeo.Autoregressive(MADE(12, 2, hidden=(24,)), diffeo.Affine()))
    with torch.no_grad():
        assert layer.inverse(torch.randn(4, 12), torch.randn(7, 2))[0].shape == (4, 12)


def test_periodic_networks_repeat_after_their_period_and_not_before():
    x = torch.linspace(-1, 1, 7, dtype=torch.float64).unsqueeze(1)
    net = perturbed(diffeo.nets.PeriodicMLP(1, 3, harmonics=4, period=2.5, hidden=(16,))).double()
    torch.testing.assert_close(net(x + 2.5), net(x))
    assert all((net(x + 2.5 * part) - net(x)).abs().max() > 1e-3 for part in (0.25, 0.5, 0.75))


def test_harmonics_learn_what_changes_fast():
    x = torch.linspace(-3, 3, 200).unsqueeze(1)
    left = []
    for harmonics in (1, 8):
        torch.manual_seed(0)
        net = diffeo.nets.PeriodicMLP(1, 1, harmonics=harmonics, hidden=(32,))
        adam = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(200):
            loss = (net(x) - (7 * x).sin()).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        left.append(loss.item())
    assert left[1] < 0.01 < 0.3 < left[0]


@pytest.mark.parametrize("options", [{"harmonics": 0}, {"period": 0.0}, {"period": float("nan")}])
def test_periodic_networks_refuse_nonsense(options):
    with pytest.raises(ValueError, match="PeriodicMLP"):
        diffeo.nets.PeriodicMLP(1, 1, **options)

"""MADE: who sees whom, and each hidden unit computed once."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.nets import MADE
from diffeo.testing import perturbed


def sees(net: MADE) -> torch.Tensor:
    """(D, D): whether the parameters of coordinate i react to coordinate j."""
    x = torch.randn(net.features, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(perturbed(net).double(), x)
    by_position = jacobian.reshape(net.features, net.n_params, net.features).abs().sum(1) > 0
    return by_position[net.order.argsort()]


@pytest.mark.parametrize("residual", [False, True])
def test_order_decides_who_sees_whom(residual):
    order = torch.tensor([2, 0, 3, 1])
    seen = sees(MADE(4, 3, hidden=(32, 32), order=order, residual=residual))
    rank = order.argsort()
    assert torch.equal(seen, rank[:, None] > rank[None, :])


def test_adjacency_decides_who_sees_whom():
    adjacency = torch.zeros(5, 5, dtype=torch.bool)
    adjacency[0, 3] = adjacency[1, 0] = adjacency[1, 3] = adjacency[4, 2] = True
    assert torch.equal(sees(MADE(5, 2, hidden=(40, 40), adjacency=adjacency)), adjacency)


def test_each_hidden_unit_is_computed_once():
    net = MADE(64, 2, hidden=(256, 256))
    layer = diffeo.Autoregressive(net, diffeo.Affine())
    rows = []
    original = net.activation.forward

    def counting(h):
        rows.append(len(h))
        return original(h)

    net.activation.forward = counting
    with torch.no_grad():
        layer.inverse(torch.randn(3, 64))
    assert len(rows) == 2 * 64
    assert 512 <= sum(rows) <= 1.1 * 512  # all units, and a few empty slots that keep the blocks alike


def test_uneven_dependencies_are_one_block():
    star = torch.zeros(64, 64, dtype=torch.bool)
    star[1:, 0] = True
    net = MADE(64, 2, hidden=(256, 256), adjacency=star)
    assert net.block == 64
    assert net.rows1.numel() == 256  # no empty slots
    layer = perturbed(diffeo.Autoregressive(net, diffeo.Affine())).double()
    z = torch.randn(3, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(layer(layer.inverse(z)[0])[0], z)

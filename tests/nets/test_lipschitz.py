"""Lipschitz networks: the constant holds."""

from __future__ import annotations

import torch

import diffeo
from diffeo.nets.lipschitz import singular_bound


def test_lipschitz_networks_keep_their_constant():
    """With weights far too large, the largest singular value of the Jacobian and of every layer stays below it."""
    torch.manual_seed(0)
    net = diffeo.nets.LipschitzMLP(4, hidden=(32, 32), lipschitz=0.9)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(3 * torch.randn(p.shape))
    x = 3 * torch.randn(200, 4)
    push = net.linearize(x)[1]
    jacobian = push(torch.eye(4).expand(200, 4, 4))
    expected = torch.func.vmap(torch.func.jacrev(net))(x)
    assert torch.allclose(jacobian, expected, atol=1e-5)
    assert torch.linalg.matrix_norm(jacobian, 2).max() <= 0.9
    norms = [float(torch.linalg.matrix_norm(w.detach(), 2)) for w in net.weights(torch.float32)]
    assert all(0.9 * net.share < norm <= net.share * (1 + 1e-6) for norm in norms)


def test_the_bound_on_singular_values_is_an_upper_bound():
    torch.manual_seed(0)
    for shape in [(1, 1), (5, 3), (64, 128), (128, 128)]:
        weight = torch.randn(shape)
        true = torch.linalg.matrix_norm(weight, 2)
        assert true * (1 - 1e-6) <= singular_bound(weight) <= true * 1.05
    assert singular_bound(torch.zeros(3, 4)) < 1e-10

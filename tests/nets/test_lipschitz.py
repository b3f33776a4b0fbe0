"""Lipschitz networks: the constant holds."""

from __future__ import annotations

import pytest
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
    jacobian = push(torch.eye(4).unsqueeze(1).expand(4, 200, 4)).movedim(0, -1)
    expected = torch.func.vmap(torch.func.jacrev(net))(x)
    assert torch.allclose(jacobian, expected, atol=1e-5)
    assert torch.linalg.matrix_norm(jacobian, 2).max() <= 0.9
    norms = [float(torch.linalg.matrix_norm(w.detach(), 2)) for w in net.weights(torch.float32)]
    assert all(0.9 * net.share < norm <= net.share * (1 + 1e-6) for norm in norms)


@pytest.mark.parametrize("size", [(3, 3), (5, 8), (17, 16)])
def test_contractions_of_images_keep_their_constant_at_every_size(size):
    torch.manual_seed(0)
    net = diffeo.nets.LipschitzConvNet(2, hidden=6, lipschitz=0.9)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape))
        for layer, into in ((0, 2), (2, 6)):  # a convolution as a matrix: bounded, and by no more than the bound needs
            weight = net.weights(torch.float32)[layer]
            eye = torch.eye(into * size[0] * size[1]).view(-1, into, *size)
            norm = torch.linalg.matrix_norm(net.apply_weight(eye, weight, None).flatten(1), 2)
            assert 0.6 * net.share < norm <= net.share
    x = torch.randn(1, 2, *size)
    push = net.linearize(x)[1]
    jacobian = push(torch.eye(x.numel()).view(-1, *x.shape)).flatten(1).mT
    expected = torch.func.jacrev(net)(x).view(x.numel(), x.numel())
    assert torch.allclose(jacobian, expected, atol=1e-5)
    assert torch.linalg.matrix_norm(jacobian, 2) <= 0.9


def test_the_bound_on_singular_values_is_an_upper_bound():
    torch.manual_seed(0)
    for shape in [(1, 1), (5, 3), (64, 128), (128, 128)]:
        weight = torch.randn(shape)
        true = torch.linalg.matrix_norm(weight, 2)
        assert true * (1 - 1e-6) <= singular_bound(weight) <= true * 1.05
    assert singular_bound(torch.zeros(3, 4)) < 1e-10

"""Residual layers: estimates without bias, and bounds that hold after training."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.testing import perturbed


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return perturbed(diffeo.Residual(diffeo.nets.LipschitzMLP(20, hidden=(32,), lipschitz=0.8)))


def test_estimates_of_the_logdet_have_the_right_mean(layer):
    x = torch.randn(4, 20)
    exact = layer(x)[1]
    layer.train()
    torch.manual_seed(1)
    with torch.no_grad():
        draws = torch.stack([layer(x.repeat(500, 1))[1].view(500, 4).mean(0) for _ in range(40)])
    error = draws.std(0) / len(draws) ** 0.5
    assert (error < 0.05).all()
    assert ((draws.mean(0) - exact).abs() < 4 * error + 1e-3).all()


def test_estimated_gradients_have_the_right_mean(layer):
    x = torch.randn(2, 20)
    weight = layer.net.layers[0].weight
    exact = torch.autograd.grad(layer(x)[1].sum(), weight)[0]
    layer.train()
    torch.manual_seed(1)
    draws = []
    for _ in range(60):
        logdet = layer(x.repeat(400, 1))[1]
        draws.append(torch.autograd.grad(logdet.sum() / 400, weight)[0])
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / len(draws) ** 0.5
    assert ((mean - exact).abs() < 5 * error + 1e-3).all()
    assert float((mean * exact).sum() / mean.norm() / exact.norm()) > 0.95


def test_the_inverse_holds_after_training_hard():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(100, 2) * 0.05 + 2, torch.randn(100, 2) * 0.05 - 2])
    flow = diffeo.residual_flow(2, layers=3, hidden=(16, 16))
    diffeo.fit(flow, x, steps=200, lr=2e-2, progress=False)
    z, logdet = flow.transform(x)
    back, logdet_back = flow.transform.inverse(z)
    assert torch.allclose(back, x, atol=1e-4)
    assert torch.allclose(logdet_back, -logdet, atol=1e-2)


def test_training_memory_does_not_grow_with_the_terms(layer):
    """The graph of an estimate is that of one pass of tangents, whatever the number of terms."""

    def kept(terms):
        sizes = []
        old = diffeo.transforms.residual.SURE_TERMS
        diffeo.transforms.residual.SURE_TERMS = terms
        try:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
                torch.manual_seed(0)
                layer.train()(torch.randn(8, 20, requires_grad=True))
        finally:
            diffeo.transforms.residual.SURE_TERMS = old
        return sum(sizes)

    assert kept(4) == kept(40)


def test_a_few_steps_bend_it():
    """A ring is far from a Gaussian; a network that starts in the linear part of its activations stays there."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.rand(500, generator=generator)
    x = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(500, 2, generator=generator)
    torch.manual_seed(0)
    flow = diffeo.residual_flow(2, layers=4, hidden=(32, 32))
    flow.initialize(x)
    before = float(flow(x).mean().detach())
    diffeo.fit(flow, x, steps=150, lr=5e-3, seed=0, progress=False)
    assert float(flow(x).mean().detach()) > before + 0.5

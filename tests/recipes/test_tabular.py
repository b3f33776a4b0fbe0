"""Recipes for tables: tails are read off the training rows."""

from __future__ import annotations

import torch

import diffeo


def test_tails_are_read_off_the_training_rows():
    """Two degrees of freedom on one side of each column, a normal's tail on the other: λ is 1/2 on the first."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(20_000, 2, generator=generator, dtype=torch.float64)
    heavy = (2 * u - 1) / (2 * u * (1 - u)).sqrt()
    normal = torch.randn(20_000, 2, generator=generator)
    x = torch.where(heavy > 0, heavy.float(), -normal.abs()) * torch.tensor([1.0, -1000.0])
    flow = diffeo.ttf(2, layers=1)
    flow.initialize(x)
    theta = flow.transform.parts[1].theta.detach()
    right, left = (0.1 * (3 * torch.tanh(theta[:, i] / 3)).exp() for i in (2, 3))
    torch.testing.assert_close(torch.stack([right[0], left[1]]), torch.full((2,), 0.5), rtol=0.2, atol=0)
    assert max(left[0], right[1]) < 0.1
    drawn = flow.sample(200_000, generator=generator)[:, 0]  # an untrained flow has these tails
    exact = 0.5 * (1 - 30 / (30**2 + 2) ** 0.5)
    assert 0.5 < (drawn > 30).float().mean() / exact < 2
    assert (drawn < -10).float().mean() < 1e-4
    assert flow(x.mul(1e6)).isfinite().all()


def test_ties_at_the_ends_are_no_tails():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, 1, generator=generator)
    for x in (normal.clamp(-2, 2), normal.round(), normal.clamp_min(0)):
        flow = diffeo.ttf(1, layers=1)
        flow.initialize(x + 0.0)
        theta = flow.transform.parts[1].theta.detach()
        assert (0.1 * (3 * torch.tanh(theta[:, 2:] / 3)).exp()).max() < 0.1

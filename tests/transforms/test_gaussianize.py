"""Gaussianize: normal columns stay straight, the others are bent."""

from __future__ import annotations

import torch

import diffeo


def test_gaussianize_leaves_normal_columns_straight_and_bends_the_others():
    x = torch.cat([torch.randn(3000, 1), torch.randn(3000, 1).exp()], 1)
    layer = diffeo.Gaussianize(2)
    layer.initialize(x)
    assert not layer.theta[0].any()
    assert layer.theta[1].any()
    with torch.no_grad():
        z, _ = layer(x)
    assert abs(float((z[:, 1] ** 3).mean())) < 0.3
    repeated = torch.randint(0, 3, (500, 1)).float()
    rounded = diffeo.Gaussianize(1)
    rounded.initialize(repeated)
    with torch.no_grad():
        assert torch.allclose(rounded.inverse(rounded(repeated)[0])[0], repeated, atol=1e-3)

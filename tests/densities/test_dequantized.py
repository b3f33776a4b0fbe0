"""Dequantized densities of whole numbers."""

from __future__ import annotations

import pytest
import torch

import diffeo


def test_dequantized_bounds_tighten_and_image_shapes_pass():
    flow = diffeo.realnvp(2, layers=1)
    d = diffeo.Dequantized(flow)
    x = torch.tensor([[0, 1], [2, -1]])
    g = torch.Generator()
    one = torch.stack([d.log_prob(x, generator=g.manual_seed(i)) for i in range(300)]).mean(0)
    many = d.log_prob(x, samples=300, generator=g.manual_seed(0))
    assert (many >= one - 1e-2).all()
    assert not d.exact
    assert d.transform is flow.transform
    assert d.sample((4,)).dtype == torch.long
    grid = diffeo.Dequantized(flow, spacing=0.25)
    s = grid.sample((50,))
    assert torch.allclose(s / 0.25, (s / 0.25).round(), atol=1e-5)
    with pytest.raises(ValueError, match="no Flow"):
        _ = diffeo.Dequantized(diffeo.Normal(1)).base

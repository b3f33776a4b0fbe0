"""Encoders of contexts."""

from __future__ import annotations

import copy

import numpy as np
import torch

from diffeo.nets import PiecewiseLinear


def test_piecewise_linear_codes_do_not_hang_on_rounding():
    """Columns that repeat their values: each code is the same in float32, where it was learnt, and in float64."""
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, 2, 500), rng.integers(0, 7, 500), np.full(500, 3), rng.normal(size=500)]
    rows = torch.from_numpy(np.stack(columns, 1) * 1.234567 + 0.1)
    rows = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-3)
    encoder = PiecewiseLinear(4, bins=8)
    encoder.initialize(rows.float())
    single, double = encoder(rows.float()), copy.deepcopy(encoder).double()(rows)
    assert single.shape == (500, 36)
    assert torch.allclose(single.double(), double, atol=1e-4)
    codes = single[:, 4:].reshape(500, 4, 8)
    assert len(torch.unique(codes[:, 0].double().round(decimals=3), dim=0)) == 2
    assert len(torch.unique(codes[:, 1].double().round(decimals=3), dim=0)) == 7  # every value has its own code
    assert codes.mean(0).abs().max() < 1e-5

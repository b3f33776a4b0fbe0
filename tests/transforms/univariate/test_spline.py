"""Rational-quadratic splines: any finite input."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.kernels import spline_arithmetic as spline_kernel


def test_spline_takes_any_finite_input():
    spline = diffeo.RationalQuadraticSpline(8, bound=4.0)
    torch.manual_seed(1)
    params = 20 * torch.randn(4000, spline.n_params)
    knots = spline_kernel._find(torch.zeros(4000), params.T, 0, spline.limits).x
    for x in (knots, torch.full((4000,), 4.0), torch.full((4000,), -4.0), torch.full((4000,), 1e30), knots * 0):
        for run in (spline.forward, spline.inverse):
            value, logdet = run(x, params)
            assert value.isfinite().all()
            assert logdet.isfinite().all()
    with pytest.raises(ValueError, match="at least 2 bins"):
        diffeo.RationalQuadraticSpline(1)
    with pytest.raises(ValueError, match="min_width"):
        diffeo.RationalQuadraticSpline(8, min_width=0.2)
    with pytest.raises(ValueError, match=r"parameters of shape \(\*x.shape, 23\)"):
        diffeo.RationalQuadraticSpline(8)(torch.zeros(3), torch.zeros(3, 5))

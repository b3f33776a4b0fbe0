"""Chains: layers that cannot meet are refused, log-dets are folded."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.nets import MLP


def coupling(features=4, context=0):
    mask = torch.arange(features) % 2 == 0
    net = MLP(int(mask.sum()), int((~mask).sum()), n_params=2, context=context, hidden=(8,))
    return diffeo.Coupling(mask, net, diffeo.Affine())


def test_chain_refuses_a_bare_parameterised_univariate():
    with pytest.raises(ValueError, match=r"Affine 2 of 2 needs 2 parameters.*Elementwise, Coupling or Autoregressive"):
        diffeo.Chain(diffeo.Exp(), diffeo.Affine())


def test_chain_refuses_neighbours_that_cannot_meet_and_names_both():
    with pytest.raises(ValueError, match=r"Coupling 1 of 2 gives events of shape \(4,\), but LULinear 2 of 2 expects"):
        diffeo.Chain(coupling(4), diffeo.LULinear(5))


def test_chain_says_which_layer_expected_what():
    chain = diffeo.Chain(diffeo.LeakyReLU(), coupling(6))
    with pytest.raises(ValueError, match=r"Coupling 2 of 2: expected 6 features, got x with shape \(32, 5\)"):
        chain(torch.zeros(32, 5))
    with pytest.raises(ValueError, match="floating-point"):
        chain(torch.zeros(32, 6, dtype=torch.long))


def test_chain_folds_log_dets_of_smaller_events():
    chain = diffeo.Chain(diffeo.Exp(), coupling(4))
    assert (chain.event_ndim, chain.event_ndim_out) == (1, 1)
    x = torch.randn(7, 4)
    assert torch.allclose(chain(x)[1], x.sum(-1))


def test_maps_without_parameters_need_no_start():
    layer = diffeo.Elementwise(diffeo.Softplus(), 3)
    layer.initialize(torch.rand(100, 3))
    assert layer.theta.shape == (3, 0)

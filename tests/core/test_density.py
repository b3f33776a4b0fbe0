"""Densities: gradients of samples, divergences, what bases check."""

from __future__ import annotations

import pytest
import torch

import diffeo


def test_rsample_carries_a_gradient_and_sample_does_not():
    flow = diffeo.iaf(2, layers=1)
    x, log_p = flow.sample_and_log_prob((5,))
    assert x.requires_grad
    assert log_p.requires_grad
    assert flow.rsample((5,)).requires_grad
    assert not flow.sample((5,)).requires_grad
    with pytest.raises(ValueError, match="no reparameterised samples"):
        diffeo.nsf(2).rsample((5,))


def test_kl_monte_carlo():
    p, q = diffeo.Normal(1), diffeo.DiagonalNormal(1)
    torch.nn.init.constant_(q.loc, 1.0)
    estimate, error = diffeo.kl_monte_carlo(p, q, 20_000)
    assert float(estimate) == pytest.approx(0.5, abs=5 * float(error))
    with pytest.raises(ValueError, match="at least 2"):
        diffeo.kl_monte_carlo(p, q, 1)


def test_bases_check_the_event():
    for base in (diffeo.Normal(2), diffeo.DiagonalNormal(2), diffeo.StudentT(2), diffeo.GaussianMixture(2, 2)):
        with pytest.raises(ValueError, match="expected 2 features"):
            base(torch.zeros(5, 1))


def test_samples_without_reparameterisation_carry_no_gradient_at_all():
    x, log_p = diffeo.nsf(2).sample_and_log_prob((4,))
    assert not x.requires_grad
    assert log_p.requires_grad

"""Gaussian mixtures: fitted by expectation maximisation."""

from __future__ import annotations

import pytest
import torch

import diffeo


def test_a_mixture_starts_where_expectation_maximisation_ends():
    from sklearn.mixture import GaussianMixture

    x = torch.cat([torch.randn(500, 2), 0.3 * torch.randn(500, 2) + 5])
    mixture = diffeo.GaussianMixture(2, components=6)
    mixture.initialize(x)
    expected = GaussianMixture(2, random_state=0).fit(x.numpy()).score(x.numpy())
    assert mixture(x).mean().item() == pytest.approx(expected, abs=0.02)


def test_a_mixture_does_not_depend_on_units():
    x = torch.cat([torch.randn(500, 2), 0.3 * torch.randn(500, 2) + 5])
    scores = []
    for unit in (1e-4, 1.0, 1e5):
        mixture = diffeo.GaussianMixture(2, components=4)
        mixture.initialize(x * unit)
        scores.append(mixture(x * unit).mean().item() + 2 * torch.tensor(unit).log().item())
    assert max(scores) - min(scores) < 0.01

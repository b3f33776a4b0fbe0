"""Importance weights: what they say of a flow and its target."""

from __future__ import annotations

import pytest
import torch

import diffeo


def test_pareto_k_tells_light_from_heavy_tails():
    def heavy(x):  # a Cauchy target under a normal: weights without a mean
        return torch.distributions.Cauchy(0.0, 1.0).log_prob(x).sum(-1)

    normal = diffeo.Normal(1)
    assert diffeo.importance(normal, heavy, 4000).pareto_k > 0.7
    wide = diffeo.importance(diffeo.StudentT(1, df=2.0), diffeo.Normal(1), 4000)
    assert wide.pareto_k < 0.5
    assert wide.log_normalizer == pytest.approx(0.0, abs=0.05)
    assert diffeo.importance(normal, normal, 4000).effective_sample_size == pytest.approx(4000)
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    for spread in (30.0, 100.0):  # one weight holds it all
        found = diffeo.importance(normal, lambda x, s=spread: normal(x) + s * noise, 4000)
        assert found.effective_sample_size < 1.1
        assert found.pareto_k > 0.7
    bounded = diffeo.importance(normal, diffeo.Uniform(torch.full((1,), -1.0), torch.ones(1)), 4000)
    assert bounded.pareto_k < 0.7
    assert bounded.log_normalizer == pytest.approx(0.0, abs=0.1)
    with pytest.raises(ValueError, match="at least 100 samples"):
        diffeo.importance(normal, normal, 5)

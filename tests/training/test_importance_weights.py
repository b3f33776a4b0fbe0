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


def test_what_the_flow_leaves_out_is_found():
    def two(x):  # half of the mass is where the flow never goes, though its own weights look perfect
        near, far = (torch.distributions.Normal(m, 1.0).log_prob(x).sum(-1) for m in (0.0, 7.0))
        return torch.logaddexp(near, far) + 3.0

    normal = diffeo.Normal(2)
    found = diffeo.importance(normal, two, 8000)
    assert found.effective_sample_size > 0.99 * 8000
    assert found.missed == pytest.approx(0.5, abs=0.15)
    assert "misses" in str(found)
    assert diffeo.importance(normal, normal, 8000).missed == 0.0
    assert diffeo.importance(diffeo.StudentT(2, df=3.0), normal, 8000).missed < 0.01
    # a target that answers within the support only, and events that are no vectors
    box = diffeo.unit_box(2, layers=1, hidden=(8,))
    strict = torch.distributions.Uniform(torch.zeros(2), torch.ones(2), validate_args=True)
    assert diffeo.importance(box, lambda x: strict.log_prob(x.clamp(max=1 - 1e-6)).sum(-1), 500).missed < 0.01
    # no answer rather than a wrong one: too few samples, a target that is no density
    assert diffeo.importance(diffeo.Normal(128), diffeo.Normal(128), 100).missed is None
    assert diffeo.importance(normal, lambda x: x.sum(-1).log(), 500).missed is None
    assert diffeo.importance(normal, lambda x: torch.where(x[:, 0] > 1, torch.inf, normal(x)), 500).missed is None
    assert diffeo.importance(normal, lambda x: torch.full_like(x[:, 0], -torch.inf), 500).missed is None
    frames = diffeo.Normal((3, 2))
    assert diffeo.importance(frames, frames, 500).missed is None

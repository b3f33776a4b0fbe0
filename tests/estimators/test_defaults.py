"""The defaults on rows in clusters and along curves: as good as a mixture of Gaussians chosen by BIC."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

import diffeo


def _clusters(n: int, rng: np.random.Generator) -> np.ndarray:
    angle = 2 * np.pi * rng.integers(0, 5, n) / 5
    return 4 * np.c_[np.cos(angle), np.sin(angle)] + 0.5 * rng.normal(size=(n, 2))


def _rings(n: int, rng: np.random.Generator) -> np.ndarray:
    angle, radius = 2 * np.pi * rng.random(n), np.where(rng.random(n) < 2 / 7, 1.0, 2.5)
    return radius[:, None] * np.c_[np.cos(angle), np.sin(angle)] + 0.15 * rng.normal(size=(n, 2))


@pytest.mark.parametrize("draw", [_clusters, _rings])
def test_multimodal_rows_are_not_lost_to_a_mixture(draw):
    rng = np.random.default_rng(0)
    rows, fresh = draw(1500, rng), draw(20_000, rng)
    found = min((GaussianMixture(k, random_state=0).fit(rows) for k in range(1, 21)), key=lambda m: m.bic(rows))
    density = diffeo.FlowDensity(max_epochs=10, random_state=0).fit(rows)
    assert density.score_samples(fresh).mean() > found.score(fresh) - 0.03

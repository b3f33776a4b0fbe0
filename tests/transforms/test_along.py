"""Maps of groups of features."""

from __future__ import annotations

import pytest
import torch

import diffeo


def test_groups_hold_features_of_every_part():
    """Group g of D features in groups of k holds g, g + D/k, …; another number of features is refused."""
    layer = diffeo.testing.perturbed(diffeo.Grouped(diffeo.LULinear(2), 6))
    x = torch.randn(5, 6)
    inner = layer.transform.transform
    z, logdet = layer(x)
    for g in range(3):
        assert torch.allclose(z[:, g::3], inner(x[:, g::3])[0], atol=1e-6)
    assert torch.allclose(logdet, 3 * inner(x[:, :2])[1], atol=1e-6)
    with pytest.raises(ValueError, match=r"a multiple of the features of LULinear, 2; got 5"):
        diffeo.Grouped(diffeo.LULinear(2), 5)

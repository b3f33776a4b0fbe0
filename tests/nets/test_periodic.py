"""Networks of angles repeat after their period."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.testing import perturbed


def test_periodic_networks_repeat_after_their_period_and_not_before():
    x = torch.linspace(-1, 1, 7, dtype=torch.float64).unsqueeze(1)
    net = perturbed(diffeo.nets.PeriodicMLP(1, 3, harmonics=4, period=2.5, hidden=(16,))).double()
    torch.testing.assert_close(net(x + 2.5), net(x))
    assert all((net(x + 2.5 * part) - net(x)).abs().max() > 1e-3 for part in (0.25, 0.5, 0.75))


def test_harmonics_learn_what_changes_fast():
    x = torch.linspace(-3, 3, 200).unsqueeze(1)
    left = []
    for harmonics in (1, 8):
        torch.manual_seed(0)
        net = diffeo.nets.PeriodicMLP(1, 1, harmonics=harmonics, hidden=(32,))
        adam = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(200):
            loss = (net(x) - (7 * x).sin()).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        left.append(loss.item())
    assert left[1] < 0.01 < 0.3 < left[0]


@pytest.mark.parametrize("options", [{"harmonics": 0}, {"period": 0.0}, {"period": float("nan")}])
def test_periodic_networks_refuse_nonsense(options):
    with pytest.raises(ValueError, match="PeriodicMLP"):
        diffeo.nets.PeriodicMLP(1, 1, **options)

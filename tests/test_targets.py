"""Targets: energies of the literature."""

from __future__ import annotations

import math

import pytest
import torch

from diffeo import targets

ENERGIES = {"u1": targets.u1, "u2": targets.u2, "u3": targets.u3, "u4": targets.u4}


def quadrature(energy, half=8.0, points=1601):
    axis = torch.linspace(-half, half, points, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    return float(energy(grid).logsumexp(0) + 2 * (axis[1] - axis[0]).log())


@pytest.mark.parametrize("name", ENERGIES)
def test_energies_have_a_finite_normalizing_constant(name):
    """The same by two grids, so that neither their ends nor their steps matter."""
    assert quadrature(ENERGIES[name]) == pytest.approx(quadrature(ENERGIES[name], 10.0, 1201), abs=1e-6)


def test_energies_are_those_of_the_paper():
    z = torch.tensor([[0.5, -0.3]], dtype=torch.float64)
    w1 = math.sin(math.pi * 0.5 / 2)
    assert float(targets.u2(z)) == pytest.approx(-0.5 * ((-0.3 - w1) / 0.4) ** 2)
    w2 = 3 * math.exp(-0.5 * ((0.5 - 1) / 0.6) ** 2)
    first, second = (math.exp(-0.5 * ((-0.3 - w1 + w) / 0.35) ** 2) for w in (0.0, w2))
    assert float(targets.u3(z)) == pytest.approx(math.log(first + second))
    w3 = 3 / (1 + math.exp(-(0.5 - 1) / 0.3))
    first, second = math.exp(-0.5 * ((-0.3 - w1) / 0.4) ** 2), math.exp(-0.5 * ((-0.3 - w1 + w3) / 0.35) ** 2)
    assert float(targets.u4(z)) == pytest.approx(math.log(first + second))
    radius = math.hypot(0.5, 0.3)
    sides = math.exp(-0.5 * ((0.5 - 2) / 0.6) ** 2) + math.exp(-0.5 * ((0.5 + 2) / 0.6) ** 2)
    assert float(targets.u1(z)) == pytest.approx(-0.5 * ((radius - 2) / 0.4) ** 2 + math.log(sides))

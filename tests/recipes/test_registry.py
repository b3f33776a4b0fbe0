"""Recipes by name: what they model, and every scalar map."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import diffeo
from diffeo.recipes import registry
from diffeo.recipes.parts import scalar_map, scalar_maps


def test_recipes_say_what_they_model():
    @diffeo.recipe
    def circle_of_ones_own(features=1):
        return diffeo.torus(features)

    @diffeo.recipe(events="vectors")
    def vectors_of_ones_own(features, *, context=0):
        return diffeo.gaussian(features, context=context)

    try:
        assert "vectors_of_ones_own" in diffeo.recipes("vectors")
        assert not {"circle_of_ones_own", "torus", "mixed", "sphere"} & set(diffeo.recipes("vectors"))
        assert "torus" in diffeo.recipes("angles")
        rows = pd.DataFrame({"a": np.random.default_rng(0).normal(size=50)})
        with pytest.raises(ValueError, match="is no density of vectors"):
            diffeo.fit_table(rows, recipe="circle_of_ones_own")
        diffeo.fit_table(rows, recipe="vectors_of_ones_own", steps=2, progress=False)
        with pytest.raises(ValueError, match="events must be one of"):
            diffeo.recipe(events="numbers")
    finally:
        for name in ("circle_of_ones_own", "vectors_of_ones_own"):
            registry._recipes.pop(name)
            registry._events.pop(name)


@pytest.mark.parametrize("name", scalar_maps())
def test_every_scalar_map_has_flows_by_its_name(name, tmp_path):
    for recipe in (diffeo.coupling_flow, diffeo.autoregressive_flow):
        flow = diffeo.testing.perturbed(recipe(2, univariate=name, layers=1, hidden=(8,)))
        x = flow.sample(3, generator=torch.Generator().manual_seed(0))
        assert flow(x).isfinite().all()
    diffeo.save(flow, tmp_path / "flow.safetensors")
    assert torch.equal(diffeo.load(tmp_path / "flow.safetensors")(x), flow(x))


def test_looking_for_a_scalar_map_draws_nothing():
    scalar_maps.cache_clear()
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    scalar_map("Affine")
    assert torch.equal(torch.rand(3), first)


def test_unknown_scalar_maps_are_named():
    with pytest.raises(ValueError, match="unknown scalar map 'Exp'; there are Affine"):
        diffeo.coupling_flow(2, univariate="Exp")
    with pytest.raises(ValueError, match=r"Bernstein: .*unexpected keyword"):
        diffeo.autoregressive_flow(2, univariate="Bernstein", univariate_options={"bins": 3})

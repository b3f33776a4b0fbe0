"""Model files: what comes back, and every way in which a file may be wrong."""

from __future__ import annotations

import json
import struct

import numpy as np
import pandas as pd
import pytest
import torch

import diffeo
from diffeo.recipes import read_notes, registry
from diffeo.recipes.generic import scalar_maps
from diffeo.storage import write_tensors


@pytest.fixture
def saved(tmp_path):
    flow = diffeo.nsf_ar(3, context=2, layers=2, hidden=(8, 8))
    flow.initialize(torch.randn(200, 3), torch.randn(200, 2))
    path = tmp_path / "model.safetensors"
    diffeo.save(flow, path, notes={"columns": ["a", "b", "c"]})
    return flow.eval(), path


def test_a_file_gives_the_flow_back(saved):
    flow, path = saved
    state = torch.get_rng_state()
    again = diffeo.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    x, c = torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(flow(x, c), again(x, c))
    assert again.recipe == ("nsf_ar", {**flow.recipe.arguments, "hidden": [8, 8]})
    assert read_notes(path)["columns"] == ["a", "b", "c"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_float64_and_tensor_arguments_survive(tmp_path):
    adjacency = torch.tensor([[False, False], [True, False]])
    flow = diffeo.maf(2, layers=1, hidden=(4,), adjacency=adjacency).double()
    diffeo.save(flow, tmp_path / "m.safetensors")
    again = diffeo.load(tmp_path / "m.safetensors")
    x = torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(again(x), flow(x))


def test_a_flow_made_by_hand_names_the_decorator(tmp_path):
    with pytest.raises(ValueError, match=r"@diffeo\.recipe"):
        diffeo.save(diffeo.Flow(diffeo.Permute(torch.tensor([0])), diffeo.Normal(1)), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_ones_own_recipe_is_saved_and_loaded(tmp_path):
    @diffeo.recipe
    def heavy(features, df=4.0):
        return diffeo.Flow(diffeo.Standardize(features), diffeo.StudentT(features, df))

    diffeo.save(heavy(2, df=3.0), tmp_path / "m.safetensors")
    assert diffeo.load(tmp_path / "m.safetensors").recipe.arguments == {"features": 2, "df": 3.0}

    def maf(features):
        return heavy(features)

    with pytest.raises(ValueError, match="is taken"):
        diffeo.recipe(maf)


def test_missing_and_unknown(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="no such file"):
        diffeo.load(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="directory"):
        diffeo.load(tmp_path)
    tensors = {"a": torch.zeros(1)}
    header = {"format": "diffeo", "format_version": "1", "recipe": "strange", "arguments": "{}", "notes": "{}"}
    write_tensors(tmp_path / "s.safetensors", tensors, {**header, "diffeo": "0", "torch": "0"})
    with pytest.raises(ValueError, match="recipe 'strange', which is not registered"):
        diffeo.load(tmp_path / "s.safetensors")


def test_truncated_altered_foreign_and_newer(tmp_path, saved):
    _, path = saved
    raw = path.read_bytes()
    bad = tmp_path / "bad.safetensors"
    for cut in (0, 5, 200, len(raw) - 10):
        bad.write_bytes(raw[:cut])
        with pytest.raises(ValueError, match="not a model file, or truncated"):
            diffeo.load(bad)
    altered = bytearray(raw)
    altered[-3] ^= 1
    bad.write_bytes(altered)
    with pytest.raises(ValueError, match="checksum"):
        diffeo.load(bad)
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"]["notes"] = '{"columns": ["x"]}'
    text = json.dumps(header).encode()
    bad.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
    with pytest.raises(ValueError, match="checksum"):
        diffeo.load(bad)
    header["__metadata__"]["format_version"] = "99"
    text = json.dumps(header).encode()
    bad.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
    with pytest.raises(ValueError, match="upgrade diffeo"):
        diffeo.load(bad)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, bad)
    with pytest.raises(ValueError, match="not one that diffeo wrote"):
        diffeo.load(bad)
    torch.save({"a": torch.zeros(2)}, bad)
    with pytest.raises(ValueError, match="not a model file"):
        diffeo.load(bad)


def test_a_flow_changed_after_its_recipe_is_not_saved(tmp_path):
    flow = diffeo.maf(2, layers=1)
    flow.transform.parts[1].univariate = diffeo.SinhArcsinh()
    with pytest.raises(ValueError, match="was changed after the recipe"):
        diffeo.save(flow, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="name every argument"):
        diffeo.recipe(lambda **options: diffeo.maf(2, **options))


def test_tails_are_read_off_the_training_rows():
    """Two degrees of freedom on one side of each column, a normal's tail on the other: λ is 1/2 on the first."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(20_000, 2, generator=generator, dtype=torch.float64)
    heavy = (2 * u - 1) / (2 * u * (1 - u)).sqrt()
    normal = torch.randn(20_000, 2, generator=generator)
    x = torch.where(heavy > 0, heavy.float(), -normal.abs()) * torch.tensor([1.0, -1000.0])
    flow = diffeo.ttf(2, layers=1)
    flow.initialize(x)
    theta = flow.transform.parts[1].theta.detach()
    right, left = (0.1 * (3 * torch.tanh(theta[:, i] / 3)).exp() for i in (2, 3))
    torch.testing.assert_close(torch.stack([right[0], left[1]]), torch.full((2,), 0.5), rtol=0.2, atol=0)
    assert max(left[0], right[1]) < 0.1
    drawn = flow.sample(200_000, generator=generator)[:, 0]  # an untrained flow has these tails
    exact = 0.5 * (1 - 30 / (30**2 + 2) ** 0.5)
    assert 0.5 < (drawn > 30).float().mean() / exact < 2
    assert (drawn < -10).float().mean() < 1e-4
    assert flow(x.mul(1e6)).isfinite().all()


def test_ties_at_the_ends_are_no_tails():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, 1, generator=generator)
    for x in (normal.clamp(-2, 2), normal.round(), normal.clamp_min(0)):
        flow = diffeo.ttf(1, layers=1)
        flow.initialize(x + 0.0)
        theta = flow.transform.parts[1].theta.detach()
        assert (0.1 * (3 * torch.tanh(theta[:, 2:] / 3)).exp()).max() < 0.1


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


def test_unknown_scalar_maps_are_named():
    with pytest.raises(ValueError, match="unknown scalar map 'Exp'; there are Affine"):
        diffeo.coupling_flow(2, univariate="Exp")
    with pytest.raises(ValueError, match=r"Bernstein: .*unexpected keyword"):
        diffeo.autoregressive_flow(2, univariate="Bernstein", univariate_options={"bins": 3})

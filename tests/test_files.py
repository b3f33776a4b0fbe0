"""Model files: what comes back, and every way in which a file may be wrong."""

from __future__ import annotations

import json
import struct

import pytest
import torch

import diffeo
from diffeo.recipes import read_notes
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

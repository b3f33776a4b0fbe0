"""Fits of several processes: the same weights as one, the same decisions in each, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric.strategies import DataParallelStrategy

import diffeo
from fit_worker import data, run_two, run_worker


def small():
    return diffeo.maf(2, layers=2, hidden=(16,))


def distance(a, b):
    return max((a[k] - b[k]).abs().max() for k in a if a[k].is_floating_point())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_two_processes_agree_with_one_and_resume(tmp_path, strategy):
    single = run_worker("several", tmp_path / "1.pt", "auto", tmp_path / "1", "go")
    run_two("several", tmp_path / "2.pt", strategy, tmp_path / "2", "go")
    run_two("several", tmp_path / "never.pt", strategy, tmp_path / "3", "stop")
    assert single.wait(200) == 0
    assert not (tmp_path / "never.pt").exists()
    run_two("several", tmp_path / "3.pt", strategy, tmp_path / "3", "go")
    one, two, resumed = (torch.load(tmp_path / name, weights_only=True) for name in ("1.pt", "2.pt", "3.pt"))
    assert one["steps"] == two["steps"] == resumed["steps"] == 120
    assert resumed["resumed_steps"] == 65
    assert distance(one["state"], two["state"]) < 1e-8
    assert distance(two["state"], resumed["state"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
@pytest.mark.parametrize("kind", ["sentences", "digits"])
def test_examples_of_other_lengths_and_dicts_of_contexts(kind, strategy, tmp_path):
    single = run_worker("ragged", tmp_path / "one", kind, "auto", tmp_path / "1", "go")
    run_two("ragged", tmp_path / "two", kind, strategy, tmp_path / "2", "go")
    run_two("ragged", tmp_path / "never", kind, strategy, tmp_path / "3", "stop")
    assert single.wait(200) == 0
    run_two("ragged", tmp_path / "again", kind, strategy, tmp_path / "3", "go")
    names = ("one.0", "two.0", "two.1", "again.0")
    one, two, other, resumed = (torch.load(tmp_path / name, weights_only=True) for name in names)
    assert not list(tmp_path.glob("never.*"))
    assert one["steps"] == two["steps"] == resumed["steps"] == 40
    assert resumed["resumed_steps"] == 25
    assert two["losses"] == other["losses"]
    assert distance(two["state"], resumed["state"]) == 0
    if kind == "sentences":  # each process draws the noise of its own pictures
        assert distance(one["state"], two["state"]) < 1e-8


@pytest.mark.slow
def test_two_processes_resume_what_one_began(tmp_path):
    whole = run_worker("several", tmp_path / "1.pt", "auto", tmp_path / "1", "go")
    assert run_worker("several", tmp_path / "never.pt", "auto", tmp_path / "2", "stop").wait(200) == 0
    assert whole.wait(200) == 0
    run_two("several", tmp_path / "2.pt", "fsdp", tmp_path / "2", "go")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("1.pt", "2.pt"))
    assert (two["resumed_steps"], two["steps"]) == (65, 120)
    assert distance(one["state"], two["state"]) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_both_processes_say_where_one_of_them_broke(tmp_path, strategy):
    run_two("broken", tmp_path / "b", strategy)
    for rank in range(2):
        got = torch.load(tmp_path / f"b.{rank}", weights_only=True)
        assert "Explodes" in got["layer"]
        assert 137 in got["rows"]
        assert got["finite"]


@pytest.mark.slow
def test_processes_that_draw_other_numbers_decide_alike(tmp_path):
    continuous = []
    for strategy in ("auto", "fsdp"):
        run_two("noisy", tmp_path / strategy, strategy)
        first, second = (torch.load(tmp_path / f"{strategy}.{rank}", weights_only=True) for rank in range(2))
        assert 0 < first["best"] < first["steps"] < 1000
        assert all(first[name] == second[name] for name in ("best", "steps", "loss"))
        assert all(distance(a, b) == 0 for a, b in zip(first["states"], second["states"], strict=True))
        continuous.append(first["states"][1])
    assert distance(*continuous) < 1e-5


def test_variables_of_other_launchers_do_not_make_several_processes(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert diffeo.fit(small(), data(), steps=2).steps == 2


def test_fits_in_shards_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="precision must be one of 32-true"):
        diffeo.fit(small(), data(), steps=1, strategy="fsdp", precision="16-mixed")
    flow = small()
    flow.transform.memory = "invert"
    with pytest.raises(ValueError, match="memory='store'"):
        diffeo.fit(flow, data(), steps=1, strategy="fsdp")
    with pytest.raises(ValueError, match="path_gradient"):
        diffeo.fit(diffeo.ReverseKL(small(), diffeo.Normal(2), path_gradient=True), 8, steps=1, strategy="fsdp")
    flow = small()
    flow.register_parameter("scale", torch.nn.Parameter(torch.ones(())))
    with pytest.raises(ValueError, match=r"without dimensions: density\.scale"):
        diffeo.fit(flow, data(), steps=1, strategy="fsdp")
    with pytest.raises(ValueError, match="pass 'auto', 'ddp' or 'fsdp'"):
        diffeo.fit(small(), data(), steps=1, strategy=DataParallelStrategy(), accelerator="cpu")


@pytest.mark.slow
def test_shards_of_a_flow_sample_and_invert(tmp_path):
    run_two("fsdp", tmp_path / "f.pt")
    got = torch.load(tmp_path / "f.pt", weights_only=True)
    assert torch.allclose(got["sharded"], got["whole"], atol=1e-6)
    assert torch.allclose(got["inverse"], got["whole_inverse"], atol=1e-6)

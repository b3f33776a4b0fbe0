"""Flows prepared for inference: the same values, from fewer layers."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

import diffeo
from diffeo.testing import perturbed


def _text(frames: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(2, frames, 1, dtype=torch.bool)
    mask[1, frames // 2 :] = False
    durations = torch.tensor([[2, 2, 2], [1, 1, 1]])
    return {"text": torch.tensor([[3, 1, 4], [1, 5, 2]]), "mask": mask, "durations": durations}


FLOWS = {
    "nsf": (lambda: diffeo.nsf(4), torch.randn(32, 4), None),
    "maf": (lambda: diffeo.maf(3), torch.randn(32, 3), None),
    "glow": (lambda: diffeo.glow((1, 8, 8), preset="tiny"), torch.randint(0, 256, (8, 1, 8, 8)), None),
    "glow_tts": (lambda: diffeo.glow_tts(6, 9, preset="tiny"), torch.randn(2, 12, 6), _text(12)),
    "glow_tts, grouped": (lambda: diffeo.glow_tts(6, 9, preset="tiny", grouped=2), torch.randn(2, 12, 6), _text(12)),
    "flow_tts": (lambda: diffeo.flow_tts(6, 9, preset="tiny"), torch.randn(2, 12, 6), _text(12)),
    "waveglow": (
        lambda: diffeo.waveglow(0, 4, preset="tiny"),
        torch.randn(2, 64, 1),
        {"mask": torch.ones(2, 64, 1, dtype=torch.bool)},
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_prepared_flow_gives_the_same_values(name):
    torch.manual_seed(0)
    build, x, context = FLOWS[name]
    flow = build()
    flow.initialize(x, context)
    flow = perturbed(flow).double().eval()
    x = x.double() if x.is_floating_point() else x
    prepared = diffeo.prepare_inference(flow)
    linear = [part for part in prepared.modules() if isinstance(part, diffeo.FixedLinear)]
    factors = (diffeo.LULinear, diffeo.TriangularLinear, diffeo.Whiten)
    assert linear
    assert not [part for part in prepared.modules() if isinstance(part, factors)]
    assert not [part for part in prepared.modules() if isinstance(part, diffeo.Grouped)]
    assert not any(p.requires_grad for p in prepared.parameters())
    found = []
    for density in (flow, prepared):
        torch.manual_seed(1)  # for the noise of integers
        shape = (len(x),)
        with torch.no_grad():
            drawn = density.sample(shape, context, generator=torch.Generator().manual_seed(2))
            found.append((density(x, context), drawn.double()))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-9, atol=1e-9)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("far", [0.0, 1e3, 1e4])
def test_float32_far_from_zero(far):
    """In units whose mean is far beyond their spread, nothing cancels."""
    torch.manual_seed(0)
    x = far + torch.randn(200, 4)
    flow = diffeo.maf(4)
    flow.initialize(x)
    flow = perturbed(flow).eval()
    exact = deepcopy(flow).double()
    with torch.no_grad():
        away = (diffeo.prepare_inference(flow)(x) - exact(x.double())).abs().max()
        assert float(away) < 2 * float((flow(x) - exact(x.double())).abs().max()) + 1e-5


def test_a_prepared_copy_is_whole(tmp_path):
    flow = diffeo.maf(3)
    flow.initialize(torch.randn(50, 3))
    prepared = diffeo.prepare_inference(flow)
    assert not any(part.training for part in prepared.modules())
    assert not isinstance(diffeo.prepare_inference(flow.transform), diffeo.Flow)
    with pytest.raises(ValueError, match="recipe"):
        diffeo.save(prepared, tmp_path / "flow.safetensors")


def test_a_prepared_copy_refuses_to_be_trained():
    flow = diffeo.maf(3)
    flow.initialize(torch.randn(50, 3))
    with pytest.raises(ValueError, match="no weight requires a gradient"):
        diffeo.fit(diffeo.prepare_inference(flow), torch.randn(50, 3), steps=2)


def test_only_neighbours_along_the_same_dim_are_joined():
    chain = diffeo.Chain(
        diffeo.Along(diffeo.LULinear(3), -2, 2),
        diffeo.Along(diffeo.LULinear(4), -1, 2),
        diffeo.Along(diffeo.Permute(torch.tensor([1, 0, 3, 2])), -1, 2),
    )
    prepared = diffeo.prepare_inference(chain)
    assert len(prepared.parts) == 2
    x = torch.randn(5, 3, 4)
    assert torch.allclose(prepared(x)[0], chain(x)[0], atol=1e-6)
    assert torch.allclose(prepared.inverse(x)[1], chain.inverse(x)[1], atol=1e-6)


def test_maps_of_groups_become_one_matrix_where_it_is_small():
    for features, left in ((8, diffeo.FixedLinear), (512, diffeo.Grouped)):
        inner = diffeo.Chain(diffeo.LULinear(4), diffeo.LULinear(4))
        chain = perturbed(diffeo.Chain(diffeo.Grouped(inner, features), diffeo.Permute(torch.arange(features).flip(0))))
        prepared, x = diffeo.prepare_inference(chain), torch.randn(5, features)
        assert isinstance(prepared.parts[0], left)
        assert torch.allclose(prepared(x)[0], chain(x)[0], atol=1e-5)
        assert torch.allclose(prepared.inverse(x)[0], chain.inverse(x)[0], atol=1e-4)


def test_nothing_is_drawn():
    flow = diffeo.glow_tts(6, 9, preset="tiny", dropout=0.5)
    flow.initialize(torch.randn(2, 12, 6), _text(12))
    before = torch.get_rng_state()
    diffeo.prepare_inference(flow)
    assert torch.equal(torch.get_rng_state(), before)


def test_thin_layers_alone_stay():
    chain = diffeo.Chain(diffeo.Permute(torch.tensor([1, 0])), diffeo.Permute(torch.tensor([1, 0])))
    assert len(diffeo.prepare_inference(chain).parts) == 2


def test_a_flow_that_has_seen_no_data_is_refused():
    with pytest.raises(ValueError, match=r"Standardize at '.*' has not seen data; fit first"):
        diffeo.prepare_inference(diffeo.glow_tts(6, 9, preset="tiny"))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(2, 2), "singular"),
        (torch.full((2, 2), torch.nan), "singular, or not finite"),
        (torch.ones(2, 3), "square matrix"),
    ],
)
def test_matrices_without_an_inverse_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        diffeo.FixedLinear(weight)


def test_a_shift_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"shift of shape \(2,\), got \(3,\)"):
        diffeo.FixedLinear(torch.eye(2), torch.zeros(3))

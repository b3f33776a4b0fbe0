"""Couplings of channels whose halves are slices of memory: the same maps as those that pick channels one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import functional_call, stack_module_state

import diffeo
from diffeo.testing import perturbed

HALVES = {"first": [True, True, False, False], "last": [False, False, True, True]}
MASKS = {**HALVES, "none": [False] * 4, "mixed": [True, False, True, False], "three": [True, True, True, False]}


def layer(mask):
    kept = sum(mask)
    net = diffeo.nets.ConvNet(kept, 4 - kept, 2, hidden=4) if kept else diffeo.nets.ConvNet(0, 4, 2, map=("m", 2))
    torch.manual_seed(1)
    return perturbed(diffeo.Coupling(torch.tensor(mask), net, diffeo.Affine(bound=2.0), dim=-3)).double()


@pytest.mark.parametrize("name", MASKS)
def test_slices_and_picked_channels_give_the_same(name):
    coupling = layer(MASKS[name])
    context = {"m": torch.ones(2, 2, 3, 3, dtype=torch.float64)} if name == "none" else None
    picked = copy.deepcopy(coupling)
    picked.slices = False
    assert coupling.slices is (name != "mixed")
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    for direction in ("forward", "inverse"):
        found, wanted = (getattr(c, direction)(x, context) for c in (coupling, picked))
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


def test_a_loaded_mask_is_the_one_that_is_used():
    first, last = (layer(mask) for mask in HALVES.values())
    last.load_state_dict(first.state_dict())
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    assert torch.equal(first(x)[0], last(x)[0])


@torch.no_grad()
@pytest.mark.parametrize("event_ndim", [1, 2])
@pytest.mark.parametrize("how", ["vmap", "compiled", "plain"])
def test_masks_of_an_ensemble_of_frames_may_differ(event_ndim, how):
    def layer(mask):
        net = diffeo.nets.MLP(2, 2, n_params=2) if event_ndim == 1 else diffeo.nets.WaveNet(2, 2, 2, hidden=4)
        return diffeo.testing.perturbed(
            diffeo.Coupling(mask, net, diffeo.Affine(), dim=-1, event_ndim=event_ndim)
        ).double()

    first = torch.tensor([True, True, False, False])
    couplings = [layer(first), layer(~first)]
    x = torch.randn(5, 4, dtype=torch.float64)
    wanted = torch.stack([coupling(x)[0] for coupling in couplings])
    params, buffers = stack_module_state(couplings)

    def one(p, b):
        return functional_call(couplings[0], (p, b), (x,))[0]

    if how == "plain":
        members = [{k: v[i] for k, v in t.items()} for t in (params, buffers) for i in range(2)]
        found = torch.stack([one(members[i], members[2 + i]) for i in range(2)])
    else:
        run = torch.vmap(one)
        found = (torch.compile(run, backend="eager") if how == "compiled" else run)(params, buffers)
    assert torch.allclose(found, wanted)


def test_masks_of_an_ensemble_may_differ():
    couplings = [layer(mask) for mask in HALVES.values()]
    params, buffers = stack_module_state(couplings)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    found = torch.vmap(lambda p, b: functional_call(couplings[0], (p, b), (x,))[0])(params, buffers)
    assert torch.allclose(found, torch.stack([coupling(x)[0] for coupling in couplings]))

"""The table, and fits, on a GPU: the numbers of the CPU. DIFFEO_TEST_DEVICE names another device to try it on."""

from __future__ import annotations

import os

import pytest
import torch

import diffeo
from cases import DENSITIES, TRANSFORMS, doubled

DEVICE = torch.device(os.environ.get("DIFFEO_TEST_DEVICE", "cuda"))
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("there is no GPU here that PyTorch can use", allow_module_level=True)
ACCELERATOR = {"cuda": "gpu"}.get(DEVICE.type, DEVICE.type)


def moved(context, device=DEVICE):
    if isinstance(context, dict):
        return {name: t.to(device) for name, t in context.items()}
    return None if context is None else context.to(device)


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.device.type == DEVICE.type
        torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_give_the_numbers_of_the_cpu(name, direction):
    case = TRANSFORMS[name]
    t = diffeo.testing.perturbed(case.build(0)).double()
    x = case.x().double()
    context = doubled(case.context and case.context())
    x = x if direction == "forward" else t(x, context)[0].detach()
    results = []
    for device in (torch.device("cpu"), DEVICE):
        t = t.to(device)
        value, logdet = getattr(t, direction)(x.to(device), moved(context, device))
        loss = value.sin().sum() + logdet.sum()
        weights = list(t.parameters())
        results.append([value.detach(), logdet.detach(), *(torch.autograd.grad(loss, weights) if weights else [])])
    assert_close(results[1], results[0], 1e-6)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_give_the_numbers_of_the_cpu(name):
    case = DENSITIES[name]
    d = diffeo.testing.perturbed(case.build())
    x = d.sample((8,), case.context, generator=torch.Generator().manual_seed(0))
    expected = d(x, case.context) if d.exact else None
    d, context = d.to(DEVICE), moved(case.context)
    drawn = d.sample((8,), context)
    assert drawn.device.type == DEVICE.type
    assert drawn.shape == x.shape
    if expected is not None:
        assert_close([d(x.to(DEVICE), context).detach()], [expected.detach()], 1e-3)


def rows():
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    return torch.stack([x[:, 0], x[:, 1] + x[:, 0] ** 2], 1)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"compile": True}], ids=str)
@pytest.mark.parametrize("recipe", [diffeo.realnvp, diffeo.nsf_ar], ids=["realnvp", "nsf_ar"])
def test_fits(recipe, options):
    flow = recipe(2, layers=2, hidden=(32, 32))
    result = diffeo.fit(flow, rows(), steps=300, lr=5e-3, accelerator=ACCELERATOR, progress=False, **options)
    assert result.validation_loss < result.history[0]["validation_loss"]
    assert next(flow.parameters()).device.type == "cpu"  # back where it came from
    assert flow.to(DEVICE).sample(5).device.type == DEVICE.type


@pytest.mark.parametrize("memory", ["recompute", "invert"])
def test_memory_policies_give_the_gradients_of_stored_activations(memory):
    torch.manual_seed(0)
    flow = diffeo.testing.perturbed(diffeo.nsf(4, layers=6, hidden=(16,))).double().to(DEVICE)
    x, results = torch.randn(50, 4, dtype=torch.float64, device=DEVICE), []
    for policy in ("store", memory):
        flow.transform.memory = policy
        results.append([g.cpu() for g in torch.autograd.grad(flow(x).sum(), list(flow.parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="shards of a single process are for GPUs")
def test_one_device_may_hold_all_shards():
    flow = diffeo.nsf_ar(2, layers=2, hidden=(32,), components=0)
    result = diffeo.fit(flow, rows(), steps=100, accelerator="gpu", strategy="fsdp", progress=False)
    assert result.steps == 100

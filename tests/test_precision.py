"""Events in float64 go through layers of float32 in float64: only conditioners are narrower. Over the case table."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

import diffeo
from cases import DENSITIES, TRANSFORMS, doubled


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_wide_events_keep_their_digits(name, kernels):
    case = TRANSFORMS[name]
    narrow = diffeo.testing.perturbed(case.build(0)).eval()
    wide = copy.deepcopy(narrow).double()
    x = case.x().double()
    context = None if case.context is None else case.context()
    given = doubled(context) if isinstance(narrow, diffeo.Univariate) else context  # its parameters: the caller's
    with torch.no_grad(), diffeo.compiled_kernels() if kernels else nullcontext():
        z, logdet = narrow(x, given)
        back, logdet_back = narrow.inverse(z, given)
        exact, exact_logdet = wide(x, doubled(context))
        error = (wide.inverse(exact, doubled(context))[0] - x).abs().max()
    assert {t.dtype for t in (z, logdet, back, logdet_back)} == {torch.float64}
    torch.testing.assert_close((z, logdet), (exact, exact_logdet), rtol=1e-4, atol=1e-4)
    assert (back - x).abs().max() <= 10 * error + (1e-12 if narrow.exact_inverse else 1e-8)
    assert (logdet + logdet_back).abs().max() <= (1e-9 if narrow.exact_inverse else 1e-7)


@pytest.mark.parametrize("name", [*TRANSFORMS, *DENSITIES])
def test_everything_is_made_in_the_default_dtype(name):
    """A single buffer of float64 would widen what a file is loaded as, and the results."""
    made = TRANSFORMS[name].build(0) if name in TRANSFORMS else DENSITIES[name].build()
    numbers = [t for t in (*made.parameters(), *made.buffers()) if t.is_floating_point()]
    assert {t.dtype for t in numbers} <= {torch.float32}


@pytest.mark.parametrize("build", [diffeo.nsf, diffeo.maf, diffeo.nsf_ar, diffeo.iaf])
def test_gradients_of_wide_events(build):
    """Of events and weights, in both directions: those of float64."""
    torch.manual_seed(0)
    flow = diffeo.testing.perturbed(build(3)).eval()
    wide = copy.deepcopy(flow).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    for direction in ("forward", "inverse"):
        got = []
        for model in (flow, wide):
            at = x.clone().requires_grad_()
            z, logdet = getattr(model.transform, direction)(at)
            weights = [p for p in model.transform.parameters() if p.requires_grad]
            loss = (z * z.detach()).sum() + logdet.sum()
            at_x, *at_weights = torch.autograd.grad(loss, [at, *weights], allow_unused=True)
            got.append([at_x, *(g.double() for g in at_weights if g is not None)])
        torch.testing.assert_close(*got, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mask", [(5, 3), (4, 5, 3)])
def test_masks_bring_batches(mask):
    torch.manual_seed(0)
    layer = diffeo.testing.perturbed(diffeo.Autoregressive(diffeo.nets.MADE(3, 2), diffeo.Affine()))
    x, context = torch.randn(mask[1:]), {"mask": torch.rand(mask) < 0.7}
    for direction in (layer.forward, layer.inverse):
        narrow, wide = direction(x, context), direction(x.double(), context)
        assert narrow[0].shape == mask
        torch.testing.assert_close(wide, tuple(t.double() for t in narrow), rtol=1e-4, atol=1e-4)
    z, logdet = layer(x.double(), context)
    back, logdet_back = layer.inverse(z, context)
    torch.testing.assert_close((back, -logdet_back), (x.double().expand(mask), logdet), rtol=1e-12, atol=1e-12)


def test_conditioners_of_any_kind_take_wide_events():
    """A function knows no dtype of its own; a net may hold its weights in buffers."""

    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("order", torch.arange(2))
            self.register_buffer("weight", torch.randn(2, 1))

        def forward(self, x, context=None):
            return (x @ self.weight.T).unsqueeze(-2)

    x = torch.randn(6, 2, dtype=torch.float64)
    for net in (lambda x, context: torch.cat([x, x], -1).unsqueeze(-2), Fixed()):
        layer = diffeo.Coupling(torch.tensor([True, False]), net, diffeo.Affine())
        z, _ = layer(x)
        torch.testing.assert_close(layer.inverse(z)[0], x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("build", [diffeo.maf, pytest.param(diffeo.nsf, marks=pytest.mark.slow)])
def test_compiled_layers_leave_wide_events_uncompiled(build):
    torch.manual_seed(0)
    flow = diffeo.testing.perturbed(build(3)).eval()
    x = torch.randn(40, 3, dtype=torch.float64)
    with torch.no_grad():
        z, logdet = flow.transform(x)
        flow.transform.compile()
        flow.compile()
        again, logdet_again = flow.transform(x)
        back, _ = flow.transform.inverse(again)
        compiled = flow.transform(x.float())[0]
    assert torch.equal(again, z)
    assert torch.equal(logdet_again, logdet)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compiled.double(), z, rtol=1e-4, atol=1e-4)

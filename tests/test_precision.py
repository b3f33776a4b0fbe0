"""Events in float64 go through layers of float32 in float64: only conditioners are narrower. Over the case table."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

import diffeo
from cases import TRANSFORMS
from test_masks import _doubled as doubled


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


@pytest.mark.parametrize("build", [diffeo.maf, diffeo.nsf_ar, diffeo.iaf, diffeo.bnaf])
def test_gradients_of_wide_events(build):
    """Where autograd follows the inverse, its steps round as a narrow net does; gradients agree with float64's."""
    torch.manual_seed(0)
    flow = diffeo.testing.perturbed(build(3)).eval()
    wide = copy.deepcopy(flow).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    for direction in ("forward", "inverse"):
        got = []
        for model in (flow, wide):
            at = x.clone().requires_grad_()
            z, logdet = getattr(model.transform, direction)(at)
            got.append(torch.autograd.grad((z * z.detach()).sum() + logdet.sum(), at)[0])
        torch.testing.assert_close(*got, rtol=1e-3, atol=1e-3)


def test_compiled_flows_take_wide_events():
    """Their two directions are two programs, which round in their own ways: digits of float32 are what is promised."""
    torch.manual_seed(0)
    flow = diffeo.testing.perturbed(diffeo.nsf(4)).eval()
    x = torch.randn(40, 4, dtype=torch.float64)
    with torch.no_grad():
        before = flow.transform(x)
        flow.compile()
        after = flow.transform(x)
        back = flow.transform.inverse(after[0])[0]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)

"""Every scalar map over the whole range of its numbers, in both directions and both dtypes."""

import pytest
import torch

import diffeo
from diffeo.transforms import univariate

SIZES = [0.0, 1e-38, 1e-20, 1e-6, 0.3, 0.999, 1.0, 8.0, 30.0, 88.0, 89.0, 200.0, 1e3, 1e6, 1e12, 1e18, 1e30, 1e37]
MAPS = {}
for name in univariate.__all__:
    kind = getattr(univariate, name)
    try:
        made = kind()
    except (TypeError, ValueError):
        continue  # made of other maps, each of which is here
    if isinstance(made, diffeo.Univariate):
        MAPS[name] = made


def parameters(made, n):
    torch.manual_seed(0)
    return 0.3 * torch.randn(n, made.n_params, dtype=torch.float64) if made.n_params else None


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", MAPS)
def test_the_whole_range(name, direction):
    made = MAPS[name]
    space = made.domain if direction == "forward" else made.codomain
    x = torch.tensor([*(-size for size in reversed(SIZES)), *SIZES], dtype=torch.float32)
    x = x[space.check(x)]
    params = parameters(made, len(x))
    results = []
    for dtype in (torch.float32, torch.float64):
        copy = made.double() if dtype == torch.float64 else made.float()
        p = None if params is None else params.to(dtype)
        with torch.no_grad():
            results.append((copy if direction == "forward" else copy.inverse)(x.to(dtype), p))
    (z, logdet), (exact, exact_logdet) = results
    made.float()
    held = exact.abs() < 1e38  # what float32 can hold
    assert not z.isnan().any(), x[z.isnan()]
    assert not logdet[held].isnan().any(), x[held][logdet[held].isnan()]
    off = held & ((z - exact).abs() > 1e-4 * exact.abs() + 1e-6)
    assert not off.any(), (x[off], z[off], exact[off])
    near = held & exact_logdet.isfinite() & (z != 0) & (z.abs() != 1)  # on an edge float32 cannot tell how near it is
    assert ((logdet - exact_logdet).abs() <= 1e-2 * (1 + exact_logdet.abs()))[near].all(), (x[near], logdet[near])


def test_softplus_meets_a_reference():
    x = torch.linspace(-700, 700, 2001, dtype=torch.float64)
    z, logdet = diffeo.Softplus()(x)
    reference = torch.logaddexp(x, torch.zeros_like(x))
    assert torch.allclose(z, reference, rtol=1e-14)
    back, back_logdet = diffeo.Softplus().inverse(z)
    assert torch.allclose(back, x, rtol=1e-12, atol=1e-12)
    assert torch.allclose(back_logdet, -logdet, rtol=1e-9)
    assert torch.equal(diffeo.Softplus()(torch.tensor([89.0, 500.0, 3e38]))[0], torch.tensor([89.0, 500.0, 3e38]))


def test_unconstrain_stays_within_its_interval():
    layer = diffeo.Unconstrain([0.1], [0.7])
    z = torch.linspace(-60, 60, 20001)[:, None]
    x, _ = layer.inverse(z)
    assert (x >= layer.low).all()
    assert (x <= layer.high).all()
    assert layer.domain.check(x).all()

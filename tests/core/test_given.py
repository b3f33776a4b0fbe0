"""`given`: a density with its context as a distribution of PyTorch, and for Pyro."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, TransformedDistribution, transforms

import diffeo


def test_given_is_a_torch_distribution():
    flow = diffeo.realnvp(2, context=3, layers=1)
    c = torch.randn(4, 3)
    d = flow.given(c)
    assert (d.batch_shape, d.event_shape) == ((4,), (2,))
    assert d.sample((5,)).shape == (5, 4, 2)
    assert d.log_prob(torch.zeros(2)).shape == (4,)
    assert torch.allclose(d.log_prob(torch.zeros(4, 2)), flow(torch.zeros(4, 2), c))
    assert d.expand((6, 4)).sample().shape == (6, 4, 2)
    joint = Independent(d, 1)
    assert (joint.batch_shape, joint.event_shape) == ((), (4, 2))
    assert joint.log_prob(joint.sample((3,))).shape == (3,)
    pushed = TransformedDistribution(d, [transforms.ExpTransform()])
    y = pushed.sample((5,))
    assert (y > 0).all()
    assert torch.allclose(pushed.log_prob(y), d.log_prob(y.log()) - y.log().sum(-1), atol=1e-5)
    with pytest.raises(ValueError, match="nan"):
        d.log_prob(torch.full((4, 2), float("nan")))


def test_support_is_declared():
    positive = diffeo.Flow(diffeo.Chain(diffeo.Inverse(diffeo.Exp())), diffeo.Normal(()))
    assert positive.support.check(torch.tensor([-1.0, 1.0])).tolist() == [False, True]
    boxed = diffeo.Flow(diffeo.Exp(), diffeo.Uniform(torch.ones(1), torch.full((1,), 2.0)))
    assert boxed.support.check(torch.tensor([[-1.0], [0.5]])).tolist() == [False, True]


def test_the_encoder_runs_once_for_given():
    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, context):
            self.calls += 1
            return context

    inner = diffeo.realnvp(2, context=1, layers=1)
    encoder = Counting()
    d = diffeo.Flow(inner.transform, inner.base, encoder).given(torch.zeros(1))
    d.sample((2,))
    d.log_prob(torch.zeros(2))
    assert encoder.calls == 1


def test_pyro_fits_a_model_with_a_flow():
    pyro = pytest.importorskip("pyro")
    torch.manual_seed(0)
    flow = diffeo.nsf(2, layers=1, hidden=(8,), components=0)
    d = diffeo.interop.pyro(flow.given())
    assert isinstance(d, pyro.distributions.TorchDistribution)

    def model(y):
        z = pyro.sample("z", d)
        pyro.sample("y", pyro.distributions.Normal(z.sum(-1), 0.1), obs=y)

    guide = pyro.infer.autoguide.AutoDiagonalNormal(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    y = torch.tensor(2.0)
    losses = [svi.step(y) for _ in range(150)]
    assert sum(losses[-20:]) < sum(losses[:20])
    z = guide.median()["z"]
    assert float(z.sum()) == pytest.approx(2.0, abs=0.3)
    assert d.expand((3,)).sample().shape == (3, 2)

"""Flows: how they start, shapes of samples, temperature, contexts, masks, and what they refuse."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.nets import MADE, MLP


def coupling(features=4, context=0):
    mask = torch.arange(features) % 2 == 0
    net = MLP(int(mask.sum()), int((~mask).sum()), n_params=2, context=context, hidden=(8,))
    return diffeo.Coupling(mask, net, diffeo.Affine())


def test_a_flow_refuses_a_base_of_another_shape():
    with pytest.raises(ValueError, match="the base Normal has"):
        diffeo.Flow(coupling(4), diffeo.Normal(3))


def test_log_dets_are_float32_under_autocast():
    layer = coupling(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, logdet = layer(torch.randn(5, 4))
    assert z.dtype == torch.float32
    assert logdet.dtype == torch.float32


def test_calling_a_flow_is_its_log_density():
    flow = diffeo.realnvp(3, layers=2)
    x = torch.randn(5, 3)
    assert torch.equal(flow(x), flow.log_prob(x))


def test_nan_in_is_nan_out():
    for recipe in (diffeo.nsf, diffeo.nsf_ar, diffeo.realnvp):
        assert recipe(3, layers=1)(torch.tensor([[0.0, float("nan"), 1.0]])).isnan().all()
    assert diffeo.Uniform(0.0, 1.0)(torch.tensor(float("nan"))).isnan()


@pytest.mark.parametrize("recipe", [diffeo.nice, diffeo.realnvp, diffeo.maf, diffeo.iaf, diffeo.nsf, diffeo.nsf_ar])
@pytest.mark.parametrize("features", [1, 2, 5])
def test_flows_start_as_the_identity(recipe, features):
    transform = recipe(features).transform
    x = 3 * torch.randn(20, features)
    z, logdet = transform(x)
    assert torch.allclose(z, x, atol=1e-5)
    assert torch.allclose(logdet, torch.zeros(20), atol=1e-5)


def test_an_initialised_flow_is_the_fitted_gaussian():
    x = torch.randn(5000, 3) @ torch.randn(3, 3) + 2
    flow = diffeo.maf(3)
    flow.initialize(x)
    expected = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    assert torch.allclose(flow(x[:50]), expected.log_prob(x[:50]), atol=0.1)


def test_initialize_runs_once():
    flow = diffeo.Flow(diffeo.ActNorm(2), diffeo.Normal(2))
    flow.initialize(torch.randn(100, 2))
    kept = flow.transform.bias.clone()
    flow.initialize(torch.randn(100, 2) + 9)
    assert torch.equal(flow.transform.bias, kept)
    reloaded = diffeo.Flow(diffeo.ActNorm(2), diffeo.Normal(2))
    reloaded.load_state_dict(flow.state_dict())
    reloaded.initialize(torch.randn(100, 2) + 9)
    assert torch.equal(reloaded.transform.bias, kept)


def test_sample_shapes_and_contexts():
    flow = diffeo.realnvp(2, context=3, layers=1)
    c = torch.randn(4, 3)
    assert flow.sample((), c[0]).shape == (2,)
    assert flow.sample(5, c[0]).shape == (5, 2)
    assert flow.sample((5, 4), c).shape == (5, 4, 2)
    with pytest.raises(ValueError, match=r"use \(3, 4\), or given\(c\)"):
        flow.sample((3,), c)
    with pytest.raises(ValueError, match="expected a context with 3 features, got none"):
        flow.sample((3,))
    with pytest.raises(ValueError, match="expected a context with 3 features, got shape"):
        flow(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="temperature"):
        flow.sample(3, c[0], temperature=-1.0)


def test_temperature_scales_the_base_and_zero_is_its_mode():
    flow = diffeo.realnvp(2, layers=1)
    cold = flow.sample((3,), temperature=0.0)
    assert torch.allclose(cold, flow.transform.inverse(torch.zeros(3, 2))[0])
    warm, hot = (flow.sample(4000, temperature=t).std() for t in (0.5, 1.0))
    assert float(warm / hot) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="leave the box"):
        diffeo.Uniform(0.0, 1.0).sample(3, temperature=2.0)


def test_masks_leave_positions_alone_and_out_of_the_density():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    context = {"mask": mask}
    x = torch.randn(2, 3)
    theta = diffeo.Elementwise(diffeo.Affine(), 3)
    torch.nn.init.normal_(theta.theta)
    net = MADE(3, 2, hidden=(8,))
    for p in net.parameters():
        torch.nn.init.normal_(p)
    chain = diffeo.Chain(theta, diffeo.Autoregressive(net, diffeo.Affine()))
    z, logdet = chain(x, context)
    assert torch.equal(z[~mask], x[~mask])
    back, minus = chain.inverse(z, context)
    assert torch.allclose(back, x, atol=1e-5)
    assert torch.allclose(minus, -logdet, atol=1e-5)
    short, _ = theta(x[1:])
    assert torch.allclose(chain.parts[0](x, context)[1][1], theta.theta[0, 1].div(4).tanh() * 4)
    assert torch.allclose(z[1, 0], chain.parts[1](short)[0][0, 0], atol=1e-5)
    base = diffeo.Normal(3)
    assert torch.allclose(base(x, context)[1], diffeo.Normal(1)(x[1, :1]))
    assert (base.sample((2,), context)[~mask] == 0).all()
    rows = {"mask": torch.tensor([[True], [False]])}
    linear = diffeo.LULinear(3)
    torch.nn.init.normal_(linear.weight)
    z, logdet = linear(x, rows)
    assert torch.equal(z[1], x[1])
    assert logdet[1] == 0
    with pytest.raises(ValueError, match="leaves out a part of one"):
        linear(x, context)


@pytest.mark.parametrize(
    "recipe", [diffeo.realnvp, diffeo.nsf, diffeo.maf, diffeo.nsf_ar, diffeo.gaussian, diffeo.nice]
)
def test_a_context_may_have_more_batch_dims_than_x(recipe):
    flow = recipe(3, context=2)
    x, c = torch.randn(3), torch.randn(5, 2)
    assert flow(x, c).shape == (5,)
    assert torch.allclose(flow(x, c), flow(x.expand(5, 3), c), atol=1e-5)
    assert diffeo.Dequantized(flow)(x.round(), c).shape == (5,)
    assert flow.given(c).log_prob(x).shape == (5,)


def test_padding_does_not_change_the_density():
    mask = torch.tensor([False, True, True])
    for layer in (
        diffeo.Autoregressive(MADE(3, 2, hidden=(8,)), diffeo.Affine()),
        diffeo.Coupling(torch.tensor([True, False, True]), MLP(2, 1, n_params=2, hidden=(8,)), diffeo.Affine()),
    ):
        for p in layer.parameters():
            torch.nn.init.normal_(p)
        flow = diffeo.Flow(diffeo.Chain(diffeo.LeakyReLU(), layer), diffeo.Normal(3))
        x = torch.randn(3)
        padded = torch.where(mask, x, torch.tensor(77.0))
        assert torch.allclose(flow(x, {"mask": mask}), flow(padded, {"mask": mask}))
        z, logdet = flow.transform(padded, {"mask": mask})
        back, minus = flow.transform.inverse(z, {"mask": mask})
        assert torch.allclose(back, padded, atol=1e-5)
        assert torch.allclose(logdet, -minus, atol=1e-5)


def test_a_base_that_covers_more_than_the_transform_reaches_is_refused():
    with pytest.raises(ValueError, match="swap the map with Inverse"):
        diffeo.Flow(diffeo.Exp(), diffeo.Normal(1))


def test_flows_refuse_arrays_and_other_precisions_and_trace():
    flow = diffeo.nsf_ar(3, layers=1, context=2)
    x, c = torch.randn(4, 3), torch.randn(4, 2)
    with pytest.raises(ValueError, match="expected a tensor, got ndarray"):
        flow(x.numpy(), c)
    with pytest.raises(ValueError, match=r"use x\.float\(\) or flow\.double\(\)"):
        flow(x.double(), c)
    assert flow.double()(x.double(), c.double()).dtype == torch.float64
    flow = flow.float()
    traced = torch.compile(flow, fullgraph=True, backend="eager")
    assert torch.allclose(traced(x, c), flow(x, c))

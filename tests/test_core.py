"""The protocol's words: composition, shapes, contexts, masks, distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, TransformedDistribution, transforms

import diffeo
from diffeo.nets import MADE, MLP


def coupling(features=4, context=0):
    mask = torch.arange(features) % 2 == 0
    net = MLP(int(mask.sum()), int((~mask).sum()), n_params=2, context=context, hidden=(8,))
    return diffeo.Coupling(mask, net, diffeo.Affine())


def test_chain_refuses_a_bare_parameterised_univariate():
    with pytest.raises(ValueError, match=r"Affine 2 of 2 needs 2 parameters.*Elementwise, Coupling or Autoregressive"):
        diffeo.Chain(diffeo.Exp(), diffeo.Affine())


def test_chain_refuses_neighbours_that_cannot_meet_and_names_both():
    with pytest.raises(ValueError, match=r"Coupling 1 of 2 gives events of shape \(4,\), but LULinear 2 of 2 expects"):
        diffeo.Chain(coupling(4), diffeo.LULinear(5))


def test_chain_says_which_layer_expected_what():
    chain = diffeo.Chain(diffeo.LeakyReLU(), coupling(6))
    with pytest.raises(ValueError, match=r"Coupling 2 of 2: expected 6 features, got x with shape \(32, 5\)"):
        chain(torch.zeros(32, 5))
    with pytest.raises(ValueError, match="floating-point"):
        chain(torch.zeros(32, 6, dtype=torch.long))


def test_chain_folds_log_dets_of_smaller_events():
    chain = diffeo.Chain(diffeo.Exp(), coupling(4))
    assert (chain.event_ndim, chain.event_ndim_out) == (1, 1)
    x = torch.randn(7, 4)
    assert torch.allclose(chain(x)[1], x.sum(-1))


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


def test_rsample_carries_a_gradient_and_sample_does_not():
    flow = diffeo.iaf(2, layers=1)
    x, log_p = flow.sample_and_log_prob((5,))
    assert x.requires_grad
    assert log_p.requires_grad
    assert flow.rsample((5,)).requires_grad
    assert not flow.sample((5,)).requires_grad
    with pytest.raises(ValueError, match="no reparameterised samples"):
        diffeo.nsf(2).rsample((5,))


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
    with pytest.raises(ValueError, match="last dim 1"):
        linear(x, context)


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


def test_kl_monte_carlo():
    p, q = diffeo.Normal(1), diffeo.DiagonalNormal(1)
    torch.nn.init.constant_(q.loc, 1.0)
    estimate, error = diffeo.kl_monte_carlo(p, q, 20_000)
    assert float(estimate) == pytest.approx(0.5, abs=5 * float(error))
    with pytest.raises(ValueError, match="at least 2"):
        diffeo.kl_monte_carlo(p, q, 1)


def test_dequantized_bounds_tighten_and_image_shapes_pass():
    flow = diffeo.realnvp(2, layers=1)
    d = diffeo.Dequantized(flow)
    x = torch.tensor([[0, 1], [2, -1]])
    g = torch.Generator()
    one = torch.stack([d.log_prob(x, generator=g.manual_seed(i)) for i in range(300)]).mean(0)
    many = d.log_prob(x, samples=300, generator=g.manual_seed(0))
    assert (many >= one - 1e-2).all()
    assert not d.exact
    assert d.transform is flow.transform
    assert d.sample((4,)).dtype == torch.long
    grid = diffeo.Dequantized(flow, spacing=0.25)
    s = grid.sample((50,))
    assert torch.allclose(s / 0.25, (s / 0.25).round(), atol=1e-5)
    with pytest.raises(ValueError, match="no Flow"):
        _ = diffeo.Dequantized(diffeo.Normal(1)).base


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


def test_bases_check_the_event():
    for base in (diffeo.Normal(2), diffeo.DiagonalNormal(2), diffeo.StudentT(2), diffeo.GaussianMixture(2, 2)):
        with pytest.raises(ValueError, match="expected 2 features"):
            base(torch.zeros(5, 1))


def test_samples_without_reparameterisation_carry_no_gradient_at_all():
    x, log_p = diffeo.nsf(2).sample_and_log_prob((4,))
    assert not x.requires_grad
    assert log_p.requires_grad


def test_a_mixture_does_not_depend_on_units():
    x = torch.cat([torch.randn(500, 2), 0.3 * torch.randn(500, 2) + 5])
    scores = []
    for unit in (1e-4, 1.0, 1e5):
        mixture = diffeo.GaussianMixture(2, components=4)
        mixture.initialize(x * unit)
        scores.append(mixture(x * unit).mean().item() + 2 * torch.tensor(unit).log().item())
    assert max(scores) - min(scores) < 0.01


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


def test_maps_without_parameters_need_no_start():
    layer = diffeo.Elementwise(diffeo.Softplus(), 3)
    layer.initialize(torch.rand(100, 3))
    assert layer.theta.shape == (3, 0)

"""Flow matching and the regularisers of continuous flows."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.solvers import Integrator
from diffeo.testing import perturbed


def layer(features=2, **options):
    torch.manual_seed(0)
    field = diffeo.nets.VectorField(features, hidden=(16, 16))
    return perturbed(diffeo.Continuous(field, **options))


X = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("coupling", "options"), [("independent", {"steps": 700, "lr": 4e-3}), ("transport", {"steps": 400, "lr": 4e-3})]
)
def test_flow_matching_learns_a_density(coupling, options):
    target = diffeo.targets.Mixture(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), 0.5)
    x = target.sample(3000, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    flow = diffeo.ffjord(2, hidden=(64, 64))
    diffeo.fit(diffeo.FlowMatching(flow, coupling), x, progress=False, **options)
    test = target.sample(1000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert float((target(test) - flow(test)).mean()) < 0.15
    samples = flow.sample(1000, generator=torch.Generator().manual_seed(2))
    assert float(target(samples).mean()) > float(target(test).mean()) - 1.0


def test_optimal_transport_makes_paths_straighter():
    target = diffeo.targets.Mixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.3)
    x = target.sample(2000, generator=torch.Generator().manual_seed(0))
    losses = {}
    for coupling in ("independent", "transport"):
        torch.manual_seed(0)
        flow = diffeo.ffjord(2, hidden=(32, 32))
        losses[coupling] = diffeo.fit(diffeo.FlowMatching(flow, coupling), x, steps=300, progress=False).validation_loss
    assert losses["transport"] < 0.5 * losses["independent"]


def test_regularisers_cost_what_they_say():
    flow = diffeo.ffjord(2, hidden=(16, 16), method="rk4", steps=16)
    flow = perturbed(flow)
    t = flow.transform.parts[-1]
    x = flow.transform.parts[0](X)[0]
    z, logdet, kinetic, jacobian = t.with_costs(x)
    assert torch.allclose(z, t(x)[0], atol=1e-6)
    assert torch.allclose(logdet, t(x)[1], atol=1e-6)
    assert (kinetic > 0).all()
    assert (jacobian > 0).all()
    # the squared distance covered is at most the kinetic cost
    assert ((z - x).square().sum(-1) <= kinetic * 1.001).all()
    plain = diffeo.RegularizedLikelihood(flow, 0.0, 0.0).train()
    costly = diffeo.RegularizedLikelihood(flow, 10.0, 0.0).train()
    assert torch.allclose(plain(X), -flow(X), atol=1e-5)
    assert torch.allclose(costly(X) - plain(X), 10 * kinetic, rtol=1e-3)
    assert torch.allclose(costly.eval()(X), -flow(X))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Integrator("rk5"), "method must be one of"),
        (lambda: Integrator(rtol=0.0), "rtol > 0"),
        (lambda: layer(trace="maybe"), "trace must be one of"),
        (lambda: diffeo.FlowMatching(diffeo.maf(2)), "no Continuous layer"),
        (lambda: diffeo.FlowMatching(diffeo.ffjord(2), "optimal"), "coupling must be one of"),
        (lambda: diffeo.RegularizedLikelihood(diffeo.Normal(2)), "expected a Flow"),
        (lambda: diffeo.RegularizedLikelihood(diffeo.ffjord(2), -1.0), "expected weights >= 0"),
    ],
)
def test_wrong_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_squared_errors_are_not_called_nats():
    flow = diffeo.ffjord(2, hidden=(8,))
    result = diffeo.fit(diffeo.FlowMatching(flow), X.repeat(8, 1), steps=3, progress=False)
    assert result.validation_nats is None
    assert "nats" not in str(result)
    assert f"loss {result.validation_loss:.4g}" in str(result)
    assert result.plot().get_ylabel() == "loss per row"


def test_transport_would_mix_contexts():
    flow = diffeo.ffjord(2, context=1, hidden=(8,))
    with pytest.raises(ValueError, match="would mix the contexts"):
        diffeo.FlowMatching(flow, "transport")(X, torch.zeros(16, 1))


def test_flow_matching_does_not_shrink_the_data():
    torch.manual_seed(0)
    linear = diffeo.LULinear(2)
    field = diffeo.nets.VectorField(2, hidden=(8,))
    flow = diffeo.Flow(diffeo.Chain(linear, diffeo.Continuous(field)), diffeo.Normal(2))
    diffeo.FlowMatching(flow)(X).mean().backward()
    assert linear.weight.grad is None
    assert field.layers[-1].weight.grad is not None


def test_flow_matching_passes_the_context_to_the_base():
    base = diffeo.ConditionalNormal(2, context=3)
    flow = diffeo.Flow(diffeo.Continuous(diffeo.nets.VectorField(2, context=3, hidden=(8,))), base)
    assert diffeo.FlowMatching(flow)(X, torch.eye(3)[[0] * 16]).shape == (16,)


def test_regularised_losses_fold_the_log_dets_of_scalars():
    flow = diffeo.Flow(
        diffeo.Chain(diffeo.LeakyReLU(), diffeo.Continuous(diffeo.nets.VectorField(2, hidden=(8,)))), diffeo.Normal(2)
    )
    loss = diffeo.RegularizedLikelihood(flow, 0.0, 0.0).train()(X)
    assert torch.allclose(loss, -flow(X), atol=1e-5)


def test_what_a_compiler_cannot_follow_is_not_compiled():
    flow = diffeo.ffjord(2, hidden=(8,), method="euler", steps=2)
    assert not diffeo.fit(flow, X.repeat(8, 1), steps=3, compile=True, progress=False).compiled

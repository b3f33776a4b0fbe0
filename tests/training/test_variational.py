"""Flows fitted to densities known up to a constant."""

from __future__ import annotations

import math

import pytest
import torch

import diffeo


def shifted(x):
    """A normal with mean (1, −2), scales (0.5, 2) and log Z = 3."""
    z = (x - torch.tensor([1.0, -2.0])) / torch.tensor([0.5, 2.0])
    return -0.5 * z.square().sum(-1) - math.log(2 * math.pi) + 3


def affine_flow():
    torch.manual_seed(0)
    return diffeo.Flow(diffeo.Elementwise(diffeo.Affine(), 2), diffeo.Normal(2))


OBJECTIVES = {
    "reverse": lambda flow: diffeo.ReverseKL(flow, shifted),
    "path gradient": lambda flow: diffeo.ReverseKL(flow, shifted, path_gradient=True),
    "forward": lambda flow: diffeo.ForwardKL(flow, shifted, diffeo.StudentT(2, df=3.0)),
    "Rényi": lambda flow: diffeo.RenyiBound(flow, shifted, alpha=0.5, samples=4),
    "importance-weighted": lambda flow: diffeo.importance_weighted_bound(flow, shifted, samples=4),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_finds_a_gaussian(name):
    flow = affine_flow()
    result = diffeo.fit(OBJECTIVES[name](flow), 256, steps=900, lr=2e-2, progress=False)
    x = flow.sample(4000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(x.mean(0), torch.tensor([1.0, -2.0]), atol=0.15)
    assert torch.allclose(x.std(0), torch.tensor([0.5, 2.0]), rtol=0.1)
    assert result.effective_sample_size > 0.95
    assert result.log_normalizer == pytest.approx(3 + math.log(0.5 * 2.0), abs=0.02)


def test_path_gradients_vanish_at_the_target():
    flow = affine_flow()
    noise = torch.zeros(64, 0)
    for path, smallest, largest in [(True, 0.0, 1e-5), (False, 1e-2, 10.0)]:
        flow.zero_grad()
        diffeo.ReverseKL(flow, diffeo.Normal(2), path_gradient=path)(noise).mean().backward()
        norm = max(float(p.grad.abs().max()) for p in flow.parameters())
        assert smallest <= norm <= largest


def test_bounds_tighten_with_samples_and_meet_the_reverse_kl():
    flow = affine_flow().eval()
    rows = torch.zeros(20_000, 0)
    with torch.no_grad():
        elbo = float(diffeo.ReverseKL(flow, shifted).eval()(rows).mean())
        one = float(diffeo.RenyiBound(flow, shifted, 1.0, samples=3).eval()(rows).mean())
        bounds = [float(diffeo.importance_weighted_bound(flow, shifted, k).eval()(rows).mean()) for k in (1, 4, 16)]
    assert one == pytest.approx(elbo, rel=0.05)
    assert bounds[0] == pytest.approx(elbo, rel=0.05)
    assert bounds[0] > bounds[1] > bounds[2] > -3


def test_a_target_with_weights_is_not_trained():
    target = diffeo.DiagonalNormal(2)
    flow = affine_flow()
    diffeo.fit(diffeo.ReverseKL(flow, target), 32, steps=5, progress=False)
    assert all((p == 0).all() for p in target.parameters())
    assert all(p.requires_grad for p in target.parameters())


def test_fits_reproduce_and_resume(tmp_path):
    once, twice = affine_flow(), affine_flow()
    first = diffeo.fit(diffeo.ReverseKL(once, shifted), 64, steps=300, progress=False)
    diffeo.fit(diffeo.ReverseKL(twice, shifted), 64, steps=300, checkpoint=tmp_path, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))
    again = diffeo.fit(
        diffeo.ReverseKL(affine_flow(), shifted), 64, steps=300, checkpoint=tmp_path, resume=True, progress=False
    )
    assert again.effective_sample_size == pytest.approx(first.effective_sample_size, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.randn(5, 2)}, "the number of samples of a step, got Tensor"),
        ({"x": 0}, "the number of samples"),
        ({"x": 16, "context": torch.zeros(16, 1)}, "draws its own rows"),
        ({"x": 16, "batch_size": 4}, "draws its own rows"),
        ({"x": 16, "validation": torch.zeros(3, 2)}, "validation must be a number"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        diffeo.fit(diffeo.ReverseKL(affine_flow(), shifted), **arguments)


def test_wrong_targets_and_flows_are_refused():
    with pytest.raises(ValueError, match=r"one log-density for each row; got shape \(4, 2\)"):
        diffeo.ReverseKL(affine_flow(), lambda x: -(x**2))(torch.zeros(4, 0))
    with pytest.raises(ValueError, match="no reparameterised samples"):
        diffeo.ReverseKL(diffeo.nsf(2), shifted)
    with pytest.raises(ValueError, match="expected rows to train on, got 100"):
        diffeo.fit(diffeo.maf(2), 100)


def test_forward_kl_is_scored_by_what_it_is_to_cover():
    """A flow that starts far too narrow must not look best."""
    target = diffeo.targets.Mixture(torch.zeros(1, 2), 20.0)
    flow = affine_flow()
    proposal = diffeo.targets.Mixture(torch.zeros(1, 2), 30.0)
    diffeo.fit(diffeo.ForwardKL(flow, target, proposal), 256, steps=1500, lr=2e-2, progress=False)
    scale = flow.sample(2000, generator=torch.Generator().manual_seed(0)).std(0)
    assert torch.allclose(scale, torch.full((2,), 20.0), rtol=0.15)


def test_what_is_not_trained_stays_in_evaluation():
    target = diffeo.Flow(diffeo.Elementwise(diffeo.Affine(), 2), diffeo.Normal(2))
    objective = diffeo.ForwardKL(affine_flow(), target, diffeo.Normal(2)).train()
    assert objective.flow.training
    assert not objective.target.training
    assert not objective.proposal.training


def test_layers_set_by_data_are_not_set_anew_after_a_fit_without_data():
    flow = diffeo.realnvp(2, layers=1, hidden=(8,))
    diffeo.fit(diffeo.ReverseKL(flow, shifted), 64, steps=50, progress=False)
    x = flow.sample(500)
    before = flow(x[:5]).detach()
    flow.initialize(x)
    assert torch.equal(flow(x[:5]), before)

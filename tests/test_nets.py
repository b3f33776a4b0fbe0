"""Networks: who sees whom in a MADE, and each hidden unit computed once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import diffeo
from diffeo.kernels import spline_arithmetic as spline_kernel
from diffeo.nets import MADE, MLP, PiecewiseLinear
from diffeo.nets.lipschitz import singular_bound
from diffeo.testing import perturbed


def sees(net: MADE) -> torch.Tensor:
    """(D, D): whether the parameters of coordinate i react to coordinate j."""
    x = torch.randn(net.features, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(perturbed(net).double(), x)
    by_position = jacobian.reshape(net.features, net.n_params, net.features).abs().sum(1) > 0
    return by_position[net.order.argsort()]


@pytest.mark.parametrize("residual", [False, True])
def test_order_decides_who_sees_whom(residual):
    order = torch.tensor([2, 0, 3, 1])
    seen = sees(MADE(4, 3, hidden=(32, 32), order=order, residual=residual))
    rank = order.argsort()
    assert torch.equal(seen, rank[:, None] > rank[None, :])


def test_adjacency_decides_who_sees_whom():
    adjacency = torch.zeros(5, 5, dtype=torch.bool)
    adjacency[0, 3] = adjacency[1, 0] = adjacency[1, 3] = adjacency[4, 2] = True
    assert torch.equal(sees(MADE(5, 2, hidden=(40, 40), adjacency=adjacency)), adjacency)


def test_bad_structures_are_refused():
    with pytest.raises(ValueError, match="order of 0 … 2"):
        MADE(3, 2, order=[0, 0, 1])
    cycle = torch.tensor([[0, 1], [1, 0]], dtype=torch.bool)
    with pytest.raises(ValueError, match=r"acyclic, but coordinates \[0, 1\]"):
        MADE(2, 2, adjacency=cycle)
    with pytest.raises(ValueError, match="equal widths"):
        MLP(3, 2, hidden=(8, 16), residual=True)
    with pytest.raises(ValueError, match="nothing is transformed"):
        diffeo.Coupling(torch.tensor([True]), MLP(1, 1, n_params=2), diffeo.Affine())


def full_passes(layer: diffeo.Autoregressive, z: torch.Tensor, context=None) -> torch.Tensor:
    """The inverse by D passes of the whole net."""
    x = z.clone()
    for position, d in enumerate(layer.net.order.tolist()):
        params = layer.net(x, context)
        x[..., d] = layer.univariate.inverse(z[..., d], params[..., position, :])[0]
    return x


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_inverse_agrees_with_full_passes(residual, grad):
    spline = diffeo.RationalQuadraticSpline()
    net = MADE(16, spline.n_params, context=3, hidden=(64, 64), order=torch.randperm(16), residual=residual)
    layer = perturbed(diffeo.Autoregressive(net, spline))
    z, c = torch.randn(50, 16), torch.randn(50, 3)
    with torch.no_grad():
        expected = full_passes(layer, z, c)
    with torch.set_grad_enabled(grad):
        got = layer.inverse(z, c)[0]
    assert torch.allclose(got, expected, atol=1e-5)


def test_each_hidden_unit_is_computed_once():
    net = MADE(64, 2, hidden=(256, 256))
    layer = diffeo.Autoregressive(net, diffeo.Affine())
    rows = []
    original = net.activation.forward

    def counting(h):
        rows.append(len(h))
        return original(h)

    net.activation.forward = counting
    with torch.no_grad():
        layer.inverse(torch.randn(3, 64))
    assert len(rows) == 2 * 64
    assert 512 <= sum(rows) <= 1.1 * 512  # all units, and a few empty slots that keep the blocks alike


def test_gradients_of_the_inverse():
    layer = perturbed(diffeo.Autoregressive(MADE(3, 2, hidden=(8,)), diffeo.Affine())).double()
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.inverse, z)
    parameters = tuple(layer.parameters())
    assert torch.autograd.gradcheck(lambda *_: layer.inverse(z.detach()), parameters)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("univariate", [diffeo.Affine(), diffeo.RationalQuadraticSpline(5, 3.0)])
def test_the_implicit_gradient_agrees_with_that_through_every_step(residual, masked, univariate):
    features = 19  # more than two blocks
    net = MADE(
        features, univariate.n_params, context=2, hidden=(40, 40), order=torch.randperm(features), residual=residual
    )
    layer = perturbed(diffeo.Autoregressive(net, univariate)).double()
    z, c = (torch.randn(4, n, dtype=torch.float64, requires_grad=True) for n in (features, 2))
    context = {"features": c, "mask": torch.rand(4, features) > 0.3} if masked else c
    weights = torch.randn(4, features + 1, dtype=torch.float64)

    def gradients(run):
        x, logdet = run(z, context)
        loss = (x * weights[:, 1:]).sum() + (logdet * weights[:, 0]).sum()
        return torch.autograd.grad(loss, [z, c, *layer.parameters()])

    for got, expected in zip(gradients(layer.inverse), gradients(layer._run), strict=True):
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-11)


def test_the_inverse_ignores_dropout_with_and_without_gradient():
    layer = perturbed(diffeo.Autoregressive(MADE(5, 2, hidden=(16, 16), dropout=0.5), diffeo.Affine())).train()
    z = torch.randn(8, 5)
    with torch.no_grad():
        expected = layer.inverse(z)[0]
    assert torch.allclose(layer.inverse(z)[0], expected, atol=1e-5)


def test_spline_takes_any_finite_input():
    spline = diffeo.RationalQuadraticSpline(8, bound=4.0)
    torch.manual_seed(1)
    params = 20 * torch.randn(4000, spline.n_params)
    knots = spline_kernel._find(torch.zeros(4000), params.T, 0, spline.limits).x
    for x in (knots, torch.full((4000,), 4.0), torch.full((4000,), -4.0), torch.full((4000,), 1e30), knots * 0):
        for run in (spline.forward, spline.inverse):
            value, logdet = run(x, params)
            assert value.isfinite().all()
            assert logdet.isfinite().all()
    with pytest.raises(ValueError, match="at least 2 bins"):
        diffeo.RationalQuadraticSpline(1)
    with pytest.raises(ValueError, match="min_width"):
        diffeo.RationalQuadraticSpline(8, min_width=0.2)
    with pytest.raises(ValueError, match=r"parameters of shape \(\*x.shape, 23\)"):
        diffeo.RationalQuadraticSpline(8)(torch.zeros(3), torch.zeros(3, 5))


def test_gaussianize_leaves_normal_columns_straight_and_bends_the_others():
    x = torch.cat([torch.randn(3000, 1), torch.randn(3000, 1).exp()], 1)
    layer = diffeo.Gaussianize(2)
    layer.initialize(x)
    assert not layer.theta[0].any()
    assert layer.theta[1].any()
    with torch.no_grad():
        z, _ = layer(x)
    assert abs(float((z[:, 1] ** 3).mean())) < 0.3
    repeated = torch.randint(0, 3, (500, 1)).float()
    rounded = diffeo.Gaussianize(1)
    rounded.initialize(repeated)
    with torch.no_grad():
        assert torch.allclose(rounded.inverse(rounded(repeated)[0])[0], repeated, atol=1e-3)


def test_a_mixture_starts_where_expectation_maximisation_ends():
    from sklearn.mixture import GaussianMixture

    x = torch.cat([torch.randn(500, 2), 0.3 * torch.randn(500, 2) + 5])
    mixture = diffeo.GaussianMixture(2, components=6)
    mixture.initialize(x)
    expected = GaussianMixture(2, random_state=0).fit(x.numpy()).score(x.numpy())
    assert mixture(x).mean().item() == pytest.approx(expected, abs=0.02)


def test_piecewise_linear_codes_do_not_hang_on_rounding():
    """Columns that repeat their values: each code is the same in float32, where it was learnt, and in float64."""
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, 2, 500), rng.integers(0, 7, 500), np.full(500, 3), rng.normal(size=500)]
    rows = torch.from_numpy(np.stack(columns, 1) * 1.234567 + 0.1)
    rows = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-3)
    encoder = PiecewiseLinear(4, bins=8)
    encoder.initialize(rows.float())
    single, double = encoder(rows.float()), copy.deepcopy(encoder).double()(rows)
    assert single.shape == (500, 36)
    assert torch.allclose(single.double(), double, atol=1e-4)
    codes = single[:, 4:].reshape(500, 4, 8)
    assert len(torch.unique(codes[:, 0].double().round(decimals=3), dim=0)) == 2
    assert len(torch.unique(codes[:, 1].double().round(decimals=3), dim=0)) == 7  # every value has its own code
    assert codes.mean(0).abs().max() < 1e-5


def test_a_network_of_the_context_alone_runs_once_for_many_x():
    net = perturbed(MLP(0, 3, context=2, hidden=(8,)))
    assert net(torch.zeros(5, 7, 0), torch.randn(5, 1, 2)).shape == (5, 1, 3)
    net = perturbed(MLP(0, 1, n_params=2, context=2))
    layer = diffeo.Coupling(torch.zeros(1, dtype=torch.bool), net, diffeo.Affine())
    x, c = torch.randn(5, 7, 1), torch.randn(5, 1, 2)
    z, logdet = layer(x, c)
    apart, logdet_apart = layer(x, c.expand(5, 7, 2).clone())
    assert torch.allclose(z, apart, atol=1e-6)
    assert torch.allclose(logdet, logdet_apart, atol=1e-6)
    assert torch.allclose(layer.inverse(z, c)[0], x, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("univariate", "masked", "residual"),
    [(diffeo.RationalQuadraticSpline(4), False, False), (diffeo.Affine(), True, True)],
)
def test_a_compiled_block_serves_all_layers_and_batches(univariate, masked, residual):
    features, options = 19, {"context": 2, "hidden": (60, 60), "residual": residual}
    nets = [MADE(features, univariate.n_params, order=torch.randperm(features), **options) for _ in range(2)]
    layers = [perturbed(diffeo.Autoregressive(net, univariate)) for net in nets]
    for layer in layers:
        layer.compile_direction("inverse")
    assert layers[0]._compiled.block is layers[1]._compiled.block
    assert features % nets[0].block  # the last block is not full
    for layer in layers:
        for batch in [(7,), (1,), (3, 4), ()]:
            z, c = torch.randn(*batch, features), torch.randn(2)
            context = {"features": c, "mask": torch.rand(*batch, features) > 0.3} if masked else c
            with torch.inference_mode():
                x, logdet = layer.inverse(z, context)
            with torch.no_grad():
                twin = copy.deepcopy(layer)  # not compiled
                expected, expected_logdet = twin.inverse(z, context)
            assert x.shape == z.shape
            assert logdet.shape == z.shape[:-1]
            assert torch.allclose(x, expected, atol=1e-5)
            assert torch.allclose(logdet, expected_logdet, atol=1e-4)


def test_layers_share_a_compiled_block_only_where_they_do_the_same():
    def block(**changes):
        options = {"features": 40, "n_params": 2, "hidden": (64, 64), **changes}
        univariate = options.pop("univariate", diffeo.Affine())
        layer = diffeo.Autoregressive(MADE(**options), univariate)
        layer.compile_direction("inverse")
        return layer._compiled.block

    first = block()
    assert block() is first
    for changes in (
        {"activation": torch.nn.ReLU},
        {"activation": lambda: torch.nn.LeakyReLU(0.1)},
        {"activation": lambda: torch.nn.LeakyReLU(0.2)},
        {"residual": True},
        {"hidden": (64, 128)},
        {"univariate": diffeo.Affine(2.0)},
        {"univariate": diffeo.LocationScale()},
    ):
        assert block(**changes) is not first
    net = MADE(40, 2, hidden=(64, 64))
    net.activation = torch.nn.Tanh()
    changed = diffeo.Autoregressive(net, diffeo.Affine())
    changed.compile_direction("inverse")
    assert changed._compiled.block is not first
    assert block(activation=torch.nn.PReLU) is not block(activation=torch.nn.PReLU)  # it has a weight of its own


@pytest.mark.parametrize("masked", [False, True])
def test_sweeps_find_what_steps_find(masked, monkeypatch):
    net = MADE(12, 11, context=2, hidden=(24, 24), order=torch.randperm(12))
    layer = perturbed(diffeo.Autoregressive(net, diffeo.RationalQuadraticSpline(4))).double()
    z, c = torch.randn(3, 5, 12, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    context = {"features": c, "mask": torch.rand(3, 5, 12) > 0.3} if masked else c

    def results():
        x, logdet = layer.inverse(z, context)
        return x, logdet, *torch.autograd.grad((x * x).sum() + logdet.sum(), [c, *layer.parameters()])

    expected = results()
    layer.sweeps, layer.tolerance = 13, 1e-9
    monkeypatch.setattr(layer, "_run", lambda *_: pytest.fail("the sweeps did not suffice"))
    for a, b in zip(results(), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_sweeps_that_do_not_suffice_leave_it_to_steps(monkeypatch):
    layer = perturbed(diffeo.Autoregressive(MADE(12, 2, hidden=(24, 24)), diffeo.Affine(), sweeps=2)).double()
    z, ran = torch.randn(5, 12, dtype=torch.float64), []
    run = layer._run
    monkeypatch.setattr(layer, "_run", lambda *args: ran.append(1) or run(*args))
    with torch.no_grad():
        x, logdet = layer.inverse(z)
        back, forward_logdet = layer(x)
    assert ran == [1]
    assert torch.allclose(back, z, atol=1e-9)
    assert torch.allclose(forward_logdet, -logdet, atol=1e-9)


@pytest.mark.parametrize("options", [{"sweeps": -1}, {"tolerance": 0.0}])
def test_sweeps_are_checked(options):
    with pytest.raises(ValueError, match="sweeps >= 0 and tolerance > 0"):
        diffeo.Autoregressive(MADE(3, 2), diffeo.Affine(), **options)


def test_uneven_dependencies_are_one_block():
    star = torch.zeros(64, 64, dtype=torch.bool)
    star[1:, 0] = True
    net = MADE(64, 2, hidden=(256, 256), adjacency=star)
    assert net.block == 64
    assert net.rows1.numel() == 256  # no empty slots
    layer = perturbed(diffeo.Autoregressive(net, diffeo.Affine())).double()
    z = torch.randn(3, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(layer(layer.inverse(z)[0])[0], z)


def test_the_run_of_a_long_layer_can_be_differentiated_and_mapped():
    univariate = diffeo.Composed(diffeo.Affine(), diffeo.Exp())  # its inverse ends at zero
    layer = perturbed(diffeo.Autoregressive(MADE(13, 2, hidden=(100,)), univariate)).double()
    assert 13 % layer.net.block
    z = torch.rand(4, 13, dtype=torch.float64) + 1
    by_run = torch.func.grad(lambda z: layer.inverse(z)[0].sum())(z)
    z.requires_grad_()
    by_adjoint = torch.autograd.grad(layer.inverse(z)[0].sum(), z)[0]
    assert torch.allclose(by_run, by_adjoint)
    with torch.no_grad():
        assert torch.allclose(torch.vmap(lambda z: layer.inverse(z)[0])(z), layer.inverse(z)[0])


def test_a_net_without_context_ignores_one_in_both_directions():
    layer = perturbed(diffeo.Autoregressive(MADE(12, 2, hidden=(24,)), diffeo.Affine()))
    with torch.no_grad():
        assert layer.inverse(torch.randn(4, 12), torch.randn(7, 2))[0].shape == (4, 12)


def test_log_dets_of_half_precision_are_float32():
    layer = diffeo.Autoregressive(MADE(12, 2, hidden=(24,)), diffeo.Affine()).bfloat16()
    with torch.no_grad():
        assert layer.inverse(torch.randn(4, 12, dtype=torch.bfloat16))[1].dtype == torch.float32


@pytest.mark.slow
def test_a_compiled_block_under_autocast_and_transforms():
    layer = perturbed(diffeo.Autoregressive(MADE(12, 2, hidden=(40, 40)), diffeo.Affine()))
    twin, z = copy.deepcopy(layer), torch.randn(50, 12)
    layer.compile_direction("inverse")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(layer.inverse(z)[0], twin.inverse(z)[0], atol=0.1)
    with torch.no_grad():
        expected = twin.inverse(z)[0]
        assert torch.allclose(layer.inverse(z)[0], expected, atol=1e-5)
        assert torch.allclose(torch.vmap(lambda z: layer.inverse(z)[0])(z), expected, atol=1e-5)
        assert layer.inverse(z[:0])[0].shape == (0, 12)
    assert layer._compiled.block.plain.runs  # it was compiled


def test_lipschitz_networks_keep_their_constant():
    """With weights far too large, the largest singular value of the Jacobian and of every layer stays below it."""
    torch.manual_seed(0)
    net = diffeo.nets.LipschitzMLP(4, hidden=(32, 32), lipschitz=0.9)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(3 * torch.randn(p.shape))
    x = 3 * torch.randn(200, 4)
    push = net.linearize(x)[1]
    jacobian = push(torch.eye(4).expand(200, 4, 4))
    expected = torch.func.vmap(torch.func.jacrev(net))(x)
    assert torch.allclose(jacobian, expected, atol=1e-5)
    assert torch.linalg.matrix_norm(jacobian, 2).max() <= 0.9
    norms = [float(torch.linalg.matrix_norm(w.detach(), 2)) for w in net.weights(torch.float32)]
    assert all(0.9 * net.share < norm <= net.share * (1 + 1e-6) for norm in norms)


def test_the_bound_on_singular_values_is_an_upper_bound():
    torch.manual_seed(0)
    for shape in [(1, 1), (5, 3), (64, 128), (128, 128)]:
        weight = torch.randn(shape)
        true = torch.linalg.matrix_norm(weight, 2)
        assert true * (1 - 1e-6) <= singular_bound(weight) <= true * 1.05
    assert singular_bound(torch.zeros(3, 4)) < 1e-10

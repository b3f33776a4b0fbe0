"""Autoregressive layers: inverses in blocks, their gradients, compiled blocks, sweeps."""

from __future__ import annotations

import copy

import pytest
import torch

import diffeo
from diffeo.nets import MADE
from diffeo.testing import perturbed


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

"""The inverse of autoregressive layers in C: the same x as step by step, wherever it can run, and only there."""

import pytest
import torch
from torch import nn

import diffeo
from diffeo.kernels import inverse, native
from diffeo.nets import MADE

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler here")
MAPS = {
    "affine": lambda: diffeo.Affine(),
    "location and scale": lambda: diffeo.LocationScale(2.0),
    "shift": lambda: diffeo.Shift(),
    "spline": lambda: diffeo.RationalQuadraticSpline(8, 5.0),
}
NETS = {
    "relu": {"hidden": (50, 41), "activation": nn.ReLU},
    "silu": {"hidden": (33,)},
    "three layers": {"hidden": (20, 20, 20), "order": [2, 0, 1, 4, 3, 6, 5]},
    "context": {"hidden": (20, 30), "context": 3},
    "adjacency": {
        "hidden": (40, 40),
        "adjacency": torch.ones(7, 7).tril(-1).bool() & (torch.arange(49).view(7, 7) % 3 > 0),
    },
}


def make(scalar_map, dtype=torch.float64, **options):
    torch.manual_seed(0)
    univariate = MAPS[scalar_map]()
    layer = diffeo.Autoregressive(MADE(7, univariate.n_params, **options), univariate).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.4)
    return layer.to(dtype)


@pytest.fixture
def runs(monkeypatch):
    """What came of each attempt."""
    results = []
    invert = inverse.invert

    def attempt(*args):
        results.append(invert(*args))
        return results[-1]

    monkeypatch.setattr(inverse, "invert", attempt)
    return results


@needs_compiler
@pytest.mark.parametrize("scalar_map", MAPS)
@pytest.mark.parametrize("name", NETS)
def test_inverses_are_those_of_steps(scalar_map, name, runs):
    layer = make(scalar_map, **NETS[name])
    generator = torch.Generator().manual_seed(1)
    for n in (0, 1, 5, 100, 777):  # no row, a part of a vector, several blocks
        z, context = (torch.randn(n, width, generator=generator, dtype=torch.float64) for width in (7, 3))
        context = context if layer.net.context else None
        with torch.no_grad():
            x, logdet = layer.inverse(z, context)
            runs.clear()
            with diffeo.compiled_kernels():
                found, found_logdet = layer.inverse(z, context)
        assert runs[0] is not None
        assert found.shape == x.shape
        assert torch.allclose(found, x, atol=1e-9)
        assert torch.allclose(found_logdet, logdet, atol=1e-9)


@needs_compiler
def test_float32_inverts_its_forward():
    layer = make("affine", torch.float32, hidden=(50, 50))
    x = torch.randn(300, 7)
    with torch.no_grad(), diffeo.compiled_kernels():
        z, logdet = layer(x)
        back, back_logdet = layer.inverse(z)
    assert (back - x).abs().max() < 1e-3
    assert (back_logdet + logdet).abs().max() < 1e-3


@needs_compiler
def test_batches_of_any_shape_and_layout(runs):
    layer = make("spline", hidden=(20, 20), context=3)
    z, context = torch.randn(4, 1, 7, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        x, logdet = layer.inverse(z, context)
        with diffeo.compiled_kernels():
            found, found_logdet = layer.inverse(z, context)
            assert runs[-1] is not None
            turned, _ = layer.inverse(z.movedim(-1, 0).contiguous().movedim(0, -1), context)
            alone, alone_logdet = layer.inverse(z[0, 0], context[0])
    assert torch.allclose(found, x)
    assert torch.allclose(found_logdet, logdet)
    assert torch.equal(turned, found)
    assert torch.allclose(alone, x[0, 0])
    assert alone_logdet.shape == ()


@needs_compiler
def test_gradients_through_the_inverse():
    layer = make("spline", hidden=(20, 20))
    z = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)

    def gradients():
        x, logdet = layer.inverse(z)
        return torch.autograd.grad(x.sin().sum() + logdet.square().sum(), [z, *layer.parameters()])

    expected = gradients()
    with diffeo.compiled_kernels():
        found = gradients()
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


@needs_compiler
def test_tangents_of_forward_mode(runs):
    layer = make("affine", hidden=(20, 20))
    z, tangent = torch.randn(2, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.func.jvp(lambda z: layer._run(z, None)[0], (z,), (tangent,))[1]
        with diffeo.compiled_kernels(), torch.autograd.forward_ad.dual_level():
            x = layer.inverse(torch.autograd.forward_ad.make_dual(z, tangent))[0]
            found = torch.autograd.forward_ad.unpack_dual(x).tangent
    assert torch.allclose(found, expected)


@needs_compiler
def test_other_layers_run_step_by_step(runs):
    class Own(MADE):
        pass

    z = torch.randn(3, 7)
    mask = torch.ones(3, 7, dtype=torch.bool)
    wave = diffeo.DeepSigmoidal(4)
    others = [
        diffeo.Autoregressive(MADE(7, 2, residual=True), diffeo.Affine()),
        diffeo.Autoregressive(MADE(7, 2, hidden=()), diffeo.Affine()),
        diffeo.Autoregressive(MADE(7, 2, activation=nn.Tanh), diffeo.Affine()),
        diffeo.Autoregressive(Own(7, 2), diffeo.Affine()),
        diffeo.Autoregressive(MADE(7, wave.n_params), wave),
    ]
    with torch.no_grad(), diffeo.compiled_kernels():
        for layer in others:
            assert layer.inverse(z)[0].shape == z.shape
        layer = diffeo.Autoregressive(MADE(7, 2), diffeo.Affine())
        layer.inverse(z, {"mask": mask})
        assert runs[-1] is None
        layer.bfloat16().inverse(z.bfloat16())
    assert [r is None for r in runs[: len(others)]] == [True] * len(others)
    assert runs[-1] is None


@needs_compiler
def test_without_a_compiler_steps_run(monkeypatch, runs):
    monkeypatch.setattr(native, "find_compiler", lambda: None)
    monkeypatch.setattr(inverse, "_libraries", {})
    with torch.no_grad(), diffeo.compiled_kernels():
        make("affine", hidden=(20, 20)).inverse(torch.randn(3, 7, dtype=torch.float64))
    assert runs == [None]

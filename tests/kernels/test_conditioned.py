"""Couplings and autoregressive layers as one operation in C: the same numbers, where they can run so, only there."""

import pytest
import torch
from torch import nn

import diffeo
from diffeo.kernels import conditioned, native
from diffeo.nets import MADE, MLP

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler here")
MAPS = {
    "affine": lambda: diffeo.Affine(),
    "shift": lambda: diffeo.Shift(),
    "spline": lambda: diffeo.RationalQuadraticSpline(8, 5.0),
}
MASK = torch.tensor([False, True, True, False, True, False, False])


def coupling(univariate, mask=MASK, **options):
    return diffeo.Coupling(
        mask, MLP(int(mask.sum()), int((~mask).sum()), n_params=univariate.n_params, **options), univariate
    )


def autoregressive(univariate, **options):
    return diffeo.Autoregressive(MADE(7, univariate.n_params, **options), univariate)


LAYERS = {
    "coupling": lambda u: coupling(u, hidden=(50, 41)),
    "of the context": lambda u: coupling(u, torch.zeros(7, dtype=torch.bool), context=3, hidden=(20,)),
    "coupling with context": lambda u: coupling(u, context=3, hidden=(20, 30)),
    "autoregressive": lambda u: autoregressive(u, hidden=(50, 41), order=[2, 0, 1, 4, 3, 6, 5]),
    "autoregressive with context": lambda u: autoregressive(u, context=3, hidden=(20, 30)),
}


def make(layer, scalar_map="affine", dtype=torch.float64):
    torch.manual_seed(0)
    layer = LAYERS[layer](MAPS[scalar_map]()).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.3)
    return layer.to(dtype)


def rows(*batch, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*batch, width, generator=generator, dtype=torch.float64).to(dtype) for width in (7, 3)]


@pytest.fixture
def compile_():
    """A function as the compiler sees it, run as it is; and how often the operation ran."""
    torch._dynamo.reset()
    counts = []

    def take(graph, inputs):
        uses = [node for node in graph.graph.nodes if node.target is conditioned._operator]

        def run(*args):
            counts.extend(uses)
            return graph(*args)

        return run

    yield lambda function, **options: (torch.compile(function, backend=take, fullgraph=True, **options), counts)
    torch._dynamo.reset()


def directions(layer):
    return [layer.forward, layer.inverse] if isinstance(layer, diffeo.Coupling) else [layer.forward]


@needs_compiler
@pytest.mark.parametrize("scalar_map", MAPS)
@pytest.mark.parametrize("name", LAYERS)
def test_values_are_those_of_the_parts(name, scalar_map, compile_):
    some = (5, 300)  # a part of a vector, several blocks; with any scalar map the loops over the rows are the same
    runs = [(torch.float64, 1e-10, some)]
    if scalar_map == "affine":
        runs = [(torch.float64, 1e-10, (0, 1, *some)), (torch.float32, 1e-4, some)]
    for dtype, tolerance, sizes in runs:
        reference, layer = make(name, scalar_map), make(name, scalar_map, dtype)
        for expected_of, function in zip(directions(reference), directions(layer), strict=True):
            compiled, counts = compile_(function, dynamic=True)
            for n in sizes:
                counts.clear()
                with torch.no_grad():
                    expected, found = expected_of(*rows(n)), compiled(*rows(n, dtype=dtype))
                assert len(counts) == 1
                for a, b in zip(found, expected, strict=True):
                    assert a.shape == b.shape
                    assert a.dtype == dtype
                    assert ((a - b).abs() <= tolerance * (1 + b.abs())).all()


@needs_compiler
def test_batches_of_any_shape_and_layout(compile_):
    for name in ("coupling", "autoregressive with context"):
        layer = make(name)
        x, context = rows(3, 40)
        x = x.movedim(-1, 0).contiguous().movedim(0, -1)
        compiled, counts = compile_(layer.forward)
        with torch.no_grad():
            for given in ((x, context), (x[1, 2], context[1, 2]), (x[:, ::2], context[:, ::2])):
                counts.clear()
                for a, b in zip(compiled(*given), layer(*given), strict=True):
                    assert torch.allclose(a, b, atol=1e-10)
                assert len(counts) == 1


@needs_compiler
def test_other_layers_run_part_by_part(compile_):
    class Own(MLP):
        pass

    wave = diffeo.DeepSigmoidal(4)
    x, context = rows(5, dtype=torch.float32)
    masked = {"features": context, "mask": torch.tensor([True] * 5 + [False] * 2)}
    others = [
        (coupling(diffeo.Affine(), residual=True), x, None),
        (coupling(diffeo.Affine(), activation=nn.Tanh), x, None),
        (coupling(diffeo.Affine(), hidden=()), x, None),
        (diffeo.Coupling(MASK, Own(3, 4, n_params=2), diffeo.Affine()), x, None),
        (coupling(wave), x, None),
        (coupling(diffeo.Affine()).bfloat16(), x.bfloat16(), None),
        (coupling(diffeo.Affine()), x, {"mask": masked["mask"]}),
        (autoregressive(diffeo.Affine(), context=3), x, masked),
        (coupling(diffeo.Affine(), context=3), x[0], context),  # one row in many contexts
    ]
    for layer, x, context in others:
        for p in layer.parameters():
            nn.init.normal_(p, std=0.1)
        torch._dynamo.reset()  # all of them run the same code
        compiled, counts = compile_(layer.forward)
        with torch.no_grad():
            for a, b in zip(compiled(x, context), layer(x, context), strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
        assert not counts


@needs_compiler
def test_where_a_gradient_is_wanted_the_parts_run(compile_):
    layer = make("coupling")
    compiled, counts = compile_(layer.forward)
    z, logdet = compiled(*rows(5))
    assert not counts
    (z.sum() + logdet.sum()).backward()
    assert all(p.grad is not None for p in layer.parameters())
    with torch.no_grad():
        compiled(*rows(5))
    assert len(counts) == 1


@needs_compiler
@pytest.mark.parametrize("name", LAYERS)
def test_uncompiled_layers_run_it_within_compiled_kernels(name, monkeypatch):
    ran, run = [], conditioned._run
    monkeypatch.setattr(conditioned, "_run", lambda *args: ran.append(args) or run(*args))
    layer = make(name)
    for function in directions(layer):
        with torch.no_grad():
            expected = function(*rows(300))
            assert not ran
            with diffeo.compiled_kernels():
                found = function(*rows(300))
        assert len(ran) == 1
        ran.clear()
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-10)
        with diffeo.compiled_kernels():
            function(*rows(5))
        assert not ran


@needs_compiler
def test_rows_that_transforms_of_functions_wrap():
    layer = make("of the context")
    x, context = rows(4, 2)
    with torch.no_grad(), diffeo.compiled_kernels():
        found = torch.func.vmap(lambda x: layer.forward(x, context[0])[0])(x)
        for a, b in zip(found, x, strict=True):
            assert torch.allclose(a, layer.forward(b, context[0])[0])


@needs_compiler
def test_hooks_of_the_net_run():
    layer = make("coupling")
    layer.net.register_forward_hook(lambda module, args, out: 2 * out)
    with torch.no_grad():
        expected = layer.forward(*rows(5))
        with diffeo.compiled_kernels():
            found = layer.forward(*rows(5))
    assert torch.allclose(found[0], expected[0])


@needs_compiler
def test_a_scalar_map_may_change_its_attributes(compile_):
    layer = make("coupling")
    compiled, _ = compile_(layer.forward)
    for bound in (4.0, 1.0):
        layer.univariate.bound = bound
        with torch.no_grad():
            assert torch.allclose(compiled(*rows(5))[1], layer.forward(*rows(5))[1])


def test_without_a_compiler_the_parts_run(monkeypatch, compile_):
    monkeypatch.setattr(native, "find_compiler", lambda: None)
    monkeypatch.setattr(conditioned, "_names", {})
    layer = make("coupling")
    compiled, counts = compile_(layer.forward)
    with torch.no_grad():
        assert torch.allclose(compiled(*rows(5))[0], layer(*rows(5))[0])
    assert not counts

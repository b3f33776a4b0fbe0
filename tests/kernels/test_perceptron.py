"""Perceptrons in C: the numbers and gradients of the layers one by one, wherever they can run, and only there."""

import pytest
import torch
from torch import nn

import diffeo
from diffeo.kernels import native, perceptron
from diffeo.nets import MADE, MLP

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler here")
NETS = {
    "two layers": lambda c, a: MLP(5, 4, n_params=3, context=c, hidden=(40, 33), activation=a),
    "one layer": lambda c, a: MLP(3, 2, n_params=3, context=c, hidden=(64,), activation=a),
    "one unit": lambda c, a: MLP(1, 4, n_params=3, context=c, hidden=(1, 2), activation=a),
    "of the context": lambda c, a: MLP(0, 4, n_params=3, context=c or 1, hidden=(20, 3), activation=a),
    "masked": lambda c, a: MADE(7, 3, context=c, hidden=(50, 41, 37), order=[3, 1, 0, 2, 6, 5, 4], activation=a),
    "masked, wide": lambda c, a: MADE(40, 2, context=c, hidden=(90, 90), activation=a),
    "of one coordinate": lambda c, a: MADE(1, 3, context=c, hidden=(20, 20), activation=a),
}
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "leaky": lambda: nn.LeakyReLU(0.1)}


def make(name, context=0, activation="relu", dtype=torch.float64):
    torch.manual_seed(0)
    net = NETS[name](context, ACTIVATIONS[activation]).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return net.to(dtype)


def rows(net, n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(n, width, generator=generator, dtype=torch.float64) for width in (net.features, 2))
    return x.to(dtype).requires_grad_(), context.to(dtype)[:, : net.context] if net.context else None


def values_and_gradients(net, x, context):
    params = net(x, context)
    wanted = [x, *net.parameters()]
    return [params, *torch.autograd.grad(params.sin().sum(), wanted, allow_unused=True, materialize_grads=True)]


@pytest.fixture
def runs(monkeypatch):
    """How often the C ran, forward and backward."""
    counts = []
    for name in ("_run", "_run_backward"):
        run = getattr(perceptron, name)
        monkeypatch.setattr(perceptron, name, lambda *args, run=run, name=name: counts.append(name) or run(*args))
    return counts


@needs_compiler
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_gradients_are_those_of_the_layers(name, context, activation, runs):
    net = make(name, context, activation)
    for n in (0, 1, 7, 300):  # no row, a part of a tile, several threads
        expected = values_and_gradients(net, *rows(net, n))
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
            runs.clear()
            with diffeo.compiled_kernels():
                found = values_and_gradients(make(name, context, activation, dtype), *rows(net, n, dtype))
            assert runs == ["_run", "_run_backward"]
            for a, b in zip(found, expected, strict=True):
                assert a.shape == b.shape
                assert (a - b).norm() <= tolerance * (1 + b.norm())
        assert found[0].stride() == expected[0].stride()  # the layout that scalar maps read


@needs_compiler
def test_second_derivatives(runs):
    net = make("two layers", activation="silu")
    x, _ = rows(net, 5)

    def curvature():
        (slope,) = torch.autograd.grad(net(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, net.body[1].weight])

    expected = curvature()
    with diffeo.compiled_kernels():
        found = curvature()
    assert runs == ["_run", "_run_backward"]  # of the last gradient, which is not differentiated
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b)


@needs_compiler
def test_inputs_of_any_layout():
    net = make("two layers")
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        inner = x.movedim(-1, 0).contiguous().movedim(0, -1)
        for view in (x, inner, x.transpose(0, 1), x[::2], x[0, 0], x[:1, :1].expand(4, 3, 5)):
            expected = net(view)
            with diffeo.compiled_kernels():
                assert torch.allclose(net(view), expected)


@needs_compiler
def test_what_is_not_finite_stays_so():
    net = make("two layers")
    x = torch.zeros(3, 5, dtype=torch.float64)
    x[1, 2] = float("nan")
    with diffeo.compiled_kernels():
        assert net(x).flatten(1).isnan().any(1).tolist() == [False, True, False]


@needs_compiler
def test_products_that_masks_leave_out_need_no_finite_weights():
    """What the bounds exclude is not read, so the time of a masked product does not depend on its zeros.

    By panels of outputs: 8, 16 or 32 of them, two vectors of the processor, all of which lie in the first 32.
    """
    x, weight, bias = torch.randn(9, 64), torch.randn(48, 64), torch.zeros(48)
    weight[:32, 20:] = float("nan")
    first = torch.tensor([[0] * 48, [20] * 32 + [64] * 16], dtype=torch.int32)
    second = torch.tensor([[0] * 48, [48] * 48], dtype=torch.int32)
    layers = [weight, torch.eye(48)], [bias, bias], [first, second]
    out, _ = perceptron._run(x, *layers, "relu", False, 1, False)
    assert out.isfinite().all()


@needs_compiler
@pytest.mark.parametrize(
    "net",
    [
        MLP(3, 6, residual=True),
        MLP(3, 6, layer_norm=True),
        MLP(3, 6, dropout=0.5),
        MLP(3, 6, activation=nn.Tanh),
        MLP(3, 6, hidden=(600, 600)),
        MLP(3, 6, hidden=()),
        MADE(3, 2, residual=True),
        MADE(3, 2, dropout=0.5),
        MADE(3, 2, hidden=()),
    ],
    ids=lambda net: repr(net)[:4],
)
def test_other_nets_run_layer_by_layer(net, runs):
    with diffeo.compiled_kernels():
        net(torch.randn(5, 3))
    assert not runs


@needs_compiler
def test_hooks_of_layers_run(runs):
    net = make("two layers")
    seen = []
    handle = net.body[1].register_forward_hook(lambda *_: seen.append(1))
    with diffeo.compiled_kernels():
        net(rows(net, 3)[0])
        assert seen == [1]
        assert not runs
        handle.remove()
        net(rows(net, 3)[0])
        assert runs == ["_run"]


@needs_compiler
def test_gradients_of_gradients_where_a_net_is_used_twice(runs):
    net = make("masked")  # from 7 to 21 numbers; a square one of them
    x, _ = rows(net, 5)

    def gradients():
        inner = net(x)[..., 0]
        return torch.autograd.grad(net(inner).sin().sum(), list(net.parameters()), create_graph=True)

    expected = gradients()
    with diffeo.compiled_kernels():
        found = gradients()
    assert runs
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


@needs_compiler
def test_many_gradients_at_once(runs):
    net = make("two layers")
    x, _ = rows(net, 2)
    many = torch.eye(24, dtype=torch.float64).view(24, 2, 4, 3)
    expected = torch.autograd.grad(net(x), x, many, is_grads_batched=True)
    with diffeo.compiled_kernels():
        found = torch.autograd.grad(net(x), x, many, is_grads_batched=True)
    assert runs == ["_run"]
    assert torch.allclose(found[0], expected[0])


@needs_compiler
def test_sizes_that_do_not_fit_are_refused(runs):
    with diffeo.compiled_kernels():
        with pytest.raises(RuntimeError, match="shapes"):
            MLP(3, 6)(torch.randn(4, 2))
        with torch.no_grad(), pytest.raises(RuntimeError, match="shapes"):
            diffeo.Coupling(torch.tensor([True, True, False]), MLP(3, 1, n_params=2), diffeo.Affine())(
                torch.randn(4, 3)
            )
    assert not runs


@needs_compiler
def test_nets_that_were_changed_run_their_layers(runs):
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    def doubled(net):
        new = Doubled(net.body[1].in_features, net.body[1].out_features).double()
        new.load_state_dict(net.body[1].state_dict())
        net.body[1] = new

    def twice(net):
        net.body.insert(2, nn.Linear(33, 33).double())

    def hooked(net):
        net.body[1].register_full_backward_hook(lambda module, g_in, g_out: tuple(2 * g for g in g_in))

    def patched(net):
        forward = net.from_x.forward
        net.from_x.forward = lambda input: 2 * forward(input)

    for change in (doubled, twice, hooked, patched):
        net = make("two layers")
        change(net)
        expected = values_and_gradients(net, *rows(net, 5))
        runs.clear()
        with diffeo.compiled_kernels():
            found = values_and_gradients(net, *rows(net, 5))
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b)
        assert len(runs) == (2 if change is patched else 0)  # the rest of the net, where only the first layer changed


@needs_compiler
def test_contexts_that_transforms_of_functions_wrap(runs):
    net = make("two layers", context=2)
    x, context = rows(net, 4)
    with diffeo.compiled_kernels(), torch.no_grad():
        found = torch.func.vmap(lambda c: net(x, c))(context)
        assert not runs
        assert torch.allclose(found[1], net(x, context[1]))


@needs_compiler
def test_other_numbers_and_derivatives_are_left_to_the_layers(runs):
    net = make("two layers")
    x, _ = rows(net, 4)
    with diffeo.compiled_kernels():
        jacobian = torch.func.vmap(torch.func.jacrev(net))(x.detach())
        assert jacobian.shape == (4, 4, 3, 5)
        torch.func.jvp(net, (x.detach(),), (x.detach(),))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            net.float()(x.detach().float())
        net.bfloat16()(x.detach().bfloat16())
    assert not runs


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["realnvp", "maf"])
def test_compiled_flows_run_them(recipe):
    torch.manual_seed(0)
    flow = getattr(diffeo, recipe)(5, context=2, layers=2, hidden=(32, 32))
    for p in flow.parameters():
        nn.init.normal_(p, std=0.2)
    x, context = torch.randn(200, 5), torch.randn(200, 2)
    expected = flow(x, context)
    wanted = torch.autograd.grad(expected.mean(), list(flow.parameters()))
    flow.compile()
    for n in (200, 60):
        assert torch.allclose(flow(x[:n], context[:n]), expected[:n], atol=1e-4)
    with torch.profiler.profile() as profile:
        found = torch.autograd.grad(flow(x, context).mean(), list(flow.parameters()))
    ran = {event.name for event in profile.events()}
    assert {"diffeo::perceptron", "diffeo::perceptron_backward"} <= ran
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_without_a_compiler_layers_run(monkeypatch, runs):
    monkeypatch.setattr(native, "find_compiler", lambda: None)
    perceptron._library.cache_clear()
    try:
        net = make("two layers")
        with diffeo.compiled_kernels():
            net(rows(net, 3)[0])
        assert not runs
    finally:
        perceptron._library.cache_clear()

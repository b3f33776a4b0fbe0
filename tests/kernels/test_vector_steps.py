"""Layers of vectors that run as one operation, against the same layers one by one."""

from contextlib import nullcontext

import pytest
import torch

import diffeo
from diffeo.kernels import native, vector_steps
from diffeo.kernels.vector_steps import Step, group

RECIPES = {diffeo.realnvp: 6, diffeo.nsf: 6, diffeo.maf: 3, diffeo.nsf_ar: 6}  # and how many steps three layers are
needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler")


@pytest.fixture
def calls(monkeypatch):
    """The numbers of steps of each operation that has run."""
    found = []
    run = vector_steps._run
    monkeypatch.setattr(vector_steps, "_run", lambda *args: found.append(len(args[5])) or run(*args))
    return found


def made(recipe, features=5, dtype=torch.float64, **options):
    torch.manual_seed(0)
    flow = recipe(features, layers=3, hidden=(24, 24), **options).to(dtype)
    flow.initialize(torch.randn(200, features, dtype=dtype))
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return flow


def results(flow, x, *context):
    """Log-densities, and gradients of x and of all weights."""
    flow.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    log_p = flow(x, *context)
    (log_p * torch.linspace(-1, 1, log_p.numel(), dtype=x.dtype).view(log_p.shape)).sum().backward()
    return [log_p.detach(), x.grad, *[p.grad for p in flow.parameters() if p.grad is not None]]


def assert_close(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert ((a - b).abs() <= 1e-11 * (1 + b.abs().sum())).all()


@needs_compiler
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_values_and_gradients_are_those_of_the_layers(recipe, threads, calls):
    flow = made(recipe)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (0, 1, 63, 64, 65, 700):
            x = torch.randn(5, rows, dtype=torch.float64).T  # columns after each other
            expected = results(flow, x)
            assert not calls
            with diffeo.compiled_kernels():
                assert_close(results(flow, x), expected)
                with torch.no_grad():
                    assert_close([flow(x)], expected[:1])
            assert calls == [RECIPES[recipe]] * 2
            calls.clear()
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("recipe", [diffeo.realnvp, pytest.param(diffeo.nsf_ar, marks=pytest.mark.slow)])
def test_compiled_flows_run_it(recipe):
    flow = made(recipe)
    x = torch.randn(100, 5, dtype=torch.float64)
    expected = results(flow, x)
    flow.compile()
    results(flow, x)
    with torch.profiler.profile() as profile:
        assert_close(results(flow, x), expected)
        assert_close(results(flow, x[:37]), results(made(recipe), x[:37]))
    ran = {event.key: event.count for event in profile.key_averages()}
    assert ran["diffeo::vector_steps"] == ran["diffeo::vector_steps_backward"] == 2


@needs_compiler
def test_a_batch_of_any_shape(calls):
    flow = made(diffeo.maf)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    expected = flow(x), flow(x[0, 0])
    with diffeo.compiled_kernels():
        assert_close([flow(x), flow(x[0, 0])], expected)
    assert calls == [3, 3]


@needs_compiler
@pytest.mark.parametrize("recipe", [diffeo.realnvp, diffeo.nsf_ar])
def test_second_derivatives_are_those_of_the_layers(recipe):
    flow = made(recipe)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for block in (nullcontext(), diffeo.compiled_kernels()):
        with block:
            (score,) = torch.autograd.grad(flow(x).sum(), x, create_graph=True)
            found.append(torch.autograd.grad(score.square().sum(), [x, *flow.parameters()], allow_unused=True))
    assert_close([g for g in found[1] if g is not None], [g for g in found[0] if g is not None])


@needs_compiler
def test_the_same_bits_every_time(calls):
    flow, x = made(diffeo.nsf, dtype=torch.float32), torch.randn(1000, 5)
    with diffeo.compiled_kernels():
        first, second = results(flow, x), results(flow, x)
    assert calls
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_compiler
def test_layers_with_contexts_masks_hooks_or_methods_of_their_own_run_by_themselves(calls):
    x, c = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    mask = {"mask": torch.tensor([True] * 4 + [False] * 2).unsqueeze(1)}
    hooked = made(diffeo.maf)
    for part in hooked.transform.parts:
        part.register_forward_hook(lambda *_: None)

    class Doubled(diffeo.LULinear):
        def forward(self, x, context=None):
            z, logdet = super().forward(x, context)
            return 2 * z, logdet + 5 * torch.log(torch.tensor(2.0))

    own = diffeo.Chain(*[Doubled(5).double() for _ in range(3)])
    for flow, *args in ((made(diffeo.maf, context=2), c), (made(diffeo.realnvp), mask), (hooked,)):
        expected = flow(x, *args)
        with diffeo.compiled_kernels():
            assert_close([flow(x, *args)], [expected])
    with diffeo.compiled_kernels():
        assert torch.allclose(own(x)[0], 8 * x)
    assert not calls


@needs_compiler
def test_events_that_change_within_a_chain(calls):
    """What a layer gets need not look like what its chain gets."""
    torch.manual_seed(0)
    mask = torch.tensor([True, False, True, False, True, False])

    def coupling():
        layer = diffeo.Coupling(mask, diffeo.nets.MLP(3, 3, n_params=2, hidden=(8,)), diffeo.Affine())
        torch.nn.init.normal_(layer.net.body[-1].weight)
        return layer

    folded = diffeo.Chain(diffeo.Reshape((6,), (1, 6)), diffeo.LULinear(6), coupling(), diffeo.Reshape((1, 6), (6,)))
    sphere = diffeo.Chain(diffeo.SphereToCylinder(), diffeo.LULinear(2), diffeo.Inverse(diffeo.SphereToCylinder()))
    points = torch.nn.functional.normalize(torch.randn(9, 3), dim=-1)
    for chain, x in ((folded, torch.randn(9, 6)), (sphere, points)):
        expected = chain(x)
        with diffeo.compiled_kernels():
            found = chain(x)
        assert found[1].shape == (9,)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))

    class Narrowed(diffeo.Exp):
        def forward(self, x, context=None):
            z, logdet = super().forward(x, context)
            return z.float(), logdet

    chain = diffeo.Chain(Narrowed(), coupling().double(), coupling().double())
    with diffeo.compiled_kernels(), pytest.raises((RuntimeError, ValueError)):
        chain(torch.randn(9, 6, dtype=torch.float64))
    assert not calls


@needs_compiler
def test_second_derivatives_where_the_logdet_is_constant():
    flow = made(diffeo.nice)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    with diffeo.compiled_kernels():
        (score,) = torch.autograd.grad(flow(x).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(flow(x).sum(), x, create_graph=True)
    assert_close([score.detach()], [expected.detach()])
    assert_close(torch.autograd.grad(score.sum(), x), torch.autograd.grad(expected.sum(), x))


@needs_compiler
@pytest.mark.parametrize("compile", [True, False])
def test_scalar_maps_may_change_their_settings(compile):
    flow = made(diffeo.realnvp)
    if compile:
        flow.compile()
    x = torch.randn(20, 5, dtype=torch.float64)
    for bound in (None, 0.1):
        for part in flow.transform.parts:
            if bound and isinstance(part, diffeo.Coupling):
                part.univariate.bound = bound
        with torch.no_grad():
            z, logdet = flow.transform(x)
            expected = flow.base(z) + logdet
            with diffeo.compiled_kernels():
                assert_close([flow(x)], [expected])


@needs_compiler
def test_hooks_on_a_net_see_the_batches_that_there_are():
    flow, seen = made(diffeo.realnvp), []
    flow.transform.parts[1].net.from_x.register_forward_hook(lambda _, inputs, out: seen.append(len(inputs[0])))
    with diffeo.compiled_kernels():
        flow(torch.randn(20, 5, dtype=torch.float64))
    assert seen == [20]


def test_groups_are_neighbours_of_one_kind_that_fit_into_a_cache():
    small, large = torch.zeros(10, 10), torch.zeros(vector_steps.LARGEST // 4 + 1, 2)
    linear = Step([small], [], bound=1.0)
    a, b = Step([small], [], library="a"), Step([small], [], library="b")
    assert group([]) == group([None, a, None, a]) == group([linear, linear]) == {}
    assert group([None, linear, a, linear, None, a, a]) == {1: [linear, a, linear], 5: [a, a]}
    assert group([a, linear, b, linear, b]) == {0: [a, linear], 2: [b, linear, b]}
    wide = Step([large], [], library="a")
    assert group([wide, wide, wide]) == {}
    assert group([wide, a, wide, a]) == {0: [wide, a], 2: [wide, a]}

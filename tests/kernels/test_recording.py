"""Splines as loops in C: the same numbers as the uncompiled ones, made by a compiler and not by what replaces it."""

import logging

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.distributions import transform_to

import diffeo
from cases import TRANSFORMS
from diffeo.functional import is_real
from diffeo.kernels import dispatch, native, spline, vector_steps
from diffeo.kernels.recording import RecordedLoop, write
from diffeo.kernels.scalars import is_one_operation, map_scalars, record, records
from diffeo.kernels.spline_arithmetic import Limits
from diffeo.training import compiling as plan_compiling

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler here")
LIMITS = [
    Limits(8, 5.0, 1e-3, 1e-3, 1e-3),
    Limits(4, 2.0, 1e-2, 1e-3, 1e-3, ends=True),
]


def arguments(limits, dtype, n=5000):
    generator = torch.Generator().manual_seed(0)
    v = (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1) * limits.bound
    if not limits.ends:
        v *= 1.3
    params = torch.randn(limits.n_params, n, generator=generator, dtype=torch.float64)
    return v.to(dtype).requires_grad_(), params.to(dtype).requires_grad_()


def outputs_and_gradients(v, params, inverse, limits):
    outputs = spline.Spline.apply(v, params, inverse, limits)
    loss = outputs[0].sin().sum() + outputs[1].sum()
    return [*outputs, *torch.autograd.grad(loss, (v, params))]


@needs_compiler
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("inverse", [False, True])
def test_loops_agree_with_uncompiled_splines(limits, inverse, tmp_path, monkeypatch):
    assert RecordedLoop(lambda x: (x + 1,), (None,)).is_compiled(torch.float32)  # and the library of threads, with it
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for made in (spline._loop, spline._backward_loop):
        made.cache_clear()
    reference = outputs_and_gradients(*arguments(limits, torch.float64), inverse, limits)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-2)):
        with diffeo.compiled_kernels():
            results = outputs_and_gradients(*arguments(limits, dtype), inverse, limits)
        for result, expected in zip(results, reference, strict=True):
            assert result.dtype == dtype
            worst = ((result - expected).abs() / (1 + expected.abs())).max()
            assert worst < tolerance
    assert len(list((tmp_path / "diffeo").glob("*.so"))) == 4  # both directions of autograd, in both types


@needs_compiler
def test_what_is_not_finite_stays_so():
    v = torch.tensor([float("nan"), float("inf"), -float("inf"), 7.0])
    params = torch.zeros(23, 4)
    with diffeo.compiled_kernels():
        z, logdet = spline.Spline.apply(v, params, False, LIMITS[0])
        assert spline.Spline.apply(torch.zeros(4), params * float("nan"), False, LIMITS[0])[0].isnan().all()
    assert z.isnan().tolist() == [True, False, False, False]
    assert z[1:].tolist() == v[1:].tolist()
    assert logdet[1:].tolist() == [0.0, 0.0, 0.0]


@needs_compiler
@pytest.mark.parametrize("n", [0, 1, 17, 2049])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_loops_serve_all_sizes_and_threads(n, threads):
    loop = RecordedLoop(lambda x, p: (x * p.unbind(0)[1], torch.stack([x + 1, *p.unbind(0)])), (None, 2))
    x, p = torch.randn(n), torch.randn(2, n)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        product, planes = loop(x, p)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(product, x * p[1])
    assert torch.equal(planes, torch.stack([x + 1, *p]))


def test_second_derivatives_and_wrapped_tensors_are_left_to_the_uncompiled_kernels():
    spline = diffeo.RationalQuadraticSpline(4)
    params = torch.randn(6, spline.n_params, dtype=torch.float64)

    def value(x):
        return sum(out.sum() for out in spline(x, params))

    x = torch.randn(6, dtype=torch.float64)
    expected = torch.autograd.functional.hessian(value, x), torch.func.vmap(torch.func.grad(value))(x.expand(2, 6))
    with diffeo.compiled_kernels():
        assert torch.allclose(torch.autograd.functional.hessian(value, x), expected[0])
        assert torch.allclose(torch.func.vmap(torch.func.grad(value))(x.expand(2, 6)), expected[1])


@needs_compiler
def test_a_fit_runs_loops_unless_told_not_to(monkeypatch):
    monkeypatch.setattr(plan_compiling, "SHORT", 0.5)  # this fit is long enough by prediction
    calls = []
    run = vector_steps._run
    monkeypatch.setattr(vector_steps, "_run", lambda *args: calls.append(1) or run(*args))
    flows = []
    for compile in (False, "auto"):
        torch.manual_seed(0)
        flows.append(diffeo.nsf(3, layers=2, hidden=(64, 64)))
        x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(1))
        assert diffeo.fit(flows[-1], x, validation=0, steps=1000, batch_size=512, compile=compile, time_limit=2).steps
        assert bool(calls) == (compile == "auto")
    assert not dispatch.kernels_in_use()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_right_where_exponentials_end(dtype):
    x = torch.cat([torch.linspace(-800, 800, 20001), torch.linspace(40, 60, 2001), torch.tensor([1e-30, -0.0])]).to(
        dtype
    )
    (found,) = RecordedLoop(lambda x: (x.tanh(),), (None,))(x)
    assert (found - x.tanh()).abs().max() <= 4 * torch.finfo(dtype).eps
    assert found.abs().max() <= 1


def test_what_is_not_elementwise_is_refused():
    with pytest.raises(NotImplementedError, match="sum"):
        RecordedLoop(lambda x: (x.sum(0, keepdim=True),), (None,)).source(torch.float32)


def test_without_a_compiler_the_function_itself_runs(monkeypatch, caplog):
    monkeypatch.setattr(native, "find_compiler", lambda: None)
    loop = RecordedLoop(lambda x: (x.exp(),), (None,))
    assert torch.equal(loop(torch.ones(3))[0], torch.ones(3).exp())
    monkeypatch.setattr(native, "find_compiler", lambda: "false")  # a compiler that fails
    loop = RecordedLoop(lambda x: (x.log(),), (None,))
    with caplog.at_level(logging.INFO, "diffeo"):
        assert torch.equal(loop(torch.ones(3))[0], torch.zeros(3))
    assert "could not be compiled" in caplog.text


@needs_compiler
def test_what_does_not_belong_to_a_loop_is_refused():
    loop = RecordedLoop(lambda x, p: (x * p.unbind(0)[1],), (None, 2))
    with pytest.raises(ValueError, match="belong together"):
        loop(torch.zeros(3), torch.zeros(2, 4))


@needs_compiler
def test_nobody_else_may_put_libraries_where_they_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "diffeo").mkdir()
    (tmp_path / "diffeo").chmod(0o777)
    loop = RecordedLoop(lambda x: (x + 1,), (None,))
    assert loop.is_compiled(torch.float32)  # in a folder of its own
    assert torch.equal(loop(torch.zeros(3))[0], torch.ones(3))
    assert not list((tmp_path / "diffeo").iterdir())


# the table says which scalar maps are written down as C, forward and inverse; others run operation by operation
SCALAR_MAPS = {name: case for name, case in TRANSFORMS.items() if isinstance(case.build(0), diffeo.Univariate)}
RECORDED = [name for name, case in SCALAR_MAPS.items() if case.in_c]


def test_which_scalar_maps_are_written_down():
    for inverse in (False, True):
        assert [name for name, case in SCALAR_MAPS.items() if records(case.build(0), inverse)] == RECORDED


def inputs(made, like, dtype):
    """Parameters, one plane each, and numbers inside the domain."""
    random = torch.Generator().manual_seed(0)
    params = 0.5 * torch.randn(made.n_params, *like, generator=random, dtype=torch.float64)
    x = torch.randn(like, generator=random, dtype=torch.float64)
    x = 2 * x if is_real(made.domain) else transform_to(made.domain)(x)
    return params.to(dtype), x.to(dtype)


@needs_compiler
@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_written_down_computes_the_same(name, dtype):
    made = SCALAR_MAPS[name].build(0)
    planes, x = inputs(made, (500,), dtype)
    n, params = made.n_params, planes.T
    for inverse in (False, True):
        run = made.inverse if inverse else made.forward
        with torch.no_grad():
            v = made(x, params)[0] if inverse else x
            expected = run(v, params)
        given = (v.contiguous(), planes)[: 2 if n else 1]
        loop = record(made, inverse)[0] if n else RecordedLoop(run, (None,))
        assert loop.is_compiled(dtype)
        found = loop(*given)
        tolerance = 2e-4 if dtype == torch.float32 else 1e-9
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True), (name, inverse)


@needs_compiler
@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scalar_maps_are_one_operation_with_their_gradient(name, dtype):
    made = SCALAR_MAPS[name].build(0)
    params, x = inputs(made, (7, 3, 50), dtype)
    for order in ((0, 1, 2), (2, 0, 1)):  # however they lie in memory
        inner = params.permute(0, *(d + 1 for d in order)).contiguous()
        back = sorted(range(3), key=order.__getitem__)
        given = inner.permute(*(d + 1 for d in back), 0).requires_grad_()
        for inverse in (False, True):
            run = made.inverse if inverse else made.forward
            v = x.clone().requires_grad_()

            def results(z, logdet):
                loss = z.sin().sum() + (logdet * logdet).sum()
                return [z, logdet, *torch.autograd.grad(loss, (v, given), create_graph=True)]  # noqa: B023

            # a spline has a gradient by hand, which what holds one lacks; of others it is that of their operations
            if not made.n_params or any(map(is_one_operation, made.modules())):
                with diffeo.compiled_kernels():
                    assert map_scalars(made, v, given, inverse) is None
                continue
            expected = results(*run(v, given))
            with diffeo.compiled_kernels():
                outputs = map_scalars(made, v, given, inverse)
                assert outputs is not None
                found = [*outputs, *torch.autograd.grad(outputs[0].sin().sum() + outputs[1].square().sum(), (v, given))]
                again = results(*map_scalars(made, v, given, inverse))
            tolerance = 2e-3 if dtype == torch.float32 else 1e-8
            for a, b, c in zip(expected, found, again, strict=True):
                assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)
                assert torch.allclose(a, c, rtol=tolerance, atol=tolerance)


FUNCTIONS = {
    "powers": lambda x: x**5 + (1 + x * x) ** 0.5 + (1 + x * x) ** -1.5 + torch.exp2(x),
    "logarithms": lambda x: torch.log2(1 + x * x) + torch.log10(1 + x.abs()) + torch.logaddexp(x, 1 - x),
    "hyperbolic": lambda x: x.asinh() + x.sinh() * x.cosh() + (0.5 * x.tanh()).atanh(),
    "circular": lambda x: x.sin() * x.cos() + (0.3 * x).tan() + torch.atan2(x, 1 + x * x) + torch.hypot(x, 1 + x),
    "activations": lambda x: x.relu() + F.leaky_relu(x, 0.1) + F.silu(x) + F.hardtanh(x) + F.softsign(x),
    "probabilities": lambda x: x.erf() + x.erfc() + torch.logit(x.sigmoid()) + torch.special.ndtr(x),
    "pieces": lambda x: x.clamp(-1, 1) + torch.maximum(x, x * x) + torch.minimum(x, 1 - x) + torch.lerp(x, x * x, 0.3),
    "steps": lambda x: x.round() + x.trunc() + x.floor() + torch.fmod(x, 0.7) + torch.copysign(1 + x * x, x),
}


class Function(diffeo.Univariate):
    """Parameters picked as users pick them: by an index, or a slice."""

    n_params = 3

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x, context=None):
        params = self.params(context)
        return FUNCTIONS[self.name](x + params[..., 0]), params[..., 1:].sum(-1) * x

    def inverse(self, z, context=None):
        return self.forward(z, context)


@needs_compiler
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_their_gradients_are_written_down(name):
    made = Function(name)
    for dtype, tolerance in ((torch.float32, 2e-4), (torch.float64, 1e-10)):
        planes, x = inputs(made, (300,), dtype)
        given = planes.movedim(0, -1).detach().requires_grad_()
        x = x.detach().requires_grad_()
        found = []
        for run in (made, lambda x, params: map_scalars(made, x, params, False)):
            with diffeo.compiled_kernels():
                z, logdet = run(x, given)
            loss = (z * torch.linspace(-1, 1, len(x), dtype=dtype)).sum() + logdet.sum()
            found.append([z, logdet, *torch.autograd.grad(loss, (x, given))])
        for a, b in zip(*found, strict=True):
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def test_what_others_have_looked_at_is_not_changed_in_place():
    def run(x, p):
        first, second = p.unbind(0)
        twice = x * 2
        seen = twice.unsqueeze(0)
        twice.add_(first)
        return seen.squeeze(0), twice * second

    assert write(RecordedLoop(run, (None, 2)).source, torch.float32) is None


def test_a_tensor_that_fills_another_is_no_constant():
    def run(x):
        return (torch.ops.aten.fill(x, torch.zeros((), dtype=x.dtype)),)

    assert write(RecordedLoop(run, (None,)).source, torch.float32) is None


@needs_compiler
def test_functions_that_compilers_know():
    """Each of them once, on values of both signs, also not finite ones."""

    def everything(x):
        y = torch.where((x < 0) & (x != -1), x.sin() * x.cos(), torch.minimum(x, x * x).atan())
        y = y + torch.log1p(x.abs()) - torch.expm1(-x.abs()) + x.asinh() + x.sinh().tanh() + x.clamp(max=2.0)
        y = y + torch.remainder(x, 3.0) + torch.atan2(x, x + 4) + x.sign() * x.floor() + x**2 + x.erf() + x.square()
        z = torch.where(x.isnan() | ~(x >= 0), -x, x.reciprocal() + x.rsqrt())
        return y, z + torch.nn.functional.logsigmoid(x) + x.cosh().log() + x.ceil().clamp(-1.0, 5.0)

    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        x = torch.tensor([-3.0, -1.0, -0.25, 0.5, 1.0, 2.5, float("inf"), float("nan")], dtype=dtype)
        loop = RecordedLoop(everything, (None,))
        assert loop.is_compiled(dtype)
        for a, b in zip(loop(x), everything(x), strict=True):
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)

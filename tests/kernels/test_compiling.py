"""`flow.compile()`: the same numbers, for any number of rows; copies run eagerly."""

import copy
import logging
import pickle

import pytest
import torch

import diffeo
from diffeo.kernels import compiling, native, perceptron, process, spline
from diffeo.testing import perturbed

SMALL = {"layers": 2, "hidden": (16, 16)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "features"),
    [
        (diffeo.realnvp, 5),
        (diffeo.nsf, 5),
        (diffeo.maf, 5),
        (diffeo.nsf_ar, 5),
        (diffeo.nsf_ar, 10),  # by blocks of steps
        (diffeo.iaf, 5),
    ],
)
def test_compiled_flows_agree_with_eager_ones(recipe, features):
    torch.manual_seed(0)
    flow = perturbed(recipe(features, context=2, **SMALL)).eval()
    again = copy.deepcopy(flow)
    flow.compile()
    x, c = torch.randn(64, features), torch.randn(64, 2)
    for n in (64, 7, 33):
        assert torch.allclose(flow(x[:n], c[:n]), again(x[:n], c[:n]), rtol=1e-4, atol=1e-3)
    torch.compiler.set_stance("fail_on_recompile")
    try:
        flow(x[:21], c[:21])
    finally:
        torch.compiler.set_stance("default")
    for n in (64, 9):
        draws = [f.sample(n, c[:n], generator=torch.Generator().manual_seed(1)) for f in (flow, again)]
        assert torch.allclose(*draws, rtol=1e-3, atol=1e-3)
    loss = -flow(x, c).mean()
    loss.backward()
    (-again(x, c).mean()).backward()
    for a, b in zip(flow.parameters(), again.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("little", [0, compiling.LITTLE])
def test_little_work_leaves_threads_to_the_kernels(little, monkeypatch):
    monkeypatch.setattr(compiling, "LITTLE", little)
    seen = []
    monkeypatch.setattr(
        perceptron,
        "threads",
        lambda rows, weights: seen.append((torch.get_num_threads(), process.thread_limit.threads)) or 1,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        flow = diffeo.realnvp(3, **SMALL)
        flow.compile()
        flow(torch.randn(8, 3)).sum().backward()
        assert set(seen) == {(1, 2) if little else (2, 2)}
        assert len(seen) >= 2  # there and back
        assert (torch.get_num_threads(), process.thread_limit.threads) == (2, 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (5, 3), (2, 4, 3)])
def test_the_operator_that_compilers_see_is_the_spline(shape, inverse):
    limits = diffeo.RationalQuadraticSpline(4).limits
    strided = torch.randn(*shape, 2, dtype=torch.float64)[..., 0]  # with gaps in memory
    params = torch.randn(*shape, 11, dtype=torch.float64).movedim(-1, 0)
    results = []
    constants = {spline.Spline: (limits,), spline.TracedSpline: spline._constants(limits)}
    for function, given in constants.items():
        v, p = strided.detach().requires_grad_(), params.detach().requires_grad_()
        outputs = function.apply(v, p, inverse, *given)
        weights = torch.linspace(1, 2, strided.numel(), dtype=torch.float64).view(shape)
        loss = sum((weights * out).sum() * (i + 1) for i, out in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, (v, p))])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_kernels_serve_all_sizes_also_after_the_compiler_is_reset():
    kernel = compiling.Region(lambda a, b: a.exp() + b.sum(0), free=2, typical=64)
    for n in (64, 1, 0, 7, 5000):
        a, b = torch.randn(n), torch.randn(3, n)
        assert torch.allclose(kernel(a, b), a.exp() + b.sum(0), rtol=1e-5, atol=1e-5)
        torch.compiler.reset()


def test_copies_run_eagerly():
    flow = diffeo.maf(10, **SMALL)
    flow.compile()  # nothing is compiled before the first call
    layer = next(part for part in flow.transform.parts if isinstance(part, diffeo.Autoregressive))
    assert layer._compiled.block is not None
    for twin in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        for part in twin.modules():
            assert not {"forward", "inverse", "_compiled"} & set(vars(part))
        assert twin(torch.zeros(2, 10)).shape == (2,)


def test_without_a_compiler_everything_runs_eagerly_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    compiling.has_compiler.cache_clear()
    try:
        flow = diffeo.realnvp(3, **SMALL)
        with caplog.at_level(logging.INFO, "diffeo"):
            flow.compile()
        assert "no C++ compiler" in caplog.text
        assert flow(torch.zeros(2, 3)).shape == (2,)
        assert flow.sample(4).shape == (4, 3)
    finally:
        compiling.has_compiler.cache_clear()

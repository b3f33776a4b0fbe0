"""WaveNets in C: the numbers and gradients of their layers, where they can run."""

import copy
import pickle

import pytest
import torch
from torch import nn

import diffeo
from diffeo.kernels import gated, native
from diffeo.nets import Beside, WaveNet

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler here")
# features, scalars, hidden, layers, kernel, dilation, context, sequences, frames
SIZES = {
    "glow_tts": (8, 8, 48, 2, 5, 1, 0, 8, 100),
    "with a context": (5, 3, 20, 3, 3, 1, 4, 3, 77),
    "dilated": (6, 7, 33, 3, 3, 2, 0, 2, 50),
    "one layer, one frame": (1, 1, 1, 1, 1, 1, 2, 1, 1),
    "fewer frames than a kernel": (3, 4, 9, 2, 7, 3, 0, 4, 2),
    "long": (4, 4, 16, 2, 3, 1, 0, 1, 501),
    "waveglow": (4, 4, 32, 3, 3, 2, 7, 3, 300),
    "few frames beside": (2, 3, 10, 2, 3, 1, 1, 2, 9),
}
BESIDE = {"waveglow": (32.0, 1.5, 11), "few frames beside": (9.5, 0.0, 1)}  # positions, the first one, frames
TYPES = ((torch.float64, 1e-10), (torch.float32, 2e-3))


def example(size, dtype, n_params=2, dropout=0.0):
    features, out, hidden, layers, kernel, dilation, context, n, frames = SIZES[size]
    options = {"hidden": hidden, "layers": layers, "kernel": kernel, "dilation": dilation, "context": context}
    torch.manual_seed(0)
    frames_beside = ()
    if size in BESIDE:
        *place, count = BESIDE[size]
        options |= {"context": 0, "beside": Beside("features", context, *place)}
        frames_beside = (count,)
    net = WaveNet(features, out, n_params, dropout=dropout, **options).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    x = torch.randn(n, frames, 2 * features, dtype=torch.float64).to(dtype).requires_grad_()
    given = torch.randn(n, *frames_beside, context, dtype=torch.float64).to(dtype).requires_grad_() if context else None
    mask = torch.arange(frames)[:, None] < torch.arange(frames, frames - n, -1).clamp_min(1)[:, None, None]
    return net.to(dtype), x, given, mask


def entries(given, mask):
    found = {"features": given, "mask": mask}
    return {k: v for k, v in found.items() if v is not None} or None


def with_gradients(run, *inputs):
    out = run()
    return [out, *torch.autograd.grad(out.sin().sum(), [t for t in inputs if t is not None])]


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * (1 + b.norm())


@pytest.fixture
def runs(monkeypatch):
    """How often C ran."""
    counts, run = [], gated._run
    monkeypatch.setattr(gated, "_run", lambda *args: counts.append(args) or run(*args))
    return counts


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_params", [1, 2])
def test_nets_give_the_numbers_and_gradients_of_their_layers(size, masked, n_params, runs):
    for dtype, tolerance in TYPES:
        net, x, given, mask = example(size, dtype, n_params)
        context, half = entries(given, mask if masked else None), x.shape[-1] // 2
        there = mask.unsqueeze(-1) if masked else 1  # what padding gives is for nobody
        for seen in (slice(half), slice(half, None), slice(None, None, 2)):
            expected = with_gradients(lambda: net(x[..., seen], context) * there, x, given, *net.parameters())  # noqa: B023
            with diffeo.compiled_kernels():
                runs.clear()
                found = with_gradients(lambda: net(x[..., seen], context) * there, x, given, *net.parameters())  # noqa: B023
                assert len(runs) == 1
                with torch.no_grad():
                    assert torch.equal(net(x[..., seen], context) * there, found[0])
            assert_close(found, expected, tolerance)


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_drops_what_layers_drop(dtype, tolerance, inplace, runs):
    net, x, given, mask = example("with a context", dtype, dropout=0.3)
    net.dropout.inplace = inplace

    def drawn():
        torch.manual_seed(1)
        context = entries(given, mask)
        return with_gradients(lambda: net(x[..., :5], context) * mask.unsqueeze(-1), x, given, *net.parameters())

    expected = drawn()
    with diffeo.compiled_kernels():
        assert_close(drawn(), expected, tolerance)
        assert runs
        net.eval()
        evaluated = drawn()
    assert_close(evaluated, drawn(), tolerance)


@needs_compiler
def test_padding_of_frames_beside_may_hold_anything(runs):
    net, x, given, mask = example("waveglow", torch.float32)
    mask = torch.arange(300)[:, None] < torch.tensor([300, 130, 1])[:, None, None]
    spoiled = given.detach().clone()
    spoiled[1, 6:], spoiled[2, 2:] = float("nan"), float("inf")

    def run(t):
        return with_gradients(lambda: torch.where(mask.unsqueeze(-1), net(x[..., :4], entries(t, mask)), 0.0), x)

    with diffeo.compiled_kernels():
        found, expected = run(spoiled), run(given.detach())
    assert runs
    assert_close(found, expected, 0.0)


@needs_compiler
def test_frames_beside_and_a_context(runs):
    torch.manual_seed(0)
    net = WaveNet(2, 2, 2, hidden=8, context=3, beside=Beside("mel", 3, 2.0)).double()
    nn.init.normal_(net.leave.weight)
    x, one, many = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 9, 2), (3,), (5, 5, 3)))
    inputs = [t.requires_grad_() for t in (x, one, many)]

    def found():
        return with_gradients(lambda: net(x, {"features": one, "mel": many}), *inputs, *net.parameters())

    expected = found()
    with diffeo.compiled_kernels():
        assert_close(found(), expected, 1e-10)
    assert runs


@needs_compiler
def test_padding_may_hold_anything(runs):
    net, x, given, mask = example("with a context", torch.float32)
    spoiled = torch.where(mask, x, float("nan")).detach().requires_grad_()

    def run(t):
        return with_gradients(
            lambda: torch.where(mask.unsqueeze(-1), net(t[..., :5], entries(given, mask)), 0.0), t, given
        )

    with diffeo.compiled_kernels():
        found, expected = run(spoiled), run(x)
    assert runs
    assert_close(found, expected, 0.0)


@needs_compiler
def test_couplings_of_sequences_have_the_gradients_of_their_parts(runs):
    net, x, given, mask = example("glow_tts", torch.float64)
    layer = diffeo.Coupling(torch.arange(16) < 8, net, diffeo.Affine(bound=2.0), dim=-1, event_ndim=2)
    for policy in ("store", "invert"):
        chain = diffeo.Chain(layer, diffeo.Along(diffeo.ActNorm(16), -1, 2), memory=policy)
        results = []
        for kernels in (False, True):
            with diffeo.compiled_kernels(kernels):
                z, logdet = chain(x, entries(given, mask))
                loss = z.sin().sum() + logdet.cos().sum()
                results.append([z, logdet, *torch.autograd.grad(loss, [x, *layer.parameters()])])
        assert_close(*reversed(results), 1e-9)
    assert runs


@needs_compiler
@pytest.mark.parametrize(
    "size", ["waveglow", *(pytest.param(size, marks=pytest.mark.slow) for size in ("with a context", "dilated"))]
)
def test_compiled_couplings_run_it_too(size):
    net, x, given, mask = example(size, torch.float32)
    features = net.enter.in_channels
    layer = diffeo.Coupling(
        torch.arange(features + net.out) < features, net, diffeo.Affine(bound=2.0), dim=-1, event_ndim=2
    )
    x = torch.randn(*x.shape[:2], features + net.out, requires_grad=True)

    def results():
        z, logdet = layer(x, entries(given, mask))
        loss = z.sin().sum() + logdet.cos().sum()
        with torch.no_grad():
            back, _ = layer.inverse(z.detach(), entries(given, mask))
        return [z, logdet, back, *torch.autograd.grad(loss, [x, *layer.parameters()])]

    expected = results()
    layer.compile()
    with torch.profiler.profile() as profile:
        found = results()
    names = {event.key for event in profile.key_averages()}
    assert {"diffeo::gated", "diffeo::gated_backward"} <= names
    assert_close(found, expected, 2e-3)


@needs_compiler
@pytest.mark.parametrize("size", ["with a context", "waveglow"])
def test_second_derivatives_and_many_gradients_at_once(size, runs):
    net, x, given, mask = example(size, torch.float64)

    def value():
        return net(x[..., : net.enter.in_channels], entries(given, mask)) * mask.unsqueeze(-1)

    def curvature():
        (slope,) = torch.autograd.grad(value().sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, given, *net.parameters()], materialize_grads=True)

    many = torch.randn(2, *value().shape, dtype=torch.float64)
    expected = [*curvature(), *torch.autograd.grad(value(), x, many, is_grads_batched=True)]
    with diffeo.compiled_kernels():
        found = [*curvature(), *torch.autograd.grad(value(), x, many, is_grads_batched=True)]
    assert runs
    assert_close(found, expected, 1e-10)


def _subclass(net):
    class Other(WaveNet):
        pass

    net.__class__ = Other


def _hook(net):
    net.mix[0].register_forward_hook(lambda *_: None)


def _norm(net):
    nn.utils.parametrizations.weight_norm(net.near[0])


def _reflect(net):
    net.near[0].padding_mode = "reflect"
    net.near[0]._reversed_padding_repeated_twice = [1, 1]


@needs_compiler
@pytest.mark.parametrize("change", [_subclass, _hook, _norm, _reflect])
def test_what_is_no_plain_net_runs_layer_by_layer(change, runs):
    net, x, given, mask = example("with a context", torch.float32)
    change(net)
    expected = net(x[..., :5], entries(given, mask))
    with diffeo.compiled_kernels():
        found = net(x[..., :5], entries(given, mask))
    assert not runs
    assert torch.equal(found, expected)


@needs_compiler
def test_wrong_sizes_are_named_by_layers(runs):
    net, x, given, mask = example("with a context", torch.float32)
    with diffeo.compiled_kernels(), pytest.raises(RuntimeError, match="expected input"):
        net(x, entries(given, mask))
    net.leave = nn.Conv1d(20, 7, 1)  # parameters that are no multiple of two
    with diffeo.compiled_kernels(), pytest.raises(RuntimeError, match="unflatten"):
        net(x[..., :5], entries(given, mask))
    assert not runs


@needs_compiler
def test_gradients_that_are_expanded_and_taken_twice(runs):
    net, x, *_ = example("glow_tts", torch.float64)
    expected = torch.autograd.grad(net(x[..., :8]).sum(), [x, *net.parameters()])
    with diffeo.compiled_kernels():
        out = net(x[..., :8])
        for _ in range(2):
            assert_close(torch.autograd.grad(out.sum(), [x, *net.parameters()], retain_graph=True), expected, 1e-10)
        assert torch.equal(out.detach().clone().mul_(2), (out * 1).mul_(2))
    assert runs


@needs_compiler
def test_windows_far_wider_than_the_frames_run_layer_by_layer(runs):
    net = WaveNet(2, 2, 2, hidden=8, layers=7, dilation=3)
    with diffeo.compiled_kernels():
        net(torch.randn(2, 5, 2))
    assert not runs


@pytest.fixture
def packed(monkeypatch):
    """Whether each run in C read weights that had been laid out before."""
    found, stack = [], gated._stack

    def watched(whole, planes, panels=None):
        found.append(panels is not None)
        return stack(whole, planes, panels)

    monkeypatch.setattr(gated, "_stack", watched)
    return found


def packed_example(size, dtype, packed):
    """A net whose weights are laid out, and a check of whether it uses that and gives what its layers do."""
    net, x, given, mask = example(size, dtype, dropout=0.1)
    net.eval().requires_grad_(False).pack()
    half, context = x[..., : x.shape[-1] // 2].detach(), entries(None if given is None else given.detach(), mask)

    def check(net, used, tolerance=2e-3, run=None):
        wide, more = half.to(net.enter.weight.dtype), {k: v.to(net.enter.weight.dtype) for k, v in context.items()}
        more["mask"] = mask
        expected = torch.where(mask.unsqueeze(-1), net(wide, more), 0.0)
        packed.clear()
        with diffeo.compiled_kernels():
            found = torch.where(mask.unsqueeze(-1), (net if run is None else run)(wide, more), 0.0)
        assert packed == [used]
        assert_close([found], [expected], tolerance)

    return net, check


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_packed_weights_give_the_same_numbers(size, dtype, tolerance, packed):
    net, check = packed_example(size, dtype, packed)
    check(net, True, tolerance)
    check(net, True, tolerance)
    assert set(net.state_dict()) == set(WaveNet.state_dict(example(size, dtype)[0]))


def _scale(net):
    for p in net.parameters():
        p.mul_(1.1)


def _load(net):
    net.load_state_dict({k: 1.1 * v for k, v in net.state_dict().items()})


def _load_a_part(net):
    net.near[0].load_state_dict({k: 1.1 * v for k, v in net.near[0].state_dict().items()})


def _copy_a_vector(net):
    nn.utils.vector_to_parameters(1.1 * nn.utils.parameters_to_vector(net.parameters()), net.parameters())


def _replace(net):
    net.near[0] = nn.Conv1d(32, 64, 3, padding=1).requires_grad_(False)


def _widen_parts(net):
    for part in net.children():
        part.double()


@needs_compiler
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("change", [_scale, _load, _load_a_part, _copy_a_vector, _replace, _widen_parts])
def test_packed_weights_that_have_changed_are_not_used(change, compiled, packed):
    net, check = packed_example("waveglow", torch.float32, packed)
    run = torch.compile(net) if compiled else None
    check(net, True, run=run)
    change(net)
    check(net, False, run=run)
    net.pack()
    check(net, True, run=run)


@needs_compiler
def test_packed_weights_of_others(packed):
    net, check = packed_example("waveglow", torch.float32, packed)
    others = {k: 1.1 * v for k, v in net.named_parameters()}
    scaled = copy.deepcopy(net)
    _scale(scaled)
    scaled.pack()

    def run(x, context):
        return torch.func.functional_call(net, others, (x, context))

    for call in (run, torch.compile(run)):
        check(scaled, False, run=call)


@needs_compiler
@pytest.mark.parametrize(
    "moved",
    [
        copy.deepcopy,
        lambda net: net.to("cpu"),
        lambda net: net.double(),
        lambda net: net.share_memory(),
        lambda net: pickle.loads(pickle.dumps(net)),
    ],
)
def test_weights_stay_packed_where_they_go(moved, packed):
    net, check = packed_example("waveglow", torch.float32, packed)
    check(moved(net), True)


@needs_compiler
def test_weights_whose_changes_nobody_counts_are_not_packed():
    with torch.inference_mode():
        net = WaveNet(2, 2, 2, hidden=8)
        net.pack()
    assert net.panels is None


@needs_compiler
def test_a_net_that_reads_nothing_beside_it_after_all(runs):
    net = WaveNet(2, 2, 2, hidden=8, beside=Beside("mel", 3, 2.0))
    net.known = None
    x = torch.randn(3, 9, 2)
    with diffeo.compiled_kernels():
        assert net(x).shape == (3, 9, 2, 2)
    assert not runs


@needs_compiler
def test_vmap_is_left_to_layers(runs):
    net, x, *_ = example("glow_tts", torch.float32)
    expected = net(x[..., :8])
    with diffeo.compiled_kernels():
        assert torch.allclose(torch.vmap(net)(x[..., :8]), expected, atol=1e-5)
    assert not runs

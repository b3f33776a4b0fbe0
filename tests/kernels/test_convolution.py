"""Pictures in C: the numbers and gradients of nets, linear maps and couplings layer by layer, where they can run."""

import copy

import pytest
import torch
from torch import nn

import diffeo
from diffeo.kernels import convolution, coupling, mix, native, perceptron
from diffeo.nets import ConvNet

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler here")
# channels that the net sees, channels that it sets, hidden ones, context, sides, pictures
SIZES = {
    "glow": (2, 2, 64, 0, (14, 14), 40),
    "with a context": (4, 4, 32, 3, (7, 7), 64),
    "one place": (1, 3, 7, 2, (1, 1), 3),
    "one picture, long": (3, 2, 33, 0, (28, 5), 1),
    "larger than a block": (2, 1, 20, 0, (40, 40), 5),
}
SCALARS = {
    "Affine": lambda: diffeo.Affine(bound=2.0),
    "Shift": diffeo.Shift,
    "RationalQuadraticSpline": lambda: diffeo.RationalQuadraticSpline(bins=4),
    "Composed": lambda: diffeo.Composed(diffeo.Affine(), diffeo.SinhArcsinh()),
}
TYPES = ((torch.float64, 1e-10), (torch.float32, 2e-3))
BOTH = {"Affine", "RationalQuadraticSpline"}  # of scalar maps, each of which takes seconds to compile for a type


def perturbed(module, dtype, std=0.2):
    torch.manual_seed(0)
    module = module.double()
    for p in module.parameters():
        nn.init.normal_(p, std=std)
    return module.to(dtype)


def pictures(n, channels, sides, dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, *sides, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def vectors(n, width, dtype):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() if width else None


def with_gradients(run, *inputs):
    outputs = run()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((out.sin() * (i + 1)).sum() for i, out in enumerate(outputs))
    wanted = [t for t in inputs if t is not None]
    return [*outputs, *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)]


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * (1 + b.norm())


def halves(scalars, context=0, kind=diffeo.Coupling, **options):
    """A coupling of two channels on two."""
    net = ConvNet(2, 2, scalars.n_params, hidden=6, context=context, **options)
    return kind(torch.tensor([True, True, False, False]), net, scalars, dim=-3)


@pytest.fixture
def runs(monkeypatch):
    """Which functions in C ran."""
    counts = []
    for module, name in (
        (convolution, "_run"),
        (convolution, "_run_backward"),
        (mix, "_mix"),
        (coupling, "_run"),
    ):
        run = getattr(module, name)
        label = f"{module.__name__.rsplit('.', 1)[1]}.{name}"
        monkeypatch.setattr(module, name, lambda *args, run=run, label=label: counts.append(label) or run(*args))
    return counts


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_params", [1, 2, 11])
def test_nets_give_the_numbers_and_gradients_of_their_layers(size, n_params, runs):
    seen, out, hidden, context, sides, n = SIZES[size]
    for dtype, tolerance in TYPES:
        net = perturbed(ConvNet(seen, out, n_params, hidden=hidden, context=context), dtype)
        x, given = pictures(n, seen, sides, dtype), vectors(n, context, dtype)
        inputs = [x, given, *net.parameters()]
        expected = with_gradients(lambda: net(x, given), *inputs)  # noqa: B023 (called at once)
        with diffeo.compiled_kernels():
            runs.clear()
            found = with_gradients(lambda: net(x, given), *inputs)  # noqa: B023
            assert runs == ["convolution._run", "convolution._run_backward"]
            with torch.no_grad():
                assert torch.equal(net(x, given), found[0])
        assert_close(found, expected, tolerance)


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("first", [True, False])
def test_couplings_give_the_numbers_and_gradients_of_their_parts(size, name, first, runs):
    seen, out, hidden, context, sides, n = SIZES[size]
    for dtype, tolerance in TYPES if name in BOTH else TYPES[:1]:
        scalars = SCALARS[name]()
        mask = torch.arange(seen + out) < seen
        net = ConvNet(seen, out, scalars.n_params, hidden=hidden, context=context)
        layer = perturbed(diffeo.Coupling(mask if first else mask.flip(0), net, scalars, dim=-3), dtype, std=0.1)
        x, given = pictures(n, seen + out, sides, dtype), vectors(n, context, dtype)
        inputs = [x, given, *layer.parameters()]
        for direction in (layer.forward, layer.inverse):
            expected = with_gradients(lambda: direction(x, given), *inputs)  # noqa: B023 (called at once)
            with diffeo.compiled_kernels():
                runs.clear()
                found = with_gradients(lambda: direction(x, given), *inputs)  # noqa: B023
                assert runs == ["coupling._run"]
                with torch.no_grad():
                    z, logdet = direction(x, given)
            assert_close(found, expected, tolerance)
            assert torch.equal(z, found[0])
            assert torch.equal(logdet, found[1])


LINEAR = {"norm": diffeo.ActNorm, "linear": diffeo.LULinear}


@needs_compiler
@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize(
    "parts", ["norm", "linear", "norm linear", "linear norm", "norm norm", "linear linear", "norm linear norm linear"]
)
def test_linear_maps_of_channels_are_one_operation(channels, parts, runs):
    for dtype, tolerance in TYPES:
        torch.manual_seed(0)
        chain = diffeo.Chain(*(LINEAR[part](channels) for part in parts.split()))
        layer = diffeo.Conv1x1(channels, chain).to(dtype)
        layer.initialize(pictures(9, channels, (3, 5), dtype).detach())
        layer = perturbed(layer, dtype)
        folded = diffeo.prepare_inference(layer)
        x = pictures(9, channels, (3, 5), dtype)
        wide = pictures(9, 2 * channels, (3, 5), dtype)
        for view in (x, x.movedim(1, -1).contiguous().movedim(-1, 1), wide[:, channels:], x[:, :, :, ::2], x[0]):
            for part in (layer.forward, layer.inverse, folded.forward, folded.inverse):
                expected = with_gradients(lambda: part(view), x, wide, *layer.parameters())  # noqa: B023
                with diffeo.compiled_kernels():
                    runs.clear()
                    found = with_gradients(lambda: part(view), x, wide, *layer.parameters())  # noqa: B023
                assert runs == ["mix._mix"]
                assert_close(found, expected, tolerance)


@needs_compiler
@pytest.mark.parametrize("what", ["net", "linear", "normed", *SCALARS])
def test_second_derivatives_and_many_gradients_at_once(what, runs):
    if what in SCALARS:
        layer = halves(SCALARS[what](), context=2)
    else:
        normed = diffeo.Conv1x1(4, diffeo.Chain(diffeo.ActNorm(4), diffeo.LULinear(4)))
        layer = {"net": ConvNet(4, 2, 3, hidden=6, context=2), "linear": diffeo.Conv1x1(4), "normed": normed}[what]
    layer = perturbed(layer, torch.float64, std=0.2)
    x, given = pictures(3, 4, (3, 4), torch.float64), vectors(3, 2, torch.float64)

    def value():
        out = layer(x, given)
        return out if what == "net" else out[0].sin() + out[1][:, None, None, None]

    def curvature():
        (slope,) = torch.autograd.grad(value().sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, *layer.parameters()])

    many = torch.randn(2, *value().shape, dtype=torch.float64)
    expected = [*curvature(), *torch.autograd.grad(value(), x, many, is_grads_batched=True)]
    with diffeo.compiled_kernels():
        found = [*curvature(), *torch.autograd.grad(value(), x, many, is_grads_batched=True)]
    assert runs
    assert_close(found, expected, 1e-10)


@needs_compiler
def test_transforms_of_functions_are_left_to_the_layers(runs):
    layer = perturbed(
        diffeo.Coupling(torch.tensor([True, False]), ConvNet(1, 1, 2, hidden=4), diffeo.Affine(), dim=-3), torch.float64
    )
    x = pictures(2, 2, (3, 3), torch.float64).detach()
    with diffeo.compiled_kernels():
        torch.func.vmap(layer)(x)
        torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))
        torch.func.jacrev(lambda x: layer(x)[0])(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer.net.float()(x[:, :1].float())
    assert not runs


@needs_compiler
@pytest.mark.parametrize(
    "net",
    [
        ConvNet(1, 1, 2, hidden=8, blocks=1),
        ConvNet(1, 1, 2, hidden=600),
        type("Changed", (ConvNet,), {})(1, 1, 2, hidden=8),
    ],
    ids=["blocks", "wide", "of one's own"],
)
def test_other_nets_run_layer_by_layer(net, runs):
    with diffeo.compiled_kernels():
        net(torch.randn(2, 1, 4, 4))
        diffeo.Coupling(torch.tensor([True, False]), net, diffeo.Affine(), dim=-3)(torch.randn(2, 2, 4, 4))
    assert not runs


@needs_compiler
def test_hooks_of_layers_run(runs):
    layer = diffeo.Coupling(torch.tensor([True, False]), ConvNet(1, 1, 2, hidden=8), diffeo.Affine(), dim=-3)
    x = torch.randn(2, 2, 4, 4)
    for part in (layer.net.enter, layer.net.inner[0], layer.net):
        seen = []
        handle = part.register_forward_hook(lambda *_: seen.append(1))  # noqa: B023
        with diffeo.compiled_kernels():
            runs.clear()
            layer(x)
        assert seen == [1]
        assert "coupling._run" not in runs
        handle.remove()
    chain = diffeo.Conv1x1(2, diffeo.Chain(diffeo.ActNorm(2), diffeo.LULinear(2)))
    chain.transform.parts[0].register_forward_hook(lambda *_: seen.append(2))
    with diffeo.compiled_kernels():
        chain(x)
    assert seen[-1] == 2


@needs_compiler
def test_masks_empty_batches_and_contexts_with_a_batch_of_their_own():
    layer = perturbed(
        diffeo.Coupling(torch.tensor([True, False]), ConvNet(1, 1, 2, hidden=8, context=2), diffeo.Affine(), dim=-3),
        torch.float64,
    )
    linear = perturbed(diffeo.Conv1x1(2), torch.float64)
    x, given = pictures(3, 2, (4, 4), torch.float64), vectors(3, 2, torch.float64)
    mask = torch.rand(3, 1, 4, 4) > 0.5
    calls = [
        lambda: layer(x, {"features": given, "mask": mask}),
        lambda: linear(x, {"mask": mask}),
        lambda: layer(x[:0], given[:0]),
        lambda: linear(x[:0]),
        lambda: layer(x[:, None], given),  # (3, 1, …) and (3, …): a batch of (3, 3)
        lambda: layer(x[0], given),
        lambda: layer(x[0], given[0]),
        lambda: layer(x.expand(2, *x.shape), given),
    ]
    for call in calls:
        expected = call()
        with diffeo.compiled_kernels():
            found = call()
        assert_close(found, expected, 1e-11)


@needs_compiler
def test_what_is_not_finite_stays_so():
    layer = perturbed(
        diffeo.Coupling(torch.tensor([True, False]), ConvNet(1, 1, 2, hidden=8), diffeo.Affine(), dim=-3), torch.float32
    )
    x = torch.zeros(3, 2, 4, 4)
    x[1, 0, 2, 2] = float("nan")
    with diffeo.compiled_kernels():
        z, logdet = layer(x)
    assert z.isnan().flatten(1).any(1).tolist() == [False, True, False]
    assert logdet.isnan().tolist() == [False, True, False]


@needs_compiler
def test_results_do_not_depend_on_threads():
    layer = perturbed(
        diffeo.Coupling(torch.tensor([True, False]), ConvNet(1, 1, 2, hidden=32), diffeo.Affine(), dim=-3),
        torch.float32,
    )
    x = pictures(20, 2, (12, 12), torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (2, 2, 1):
            torch.set_num_threads(threads)
            with diffeo.compiled_kernels():
                found.append(with_gradients(lambda: layer(x), x, *layer.parameters()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert_close(found[2], found[0], 1e-5)


@needs_compiler
def test_wide_events_run_in_their_own_precision(runs):
    layer = perturbed(
        diffeo.Coupling(torch.tensor([True, False]), ConvNet(1, 1, 2, hidden=8), diffeo.Affine(), dim=-3), torch.float32
    )
    x = pictures(2, 2, (4, 4), torch.float64)
    with diffeo.compiled_kernels(), torch.no_grad():
        z, _ = layer(x)
        back, _ = layer.inverse(z)
    assert "coupling._run" not in runs
    assert z.dtype == torch.float64
    assert (back - x).abs().max() < 1e-14


def test_without_a_compiler_layers_run(monkeypatch, runs):
    monkeypatch.setattr(native, "find_compiler", lambda: None)
    for library in (perceptron._library, mix._library):
        library.cache_clear()
    coupling._libraries.clear()
    try:
        layer = diffeo.Coupling(torch.tensor([True, False]), ConvNet(1, 1, 2, hidden=8), diffeo.Affine(), dim=-3)
        with diffeo.compiled_kernels():
            layer(torch.randn(2, 2, 4, 4))
            diffeo.Conv1x1(2)(torch.randn(2, 2, 4, 4))
        assert not runs
    finally:
        for library in (perceptron._library, mix._library):
            library.cache_clear()
        coupling._libraries.clear()


@needs_compiler
@pytest.mark.parametrize("univariate", ["Affine", "RationalQuadraticSpline"])
def test_chains_rebuilt_by_inverting_have_the_gradients_of_stored_ones(univariate, monkeypatch):
    used = []
    for module, name in ((coupling, "rebuild_pictures"), (mix, "unmix")):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, run=run, name=name: used.append(name) or run(*args))
    model = diffeo.glow((1, 8, 8), preset="tiny", levels=17, classes=3, univariate=univariate)
    images, labels = torch.arange(6 * 64).view(6, 1, 8, 8) * 7 % 17, torch.arange(6) % 3
    model.initialize(images, labels)
    model = diffeo.testing.perturbed(model).double()
    noise = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradients(policy, kernels):
        model.transform.memory = policy
        with diffeo.compiled_kernels(kernels):
            loss = -model(images, labels, noise=noise).mean()
            return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    expected = gradients("store", kernels=False)
    for policy in ("store", "recompute", "invert"):
        used.clear()
        assert_close(gradients(policy, kernels=True), expected, 1e-8)
        assert bool(used) == (policy == "invert")
    assert {"rebuild_pictures", "unmix"} <= set(used)
    monkeypatch.setattr(coupling, "can_pull", lambda *_: False)  # as for gradients that are no plain numbers
    assert_close(gradients("invert", kernels=True), expected, 1e-8)


def assert_agrees(call, *weights, tolerance=1e-10):
    """Values and gradients inside and outside `compiled_kernels`."""
    expected = with_gradients(call, *weights)
    with diffeo.compiled_kernels():
        assert_close(with_gradients(call, *weights), expected, tolerance)


@needs_compiler
def test_steps_that_subclasses_replace_run():
    class Doubled(diffeo.Coupling):
        def params(self, a, b, context):
            return 2 * super().params(a, b, context)

    class Turned(diffeo.LULinear):
        def forward(self, x, context=None):
            z, logdet = super().forward(x, context)
            return -z, logdet

        def inverse(self, z, context=None):
            return super().inverse(-z, context)

    class Wide(diffeo.RationalQuadraticSpline):
        def forward(self, x, context=None):
            z, logdet = super().forward(x / 2, context)
            return 2 * z, logdet

        def inverse(self, z, context=None):
            x, logdet = super().inverse(z / 2, context)
            return 2 * x, logdet

    x = pictures(3, 4, (4, 5), torch.float64)
    for layer in (halves(diffeo.Affine(), kind=Doubled), diffeo.Conv1x1(4, Turned(4)), halves(Wide(bins=4))):
        layer = perturbed(layer, torch.float64)
        for direction in (layer.forward, layer.inverse):
            assert_agrees(lambda: direction(x), x, *layer.parameters())  # noqa: B023 (called at once)
    vectors_ = Doubled(torch.tensor([True, False]), diffeo.nets.MLP(1, 1, n_params=2), diffeo.Affine())
    vectors_ = perturbed(vectors_, torch.float64)
    rows = torch.randn(5, 2, dtype=torch.float64)
    with torch.no_grad():
        expected = vectors_(rows)
        with diffeo.compiled_kernels():
            assert_close(vectors_(rows), expected, 1e-12)


@needs_compiler
def test_scalar_maps_that_act_otherwise_in_training():
    class Moody(diffeo.Affine):
        def forward(self, x, context=None):
            z, logdet = super().forward(x, context)
            return (z + 1 if self.training else z), logdet

        def inverse(self, z, context=None):
            return super().inverse(z - 1 if self.training else z, context)

    layer, x = perturbed(halves(Moody()), torch.float64), pictures(3, 4, (4, 5), torch.float64)
    for training in (True, False, True):
        layer.train(training)
        assert_agrees(lambda: layer(x), x)
        assert_agrees(lambda: layer.inverse(x), x)


@needs_compiler
def test_settings_of_convolutions_and_further_layers_count():
    x = pictures(3, 4, (6, 6), torch.float64)
    for change in ("padding_mode", "dilation", "another layer"):
        layer = perturbed(halves(diffeo.Affine()), torch.float64)
        if change == "padding_mode":
            layer.net.enter.padding_mode = "circular"
            layer.net.enter._reversed_padding_repeated_twice = [1, 1, 1, 1]
        elif change == "dilation":
            layer.net.leave.dilation = layer.net.leave.padding = (2, 2)
        else:
            layer.net.inner.append(layer.net.inner[0])
        assert_agrees(lambda: layer(x), x)  # noqa: B023 (called at once)


@needs_compiler
def test_sizes_that_do_not_fit_are_refused():
    wrong = diffeo.Coupling(torch.tensor([True] * 2 + [False] * 4), ConvNet(2, 2, 4, hidden=4), diffeo.Affine(), dim=-3)
    with diffeo.compiled_kernels(), pytest.raises(ValueError, match="expected 2 parameters"):
        wrong(torch.zeros(3, 6, 4, 4))
    beside = halves(diffeo.Affine(), map=("around", 2))  # six channels in, of which the event has two
    x, around = pictures(3, 4, (4, 4), torch.float64), {"around": torch.randn(3, 2, 4, 4, dtype=torch.float64)}
    beside = perturbed(beside, torch.float64)
    assert_agrees(lambda: beside(x, around), x)


@needs_compiler
def test_weights_and_contexts_that_transforms_of_functions_wrap():
    layers = diffeo.Chain(diffeo.Conv1x1(4), halves(diffeo.Affine(), context=2))
    members = [perturbed(layers, torch.float64, std) for std in (0.1, 0.2)]
    x, given = pictures(3, 4, (4, 4), torch.float64).detach(), vectors(3, 2, torch.float64).detach()
    state = torch.func.stack_module_state(members)

    def log_det(params, buffers):
        return torch.func.functional_call(layers, (params, buffers), (x, given))[1]

    def calls():
        one = {name: t[0] for name, t in state[0].items()}, {name: t[0] for name, t in state[1].items()}
        slope = torch.func.grad(lambda params: log_det(params, one[1]).sum())(one[0])
        return (
            torch.func.vmap(log_det)(*state),
            *slope.values(),
            torch.func.vmap(lambda c: layers(x, c)[1])(given),
        )

    expected = calls()
    with diffeo.compiled_kernels():
        assert_close(calls(), expected, 1e-10)


@needs_compiler
def test_weights_elsewhere_are_no_crash():
    with diffeo.compiled_kernels(), pytest.raises(RuntimeError):
        diffeo.Conv1x1(2).to("meta")(torch.randn(2, 2, 3, 3))


@needs_compiler
def test_digits_far_from_zero_stay():
    x = 1e4 + torch.randn(40, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    layer = diffeo.Conv1x1(3, diffeo.Chain(diffeo.ActNorm(3), diffeo.LULinear(3)))
    layer.initialize(x)
    with torch.no_grad():
        exact = copy.deepcopy(layer).double()(x.double())[0]
        with diffeo.compiled_kernels():
            assert (layer(x)[0] - exact).abs().max() < 1e-5


@needs_compiler
def test_contexts_with_batches_of_their_own_keep_their_shapes():
    layer = perturbed(halves(diffeo.Affine(), context=2), torch.float64)
    for shape, given in (((3, 4, 4, 4), (1, 3, 2)), ((4, 4, 4), (1, 2)), ((1, 4, 4, 4), (5, 2))):
        x, context = torch.randn(shape, dtype=torch.float64), torch.randn(given, dtype=torch.float64)
        assert_agrees(lambda: layer(x, context), *layer.parameters())  # noqa: B023 (called at once)


@needs_compiler
@pytest.mark.parametrize("inside", [(True, False), (False, True)])
@pytest.mark.parametrize("policy", ["recompute", "invert"])
def test_backward_passes_may_run_elsewhere_than_forward_ones(inside, policy):
    chain = perturbed(diffeo.Chain(diffeo.Conv1x1(4), halves(diffeo.Affine()), diffeo.Conv1x1(4)), torch.float64)
    x = pictures(3, 4, (4, 4), torch.float64)
    expected = with_gradients(lambda: chain(x), x, *chain.parameters())[2:]
    chain.memory = policy
    forward, backward = inside
    with diffeo.compiled_kernels(forward):
        z, logdet = chain(x)
        loss = z.sin().sum() + (2 * logdet.sin()).sum()
    with diffeo.compiled_kernels(backward):
        assert_close(torch.autograd.grad(loss, [x, *chain.parameters()]), expected, 1e-10)


def test_what_a_layer_along_a_dim_draws_or_hooks_add_counts_when_rebuilt():
    """With and without kernels: dropout is drawn once for both directions, and hooks of the layer run."""
    mask, x = torch.tensor([True, True, False, False]), pictures(3, 4, (4, 4), torch.float64)
    dropping = diffeo.nets.MLP(2, 2, n_params=2, hidden=(32,), dropout=0.5)
    along = diffeo.Along(diffeo.Coupling(mask, dropping, diffeo.Affine()), -3)
    hooked = diffeo.Conv1x1(4)
    hooked.register_forward_hook(lambda module, given, out: (out[0], out[1] + given[0].square().sum((1, 2, 3))))
    for part in (along, hooked):
        chain = diffeo.Chain(diffeo.Conv1x1(4), part)
        for p in chain.parameters():
            nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(3))
        chain = chain.double().train()
        for kernels in (False, True):
            found = {}
            for policy in ("store", "invert"):
                chain.memory = policy
                torch.manual_seed(0)
                with diffeo.compiled_kernels(kernels):
                    found[policy] = with_gradients(lambda: chain(x), x, *chain.parameters())  # noqa: B023
            assert_close(found["invert"], found["store"], 1e-9)

"""Many layers of pictures in one operation: what each layer gives, whatever is done to the model afterwards."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import diffeo
from diffeo.kernels import native, picture_steps
from diffeo.kernels.snapshot import Snapshot
from diffeo.nets import ConvNet
from diffeo.transforms.picture_steps import PictureSteps

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler here")
SIZES = {  # channels, of which the nets of couplings see some; hidden ones; sides, pictures
    "glow": (4, (2, 2), (16, 16), (14, 14), 40),
    "uneven": (5, (3, 1, 2), (7, 33, 12), (3, 6), 9),
    "one picture, of one place": (2, (1,), (5,), (1, 1), 1),
    "larger than a block": (3, (1, 2), (20, 20), (40, 40), 3),
}


@pytest.fixture
def runs(monkeypatch):
    """How often C ran."""
    counts, run = [], picture_steps.Steps.__call__
    monkeypatch.setattr(picture_steps.Steps, "__call__", lambda self, *args: counts.append(args) or run(self, *args))
    return counts


def steps(channels=4, seen=(2, 2), hidden=(6, 6), context=0, dtype=torch.float64, scalars=None):
    """Linear maps and couplings in turn, whose nets see the first channels, then the last ones, and so on."""
    torch.manual_seed(0)
    parts: list[diffeo.Transform] = []
    for i, (few, wide) in enumerate(zip(seen, hidden, strict=True)):
        scalar = scalars[i] if scalars else diffeo.Affine(bound=2.0)
        mask = torch.arange(channels) < few if i % 2 == 0 else torch.arange(channels) >= channels - few
        net = ConvNet(few, channels - few, scalar.n_params, hidden=wide, context=context)
        parts += [diffeo.Conv1x1(channels), diffeo.Coupling(mask, net, scalar, dim=-3)]
    chain = diffeo.Chain(*parts).double()
    for p in chain.parameters():
        nn.init.normal_(p, std=0.2)
    prepared = diffeo.prepare_inference(chain.to(dtype))
    (whole,) = prepared.parts
    assert isinstance(whole, PictureSteps)
    return whole


def pictures(n, channels, sides, dtype=torch.float64):
    return torch.randn(n, channels, *sides, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def both_ways(whole, x, context=None, use=True):
    with torch.no_grad(), diffeo.compiled_kernels(use):
        return [*whole(x, context), *whole.inverse(x, context)]


def assert_same(found, expected, tolerance=1e-10):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * (1 + b.norm())


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("context", [0, 3])
def test_steps_give_what_their_layers_give(size, context, runs):
    channels, seen, hidden, sides, n = SIZES[size]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        whole, x = steps(channels, seen, hidden, context, dtype), pictures(n, channels, sides, dtype)
        given = torch.randn(n, context, dtype=dtype) if context else None
        wide = pictures(n, 2 * channels, sides, dtype)
        for view in (x, x.movedim(1, -1).contiguous().movedim(-1, 1), wide[:, channels:], wide[:, ::2].flip(-1)):
            runs.clear()
            assert_same(both_ways(whole, view, given), both_ways(whole, view, given, use=False), tolerance)
            assert len(runs) == 2
        one = both_ways(whole, x[0], given if given is None else given[0])
        assert_same(one, [t[0] for t in both_ways(whole, x, given)], tolerance)
        assert one[0].shape == x[0].shape
        many = both_ways(whole, x.expand(2, *x.shape), given if given is None else given.expand(2, *given.shape))
        assert many[1].shape == (2, n)
        with torch.no_grad(), diffeo.compiled_kernels():
            z, logdet = whole(x, given)
            assert_same(whole.inverse(z, given), (x, -logdet), 20 * tolerance)


def _replace_weight(whole):
    net = whole.parts[1].net
    net.enter.weight = nn.Parameter(2 * net.enter.weight)


def _replace_memory(whole):
    net = whole.parts[1].net
    net.leave.bias.data = net.leave.bias.data + 1


def _turn(whole):
    weight = whole.parts[1].net.inner[0].mix.weight
    weight.data = weight.data.transpose(0, 1)


def _change_in_place(whole):
    whole.parts[0].transform.shift.add_(1)
    whole.parts[1].net.enter.weight.mul_(2)


def _replace_net(whole):
    whole.parts[3].net.leave = copy.deepcopy(whole.parts[1].net.leave)


def _replace_part(whole):
    whole.parts[2] = copy.deepcopy(whole.parts[0])


def _turn_to_other_dims(whole):
    whole.parts[0] = diffeo.Along(copy.deepcopy(whole.parts[0].transform), -1, 3)


def _replace_by_a_chain(whole):
    whole.parts[2] = diffeo.Chain(diffeo.testing.perturbed(diffeo.Along(diffeo.ActNorm(4).double(), -3, 3)))


def _set_bound(whole):
    whole.parts[1].univariate.bound = 0.5


def _hook(whole):
    whole.parts[1].net.enter.register_forward_hook(lambda module, inputs, output: output + 1)


def _hook_of_all(whole):
    whole.register_forward_hook(lambda module, inputs, output: (output[0] + 1, output[1]))


def _override(whole):
    net = whole.parts[1].net
    net.forward = lambda x, context=None: ConvNet.forward(net, x, context) + 1


def _load(whole):
    whole.load_state_dict({key: 1.1 * t if t.is_floating_point() else t for key, t in whole.state_dict().items()})


def _widen(whole):
    whole.float().double()


CHANGES = [
    *(_replace_weight, _replace_memory, _turn, _change_in_place, _replace_net, _replace_part, _set_bound, _hook),
    *(_turn_to_other_dims, _replace_by_a_chain),
    *(_hook_of_all, _override, _load, _widen),
]


@needs_compiler
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
def test_changes_of_the_model_count(change, runs):
    whole, x = steps(), pictures(7, 4, (5, 4))
    before = both_ways(whole, x)
    assert len(runs) == 2
    with torch.no_grad():
        change(whole)
    after = both_ways(whole, x)
    assert not torch.equal(before[0], after[0])
    assert_same(after, both_ways(whole, x, use=False))


@needs_compiler
def test_weights_of_another_shape_are_refused_as_ever():
    whole, x = steps(), pictures(7, 4, (5, 6))
    both_ways(whole, x)
    bias = whole.parts[1].net.enter.bias
    bias.data = bias.data[:3]  # at the same address
    with pytest.raises(RuntimeError, match="bias"):
        both_ways(whole, x)


@needs_compiler
def test_layers_run_one_by_one_where_c_cannot(runs):
    whole, x = steps(), pictures(7, 4, (5, 6))
    expected = both_ways(whole, x, use=False)
    runs.clear()
    with diffeo.compiled_kernels():  # somebody may want a gradient
        wanting = x.clone().requires_grad_()
        assert_same(whole(wanting), expected[:2])
        assert torch.autograd.grad(whole(wanting)[0].sum(), wanting)[0].abs().sum() > 0
        mask = torch.ones(7, 1, 5, 6, dtype=torch.bool)
        mask[:, :, 3:] = False
        with torch.no_grad():
            z, _ = whole(x, {"mask": mask})
            assert torch.equal(z[:, :, 3:], x[:, :, 3:])
            many, _ = torch.func.vmap(whole)(x)
            assert_same([many], expected[:1])
    assert not runs
    mixed = steps(scalars=[diffeo.Affine(), diffeo.Shift()])
    assert_same(both_ways(mixed, x), both_ways(mixed, x, use=False))
    assert not runs


@needs_compiler
def test_copies_have_plans_of_their_own(runs):
    whole, x = steps(), pictures(7, 4, (5, 6))
    before = both_ways(whole, x)
    for other in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        _replace_weight(other)
        assert_same(both_ways(other, x), both_ways(other, x, use=False))
        assert_same(both_ways(whole, x), before)


@needs_compiler
def test_permutations_alone_lie_between_couplings(runs):
    mask = torch.tensor([True, True, False, False])
    turn = diffeo.Along(diffeo.Permute(torch.tensor([3, 2, 1, 0])), -3, 3)
    layers = [diffeo.Coupling(mask, ConvNet(2, 2, 2, hidden=6), diffeo.Affine(), dim=-3) for _ in range(2)]
    chain = diffeo.testing.perturbed(diffeo.Chain(layers[0], turn, layers[1]).double())
    prepared = diffeo.prepare_inference(chain)
    assert len(prepared.parts) == 1
    x = pictures(5, 4, (3, 6))
    assert_same(both_ways(prepared, x), both_ways(chain, x, use=False))
    assert len(runs) == 2


@needs_compiler
def test_no_batch_is_kept(runs):
    whole = steps(context=3)
    x, given = pictures(7, 4, (5, 6)), torch.randn(7, 3, dtype=torch.float64)
    expected = both_ways(whole, x, given)
    here = weakref.ref(x.untyped_storage())
    del x
    runs.clear()  # it keeps what was given
    gc.collect()
    assert here() is None
    x = pictures(7, 4, (5, 6))
    whole, wide = steps(context=3), given[:, None].expand(7, 2, 3)
    both_ways(whole, x[:, None], wide)  # one picture for several contexts: layer by layer, this time
    runs.clear()
    assert_same(both_ways(whole, x, given), expected)
    assert len(runs) == 2


@needs_compiler
def test_a_wrong_shape_is_named():
    with torch.no_grad(), diffeo.compiled_kernels(), pytest.raises(ValueError, match="expected event shape"):
        steps()(pictures(2, 6, (5, 6)))


@needs_compiler
def test_trained_recipes_run_so(runs):
    for build, n in ((diffeo.glow, 2), (diffeo.nice_image, 1)):
        torch.manual_seed(0)
        flow = build((1, 8, 8), preset="tiny", classes=3)
        x, labels = torch.randint(0, 256, (12, 1, 8, 8)), torch.arange(12) % 3
        flow.initialize(x, labels)
        flow = diffeo.testing.perturbed(flow).eval()
        prepared = diffeo.prepare_inference(flow)
        found = []
        for density, use in ((flow, False), (prepared, True)):
            runs.clear()
            torch.manual_seed(1)
            with torch.no_grad(), diffeo.compiled_kernels(use):
                drawn = density.sample((12,), labels, generator=torch.Generator().manual_seed(2))
                found.append((density(x, labels), drawn.double()))
        assert len(runs) == 2 * n
        assert torch.allclose(found[0][0], found[1][0], rtol=1e-4)
        assert (found[0][1] - found[1][1]).abs().max() <= 1


def test_a_snapshot_sees_what_is_replaced():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    changes = (
        lambda: setattr(net[0], "weight", nn.Parameter(net[0].weight.clone())),
        lambda: net[1].register_buffer("further", torch.zeros(1)),
        lambda: net.append(nn.ReLU()),
        lambda: net.eval(),
        lambda: net[0].register_forward_pre_hook(lambda *_: None),
    )
    for change in changes:
        snapshot = Snapshot(net)
        assert snapshot.holds()
        net[0].weight.data.add_(1)
        assert snapshot.holds()
        change()
        assert not snapshot.holds()
    assert not Snapshot(net).holds()  # hooks may do anything

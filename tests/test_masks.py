"""Padding changes nothing, and a dict of contexts is read as a tensor is: over the whole case table."""

from __future__ import annotations

import math

import pytest
import torch

import diffeo
from cases import DENSITIES, TRANSFORMS, doubled

STRUCTURED = [name for name, case in TRANSFORMS.items() if case.build(0).event_ndim]


def _close(a, b, tolerance=1e-5):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def _context(context, mask):
    if isinstance(context, dict):
        return {**context, "mask": mask}
    return {"mask": mask} if context is None else {"features": context, "mask": mask}


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_masked_rows_stay_and_touch_no_other(name, direction):
    case = TRANSFORMS[name]
    t = diffeo.testing.perturbed(case.build(0)).double()
    x = case.x().double()
    context = None if case.context is None else doubled(case.context())
    mask = torch.tensor([True, False, True, True, False, True]).reshape(6, *(1 for _ in x.shape[1:]))
    run = t.forward if direction == "forward" else t.inverse
    with torch.no_grad():
        x = x if direction == "forward" else t(x, context)[0]
        of_rows = mask.reshape(6, *(1 for _ in x.shape[1:]))
        plain = run(x, context)
        fill = torch.where(of_rows, x, 0.5)  # whatever padding holds
        found = [run(v, _context(context, mask)) for v in (x, fill)]
    real, masked = mask.flatten().nonzero()[:, 0], (~mask.flatten()).nonzero()[:, 0]
    for values, logdets in found:
        assert _close(values[real], plain[0][real])
        assert _close(logdets[real], plain[1][real])
        assert (logdets[masked] == 0).all()
    if found[0][0].shape == x.shape and "Squeeze" not in name:
        assert torch.equal(found[0][0][masked], x[masked])


VECTORS = [n for n in STRUCTURED if TRANSFORMS[n].context and isinstance(TRANSFORMS[n].context(), torch.Tensor)]


@pytest.mark.parametrize("name", VECTORS)
def test_a_dict_of_contexts_is_read_as_a_tensor_is(name):
    case = TRANSFORMS[name]
    t, x, context = diffeo.testing.perturbed(case.build(0)), case.x(), case.context()
    with torch.no_grad():
        for a, b in zip(t(x, context), t(x, {"features": context}), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n, case in DENSITIES.items() if isinstance(case.context, torch.Tensor)])
def test_densities_read_dicts_too(name):
    case = DENSITIES[name]
    d = diffeo.testing.perturbed(case.build())
    contexts = case.context, {"features": case.context}
    x, y = (d.sample((4,), c, generator=torch.Generator().manual_seed(0)) for c in contexts)
    assert torch.equal(x, y)
    if d.exact:
        assert torch.equal(d(x, contexts[0]), d(x, contexts[1]))
    assert d.given(contexts[1]).batch_shape == ()


# whose letters say which frames there are: another mask is refused
SPOKEN = ("Aligned", "glow_tts", "flow_tts")


@pytest.mark.parametrize("name", [name for name in DENSITIES if name not in SPOKEN])
def test_densities_leave_masked_events_out(name):
    """Their log-density is zero and their sample too, and what they hold reaches no value and no gradient."""
    case = DENSITIES[name]
    d = diffeo.testing.perturbed(case.build())
    x = d.sample((6,), case.context, generator=torch.Generator().manual_seed(0))
    there = torch.tensor([True, False, True, True, False, True])
    context = _context(case.context, there.reshape(6, *(1 for _ in x.shape[1:])))
    strange = torch.nan if x.is_floating_point() else 10**9
    filled = torch.where(there.reshape(6, *(1 for _ in x.shape[1:])), x, strange)

    def log_p(x, context):
        return d(x, context) if d.exact else d(x, context, generator=torch.Generator().manual_seed(1))

    plain, found = log_p(x, case.context), log_p(filled, context)
    assert _close(found[there], plain[there])
    assert (found[~there] == 0).all()
    assert (d.sample((6,), context)[~there] == 0).all()
    if found.requires_grad:
        found.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in d.parameters())


@pytest.mark.parametrize("name", SPOKEN)
def test_spoken_densities_refuse_masks_that_are_not_their_letters(name):
    case = DENSITIES[name]
    x = case.build().sample((2,), case.context)
    with pytest.raises(ValueError, match="frames"):
        case.build()(x, _context(case.context, torch.zeros(2, 1, 1, dtype=torch.bool)))


FRAMES = {  # events of frames, of any number
    "linear": lambda: diffeo.Along(diffeo.LULinear(3), -1, 2),
    "norm": lambda: diffeo.Along(diffeo.ActNorm(3), -1, 2),
    "coupling": lambda: diffeo.Along(
        diffeo.Coupling(
            torch.tensor([True, False, False]), diffeo.nets.MLP(1, 2, n_params=2, hidden=(8,)), diffeo.Affine()
        ),
        -1,
        2,
    ),
    "WaveNet": lambda: diffeo.Coupling(
        torch.tensor([True, False, True]),
        diffeo.nets.WaveNet(2, 1, 2, hidden=4, layers=2),
        diffeo.Affine(),
        event_ndim=2,
    ),
    "vectors in a chain": lambda: diffeo.Chain(diffeo.Along(diffeo.ActNorm(3), -1, 2), diffeo.LULinear(3)),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_padded_batch_is_its_members_one_by_one(name):
    t = diffeo.testing.perturbed(FRAMES[name]()).double()
    lengths = [5, 2, 3]
    members = [torch.randn(n, 3, dtype=torch.float64) for n in lengths]
    x, context = diffeo.training.padded(members)
    x = torch.where(context["mask"], x, 7.0).requires_grad_()
    z, logdet = t(x, context)
    (z.sin().sum() + logdet.sum()).backward()
    together = [p.grad.clone() for p in t.parameters()]
    t.zero_grad()
    for i, member in enumerate(members):
        alone = member.clone().requires_grad_()
        z_alone, logdet_alone = t(alone)
        (z_alone.sin().sum() + logdet_alone).backward()
        assert _close(z[i, : len(member)], z_alone)
        assert _close(logdet[i], logdet_alone)
        assert _close(x.grad[i, : len(member)], alone.grad)
    for p, grad in zip(t.parameters(), together, strict=True):
        assert _close(p.grad, grad)


EVENTS = {name: TRANSFORMS[name].build(0).event for name in STRUCTURED}
FREE = [name for name, event in EVENTS.items() if event is not None and None in event and len(event) > 1]
# learned places, which no larger event has; the free dim of transformers is that of features, which their net knows
PLACED = {"Autoregressive, transformer", "Autoregressive, transformer, reversed, guided", "Coupling, attention"}


def _embedded(x, sizes):
    """x in the corner of a larger tensor of something else."""
    larger = torch.full((len(x), *sizes), 7.0, dtype=x.dtype)
    larger[(slice(None), *map(slice, x.shape[1:]))] = x
    return larger


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", [name for name in FREE if name not in PLACED])
def test_what_lies_beside_an_event_changes_nothing(name, direction):
    """In events twice as long, or pictures twice as high and wide: values, log-dets and gradients of the weights."""
    case = TRANSFORMS[name]
    t, x = diffeo.testing.perturbed(case.build(0)).double(), case.x().double()
    context = None if case.context is None else doubled(case.context())
    sizes = [n if known is not None else 2 * n for n, known in zip(x.shape[1:], t.event, strict=True)]
    if tuple(t.event) == (None, None):
        sizes[1] = x.shape[2]  # of frames, whose features a net knows
    larger = _embedded(x, sizes)
    beside = context
    if isinstance(context, torch.Tensor) and context.ndim > 2:  # frames of it, or a map
        twice = [2 * n for n in context.shape[1:]]
        twice[0 if context.ndim == 4 else 1] //= 2
        beside = _embedded(context, twice)
    mask = torch.zeros(len(x), *(1 if n == m else m for n, m in zip(x.shape[1:], sizes, strict=True)))
    corner = [slice(None if m == 1 else n) for n, m in zip(x.shape[1:], mask.shape[1:], strict=True)]
    mask[(slice(None), *corner)] = 1
    beside = _context(beside, mask.bool())
    if name.startswith("Residual"):
        with pytest.raises(ValueError, match="leaves out a part of one"):
            t(larger, beside)
        return
    if direction == "inverse":
        with torch.no_grad():
            x, larger = t(x, context)[0], t(larger, beside)[0]
            larger = torch.where(t.map_context(beside)["mask"], larger, 7.0)
    run = t.forward if direction == "forward" else t.inverse
    seen = t.map_context(beside)["mask"] if direction == "forward" else beside["mask"]
    results = []
    for value, logdet, there in ((*run(x, context), None), (*run(larger, beside), seen)):
        value = value.flatten() if there is None else value[there.expand(value.shape)]
        loss = value.sin().sum() + logdet.sum()
        gradients = torch.autograd.grad(loss, list(t.parameters())) if loss.requires_grad else []
        results.append([value, logdet, *gradients])
    for alone, inside in zip(*results, strict=True):
        assert _close(alone, inside)


def test_statistics_are_of_real_rows_only():
    x = torch.randn(50, 4, 2) * 3 + 1
    mask = torch.rand(50, 4, 1) > 0.4
    fill = torch.where(mask, x, 1e6)
    for layer in (diffeo.Standardize, diffeo.ActNorm, diffeo.Whiten):
        masked, plain = diffeo.Along(layer(2), -1, 2), layer(2)
        masked.initialize(fill, {"mask": mask})
        plain.initialize(x[mask.squeeze(-1)])
        assert torch.allclose(masked.transform(x)[0], plain(x)[0], atol=1e-5)
    with pytest.raises(ValueError, match="every row of the batch holds padding"):
        diffeo.Standardize(2).initialize(x, {"mask": torch.zeros(50, 4, 1, dtype=torch.bool)})


def test_repeated_points():
    points = diffeo.Repeated(diffeo.testing.perturbed(diffeo.realnvp(2, context=3, layers=2, hidden=(8,))))
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]]).unsqueeze(-1)
    context = {"features": torch.randn(2, 3), "mask": mask}
    x = points.sample((2,), context)
    assert x.shape == (2, 5, 2)
    assert (x[~mask.squeeze(-1)] == 0).all()
    each = points.density(x, {"features": context["features"].unsqueeze(1)})
    assert torch.allclose(points(x, context), (each * mask.squeeze(-1)).sum(1), atol=1e-5)
    assert torch.equal(points(torch.where(mask, x, float("nan")), context), points(x, context))
    given = points.given(context)
    assert (given.batch_shape, given.event_shape) == ((2,), (5, 2))
    assert given.expand((3, 2)).log_prob(x).shape == (3, 2)
    with pytest.raises(ValueError, match="comes from the mask"):
        points.sample(3)
    assert diffeo.Repeated(diffeo.Normal(3), 4).sample(2).shape == (2, 4, 3)


class Reader(torch.nn.Module):
    """Reads an image and a vector."""

    def __init__(self, **reads):
        super().__init__()
        self.reads = reads

    def forward(self, x, context=None):
        seen = context["image"].mean((-1, -2, -3)) + context["features"].sum(-1)
        return (
            torch.stack([seen, seen], -1).unsqueeze(-2).expand(*torch.broadcast_shapes(seen.shape, x.shape[:-1]), 1, 2)
        )


def test_contexts_declare_their_event_dims():
    def flow(**reads):
        layer = diffeo.Coupling(torch.tensor([True, False]), Reader(**reads), diffeo.Affine())
        return diffeo.Flow(layer, diffeo.Normal(2))

    context = {"image": torch.randn(4, 3, 5, 5), "features": torch.randn(4, 2)}
    known = flow(features=1, image=3)
    assert known.sample((7, 4), context).shape == (7, 4, 2)
    assert known.given(context).batch_shape == (4,)
    with pytest.raises(ValueError, match="use \\(5, 4\\), or given"):
        known.sample(5, context)
    with pytest.raises(ValueError, match="nothing here says what an event of 'image' is"):
        flow(features=1).sample(4, context)
    with pytest.raises(ValueError, match="another module with 3"):
        diffeo.Flow(diffeo.Chain(known.transform, flow(image=2).transform), diffeo.Normal(2)).sample(4, context)


def test_events_with_free_dims():
    chain = diffeo.Chain(diffeo.Squeeze(), diffeo.Conv1x1(12))
    assert chain.event == (3, None, None)
    flow = diffeo.Flow(chain, diffeo.Normal((12, None, None)))
    assert flow.event == (3, None, None)
    assert flow(torch.zeros(2, 3, 4, 6)).shape == (2,)
    assert flow.support.event_dim == 3
    with pytest.raises(ValueError, match="expected event shape \\(3, any, any\\), got x with shape"):
        flow(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="a height of 5 cannot be divided"):
        flow(torch.zeros(2, 3, 5, 4))
    with pytest.raises(ValueError, match=r"gives events of shape \(12, any, any\), but Along 2 of 2 expects \(3, any"):
        diffeo.Chain(diffeo.Squeeze(channels=3), diffeo.Along(diffeo.LULinear(3), -3))
    with pytest.raises(ValueError, match="the base Normal has"):
        diffeo.Flow(chain, diffeo.Normal((3, None, None)))


def _coupled(channels, first, **options):
    mask = (torch.arange(channels) < channels // 2) == first
    net = diffeo.nets.ConvNet(channels // 2, channels // 2, 2, hidden=8, **options)
    return diffeo.Coupling(mask, net, diffeo.Affine(), dim=-3)


PICTURES = {  # events of two channels and any sides
    "convolutions": lambda: _coupled(2, True),
    "gated blocks": lambda: _coupled(2, False, blocks=2, concat=True, concat_last=True),
    "squeezed": lambda: diffeo.Chain(diffeo.Squeeze(channels=2), diffeo.Conv1x1(8), _coupled(8, True)),
    "checkerboard": lambda: diffeo.Chain(
        diffeo.Checkerboard(2), _coupled(4, True), diffeo.Inverse(diffeo.Checkerboard(2)), diffeo.Conv1x1(2)
    ),
    "Haar": lambda: diffeo.Chain(diffeo.Haar(2), diffeo.Along(diffeo.ActNorm(8), -3), _coupled(8, False)),
    "an inverse": lambda: diffeo.Inverse(
        diffeo.Chain(diffeo.Inverse(diffeo.Squeeze(channels=2)), _coupled(2, True), diffeo.Squeeze(channels=2))
    ),
}
PICTURES["there and back"] = lambda: diffeo.Chain(PICTURES["squeezed"](), diffeo.Inverse(PICTURES["squeezed"]()))


@pytest.mark.parametrize("name", PICTURES)
def test_a_padded_picture_is_what_it_is_alone(name):
    t = diffeo.testing.perturbed(PICTURES[name]()).double()
    channels = 8 if name == "an inverse" else 2
    sides = [(8, 8), (4, 6), (2, 8)]
    members = [torch.randn(channels, *side, dtype=torch.float64) for side in sides]
    x = torch.full((3, channels, 8, 8), 7.0, dtype=torch.float64)
    mask = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    for i, (member, (height, width)) in enumerate(zip(members, sides, strict=True)):
        x[i, :, :height, :width] = member
        mask[i, :, :height, :width] = True
    context = {"mask": mask}
    z, logdet = t(x, context)
    kept = t.map_context(context)["mask"].expand(z.shape)
    for i, member in enumerate(members):
        z_alone, logdet_alone = t(member)
        assert _close(z[i][kept[i]], z_alone.flatten())
        assert _close(logdet[i], logdet_alone)
    back, logdet_back = t.inverse(z, context)
    assert _close(torch.where(mask, back, 0.0), torch.where(mask, x, 0.0))
    assert _close(logdet + logdet_back, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_sees_no_padding(dtype):
    t = diffeo.testing.perturbed(_coupled(2, True, blocks=1, heads=2, size=(4, 4))).to(dtype)
    mask = torch.rand(5, 1, 4, 4) > 0.3
    mask[0] = False
    x = torch.randn(5, 2, 4, 4, dtype=dtype)
    found = [t(torch.where(mask, x, fill), {"mask": mask}) for fill in (0.0, 3.0)]
    for a, b in zip(*found, strict=True):
        assert torch.equal(torch.where(mask, a, 0.0), torch.where(mask, b, 0.0)) if a.ndim > 1 else torch.equal(a, b)
    whole = {"mask": torch.ones(5, 1, 4, 4, dtype=torch.bool)}
    for a, b in zip(t(x, whole), t(x), strict=True):
        assert _close(a, b)


@pytest.mark.parametrize("name", STRUCTURED)
def test_masks_are_mapped_back(name):
    t, x = TRANSFORMS[name].build(0), TRANSFORMS[name].x()
    shape = t.output_shape(x.shape[x.ndim - t.event_ndim :])
    one = (*shape[:-1], 1) if isinstance(t, diffeo.Fold) else shape  # which takes no part of a frame
    mask = torch.rand(2, *one, generator=torch.Generator().manual_seed(0)) > 0.5
    back = t.unmap_context({"mask": mask})
    assert torch.equal(t.map_context(back)["mask"].expand(mask.shape), mask)
    assert torch.equal(diffeo.Inverse(t).map_context({"mask": mask})["mask"], back["mask"])


OF_SIDES = {
    "Squeeze": (lambda: diffeo.Squeeze(channels=2), (2, 8, 8), [(1, 8, 1), (1, 1, 8), (2, 1, 1), (2, 8, 1)]),
    "Checkerboard": (lambda: diffeo.Checkerboard(2), (2, 8, 8), [(1, 8, 1), (2, 1, 1)]),
    "Haar": (lambda: diffeo.Haar(2), (2, 8, 8), [(1, 8, 1), (2, 1, 1)]),
    "Fold": (lambda: diffeo.Fold(2, 4), (6, 4), [(1, 4), (1, 1)]),
}


@pytest.mark.parametrize("name", OF_SIDES)
def test_masks_with_sides_of_one_stand_for_all(name):
    build, shape, sides = OF_SIDES[name]
    t = build()
    for side in sides:
        mask = torch.rand(3, *side, generator=torch.Generator().manual_seed(1)) > 0.5
        folded, whole = (t.map_context({"mask": m})["mask"] for m in (mask, mask.expand(3, *shape)))
        assert torch.equal(folded.expand_as(whole), whole)
        assert torch.equal(t.unmap_context({"mask": folded})["mask"].expand(3, *shape), mask.expand(3, *shape))


def test_parts_take_their_masks_along():
    permute = diffeo.Permute(torch.tensor([2, 0, 1]))
    mask = torch.tensor([False, True, True, True])
    for t in (diffeo.Partial(permute, mask.roll(-1)), diffeo.Grouped(permute, 6)):
        features = t.event[0]
        mask = torch.arange(features) > 0
        flow = diffeo.Flow(diffeo.Chain(t, diffeo.Elementwise(diffeo.Affine(), features)), diffeo.Normal(features))
        x = torch.arange(float(features))
        found = [flow(torch.where(mask, x, fill), {"mask": mask}) for fill in (0.0, 9.0)]
        assert _close(*found)
        assert torch.equal(t.unmap_context(t.map_context({"mask": mask}))["mask"], mask)


def test_masks_of_whole_pictures_and_of_too_few_dims():
    torch.manual_seed(0)
    flow = diffeo.testing.perturbed(diffeo.flowpp((1, 8, 8), preset="tiny", levels=17))
    x, there = torch.randint(17, (4, 1, 8, 8)), torch.tensor([True, False, True, False]).reshape(4, 1, 1, 1)
    assert (flow(x, {"mask": there})[[1, 3]] == 0).all()
    with pytest.raises(ValueError, match="of 3 dims"):
        flow(x, {"mask": torch.ones(8, 8, dtype=torch.bool)})
    with pytest.raises(ValueError, match="mask of each of the 4 images"):
        diffeo.bits_per_dim(flow, x, {"mask": torch.ones(1, 8, 8, dtype=torch.bool)})
    larger = diffeo.srflow((1, 8, 8), scale=2, preset="tiny")
    with pytest.raises(ValueError, match="no masks of pixels"):
        larger(x, {"features": x[..., ::2, ::2], "mask": torch.ones(4, 1, 8, 8, dtype=torch.bool)})


class Sets(torch.nn.Module):
    """The mean of a set of vectors, whose padding is its own."""

    def __init__(self):
        super().__init__()
        self.reads = {"features": 2, "mask": 2}

    def forward(self, context):
        mask = context["mask"].float()
        return (context["features"] * mask).sum(-2) / mask.sum(-2)


def test_an_encoder_may_read_a_mask_of_its_own():
    inner = diffeo.maf(3, context=2, layers=1, hidden=(8,))
    flow = diffeo.Flow(inner.transform, inner.base, Sets())
    x, sets = torch.randn(4, 3), torch.randn(4, 7, 2)
    mask = (torch.arange(7) < 5).expand(4, 7).unsqueeze(-1)
    assert _close(flow(x, {"features": sets, "mask": mask}), inner(x, sets[:, :5].mean(1)))


IMAGE_RECIPES = ("nice_image", "realnvp_image", "glow", "flowpp", "tarflow")


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_flows_of_pictures_see_no_padding(name):
    torch.manual_seed(0)
    flow = diffeo.testing.perturbed(getattr(diffeo, name)((1, 8, 8), preset="tiny", levels=17))
    x = torch.randint(17, (6, 1, 8, 8)).float()
    mask = (torch.arange(8) < 4).expand(8, 8)[None]
    flow.initialize(torch.where(mask, x, 99.0), {"mask": mask.expand(6, 1, 8, 8)})
    padded = torch.where(mask, x, torch.nan)
    flow(padded, {"mask": mask.expand(6, 1, 8, 8)}, generator=torch.Generator().manual_seed(1)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())

    def bits(fill):
        seen = torch.where(mask, x, fill)
        return diffeo.bits_per_dim(
            flow, seen, {"mask": mask.expand(6, 1, 8, 8)}, generator=torch.Generator().manual_seed(1)
        )

    assert _close(bits(0), bits(16))
    nats = flow(torch.where(mask, x, 0), {"mask": mask}, generator=torch.Generator().manual_seed(1))
    assert _close(bits(0), -nats / (math.log(2) * 32))
    assert not _close(bits(0), diffeo.bits_per_dim(flow, x, generator=torch.Generator().manual_seed(1)))


def test_a_mask_that_cuts_a_vector_is_refused():
    mask = torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match="leaves out a part of one"):
        diffeo.LULinear(3)(torch.ones(1, 3), {"mask": mask})
    z, logdet = diffeo.LULinear(3)(torch.ones(2, 3), {"mask": torch.tensor([[True] * 3, [False] * 3])})
    assert logdet[1] == 0
    assert torch.equal(z[1], torch.ones(3))
    traced = torch.compile(diffeo.LULinear(3), backend="eager")(torch.ones(1, 3), {"mask": mask})
    assert all(t.isnan().any() for t in traced)

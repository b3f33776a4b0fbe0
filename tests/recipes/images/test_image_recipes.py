"""Flows of images: bounds by hand, round trips, sizes, and a fit of digits that beats simple models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import diffeo
from diffeo.apps.images import gaussian_bits, histogram_bits, shrink
from diffeo.recipes import recipes
from diffeo.training.compiling import wants_compile
from diffeo.training.source import as_source


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    return torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1), torch.from_numpy(found.target)


@pytest.mark.parametrize("recipe", [diffeo.glow, diffeo.realnvp_image, diffeo.residual_image])
def test_bits_per_dimension_are_what_one_counts_by_hand(recipe, digits):
    images = digits[0][:4]
    model = recipe((1, 8, 8), preset="tiny", hidden=8, levels=17).double().eval()
    model.initialize(digits[0][:100])
    scales, places = model.transform.parts
    torch.nn.init.normal_(places.theta, std=0.3)
    u = torch.rand(1, 4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[0]
    x = images + u
    black = (digits[0][:100] == 0).double().mean()  # the one peak of the histogram
    even = (1 - black) / 16
    whole = even + black + 16 * even + 0.05 * 17 * even  # with a margin on either side
    density = torch.where(x < 1, black, even) / whole
    below = torch.where(x < 1, even + x * black, even + black + (x - 1) * even) / whole
    logit = below.logit()
    of_logit = (density / (below * (1 - below))).log().sum((1, 2, 3))
    z, logdet = model.transform(x)
    rest = scales.stages[0].parts[1:]
    y, of_rest = diffeo.Chain(*rest)(logit)
    half = y.shape[1] // 2
    last, of_last = scales.stages[1](y[:, :half])
    shift, log_scale = places.theta.unbind(-1)
    log_scale = 2 * (log_scale / 2).tanh()
    by_hand = of_logit + of_rest + of_last + log_scale.sum()
    assert torch.allclose(logdet, by_hand)
    flat = torch.cat([y[:, half:].flatten(1), last.flatten(1)], 1)
    assert torch.allclose(z, flat * log_scale.exp() + shift, atol=1e-6)  # the ends of the range are float32
    nats = by_hand - 0.5 * z.square().sum(1) - 32 * math.log(2 * math.pi)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = diffeo.bits_per_dim(model, images.double(), generator=generator)
    assert torch.allclose(found, -nats / (64 * math.log(2)))


@pytest.mark.parametrize("recipe", [diffeo.glow, diffeo.realnvp_image])
@pytest.mark.parametrize("univariate", ["RationalQuadraticSpline", "MixtureCDF"])
def test_couplings_of_any_scalar_map_go_to_noise_and_back(recipe, univariate, digits):
    torch.manual_seed(0)
    model = recipe((1, 8, 8), preset="tiny", hidden=8, levels=17, univariate=univariate).double()
    model.initialize(digits[0][:100])
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x = digits[0][:4].double() + 0.5
    z, logdet = model.transform(x)
    back, back_logdet = model.transform.inverse(z)
    assert torch.allclose(back, x, atol=1e-5)
    assert torch.allclose(back_logdet, -logdet, atol=1e-5)


def test_more_samples_tighten_the_bound(digits):
    model = diffeo.glow((1, 8, 8), preset="tiny", layers=1, hidden=8, levels=17)
    model.initialize(digits[0][:500])
    generator = torch.Generator().manual_seed(0)
    one, many = (diffeo.bits_per_dim(model, digits[0][:200], None, k, generator).mean() for k in (1, 8))
    assert many < one - 0.001


def test_a_fit_of_digits_beats_simple_models_and_keeps_its_pictures(digits, tmp_path):
    images, labels = digits
    torch.manual_seed(0)
    model = diffeo.glow((1, 8, 8), preset="tiny", levels=17, classes=10)
    diffeo.fit(
        model, images[:1500], labels[:1500], validation=(images[1500:1650], labels[1500:1650]),
        steps=250, batch_size=64, lr=5e-3, progress=False,
    )  # fmt: skip
    test, of_test = images[1650:], labels[1650:]
    bits = float(diffeo.bits_per_dim(model, test, of_test).mean())
    assert bits < min(histogram_bits(images[:1500], test, 17), gaussian_bits(images[:1500], test)) - 0.05
    wrong = float(diffeo.bits_per_dim(model, test, (of_test + 1) % 10).mean())
    assert wrong > bits + 0.02  # the class is used
    drawn = model.sample(20, torch.arange(20) % 10, generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.long
    assert drawn.min() >= 0
    assert drawn.max() <= 16
    diffeo.save(model, tmp_path / "m.safetensors")
    again = diffeo.load(tmp_path / "m.safetensors")
    assert torch.equal(again.sample(20, torch.arange(20) % 10, generator=torch.Generator().manual_seed(0)), drawn)
    cold = model.sample(3, torch.tensor([1, 1, 1]), temperature=0.0)
    assert torch.equal(cold[0], cold[1])


def test_memory_is_flat_in_depth_and_gradients_are_the_same(digits):
    images = digits[0][:16]
    noise = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    saved, gradients = {}, {}
    for layers in (8, 32):
        for memory in ("store", "invert"):
            torch.manual_seed(0)
            model = diffeo.glow((1, 8, 8), preset="tiny", layers=layers, hidden=8, levels=17)
            with torch.no_grad():  # a little: much of it explodes over so many layers
                for p in model.parameters():
                    p.add_(0.02 * torch.randn(p.shape))
            model.initialize(images)
            model.transform.memory = memory
            kept: dict[int, int] = {}

            def pack(t, kept=kept):
                kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                loss = model(images, noise=noise).mean()
            loss.backward()
            own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
            saved[layers, memory] = sum(size for place, size in kept.items() if place not in own)
            gradients[layers, memory] = torch.cat([p.grad.flatten() for p in model.parameters()])
        store, invert = gradients[layers, "store"], gradients[layers, "invert"]
        assert torch.allclose(store, invert, rtol=1e-3, atol=1e-3 * float(store.abs().max()))
    assert saved[32, "invert"] < 1.1 * saved[8, "invert"]
    assert saved[32, "store"] > 3 * saved[8, "store"]


@pytest.mark.parametrize(("recipe", "deeper"), [("glow", {"layers": 12}), ("flowpp", {})])
def test_classes_and_nested_chains_follow_the_memory_policy(recipe, deeper, digits):
    images, labels = digits[0][:16], torch.arange(16) % 10
    noise = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    most, gradients = {}, {}
    for memory in ("store", "recompute", "invert"):
        torch.manual_seed(0)
        options = {"preset": "tiny", "hidden": 8, "levels": 17, "classes": 10, **deeper}
        if recipe == "flowpp":
            options |= {"attention": False, "variational": False}
        model = diffeo.testing.perturbed(getattr(diffeo, recipe)((1, 8, 8), **options))
        model.initialize(images, labels)
        model.transform.memory = memory
        kept = 0

        def pack(t):  # forward and backward: what a nested chain runs again counts, too
            nonlocal kept
            kept += t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = model(images, labels, noise=noise).mean()
        most[memory] = kept
        loss.backward()
        gradients[memory] = torch.cat([p.grad.flatten() for p in model.parameters()])
        vectors = {id(part.transform) for part in model.transform.modules() if isinstance(part, diffeo.Along)}
        inner = [part for part in model.transform.modules() if hasattr(part, "memory") and id(part) not in vectors]
        assert len(inner) > 1
        assert all(part.memory == memory for part in inner)
    for memory in ("recompute", "invert"):
        scale = float(gradients["store"].abs().max())
        assert torch.allclose(gradients["store"], gradients[memory], rtol=1e-3, atol=1e-3 * scale)
    assert most["invert"] < 0.5 * most["store"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diffeo.glow((1, 9, 8)), "a height of 9 cannot be halved 2 times"),
        (lambda: diffeo.glow((8, 8)), "shape"),
        (lambda: diffeo.glow((1, 8, 8), preset="huge"), "preset must be one of"),
        (lambda: diffeo.glow((1, 8, 8), hidden=0), "hidden"),
        (lambda: diffeo.glow((1, 8, 8), levels=1), "levels"),
        (lambda: diffeo.flowpp((1, 8, 8), couplings=(4, 2)), "three numbers"),
        (lambda: diffeo.flowpp((1, 8, 8), noise_layers=0), "noise_layers"),
        (lambda: diffeo.nets.ConvNet(0, 1, 2), "at least 1"),
        (lambda: diffeo.Multiscale(event=(1, 8, 8)), "at least one stage"),
        (lambda: diffeo.Multiscale(diffeo.Exp(), event=(1, 8, 8)), "no transform of images"),
        (lambda: diffeo.Multiscale(diffeo.Squeeze(), event=(1, 7, 8)), "height of 7"),
        (lambda: diffeo.Squeeze(3, order="checkerboard"), "order"),
        (lambda: diffeo.nets.OneHot(0), "at least 1 class"),
        (lambda: diffeo.bits_per_dim(diffeo.Normal(2), torch.zeros(2)), "batch of events"),
        (lambda: diffeo.bits_per_dim(diffeo.Normal(2), torch.zeros(3, 2), samples=2), "Dequantized"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


SMALL = {
    "nice_image": {"hidden": 4},
    "realnvp_image": {"hidden": 4, "blocks": 1},
    "glow": {"hidden": 4, "layers": 1},
    "flowpp": {"hidden": 8, "attention": False},
    "residual_image": {"hidden": 4, "layers": 1},
    "tarflow": {"width": 8, "layers": 1},
    "srflow": {},
}


def test_every_recipe_of_images_is_tried_here():
    assert set(SMALL) == set(recipes("images"))


@pytest.mark.parametrize("recipe", SMALL)
def test_a_saved_flow_gives_the_same_bits(recipe, digits, tmp_path):
    options = SMALL[recipe] | ({"scale": 2} if recipe == "srflow" else {"classes": 10})
    model = diffeo.testing.perturbed(getattr(diffeo, recipe)((1, 8, 8), preset="tiny", levels=17, **options))
    images, labels = digits[0][:4], digits[1][:4]
    context = shrink(images, 2, 17) if recipe == "srflow" else labels
    model.initialize(images, context)
    diffeo.save(model.eval(), tmp_path / "m.safetensors")
    back = diffeo.load(tmp_path / "m.safetensors").eval()
    with torch.no_grad():
        one, other = (m.log_prob(images, context, generator=torch.Generator().manual_seed(0)) for m in (model, back))
    assert torch.equal(one, other)


@pytest.mark.parametrize("recipe", [*(name for name in SMALL if name != "srflow"), "noisy glow"])
def test_labels_that_nothing_would_read_are_refused(recipe, digits):
    noise = {"noise": 0.1} if recipe == "noisy glow" else {}
    name = recipe.removeprefix("noisy ")
    model = getattr(diffeo, name)((1, 8, 8), preset="tiny", levels=17, **SMALL[name], **noise)
    images, labels = digits[0][:30], digits[1][:30]
    for call in (
        lambda: model(images, labels),
        lambda: model.sample(30, labels),
        lambda: diffeo.fit(model, images, labels, steps=1, progress=False),
    ):
        with pytest.raises(ValueError, match=f"{name}: it was built without classes"):
            call()


@pytest.mark.parametrize("recipe", SMALL)
def test_sides_that_cannot_be_halved_are_refused(recipe):
    with pytest.raises(ValueError, match=r"\b9\b"):
        getattr(diffeo, recipe)((1, 9, 8), preset="tiny", **SMALL[recipe])


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        ("Squeeze", (4, 7, 8)), ("Squeeze", (4, 8, 7)), ("Haar", (4, 7, 8)), ("Haar", (4, 8, 7)),
        ("Checkerboard", (4, 8, 7)),  # which halves rows alone
    ],
)  # fmt: skip
def test_odd_sides_are_refused_by_every_map_of_blocks(transform, shape):
    with pytest.raises(ValueError, match="of 7 cannot be"):
        getattr(diffeo, transform)()(torch.zeros(2, *shape))


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
def test_bytes_stay_bytes_in_training(kind, digits):
    """The whole set is never kept as floats."""
    images = digits[0] if kind is torch.Tensor else digits[0].numpy()
    assert digits[0].dtype == torch.uint8
    source = as_source(images, None, None, torch.float32)
    assert [t.dtype for t in source.tensors] == [torch.uint8]
    model = diffeo.glow((1, 8, 8), preset="tiny", levels=17, **SMALL["glow"])
    assert diffeo.fit(model, images, steps=2, progress=False).steps == 2


def test_shades_beyond_the_levels_are_refused_before_training(digits):
    model = diffeo.glow((1, 8, 8), preset="tiny", layers=1, hidden=8, levels=8)
    with pytest.raises(ValueError, match=r"0 … 7, got 0 … 16"):
        diffeo.fit(model, digits[0], steps=1, progress=False)
    bright = digits[0] * 15  # bytes, among which 256 is 0
    bright[0] = 255
    all_shades = diffeo.glow((1, 8, 8), preset="tiny", layers=1, hidden=8)
    assert diffeo.fit(all_shades, bright, steps=1, progress=False).steps == 1


def test_long_fits_of_pictures_are_not_compiled_unasked():
    model = diffeo.glow((1, 8, 8), preset="tiny", layers=1, hidden=8)
    assert not wants_compile("auto", 1e6, model)
    assert wants_compile(True, 1.0, model) == wants_compile("auto", 1e6, diffeo.nsf(2))  # where there is a compiler


IMAGENET: dict[str, object] = {"hidden": 128, "blocks": 20, "couplings": (7, 3, 3), "concat_last": True}
IMAGENET |= {"noise_layers": 8, "noise_blocks": 8}


@pytest.mark.parametrize(
    ("recipe", "more", "published", "rel"),
    [
        ("flowpp", {}, 31_443_440, 0.01),
        ("flowpp", IMAGENET, 168_955_724, 0.01),
        ("glow", {}, 44e6, 0.02),
    ],
)
def test_published_sizes(recipe, more, published, rel):
    model = getattr(diffeo, recipe)((3, 32, 32), preset="paper", **more)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(published, rel=rel)


@pytest.mark.parametrize(
    ("side", "more", "published"),
    [(256, {"patch": 8, "classes": 3}, 472e6), (128, {"patch": 4, "width": 1024, "heads": 16, "classes": 1000}, 820e6)],
)
def test_published_sizes_of_tarflow(side, more, published):
    """AFHQ and ImageNet, as a discussion counts the published weights; one of the eight blocks, which are alike."""
    model = diffeo.tarflow((3, side, side), preset="paper", blocks=1, **more)
    assert 8 * sum(p.numel() for p in model.parameters()) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("components", [0, 3])
def test_sweeps_and_cache_draw_the_same_pictures(components):
    torch.manual_seed(0)
    model = diffeo.tarflow((1, 8, 8), preset="tiny", width=16, blocks=2, components=components, classes=2, levels=17)
    model = diffeo.testing.perturbed(model).eval()
    flow, labels = model.flow, torch.tensor([0, 1, 1, 0])
    z = flow.base.sample(4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one_by_one = flow.transform.inverse(z, flow.encode(labels))[0]
        for layer in flow.transform.modules():
            if isinstance(layer, diffeo.Autoregressive):
                layer.sweeps, layer.tolerance = 16, 1e-6
        swept = flow.transform.inverse(z, flow.encode(labels))[0]
    assert torch.allclose(one_by_one, swept, atol=1e-4)  # in 17 levels


def test_each_novelty_of_flowpp_can_be_switched_off():
    sizes = {}
    for off in ("mixture", "attention", "variational"):
        model = diffeo.flowpp((1, 8, 8), preset="tiny", levels=17, **{off: False})
        sizes[off] = sum(p.numel() for p in model.parameters())
        assert (model.dequantizer is None) is (off == "variational")
    assert max(sizes.values()) < sum(p.numel() for p in diffeo.flowpp((1, 8, 8), preset="tiny").parameters())


@pytest.mark.parametrize(
    ("recipe", "options"), [("glow", {"layers": 2}), ("flowpp", {"hidden": 8, "blocks": 1, "attention": False})]
)
def test_classes_are_told_apart_early(recipe, options):
    found = load_digits()
    x, y = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1), torch.from_numpy(found.target)
    torch.manual_seed(0)
    model = getattr(diffeo, recipe)((1, 8, 8), preset="tiny", levels=17, classes=10, **options)
    diffeo.fit(model, x[300:], y[300:], validation=0, steps=40, batch_size=128, lr=5e-3, progress=False)
    each = []
    for k in range(10):
        same = torch.Generator().manual_seed(0)  # noise, for every class
        each.append(model.log_prob(x[:300], torch.full((300,), k), generator=same))
    assert float((torch.stack(each).argmax(0) == y[:300]).double().mean()) > 0.6


def test_noise_is_taken_from_samples():
    torch.manual_seed(0)
    spikes = torch.tensor([3.0, 13.0])[torch.randint(2, (2000,))].reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    model = diffeo.tarflow((1, 2, 2), preset="tiny", width=16, patch=1, noise=0.2, components=4, levels=17)
    diffeo.fit(model, spikes.to(torch.uint8), steps=300, batch_size=256, lr=5e-3, progress=False)
    spread = {}
    model.levels = None
    for density in (model, model.density):  # freed of noise, and with it
        drawn = density.sample(500, generator=torch.Generator().manual_seed(0))
        spread[density is model] = float(torch.minimum((drawn - 3).abs(), (drawn - 13).abs()).mean())
    assert spread[True] < 0.5 * spread[False]
    with torch.inference_mode():
        assert model.sample(2).shape == (2, 1, 2, 2)
    with pytest.raises(ValueError, match="has no bits"):
        diffeo.bits_per_dim(model, spikes[:2])
    with pytest.raises(ValueError, match="expected whole numbers 0 … 16"):
        diffeo.tarflow((1, 2, 2), preset="tiny", noise=0.1, levels=17).initialize(16 * spikes)

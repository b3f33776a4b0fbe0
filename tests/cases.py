"""THE table: every public transform and density, with inputs. A new one is one line here.

A transform's case builds an instance from a seed, so that two seeds give two members of an ensemble that differ in
everything, permutations included, and says what x and context look like.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import diffeo
from diffeo.nets import (
    MADE,
    MLP,
    AttentiveLSTM,
    Beside,
    CausalTransformer,
    CausalWaveNet,
    ConvNet,
    Guided,
    LipschitzConvNet,
    LipschitzMLP,
    RowWaveNet,
    WaveNet,
)


class TransformCase(NamedTuple):
    build: Callable[[int], diffeo.Transform]
    x: Callable[[], Tensor]
    context: Callable[[], Tensor] | None = None
    in_c: bool = True  # of scalar maps: whether kernels write them down, which they cannot where there are weights of
    # their own, searches for the inverse, tables of bins, or functions that C has not


class DensityCase(NamedTuple):
    build: Callable[[], diffeo.Density]
    context: Tensor | dict[str, Tensor] | None = None


def doubled(context: Tensor | dict[str, Tensor] | None) -> Tensor | dict[str, Tensor] | None:
    """A context in float64; its whole numbers and masks as they are."""
    if isinstance(context, dict):
        return {name: t.double() if t.is_floating_point() else t for name, t in context.items()}
    return None if context is None else context.double()


def _seeded(build: Callable[[], diffeo.Transform]) -> Callable[[int], diffeo.Transform]:
    def make(seed: int) -> diffeo.Transform:
        torch.manual_seed(seed)
        return build()

    return make


def _normal(*shape: int, scale: float = 1.0) -> Callable[[], Tensor]:
    return lambda: scale * torch.randn(shape, generator=torch.Generator().manual_seed(3))


def _positive(*shape: int) -> Callable[[], Tensor]:
    return lambda: _normal(*shape)().exp()


def _unit(*shape: int) -> Callable[[], Tensor]:
    return lambda: 0.02 + 0.96 * torch.rand(shape, generator=torch.Generator().manual_seed(3))


def _fitted(layer: diffeo.Transform, features: int) -> diffeo.Transform:
    layer.initialize(torch.randn(400, features) @ torch.randn(features, features) * 2 + 3)
    return layer


def _equalized() -> diffeo.Transform:
    """Of five levels, one of which is rare and one was never seen."""
    layer = diffeo.Equalize(3, levels=5)
    levels = torch.multinomial(torch.tensor([8.0, 3.0, 0.0, 0.1, 4.0]), 900, replacement=True).view(300, 3)
    layer.initialize(levels + torch.rand(300, 3))
    return layer


def _stage(channels: int, context: int = 0) -> diffeo.Transform:
    """A squeeze, a linear map of channels, and a coupling of them by convolutions."""
    mask = torch.arange(4 * channels) < 2 * channels
    net = ConvNet(2 * channels, 2 * channels, 2, hidden=4, blocks=channels - 1, context=context)
    coupling = diffeo.Coupling(mask, net, diffeo.Affine(), dim=-3)
    return diffeo.Chain(diffeo.Squeeze(channels=channels), diffeo.Conv1x1(4 * channels), coupling)


def _transformer(univariate: diffeo.Univariate, context: int, **options) -> diffeo.Transform:
    net = CausalTransformer(2, univariate.n_params, 3, width=8, heads=2, layers=1, context=context, **options)
    return diffeo.Autoregressive(Guided(net, 0.5) if options else net, univariate, dim=-2, event_ndim=2)


def _attention() -> diffeo.Transform:
    net = ConvNet(1, 1, 2, hidden=4, blocks=1, heads=2, size=(2, 3), concat=True, concat_last=True)
    return diffeo.Coupling(torch.tensor([True, False]), net, diffeo.Affine(), dim=-3)


def _injection() -> diffeo.Transform:
    net = ConvNet(0, 2, 2, hidden=4, map=("features", 3))
    return diffeo.Coupling(torch.zeros(2, dtype=torch.bool), net, diffeo.Affine(), dim=-3)


def _spoken() -> diffeo.Transform:
    net = WaveNet(1, 1, 2, hidden=4, layers=2, kernel=3, context=3)
    return diffeo.Coupling(torch.tensor([True, False]), net, diffeo.Affine(), dim=-1, event_ndim=2)


def _samples() -> diffeo.Transform:
    net = CausalWaveNet(1, 2, hidden=4, layers=2)
    return diffeo.Autoregressive(net, diffeo.Affine(bound=1.0), dim=-2, event_ndim=2)


def _rows() -> diffeo.Transform:
    net = RowWaveNet(3, 2, hidden=4, layers=2, order=torch.tensor([2, 0, 1]), beside=Beside("features", 2, 2.0))
    return diffeo.Autoregressive(net, diffeo.Affine(bound=1.0), dim=-1, event_ndim=2)


def _beside() -> diffeo.Transform:
    net = WaveNet(1, 1, 2, hidden=4, layers=2, kernel=3, beside=Beside("features", 2, 2.0, -0.25))
    return diffeo.Coupling(torch.tensor([True, False]), net, diffeo.Affine(), dim=-1, event_ndim=2)


def _partial() -> diffeo.Transform:
    inner = diffeo.Along(diffeo.LULinear(2), -1, 2)
    return diffeo.Partial(inner, torch.tensor([True, False, True]))


def _sound(recipe: Callable[..., diffeo.Density], **options) -> diffeo.Density:
    return recipe(0, 1, preset="tiny", hidden=4, layers=2, **options)


def _recurrent() -> diffeo.Transform:
    net = AttentiveLSTM(2, 2, width=2, hidden=4, attention=3, depth=2, dense=2, backward=True)
    return diffeo.Autoregressive(net, diffeo.Affine(bound=1.0), dim=-2, event_ndim=2)


def _said() -> dict[str, Tensor]:
    return {"text": torch.tensor([[1, 2, 3], [1, 2, 0]]).repeat(3, 1)}


def _univariate(
    univariate: Callable[[], diffeo.Univariate], x: Callable[[], Tensor], in_c: bool = True
) -> TransformCase:
    return TransformCase(lambda seed: univariate(), x, _normal(6, univariate().n_params), in_c)


def _ar(univariate: diffeo.Univariate, features: int = 4, **options) -> diffeo.Transform:
    if "adjacency" not in options:
        options.setdefault("order", torch.randperm(features))
    return diffeo.Autoregressive(MADE(features, univariate.n_params, hidden=(16, 16), **options), univariate)


def _coupling(univariate: diffeo.Univariate, mask: list[bool], context: int = 0, **options) -> diffeo.Transform:
    keep = torch.tensor(mask)[torch.randperm(len(mask))]
    hidden = (16, 16)
    net = MLP(sum(mask), len(mask) - sum(mask), n_params=univariate.n_params, context=context, hidden=hidden, **options)
    return diffeo.Coupling(keep, net, univariate)


def _continuous(features: int, context: int, **options) -> diffeo.Transform:
    field = diffeo.nets.VectorField(features, context=context, hidden=(16, 16))
    return diffeo.Continuous(field, integrator=diffeo.solvers.Integrator(**options))


def _initialized(layer: diffeo.Transform, *event: int) -> diffeo.Transform:
    layer.initialize(2 * torch.randn(40, *event) + 1)
    return layer


class Pixels(torch.nn.Module):
    """A convolution as the conditioner of channels."""

    def __init__(self, channels: int, out: int, n_params: int):
        super().__init__()
        self.n_params = n_params
        self.conv = torch.nn.Conv2d(channels, out * n_params, 3, padding=1)

    def forward(self, x: Tensor, context: diffeo.functional.Context = None) -> Tensor:
        batch = x.shape[:-3]
        params = self.conv(x.reshape(-1, *x.shape[-3:])).unflatten(1, (-1, self.n_params))
        return params.movedim(2, -1).unflatten(0, batch) if batch else params.movedim(2, -1).squeeze(0)


class Frames(diffeo.Incremental):
    """Each frame's parameters follow from a running sum of the frames before, of any number."""

    def __init__(self, features: int, n_params: int):
        super().__init__()
        self.n_params = n_params
        self.linear = torch.nn.Linear(features, features * n_params)

    def forward(self, x: Tensor, context: diffeo.functional.Context = None) -> Tensor:
        return self._params(torch.nn.functional.pad(x.cumsum(-2), (0, 0, 1, 0))[..., :-1, :])

    def start(self, z: Tensor, context: diffeo.functional.Context = None) -> Tensor:
        return torch.zeros_like(z.reshape(-1, *z.shape[-2:])[:, 0])

    def step(self, x_prev: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = state if x_prev is None else state + x_prev
        return self._params(state), state.sum(-1), state

    def _params(self, total: Tensor) -> Tensor:
        return self.linear(total.tanh()).unflatten(-1, (-1, self.n_params))


def _sequence_coupling(univariate: diffeo.Univariate, context: int) -> diffeo.Transform:
    """Along the features of each frame, with one context for a whole sequence."""
    net = MLP(1, 2, n_params=univariate.n_params, context=context, hidden=(16,))
    return diffeo.Along(diffeo.Coupling(torch.tensor([True, False, False]), net, univariate), -1, 2)


DAG = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
Spline = diffeo.RationalQuadraticSpline


def _image_flow(recipe: Callable[..., diffeo.Density], **options) -> diffeo.Density:
    small = options.pop("small", False)
    options = {name: value for name, value in {"hidden": 4, **options}.items() if value is not None}
    flow = recipe((1, 4, 4), preset="tiny", levels=4, **options)
    images = torch.randint(4, (50, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 2 if "classes" in options else None
    if small:
        half = images[..., ::2, ::2]
        flow.initialize(images, half if labels is None else {"features": half, "label": labels})
    else:
        flow.initialize(images, labels)
    return flow


def _picture_map(recipe: Callable[..., diffeo.Density], **options) -> TransformCase:
    """The map of a recipe of pictures, from values with noise to the flat vector of its base."""
    x = 0.05 + 3.9 * torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(3))

    def context() -> Tensor | dict[str, Tensor]:
        given = {"features": x[..., ::2, ::2].floor()} if options.get("small") else torch.arange(6) % 2
        return _image_flow(recipe, **options).flow.encode(given)

    knows = context if options.get("small") or "classes" in options else None
    return TransformCase(_seeded(lambda: _image_flow(recipe, **options).transform), lambda: x.clone(), knows)


TRANSFORMS: dict[str, TransformCase] = {
    "Affine": _univariate(diffeo.Affine, _normal(6)),
    "Shift": _univariate(diffeo.Shift, _normal(6)),
    "RationalQuadraticSpline": _univariate(Spline, _normal(6, scale=4.0)),
    "RationalQuadraticSpline of 3 narrow bins": _univariate(lambda: Spline(3, bound=2.0), _normal(6)),
    "MixtureCDF": _univariate(diffeo.MixtureCDF, _normal(6), in_c=False),
    "MixtureCDF of Gaussians": _univariate(lambda: diffeo.MixtureCDF(2, "gaussian"), _normal(6), in_c=False),
    "DeepSigmoidal": _univariate(lambda: diffeo.DeepSigmoidal(6), _normal(6), in_c=False),
    "DenseSigmoidal": _univariate(lambda: diffeo.DenseSigmoidal(4, layers=3), _normal(6), in_c=False),
    "UnconstrainedMonotonic": TransformCase(
        _seeded(lambda: diffeo.UnconstrainedMonotonic(4, (8, 8))), _normal(6), _normal(6, 5), in_c=False
    ),
    "SumOfSquares": _univariate(diffeo.SumOfSquares, _normal(6), in_c=False),
    "Bernstein": _univariate(lambda: diffeo.Bernstein(8), _normal(6, scale=4.0), in_c=False),
    "LinearSpline": _univariate(diffeo.LinearSpline, _normal(6, scale=4.0), in_c=False),
    "QuadraticSpline": _univariate(diffeo.QuadraticSpline, _normal(6, scale=4.0), in_c=False),
    "CubicSpline": _univariate(diffeo.CubicSpline, _normal(6, scale=4.0), in_c=False),
    "RationalLinearSpline": _univariate(diffeo.RationalLinearSpline, _normal(6, scale=4.0), in_c=False),
    "BoundedSpline": _univariate(diffeo.BoundedSpline, _unit(6)),
    "CircularSpline": _univariate(diffeo.CircularSpline, _normal(6, scale=0.8)),
    "TailTransform": _univariate(diffeo.TailTransform, _normal(6, scale=3.0), in_c=False),
    "SinhArcsinh": _univariate(diffeo.SinhArcsinh, _normal(6)),
    "Power": _univariate(diffeo.Power, _positive(6)),
    "LocationScale": _univariate(diffeo.LocationScale, _normal(6)),
    "Composed": _univariate(
        lambda: diffeo.Composed(diffeo.LocationScale(2.0), diffeo.Asinh(), diffeo.RationalQuadraticSpline(4)),
        _normal(6),
    ),
    "Asinh": TransformCase(lambda seed: diffeo.Asinh(), _normal(6)),
    "Exp": TransformCase(lambda seed: diffeo.Exp(), _normal(6)),
    "Softplus": TransformCase(lambda seed: diffeo.Softplus(), _normal(6)),
    "Sigmoid": TransformCase(lambda seed: diffeo.Sigmoid(), _normal(6)),
    "Logit": TransformCase(lambda seed: diffeo.Logit(), _unit(6)),
    "Tanh": TransformCase(lambda seed: diffeo.Tanh(), _normal(6)),
    "LeakyReLU": TransformCase(lambda seed: diffeo.LeakyReLU(0.3), _normal(6)),
    "Elementwise": TransformCase(lambda seed: diffeo.Elementwise(Spline(), 3), _normal(6, 3)),
    "Elementwise over a matrix": TransformCase(
        lambda seed: diffeo.Elementwise(diffeo.Affine(), (2, 3)), _normal(6, 2, 3)
    ),
    "Coupling affine": TransformCase(
        _seeded(lambda: _coupling(diffeo.Affine(), [True, False, True, False, False])), _normal(6, 5)
    ),
    "Coupling spline, context, residual": TransformCase(
        _seeded(lambda: _coupling(Spline(), [True, False, False], 2, residual=True, layer_norm=True)),
        _normal(6, 3),
        _normal(6, 2),
    ),
    "Coupling of one coordinate": TransformCase(_seeded(lambda: _coupling(diffeo.Affine(), [False])), _normal(6, 1)),
    "Coupling of one coordinate, context": TransformCase(
        _seeded(lambda: _coupling(Spline(), [False], 2)), _normal(6, 1), _normal(6, 2)
    ),
    "Autoregressive affine": TransformCase(_seeded(lambda: _ar(diffeo.Affine(), dropout=0.1)), _normal(6, 4)),
    "Autoregressive spline, context": TransformCase(
        _seeded(lambda: _ar(Spline(), context=2)), _normal(6, 4), _normal(6, 2)
    ),
    "Autoregressive residual, context": TransformCase(
        _seeded(lambda: _ar(diffeo.Affine(), context=2, residual=True)), _normal(6, 4), _normal(6, 2)
    ),
    "Autoregressive along a graph": TransformCase(_seeded(lambda: _ar(Spline(), adjacency=DAG)), _normal(6, 4)),
    "Autoregressive of one coordinate, context": TransformCase(
        _seeded(lambda: _ar(Spline(), features=1, context=2)), _normal(6, 1), _normal(6, 2)
    ),
    "Autoregressive without hidden layers": TransformCase(
        _seeded(lambda: diffeo.Autoregressive(MADE(3, 2, context=2, hidden=()), diffeo.Affine())),
        _normal(6, 3),
        _normal(6, 2),
    ),
    "Inverse": TransformCase(_seeded(lambda: diffeo.Inverse(_ar(diffeo.Affine()))), _normal(6, 4)),
    "Permute": TransformCase(_seeded(lambda: diffeo.Permute(torch.randperm(5))), _normal(6, 5)),
    "LULinear": TransformCase(lambda seed: diffeo.LULinear(4), _normal(6, 4)),
    "TriangularLinear": TransformCase(lambda seed: diffeo.TriangularLinear(4), _normal(6, 4)),
    "TriangularLinear, lower": TransformCase(lambda seed: diffeo.TriangularLinear(3, upper=False), _normal(6, 3)),
    "Grouped": TransformCase(_seeded(lambda: diffeo.Grouped(diffeo.LULinear(2), 6)), _normal(6, 6)),
    "Grouped, context": TransformCase(
        _seeded(lambda: diffeo.Grouped(_coupling(Spline(), [True, False, False], 2), 6)), _normal(6, 6), _normal(6, 2)
    ),
    "FixedLinear": TransformCase(
        _seeded(lambda: diffeo.FixedLinear(torch.eye(4) + 0.3 * torch.randn(4, 4), torch.randn(4))), _normal(6, 4)
    ),
    "ExpLinear": TransformCase(lambda seed: diffeo.ExpLinear(3), _normal(6, 3)),
    "qr_linear": TransformCase(_seeded(lambda: diffeo.qr_linear(3)), _normal(6, 3)),
    "svd_linear": TransformCase(_seeded(lambda: diffeo.svd_linear(3)), _normal(6, 3)),
    "Conv1x1": TransformCase(lambda seed: diffeo.Conv1x1(3), _normal(6, 3, 2, 2)),
    "Along, features of a sequence": TransformCase(
        _seeded(lambda: diffeo.Along(diffeo.LULinear(3), -1, 2)), _normal(6, 4, 3)
    ),
    "Along, context": TransformCase(
        _seeded(lambda: diffeo.Along(_coupling(Spline(), [True, False, False], 2), -2, 2)),
        _normal(6, 3, 2),
        _normal(6, 2),
    ),
    "ActNorm of channels": TransformCase(
        _seeded(lambda: _initialized(diffeo.Along(diffeo.ActNorm(2), -3), 2, 2, 3)), _normal(6, 2, 2, 3)
    ),
    "Standardize of channels": TransformCase(
        _seeded(lambda: _initialized(diffeo.Along(diffeo.Standardize(2), -3), 2, 2, 3)), _normal(6, 2, 2, 3)
    ),
    "Squeeze": TransformCase(lambda seed: diffeo.Squeeze(channels=2), _normal(6, 2, 2, 4)),
    "Squeeze, checkerboard": TransformCase(
        lambda seed: diffeo.Squeeze(channels=2, order="checkerboard"), _normal(6, 2, 2, 4)
    ),
    "Fold": TransformCase(lambda seed: diffeo.Fold(2, 3), _normal(6, 4, 3)),
    "Coupling of frames, WaveNet": TransformCase(_seeded(_spoken), _normal(6, 4, 2), _normal(6, 3)),
    "Autoregressive of samples, WaveNet": TransformCase(_seeded(_samples), _normal(6, 4, 1)),
    "Autoregressive of rows, WaveNet": TransformCase(_seeded(_rows), _normal(6, 4, 3), _normal(6, 3, 2)),
    "Coupling of frames beside others, WaveNet": TransformCase(_seeded(_beside), _normal(6, 4, 2), _normal(6, 3, 2)),
    "Autoregressive of frames, LSTMs": TransformCase(
        _seeded(_recurrent), _normal(6, 4, 2), lambda: {**_said(), "letters": _normal(6, 3, 2)()}
    ),
    "LinearPrediction": TransformCase(
        lambda seed: diffeo.LinearPrediction(2, 3), _normal(6, 5, 1), lambda: {"prediction": 0.3 * _normal(6, 2, 3)()}
    ),
    "Reverse": TransformCase(lambda seed: diffeo.Reverse(3), _normal(6, 4, 3)),
    "Partial": TransformCase(_seeded(_partial), _normal(6, 4, 3)),
    "Checkerboard": TransformCase(lambda seed: diffeo.Checkerboard(channels=2), _normal(6, 2, 2, 4)),
    "Reshape": TransformCase(lambda seed: diffeo.Reshape((2, 3), (6,)), _normal(6, 2, 3)),
    "Patches": TransformCase(lambda seed: diffeo.Patches(2, (2, 4, 2)), _normal(6, 2, 4, 2)),
    "Autoregressive, transformer": TransformCase(
        _seeded(lambda: _transformer(diffeo.Affine(), 2)), _normal(6, 3, 2), _normal(6, 2)
    ),
    "Autoregressive, transformer, reversed, guided": TransformCase(
        _seeded(lambda: _transformer(diffeo.Affine(), 2, reverse=True)), _normal(6, 3, 2), _normal(6, 2)
    ),
    "Coupling, attention": TransformCase(_seeded(_attention), _normal(6, 2, 2, 3)),
    "Coupling of all by a map": TransformCase(_seeded(_injection), _normal(6, 2, 2, 3), _normal(6, 3, 2, 3)),
    "Haar": TransformCase(lambda seed: diffeo.Haar(channels=2), _normal(6, 2, 2, 4)),
    "Multiscale": TransformCase(
        _seeded(lambda: diffeo.Multiscale(_stage(1), _stage(2), event=(1, 4, 4))), _normal(6, 1, 4, 4)
    ),
    "Multiscale, context": TransformCase(
        _seeded(lambda: diffeo.Multiscale(_stage(1, 2), _stage(2, 2), event=(1, 4, 4))),
        _normal(6, 1, 4, 4),
        _normal(6, 2),
    ),
    "glow's map": _picture_map(diffeo.glow, layers=1),
    "realnvp_image's map": _picture_map(diffeo.realnvp_image, scales=1, blocks=1),
    "nice_image's map": _picture_map(diffeo.nice_image, layers=2),
    "flowpp's map": _picture_map(diffeo.flowpp, blocks=1, heads=2, couplings=(1, 1, 1)),
    "tarflow's map": _picture_map(diffeo.tarflow, hidden=None, width=8),
    "glow's map, classes": _picture_map(diffeo.glow, layers=1, classes=2),
    "srflow's map": _picture_map(diffeo.srflow, scale=2, scales=1, layers=1, features=4, blocks=1, small=True),
    "residual_image's map": _picture_map(diffeo.residual_image, layers=1),
    "Coupling of channels": TransformCase(
        _seeded(lambda: diffeo.Coupling(torch.tensor([True, False, False]), Pixels(1, 2, 2), diffeo.Affine(), dim=-3)),
        _normal(6, 3, 2, 2),
    ),
    "Coupling of features of a sequence": TransformCase(
        _seeded(lambda: _sequence_coupling(Spline(4), 2)), _normal(6, 4, 3), _normal(6, 2)
    ),
    "Autoregressive over frames": TransformCase(
        _seeded(lambda: diffeo.Autoregressive(Frames(2, 2), diffeo.Affine(), dim=-2)), _normal(6, 3, 2)
    ),
    "Planar": TransformCase(_seeded(lambda: diffeo.Planar(3)), _normal(6, 3)),
    "Planar, context": TransformCase(_seeded(lambda: diffeo.Planar(2, context=2)), _normal(6, 2), _normal(6, 2)),
    "Radial": TransformCase(_seeded(lambda: diffeo.Radial(3)), _normal(6, 3)),
    "Radial, context": TransformCase(_seeded(lambda: diffeo.Radial(2, context=2)), _normal(6, 2), _normal(6, 2)),
    "Sylvester": TransformCase(_seeded(lambda: diffeo.Sylvester(3)), _normal(6, 3)),
    "Sylvester, householder, context": TransformCase(
        _seeded(lambda: diffeo.Sylvester(4, 2, "householder", context=2)), _normal(6, 4), _normal(6, 2)
    ),
    "Sylvester, triangular": TransformCase(_seeded(lambda: diffeo.Sylvester(3, kind="triangular")), _normal(6, 3)),
    "Coupling of mixtures": TransformCase(
        _seeded(lambda: _coupling(diffeo.MixtureCDF(4), [True, False, False])), _normal(6, 3)
    ),
    "Autoregressive deep sigmoidal": TransformCase(_seeded(lambda: _ar(diffeo.DeepSigmoidal(3), 2)), _normal(6, 2)),
    "Autoregressive unconstrained": TransformCase(
        _seeded(lambda: _ar(diffeo.UnconstrainedMonotonic(4, (8,)), 2)), _normal(6, 2)
    ),
    "BlockAutoregressive": TransformCase(_seeded(lambda: diffeo.BlockAutoregressive(2, 3)), _normal(6, 2)),
    "BlockAutoregressive, context, reversed": TransformCase(
        _seeded(lambda: diffeo.BlockAutoregressive(2, 4, layers=1, context=2, reverse=True)),
        _normal(6, 2),
        _normal(6, 2),
    ),
    "Residual": TransformCase(_seeded(lambda: diffeo.Residual(LipschitzMLP(3, hidden=(16,)))), _normal(6, 3)),
    "Residual, context": TransformCase(
        _seeded(lambda: diffeo.Residual(LipschitzMLP(2, context=2, hidden=(16,), lipschitz=0.9))),
        _normal(6, 2),
        _normal(6, 2),
    ),
    "Residual of many features": TransformCase(
        _seeded(lambda: diffeo.Residual(LipschitzMLP(18, hidden=(24,)))), _normal(6, 18)
    ),
    "Residual of images": TransformCase(
        _seeded(lambda: diffeo.Residual(LipschitzConvNet(2, hidden=4))), _normal(6, 2, 2, 3)
    ),
    "Residual of images, context": TransformCase(
        _seeded(lambda: diffeo.Residual(LipschitzConvNet(1, hidden=4, context=2))), _normal(6, 1, 3, 2), _normal(6, 2)
    ),
    "Continuous": TransformCase(_seeded(lambda: _continuous(3, 0, rtol=1e-8, atol=1e-8)), lambda: _normal(6, 3)()),
    "Continuous, rk4, context": TransformCase(
        _seeded(lambda: _continuous(2, 2, method="rk4", steps=16)), _normal(6, 2), _normal(6, 2)
    ),
    "SphereToCylinder": TransformCase(
        lambda seed: diffeo.SphereToCylinder(), lambda: torch.nn.functional.normalize(_normal(6, 3)(), dim=-1)
    ),
    "torus": TransformCase(
        _seeded(lambda: diffeo.torus(3, layers=2, hidden=(16,), bins=4, context=2).transform),
        _normal(6, 3, scale=0.8),
        _normal(6, 2),
    ),
    "Elementwise Bernstein": TransformCase(
        lambda seed: diffeo.Elementwise(diffeo.Bernstein(6), 3), _normal(6, 3, scale=4.0)
    ),
    "Householder": TransformCase(_seeded(lambda: diffeo.Householder(3)), _normal(6, 3)),
    "ActNorm": TransformCase(_seeded(lambda: _fitted(diffeo.ActNorm(3), 3)), _normal(6, 3)),
    "Standardize": TransformCase(_seeded(lambda: _fitted(diffeo.Standardize(3), 3)), _normal(6, 3)),
    "Whiten": TransformCase(_seeded(lambda: _fitted(diffeo.Whiten(3), 3)), _normal(6, 3)),
    "Regress": TransformCase(_seeded(lambda: diffeo.Regress(3, context=2)), _normal(6, 3), _normal(6, 2)),
    "Unconstrain, two bounds each": TransformCase(
        _seeded(lambda: diffeo.Unconstrain([0.0, -1.0], [2.0, 0.5])),
        lambda: (
            torch.tensor([0.0, -1.0])
            + torch.tensor([2.0, 1.5]) * torch.rand(6, 2, generator=torch.Generator().manual_seed(3))
        ),
    ),
    "Unconstrain": TransformCase(
        _seeded(lambda: diffeo.Unconstrain([0.0, None, None, 1.0], [None, None, 2.0, 3.0])),
        lambda: torch.stack([_positive(6)(), _normal(6)(), 2 - _positive(6)(), 1 + 2 * _unit(6)()], -1),
    ),
    "Equalize": TransformCase(_seeded(_equalized), lambda: 5 * _unit(6, 3)()),
    "Gaussianize": TransformCase(_seeded(lambda: _fitted(diffeo.Gaussianize(3, bins=8), 3)), _normal(6, 3, scale=3.0)),
    "Chain": TransformCase(
        _seeded(
            lambda: diffeo.Chain(
                diffeo.LeakyReLU(),
                diffeo.Permute(torch.randperm(3)),
                _coupling(Spline(), [True, False, False], 2),
                diffeo.Tanh(),
            )
        ),
        _normal(6, 3),
        _normal(6, 2),
    ),
    "nsf": TransformCase(_seeded(lambda: diffeo.nsf(3, layers=2, hidden=(16, 16)).transform), _normal(6, 3)),
    "iaf": TransformCase(_seeded(lambda: diffeo.iaf(3, layers=2, hidden=(16, 16)).transform), _normal(6, 3)),
}


def _small(recipe: Callable[..., diffeo.Flow], features: int, **options) -> Callable[[], diffeo.Flow]:
    def build() -> diffeo.Flow:
        torch.manual_seed(0)
        flow = recipe(features, layers=2, hidden=(16, 16), **options)
        data = torch.randn(500, features) @ torch.randn(features, features) + 1
        flow.initialize(data, torch.randn(500, 2) if options.get("context") else None)
        return flow

    return build


def _plain(recipe: Callable[..., diffeo.Flow], features: int, **options) -> Callable[[], diffeo.Flow]:
    """A recipe without conditioners."""

    def build() -> diffeo.Flow:
        torch.manual_seed(0)
        flow = recipe(features, layers=3, **options)
        flow.initialize(torch.randn(500, features) + 1, torch.randn(500, 2) if options.get("context") else None)
        return flow

    return build


def _gaussian() -> diffeo.Flow:
    flow = diffeo.gaussian(2)
    flow.initialize(torch.randn(300, 2) * torch.tensor([1.0, 5.0]))
    return flow


CONTEXT = torch.tensor([0.5, -1.0])

CLASS = torch.tensor(1)

LETTERS = {
    "means": torch.tensor([[-1.0], [2.0]]),
    "text": torch.tensor([1, 2]),
    "durations": torch.tensor([1, 1]),
    "mask": torch.ones(2, 1, dtype=torch.bool),
}


SPOKEN = {
    "text": torch.tensor([1, 3]),
    "durations": torch.tensor([1, 1]),
    "mask": torch.ones(4, 1, dtype=torch.bool),  # of which two frames become one
}


def _voice(recipe: Callable[..., diffeo.Density], **options) -> diffeo.Density:
    """A voice of one band, calm enough for float32 after the perturbation of all its weights."""
    torch.manual_seed(0)
    return recipe(1, 4, preset="tiny", hidden=4, width=4, **options).eval()


SAMPLES = {"mask": torch.ones(2, 1, dtype=torch.bool)}


def _noisy(recipe: Callable[..., diffeo.Density], **options) -> diffeo.Density:
    flow = recipe((1, 2, 2), preset="tiny", noise=0.5, levels=4, **options)
    flow.denoise, flow.levels = False, None  # as a density of what is not rounded
    return flow


DENSITIES: dict[str, DensityCase] = {
    "Normal": DensityCase(lambda: diffeo.Normal(3)),
    "Normal of a scalar": DensityCase(lambda: diffeo.Normal(())),
    "DiagonalNormal": DensityCase(lambda: diffeo.DiagonalNormal(2)),
    "StudentT": DensityCase(lambda: diffeo.StudentT(1, df=4.0)),
    "StudentT in 2-D": DensityCase(lambda: diffeo.StudentT(2, df=6.0)),
    "Uniform": DensityCase(lambda: diffeo.Uniform(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 2.5]))),
    "GaussianMixture": DensityCase(lambda: diffeo.GaussianMixture(2, components=3)),
    "GaussianMixture of one": DensityCase(lambda: diffeo.GaussianMixture(1, components=1)),
    "Banana": DensityCase(lambda: diffeo.targets.Banana(0.3)),
    "Funnel": DensityCase(lambda: diffeo.targets.Funnel(2, scale=1.0)),
    "Mixture": DensityCase(lambda: diffeo.targets.Mixture(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), 0.7)),
    "Dequantized": DensityCase(lambda: diffeo.Dequantized(_wide())),
    "Categorical": DensityCase(lambda: diffeo.Categorical([5])),
    "Categorical of two, context": DensityCase(lambda: diffeo.Categorical([2, 3], context=2), CONTEXT),
    "Mixed": DensityCase(lambda: diffeo.Mixed(diffeo.Categorical([2]), diffeo.maf(2, context=2, layers=1))),
    "mixed, bounds": DensityCase(lambda: diffeo.mixed(2, low=[0.0, None], high=[None, 1.0], flow="maf")),
    "mixed, whole, context": DensityCase(
        lambda: diffeo.mixed(2, levels=[3], whole=[0], context=2, flow="maf", options={"layers": 1}), CONTEXT
    ),
    "regression": DensityCase(lambda: diffeo.regression(context=2, hidden=(16,), encoding=4), CONTEXT),
    "Flow": DensityCase(lambda: diffeo.Flow(diffeo.Exp(), diffeo.Uniform(torch.ones(1), torch.full((1,), 4.0)))),
    "gaussian": DensityCase(_gaussian),
    "nice": DensityCase(_small(diffeo.nice, 2)),
    "realnvp, context": DensityCase(_small(diffeo.realnvp, 2, context=2), CONTEXT),
    "maf": DensityCase(_small(diffeo.maf, 2)),
    "maf in 1-D": DensityCase(_small(diffeo.maf, 1)),
    "iaf": DensityCase(_small(diffeo.iaf, 2)),
    "nsf, context": DensityCase(_small(diffeo.nsf, 2, context=2), CONTEXT),
    "nsf in 1-D": DensityCase(_small(diffeo.nsf, 1)),
    "nsf in 3-D": DensityCase(_small(diffeo.nsf, 3)),
    "nsf_ar": DensityCase(_small(diffeo.nsf_ar, 2)),
    "ttf": DensityCase(_small(diffeo.ttf, 2)),
    "naf": DensityCase(_small(diffeo.naf, 2, units=4)),
    "naf, dense, context": DensityCase(_small(diffeo.naf, 2, units=4, dense=True, context=2), CONTEXT),
    "unaf": DensityCase(_small(diffeo.unaf, 2, integrand=(8, 8), nodes=16)),
    "sos": DensityCase(_small(diffeo.sos, 2)),
    "bernstein": DensityCase(_small(diffeo.bernstein, 2, degree=8)),
    "gaussianization": DensityCase(_small(diffeo.gaussianization, 2, components=3)),
    "gaussianization, context": DensityCase(_small(diffeo.gaussianization, 2, components=3, context=2), CONTEXT),
    "gaussianization, layerwise": DensityCase(_small(diffeo.gaussianization, 3, layerwise=True)),
    "bnaf, context": DensityCase(_plain(diffeo.bnaf, 2, width=4, context=2), CONTEXT),
    "glow": DensityCase(lambda: _image_flow(diffeo.glow, layers=2)),
    "glow, classes": DensityCase(lambda: _image_flow(diffeo.glow, layers=1, classes=2), CLASS),
    "realnvp_image": DensityCase(lambda: _image_flow(diffeo.realnvp_image, blocks=1)),
    "nice_image": DensityCase(lambda: _image_flow(diffeo.nice_image, layers=2)),
    "residual_image": DensityCase(lambda: _image_flow(diffeo.residual_image, layers=1)),
    "residual_image, classes": DensityCase(lambda: _image_flow(diffeo.residual_image, layers=1, classes=2), CLASS),
    "flowpp": DensityCase(lambda: _image_flow(diffeo.flowpp, blocks=1, heads=2)),
    "tarflow, classes": DensityCase(lambda: _image_flow(diffeo.tarflow, hidden=None, width=8, classes=2), CLASS),
    "tarflow, noise": DensityCase(lambda: _noisy(diffeo.tarflow, width=8)),
    "glow, noise": DensityCase(lambda: _noisy(diffeo.glow, scales=1, layers=1, hidden=4, classes=2), CLASS),
    "srflow": DensityCase(
        lambda: _image_flow(diffeo.srflow, scale=2, scales=1, layers=1, features=4, blocks=1, small=True),
        torch.tensor([[[0.0, 3.0], [1.0, 2.0]]]),
    ),
    "srflow, classes": DensityCase(
        lambda: _image_flow(diffeo.srflow, scale=2, scales=1, layers=1, features=4, blocks=1, classes=2, small=True),
        {"features": torch.tensor([[[0.0, 3.0], [1.0, 2.0]]]), "label": CLASS},
    ),
    "Aligned": DensityCase(lambda: diffeo.Aligned(1), LETTERS),
    "glow_tts": DensityCase(lambda: _voice(diffeo.glow_tts, blocks=1, layers=1, attention=1), SPOKEN),
    "flow_tts": DensityCase(lambda: _voice(diffeo.flow_tts, blocks=1, layers=1, attention=1, stages=1), SPOKEN),
    "flowtron": DensityCase(lambda: _voice(diffeo.flowtron, flows=1, attention=4), SPOKEN),
    "waveflow": DensityCase(lambda: _sound(diffeo.waveflow, height=2, flows=2), SAMPLES),
    "waveglow": DensityCase(lambda: _sound(diffeo.waveglow, group=2, flows=1), SAMPLES),
    "wavenet": DensityCase(lambda: _sound(diffeo.wavenet), SAMPLES),
    "parallel_wavenet": DensityCase(lambda: _sound(diffeo.parallel_wavenet, flows=2), SAMPLES),
    "Noisy": DensityCase(lambda: diffeo.Noisy(diffeo.Normal(2), 0.5, denoise=False)),
    "residual_flow": DensityCase(_small(diffeo.residual_flow, 2)),
    "ffjord, context": DensityCase(lambda: diffeo.ffjord(2, context=2, hidden=(16, 16)), CONTEXT),
    "Dequantized, variational": DensityCase(
        lambda: diffeo.Dequantized(_wide(), dequantizer=diffeo.unit_box(1, context=1, layers=1, hidden=(8,), bins=4))
    ),
    "Argmax": DensityCase(lambda: diffeo.Argmax(diffeo.DiagonalNormal(3), [3])),
    "Argmax of two, context": DensityCase(
        lambda: diffeo.Argmax(diffeo.maf(5, layers=1, hidden=(16,), context=2), [2, 3], context=2), CONTEXT
    ),
    "unit_box": DensityCase(lambda: diffeo.unit_box(2, layers=2, hidden=(16,), bins=4)),
    "Logistic": DensityCase(lambda: diffeo.Logistic(2)),
    "ConditionalNormal": DensityCase(lambda: diffeo.ConditionalNormal(2, context=2), CONTEXT),
    "Resampled": DensityCase(lambda: diffeo.Resampled(2, hidden=(16,), attempts=5)),
    "Repeated": DensityCase(lambda: diffeo.Repeated(diffeo.DiagonalNormal(1), 2)),
    "UniformSphere": DensityCase(diffeo.UniformSphere),
    "VonMisesFisherMixture": DensityCase(lambda: diffeo.VonMisesFisherMixture(4)),
    "VonMisesFisherMixture of one": DensityCase(lambda: diffeo.VonMisesFisherMixture(1)),
    "sphere": DensityCase(lambda: diffeo.sphere(layers=2, hidden=(16,), bins=4)),
    "sphere, mixture, context": DensityCase(
        lambda: diffeo.sphere(layers=2, hidden=(16,), bins=4, components=4, context=2), CONTEXT
    ),
    "torus": DensityCase(lambda: diffeo.torus(2, layers=2, hidden=(16,), bins=4, harmonics=3)),
    "circle": DensityCase(lambda: diffeo.torus(1, layers=2, bins=4)),
    "planar, context": DensityCase(_plain(diffeo.planar, 2, context=2), CONTEXT),
    "radial": DensityCase(_plain(diffeo.radial, 2)),
    "sylvester": DensityCase(_plain(diffeo.sylvester, 3)),
    "nsf_ar, context": DensityCase(_small(diffeo.nsf_ar, 3, context=2), CONTEXT),
}


def _wide() -> diffeo.Flow:
    flow = diffeo.Flow(diffeo.Standardize(1), diffeo.DiagonalNormal(1))
    flow.initialize(torch.tensor([[-4.0], [10.0]]))
    return flow

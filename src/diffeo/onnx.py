"""Export to ONNX: a log-density, or the map from base noise to samples, that runs without PyTorch.

A copy of the flow is made in which everything that does not depend on the input is computed beforehand, in float64:
masked weights, the factors of a mixture, and linear maps with their inverses, for which ONNX has no triangular solver.
Autoregressive inverses become one ONNX loop over the coordinates or patches (`Scan`), so that the graph does not grow
with them, and so do searches for the inverse of a scalar map. Operations that would lose their precision are written
as others (`PRECISE`).
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Density, Flow, Transform
from diffeo.densities import Dequantized, GaussianMixture, Noisy
from diffeo.functional import Context, sum_event
from diffeo.kernels.private import compiler_errors, scan
from diffeo.nets import CausalTransformer, LowResolution, OneHot
from diffeo.nets.made import MADE, MaskedLinear
from diffeo.storage import to_json
from diffeo.transforms import Autoregressive
from diffeo.transforms.folding import DENSE, fixed

OPSET = 18


def export(flow: Flow, path: str | os.PathLike[str], direction: str = "density") -> None:
    """Write a trained flow of vectors or pictures as an ONNX model, for any number of rows.

    Inputs and outputs, float32 unless the flow is float64:

        density    x (n, *event), context if there is one          →  log_prob (n,), in nats
        sampler    noise (n, D), standard normal; uniform (n,) in
                   [0, 1) if the base is a mixture; context        →  x (n, *event)

    A context is (n, C), whole numbers (n,) for a flow with classes, or the small pictures of `srflow`. Multiplying the
    noise by a temperature tempers the samples. Of a `Dequantized` density export its `flow`: its x are whole numbers
    plus noise in [0, 1), which samples are rounded down from. The model's metadata holds recipe and direction under
    `diffeo.recipe` and `diffeo.direction`.

    Args:
        flow: a flow over vectors, such as the tabular recipes give, or of pictures.
        path: the file to write, replaced if it is there.
        direction: "density" or "sampler".

    Raises:
        ValueError: no flow, or one whose events have no fixed shape, such as sequences; a base from which noise cannot
            be drawn by a map; what ONNX cannot express, such as residual flows; an unknown direction.
        ImportError: the packages of `diffeo[onnx]` are missing.

    Cost: seconds. ONNX Runtime computes an autoregressive direction by D passes of the hidden layers, and that of a
    transformer by a whole pass for each patch.

    "ONNX: Open Neural Network Exchange", https://onnx.ai
    """
    if isinstance(flow, Dequantized | Noisy):
        raise ValueError(f"export: a {type(flow).__name__} draws noise of its own; export its `flow` in its place")
    if not isinstance(flow, Flow) or flow.event is None or None in flow.event:
        raise ValueError(f"export: expected a Flow over events of a fixed shape, got {type(flow).__name__}")
    if direction not in ("density", "sampler"):
        raise ValueError(f"export: direction must be 'density' or 'sampler', got {direction!r}")
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError as error:
        raise ImportError("export: needs the packages onnx and onnxscript; pip install 'diffeo[onnx]'") from error

    module, inputs, names = _graph(flow, direction)
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in inputs)
    # the exporter reports its progress on stdout and warns of packages that it does not need
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, inputs, dynamic_shapes=shapes).run_decompositions(PRECISE)
            model = torch.onnx.export(
                program,
                inputs,
                input_names=names,
                output_names=["log_prob" if direction == "density" else "x"],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=shapes,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, compiler_errors()) as error:
            what = "this flow" if flow.recipe is None else flow.recipe.name
            raise ValueError(f"export: ONNX cannot express the {direction} of {what}") from error
    if model is None:
        raise RuntimeError("export: the exporter gave no model")
    _strip(model.model)
    recipe = "" if flow.recipe is None else to_json({"name": flow.recipe.name, "arguments": flow.recipe.arguments})
    model.model.metadata_props.update({"diffeo.recipe": recipe, "diffeo.direction": direction})
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    model.save(partial, external_data=False)
    partial.replace(target)


def _graph(flow: Flow, direction: str) -> tuple[nn.Module, tuple[Tensor, ...], list[str]]:
    """The module to trace, inputs to trace it with, and their names."""
    dtype = next((t.dtype for t in (*flow.parameters(), *flow.buffers()) if t.is_floating_point()), torch.float32)
    constant = _constant(copy.deepcopy(flow).eval().double()).to(dtype).requires_grad_(False)
    event = flow.event_shape() if direction == "density" else flow.base.event_shape()
    inputs = [torch.zeros(2, *event, dtype=dtype)]
    names = ["x" if direction == "density" else "noise"]
    module: nn.Module = constant
    if direction == "sampler":
        mixture = isinstance(constant.base, _ConstantMixture)
        if not mixture and not constant.base.has_rsample:
            raise ValueError(f"export: samples of {type(flow.base).__name__} are not a map of noise")
        module = (_MixtureSampler if mixture else _Sampler)(constant)
        if mixture:
            inputs.append(torch.full((2,), 0.5, dtype=dtype))
            names.append("uniform")
    if isinstance(flow.encoder, OneHot):
        inputs.append(torch.zeros(2, dtype=torch.long))
    elif width := getattr(flow.encoder, "features", 0):
        inputs.append(torch.zeros(2, width, dtype=dtype))
    elif isinstance(flow.encoder, LowResolution) and not flow.encoder.classes:
        channels, *sides = flow.event_shape()
        inputs.append(torch.zeros(2, channels, *(side // flow.encoder.scale for side in sides), dtype=dtype))
    elif flow.encoder is not None:
        raise ValueError(f"export: what {type(flow.encoder).__name__} reads is no input of an ONNX model here")
    if flow.encoder is not None:
        names.append("context")
    return module, tuple(inputs), names


class _Sampler(nn.Module):
    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        return self.flow.transform.inverse(noise, self.flow.encode(context))[0]


class _MixtureSampler(_Sampler):
    def forward(self, noise: Tensor, uniform: Tensor, context: Tensor | None = None) -> Tensor:  # pyright: ignore
        return super().forward(self.flow.base.push(uniform, noise), context)  # pyright: ignore


def _constant(module: nn.Module) -> Any:
    """The module with its parts replaced by their constant forms, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, DENSE):
            new = fixed([child])
        elif isinstance(child, MaskedLinear):
            with torch.no_grad():
                child.weight.mul_(child.mask)
            child.mask = child.mask.new_ones(1, 1)
            continue
        elif isinstance(child, GaussianMixture):
            new = _ConstantMixture(child)
        else:
            new = _constant(child)
            if isinstance(child, Autoregressive) and isinstance(child.net, MADE):
                new = _ScannedAutoregressive(child)
            elif isinstance(child, Autoregressive) and isinstance(child.net, CausalTransformer):
                new = _ScannedTransformer(child)
        setattr(module, name, new)
    return module


class _ConstantMixture(Density):
    """A Gaussian mixture by constant matrices."""

    has_rsample = False
    means: Tensor
    logits: Tensor
    steps: Tensor
    whitening: Tensor
    whitened_means: Tensor
    coloring: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, mixture: GaussianMixture):
        super().__init__()
        factors, log_diagonal = mixture._factors()
        k, features = mixture.means.shape
        weights = mixture.logits.log_softmax(0)
        volume = log_diagonal.sum(-1) - 0.5 * features * math.log(2 * math.pi) - mixture.scale.log().sum()
        constants = {
            "means": mixture.means,
            "logits": weights + volume,
            "steps": weights.exp().cumsum(0)[:-1],
            "whitening": factors.reshape(k * features, features),
            "whitened_means": torch.einsum("kij,kj->ki", factors, mixture.means),
            "coloring": torch.linalg.inv(factors),
            "center": mixture.center,
            "scale": mixture.scale,
        }
        for name, value in constants.items():
            self.register_buffer(name, value.detach().clone())
        self.event = self.means.shape[1:]

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        z = F.linear((x - self.center) / self.scale, self.whitening).unflatten(-1, self.whitened_means.shape)
        return torch.logsumexp(self.logits - 0.5 * (z - self.whitened_means).square().sum(-1), -1)

    def push(self, uniform: Tensor, noise: Tensor) -> Tensor:
        """A sample from a uniform number, which chooses the component, and normal ones."""
        k = (uniform.unsqueeze(-1) >= self.steps).sum(-1)
        offset = (self.coloring.index_select(0, k) @ noise.unsqueeze(-1)).squeeze(-1)
        return (self.means.index_select(0, k) + offset) * self.scale + self.center

    def draw(self, *_: Any) -> Tensor:
        raise NotImplementedError("noise comes from outside: push")


class _ScannedAutoregressive(Transform):
    """An autoregressive layer whose inverse is one loop over the coordinates.

    What is carried is the first layer before its activation, to which each coordinate found adds its column.
    """

    event_ndim = event_ndim_out = 1
    columns: Tensor
    rows: Tensor
    biases: Tensor

    def __init__(self, layer: Autoregressive):
        super().__init__()
        self.layer, self.event = layer, layer.event
        net: Any = layer.net
        first, last = net.layers[0], net.layers[-1]
        rows, biases = last.weight, last.bias
        if len(net.layers) == 1:  # no hidden layer: the parameters themselves are carried
            rows, biases = torch.eye(last.out_features).to(rows), torch.zeros_like(biases)
        self.register_buffer("columns", first.weight.T.detach().contiguous())
        self.register_buffer("rows", rows.detach().unflatten(0, (net.features, net.n_params)).contiguous())
        self.register_buffer("biases", biases.detach().unflatten(0, (net.features, net.n_params)).contiguous())

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.layer(x, context)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        net: Any = self.layer.net
        univariate = self.layer.univariate
        middle = [(layer.weight, layer.bias) for layer in list(net.layers)[1:-1]]
        activation = net.activation if len(net.layers) > 1 else nn.Identity()
        start = net.layers[0].bias.expand(z.shape[0], -1)
        if net.from_context is not None:
            start = start + net.from_context(context)

        def step(h: Tensor, position: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            z_d, column, rows, biases = position
            top = skip = h
            for i, (weight, bias) in enumerate(middle, start=1):
                top = F.linear(activation(top), weight, bias)
                if net._closes_block(i):
                    top = skip = top + skip
            x_d, logdet = univariate.inverse(z_d, F.linear(activation(top), rows, biases))
            return h + x_d.unsqueeze(-1) * column, torch.stack([x_d, logdet])

        placed = z.index_select(-1, net.order).T.contiguous()
        _, found = scan(step, start.clone(), (placed, self.columns, self.rows, self.biases))
        return found[:, 0].T.index_select(-1, net.rank), sum_event(found[:, 1].T, 1)


class _ScannedTransformer(Transform):
    """An autoregressive layer over patches whose inverse is one loop over them, a whole pass of the transformer each.

    ONNX has no loop whose state grows, as a cache of keys and values does.
    """

    event_ndim = event_ndim_out = 2
    steps: Tensor
    places: Tensor

    def __init__(self, layer: Autoregressive):
        super().__init__()
        self.layer, self.event = layer, layer.event
        self.order, one_hot = layer.places[0], torch.eye(len(layer.places[0]))
        self.register_buffer("steps", one_hot)
        self.register_buffer("places", one_hot[self.order])

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.layer(x, context)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        net, univariate = self.layer.net, self.layer.univariate

        def step(x: Tensor, position: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            z_p, of_step, of_place = position
            params = (net(x, context) * of_step[:, None, None]).sum(-3)
            x_p, logdet = univariate.inverse(z_p, params)
            return x + of_place[:, None] * x_p.unsqueeze(-2), logdet.sum(-1)

        patches = z.index_select(-2, self.order).movedim(-2, 0).contiguous()
        x, logdet = scan(step, torch.zeros_like(z), (patches, self.steps, self.places))
        return x, logdet.sum(0)


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def _log_sigmoid(x: Tensor) -> Tensor:
    # not `clamp`, which ends at finite numbers
    return torch.minimum(x, torch.zeros_like(x)) - _log1p((-x.abs()).exp())


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    apart = torch.where(a == b, 0.0, (a - b).abs())  # of two infinite ones, too
    return torch.maximum(a, b) + _log1p((-apart).exp())


def _log1p(x: Tensor) -> Tensor:
    """By the trick of W. Kahan: the roundings of 1 + x in the logarithm and in the quotient cancel."""
    whole = 1 + x
    near = whole.log() * (x / torch.where(whole == 1, 1.0, whole - 1))
    return torch.where(x.abs() > 0.5, whole.log(), torch.where(whole == 1, x, near))


def _expm1(x: Tensor) -> Tensor:
    whole = x.exp()
    near = (whole - 1) * (x / torch.where(whole == 1, 1.0, whole.log()))
    return torch.where(x.abs() > 0.5, whole - 1, torch.where(whole == 1, x, near))


# What the exporter writes, or ONNX Runtime computes, with an error as large as the result far out or near zero: the
# logarithm of a sigmoid that has become zero, log(1 + x), exp(x) - 1, a sum of exponentials that overflow.
_aten = torch.ops.aten
PRECISE: dict[Any, Callable[..., Any]] = {
    _aten.sigmoid.default: _sigmoid,
    _aten.log_sigmoid.default: _log_sigmoid,
    _aten.log_sigmoid_forward.default: lambda x: (_log_sigmoid(x), x.new_empty(0)),
    _aten.logaddexp.default: _logaddexp,
    _aten.log1p.default: _log1p,
    _aten.expm1.default: _expm1,
}


def _strip(model: Any) -> None:
    """Without the stack traces of the exporter: most of the bytes of a small model, with the paths of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()

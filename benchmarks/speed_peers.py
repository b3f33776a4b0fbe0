"""The runners of the speed benchmark: flow libraries behind one interface.

Every library gets the same sizes, rows and operations, and otherwise its own idiom with the cheapest mixing that it
offers: alternating masks, reversals or permutations, no linear maps. The adapters use only the public interfaces and
import their library on use, so that a driver can import this file without any of them (`speed_worker.py` runs them).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

PEERS = ("zuko", "nflows", "normflows", "flowjax")
FLOORS = ("floor", "floor-onednn")  # products alone, no flows
OWN = ("diffeo", "diffeo-eager", *FLOORS)
LIBRARIES = (*OWN, *PEERS)
OPERATIONS = ("density", "step", "sample")
COUPLINGS = ("realnvp", "nsf")  # the other families, maf and nsf_ar, are autoregressive
SPLINES = ("nsf", "nsf_ar")
DEPTH, BINS, BOUND, RATE = 2, 8, 5.0, 1e-3
THREADS = 2
PACKAGES = {library: (library, "torch") for library in PEERS} | {
    "diffeo": ("diffeo", "torch"),
    "diffeo-eager": ("diffeo", "torch"),
    "floor": ("torch",),
    "floor-onednn": ("torch",),
    "flowjax": ("flowjax", "jax", "jaxlib", "equinox", "optax"),
}
IDIOMS = {
    "diffeo": "alternating masks, or orders turned round; compiled by flow.compile(), the training step "
    "by CompiledGradients; ReLU, as all others use, in place of its default SiLU",
    "diffeo-eager": "the same without compiling",
    "floor": "the dense matrix products of the same nets alone, by PyTorch's default, without biases and activations; "
    "a step is the products of the forward and the backward pass; a sample is one pass, also for maf and nsf_ar",
    "floor-onednn": "the same products by oneDNN's linear operator, which PyTorch does not take by itself",
    "zuko": "realnvp is RealNVP and nsf the same class with its spline, masks alternate; NSF(passes=2) would transform "
    "all features in each layer; maf and nsf_ar are MAF and NSF, which reverse the order between layers",
    "nflows": "MLP or MADE of two hidden layers; couplings with alternating masks and no unconditional transform, "
    "reversals between autoregressive layers",
    "normflows": "realnvp swaps the halves; nsf and nsf_ar have residual nets only: one block, a hidden product more "
    "than the others; nsf alternates masks and always has an unconditional spline on its conditioning half; nsf_ar "
    "permutes inside its masks; maf is MaskedAffineAutoregressive in Reverse, so that the density is one pass, with "
    "random permutations, and its net has no ReLU after the first product",
    "flowjax": "coupling_flow and masked_autoregressive_flow with their random permutations; knots are inner knots, so "
    "one fewer than bins, and the spline's outer derivatives are parameters; everything jitted",
}


class Configuration(NamedTuple):
    """A flow's family and sizes, with the rows of one repetition; the net has DEPTH layers of `hidden` units."""

    name: str
    family: str
    features: int
    hidden: int
    layers: int
    batch: int


CONFIGURATIONS = [
    Configuration("realnvp-8", "realnvp", 8, 128, 5, 512),
    Configuration("nsf-8", "nsf", 8, 128, 5, 512),
    Configuration("maf-8", "maf", 8, 128, 5, 512),
    Configuration("nsf_ar-8", "nsf_ar", 8, 128, 5, 512),
    Configuration("realnvp-64", "realnvp", 64, 256, 8, 1024),
    Configuration("nsf-64", "nsf", 64, 256, 8, 1024),
    Configuration("maf-64", "maf", 64, 256, 5, 1024),
    Configuration("nsf_ar-64", "nsf_ar", 64, 256, 5, 1024),
    Configuration("nsf_ar-2", "nsf_ar", 2, 64, 3, 256),
]

Operation = Callable[[], Any]


class Peer(NamedTuple):
    """A built flow: what it can do, and how many trainable parameters (masked weights included) it does it with."""

    operations: dict[str, Operation]
    parameters: int


class TorchFlow(NamedTuple):
    """What the PyTorch libraries have in common."""

    module: Any
    log_prob: Callable[[Any], Any]
    sample: Callable[[int], Any]


def build(library: str, configuration: Configuration, seed: int = 0) -> Peer:
    """The operations, each one repetition on rows prepared here. Their first call is a warm-up: FlowJAX compiles.

    "density" returns the log densities of the batch, "step" the loss before its update and "sample" the rows, for
    the check. "step" trains a flow of its own, so that the others' cost does not depend on how often it ran.
    """
    if library not in LIBRARIES:
        raise ValueError(f"unknown library: {library}")
    shape = configuration.batch, configuration.features
    rows = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    runners = {"flowjax": _jax_peer, **dict.fromkeys(FLOORS, _floor)}
    return runners.get(library, _torch_peer)(library, configuration, seed, rows)


def _torch_peer(library: str, configuration: Configuration, seed: int, rows: np.ndarray) -> Peer:
    import torch

    make = {"zuko": _zuko, "nflows": _nflows, "normflows": _normflows}.get(library, _diffeo)
    torch.manual_seed(seed)
    flow, trained = make(configuration), make(configuration)
    flow.module.eval()
    if library == "diffeo":
        flow.module.compile()
        import diffeo

        gradients = diffeo.CompiledGradients(diffeo.MaximumLikelihood(trained.module))
    optimiser = torch.optim.Adam(trained.module.parameters(), lr=RATE, fused=True)
    x = torch.from_numpy(rows)

    @torch.inference_mode()
    def density() -> Any:
        return flow.log_prob(x)

    @torch.inference_mode()
    def sample() -> Any:
        return flow.sample(configuration.batch)

    def compiled_step() -> Any:
        loss = gradients(x)
        optimiser.step()
        return loss

    def step() -> Any:
        optimiser.zero_grad()
        loss = -trained.log_prob(x).mean()
        loss.backward()
        optimiser.step()
        return loss.detach()

    parameters = sum(p.numel() for p in flow.module.parameters() if p.requires_grad)
    steps = compiled_step if library == "diffeo" else step
    return Peer({"density": density, "step": steps, "sample": sample}, parameters)


def _diffeo(configuration: Configuration) -> TorchFlow:
    import torch

    import diffeo

    family, features, hidden = configuration.family, configuration.features, [configuration.hidden] * DEPTH
    univariate = diffeo.RationalQuadraticSpline(BINS, BOUND) if family in SPLINES else diffeo.Affine()
    activation = torch.nn.ReLU
    layers: list[Any] = []
    for i in range(configuration.layers):
        if family in COUPLINGS:
            mask = torch.arange(features) % 2 == i % 2
            changed = int((~mask).sum())
            net = diffeo.nets.MLP(
                features - changed, changed * univariate.n_params, hidden=hidden, activation=activation
            )
            layers.append(diffeo.Coupling(mask, net, univariate))
        else:
            order = torch.arange(features) if i % 2 == 0 else torch.arange(features).flip(0)
            net = diffeo.nets.MADE(features, univariate.n_params, hidden=hidden, order=order, activation=activation)
            layers.append(diffeo.Autoregressive(net, univariate))
    flow = diffeo.Flow(diffeo.Chain(*layers), diffeo.Normal(features))
    return TorchFlow(flow, flow, flow.sample)


def _floor(library: str, configuration: Configuration, seed: int, rows: np.ndarray) -> Peer:
    """The matrix products of the nets in their dense form: what is left if all else were free."""
    import torch

    family, features, hidden = configuration.family, configuration.features, configuration.hidden
    read, changed = (features // 2, features // 2) if family in COUPLINGS else (features, features)
    widths = [read, *[hidden] * DEPTH, changed * (3 * BINS - 1 if family in SPLINES else 2)]
    torch.manual_seed(seed)
    x = torch.from_numpy(rows)[:, :read].clone()
    nets = [[torch.randn(b, a) for a, b in pairwise(widths)] for _ in range(configuration.layers)]

    def product(x: Any, weight: Any) -> Any:
        if library == "floor":
            return x @ weight.T
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    def forward(weights: list[Any]) -> list[Any]:
        """What goes into each product, and the result of the last."""
        through = [x]
        for weight in weights:
            through.append(product(through[-1], weight))
        return through

    @torch.inference_mode()
    def density() -> Any:
        return [forward(weights)[-1] for weights in nets][-1]

    @torch.inference_mode()
    def step() -> Any:
        through = [forward(weights) for weights in nets]
        for weights, (*inputs, g) in zip(nets, through, strict=True):
            for weight, h in zip(reversed(weights), reversed(inputs), strict=True):
                product(g.T, h.T)  # the weight's gradient
                g = product(g, weight.T)  # also of x, which each layer hands to the one before
        return through[-1][-1]

    parameters = sum(w.numel() for weights in nets for w in weights)
    return Peer({"density": density, "step": step, "sample": density}, parameters)


def _zuko(configuration: Configuration) -> TorchFlow:
    """Couplings are zuko's RealNVP for splines too: exactly L nets, each of which transforms half of the features.

    Its documented coupling spline, NSF(passes=2), applies a spline to all features in every layer instead (constant
    ones to the first half) and runs the net twice per layer to sample.
    """
    import zuko

    family, features = configuration.family, configuration.features
    sizes: dict[str, Any] = {
        "transforms": configuration.layers,
        "hidden_features": [configuration.hidden] * DEPTH,
    }
    if family == "nsf":
        # its bound is 5 by default
        sizes |= {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": [(BINS,), (BINS,), (BINS - 1,)]}
    elif family == "nsf_ar":
        sizes["bins"] = BINS
    flows = {"realnvp": zuko.flows.RealNVP, "nsf": zuko.flows.RealNVP, "maf": zuko.flows.MAF, "nsf_ar": zuko.flows.NSF}
    flow = flows[family](features, **sizes)
    return TorchFlow(flow, lambda x: flow().log_prob(x), lambda rows: flow().sample((rows,)))


def _nflows(configuration: Configuration) -> TorchFlow:
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import MLP

    family, features, hidden = configuration.family, configuration.features, configuration.hidden

    class Conditioner(MLP):
        """nflows' MLP as its coupling calls it: with a context, and with the width by which it scales the softmax."""

        hidden_features = hidden

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__((inputs,), (outputs,), [hidden] * DEPTH)

        def forward(self, inputs: Any, context: Any = None) -> Any:
            return super().forward(inputs)

    # MADE's first layer is a hidden layer too, so the depth has one block fewer
    net: dict[str, Any] = {"num_blocks": DEPTH - 1, "use_residual_blocks": False}
    spline: dict[str, Any] = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    layers: list[Any] = []
    for i in range(configuration.layers):
        mask = [2 * (j % 2 == i % 2) - 1 for j in range(features)]
        if family == "realnvp":
            layer = transforms.AffineCouplingTransform(mask, Conditioner)
        elif family == "nsf":
            layer = transforms.PiecewiseRationalQuadraticCouplingTransform(mask, Conditioner, **spline)
        elif family == "maf":
            layer = transforms.MaskedAffineAutoregressiveTransform(features, hidden, **net)
        else:
            layer = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                features, hidden, **net, **spline
            )
        if i and family not in COUPLINGS:
            layers.append(transforms.ReversePermutation(features))
        layers.append(layer)
    flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([features]))
    return TorchFlow(flow, flow.log_prob, flow.sample)


def _normflows(configuration: Configuration) -> TorchFlow:
    """One residual block (two products) where two hidden layers have one: the nearest that its spline layers offer."""
    import normflows
    from normflows import flows

    family, features, hidden = configuration.family, configuration.features, configuration.hidden
    spline: dict[str, Any] = {"num_bins": BINS, "tail_bound": BOUND}
    layers: list[Any] = []
    for i in range(configuration.layers):
        if family == "realnvp":
            net = normflows.nets.MLP([features // 2, *[hidden] * DEPTH, features], init_zeros=True)
            layer, between = flows.AffineCouplingBlock(net), flows.Permute(features, mode="swap")
        elif family == "nsf":
            layer, between = (
                flows.CoupledRationalQuadraticSpline(features, 1, hidden, reverse_mask=i % 2 == 1, **spline),
                None,
            )
        elif family == "maf":
            layer = flows.MaskedAffineAutoregressive(features, hidden, num_blocks=DEPTH - 1, use_residual_blocks=False)
            # a layer's own direction is that of sampling here, unlike in its spline layers
            layer, between = flows.Reverse(layer), flows.Permute(features)
        else:
            layer, between = (
                flows.AutoregressiveRationalQuadraticSpline(features, 1, hidden, permute_mask=True, **spline),
                None,
            )
        if i and between is not None:
            layers.append(between)
        layers.append(layer)
    base = normflows.distributions.DiagGaussian(features, trainable=False)
    flow = normflows.NormalizingFlow(base, layers)
    return TorchFlow(flow, flow.log_prob, lambda rows: flow.sample(rows)[0])


def _jax_peer(library: str, configuration: Configuration, seed: int, rows: np.ndarray) -> Peer:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from flowjax import bijections, distributions, flows

    family = configuration.family
    make = flows.coupling_flow if family in COUPLINGS else flows.masked_autoregressive_flow
    flow = make(
        jax.random.key(seed),
        base_dist=distributions.StandardNormal((configuration.features,)),
        # None is its affine map; both kinds of flow run fast in the direction of the density by default
        transformer=bijections.RationalQuadraticSpline(knots=BINS - 1, interval=BOUND) if family in SPLINES else None,
        flow_layers=configuration.layers,
        nn_width=configuration.hidden,
        nn_depth=DEPTH,
    )
    params, static = eqx.partition(flow, eqx.is_inexact_array)
    trained = jax.tree.map(jnp.copy, params)  # the update is given its buffers to write over
    optimiser = optax.adam(RATE)
    state = optimiser.init(trained)
    x, key = jnp.asarray(rows), jax.random.key(seed)

    @jax.jit
    def log_prob(params: Any, x: jax.Array) -> jax.Array:
        return eqx.combine(params, static).log_prob(x)

    @jax.jit
    def draw(params: Any, key: jax.Array) -> jax.Array:
        return eqx.combine(params, static).sample(key, (configuration.batch,))

    def update(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(lambda params: -log_prob(params, x).mean())(params)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    update = jax.jit(update, donate_argnums=(0, 1))

    def density() -> Any:
        return log_prob(params, x).block_until_ready()

    def sample() -> Any:
        return draw(params, key).block_until_ready()

    def step() -> Any:
        nonlocal trained, state
        trained, state, loss = jax.block_until_ready(update(trained, state, x))
        return loss

    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Peer({"density": density, "step": step, "sample": sample}, parameters)

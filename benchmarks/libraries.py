"""The one adapter of the peers: how each library builds a flow, and its training under the density benchmark's budget.

Every library gets the same sizes, rows and steps, and otherwise its own idiom: its own conditioner network,
permutations and initialisation. The adapters use only the public interfaces and import their library on use, so that an
environment with one of them is enough. As a program it trains; runs are appended to a JSON file that is read first, so
that an interrupted benchmark goes on where it stopped and environments can take turns on one file:

    python benchmarks/libraries.py --libraries zuko nflows normflows --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tables
from results import RESULTS, resume

PEERS = ("zuko", "nflows", "normflows", "flowjax")
COUPLINGS = ("realnvp", "nsf")  # the other families, maf and nsf_ar, are autoregressive
SPLINES = ("nsf_ar", "nsf")
TABLES = ("power", "protein", "magic.gamma")
LAYERS, HIDDEN, DEPTH, BINS, BOUND = 5, 128, 2, 8, 5.0
STEPS, BATCH, RATE, CLIP = 3000, 512, 1e-3, 5.0
PROTOCOL: dict[str, Any] = {
    "split": "tables.peer_split: rows shuffled with seed 0, 80/10/10, standardised by train, float32",
    "flow": {"layers": LAYERS, "hidden": [HIDDEN] * DEPTH, "bins": BINS, "bound": BOUND, "base": "standard normal"},
    "budget": {"batch": BATCH, "optimiser": "Adam", "rate": RATE, "schedule": "cosine to 0", "clip_norm": CLIP},
    "result": "last weights, validation unused; nats per test row, stderr = std of the rows' log prob / sqrt(rows)",
    "seconds": "training only, with compilation; wall clock, and cpu_seconds of the process",
    "idioms": {
        "zuko": "NSF; nsf_ar reverses the order between layers, nsf is passes=2 with random permutations",
        "nflows": "MADE or MLP of two hidden layers; reversals between nsf_ar layers; random permutations in nsf, and "
        "an unconditional spline on its conditioning half",
        "normflows": "two residual blocks, as its layers offer nothing else; LULinearPermute between layers",
        "flowjax": "masked_autoregressive_flow, coupling_flow; its random permutations; knots=8 inner knots (9 bins)",
    },
}


class Architecture(NamedTuple):
    """What to build, with nets of DEPTH hidden layers.

    For a race (`cheapest`) features are mixed between layers in the cheapest way that a library offers: alternating
    masks, reversals or permutations, no linear maps. For a score they are mixed as the library itself does it.
    """

    family: str
    features: int
    hidden: int = HIDDEN
    layers: int = LAYERS
    cheapest: bool = False


class Glow(NamedTuple):
    """Sizes of a Glow of pictures."""

    scales: int
    steps: int  # of each scale
    hidden: int  # channels inside of couplings


GLOW = Glow(2, 8, 64)


class TorchFlow(NamedTuple):
    """What the PyTorch libraries have in common."""

    module: Any
    log_prob: Callable[[Any], Any]
    sample: Callable[[int], Any]


def _zuko(a: Architecture) -> TorchFlow:
    """The cheapest coupling is zuko's RealNVP for splines too: exactly L nets, each of which changes half the features.

    Its documented coupling spline, NSF(passes=2), applies a spline to all features in every layer instead (constant
    ones to the first half) and runs the net twice per layer to sample. Its default order would keep the same two
    halves, so that it permutes at random.
    """
    from zuko import flows, transforms

    sizes: dict[str, Any] = {"transforms": a.layers, "hidden_features": [a.hidden] * DEPTH}
    make = {"realnvp": flows.RealNVP, "maf": flows.MAF}.get(a.family, flows.NSF)
    if a.family == "nsf" and a.cheapest:
        make = flows.RealNVP  # the spline's bound is 5 by default
        sizes |= {"univariate": transforms.MonotonicRQSTransform, "shapes": [(BINS,), (BINS,), (BINS - 1,)]}
    elif a.family in SPLINES:
        sizes |= {"bins": BINS} | ({"passes": 2, "randperm": True} if a.family == "nsf" else {})
    flow = make(a.features, **sizes)
    return TorchFlow(flow, lambda x: flow().log_prob(x), lambda rows: flow().sample((rows,)))


def _nflows(a: Architecture) -> TorchFlow:
    """MADE, or the library's MLP in couplings."""
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import MLP

    class Conditioner(MLP):
        """nflows' MLP as its coupling calls it: with a context, and with the width by which it scales the softmax."""

        hidden_features = a.hidden

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__((inputs,), (outputs,), [a.hidden] * DEPTH)

        def forward(self, inputs: Any, context: Any = None) -> Any:
            return super().forward(inputs)

    # MADE's first layer is a hidden layer too, so the depth has one block fewer
    net: dict[str, Any] = {"num_blocks": DEPTH - 1, "use_residual_blocks": False}
    spline: dict[str, Any] = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    layers: list[Any] = []
    for i in range(a.layers):
        mask = [2 * (j % 2 == i % 2) - 1 for j in range(a.features)]
        if a.family == "realnvp":
            layer = transforms.AffineCouplingTransform(mask, Conditioner)
        elif a.family == "nsf":
            # with random permutations some column of a narrow table would pass all layers untouched, if the
            # conditioning half had no spline of its own
            layer = transforms.PiecewiseRationalQuadraticCouplingTransform(
                mask, Conditioner, apply_unconditional_transform=not a.cheapest, **spline
            )
        elif a.family == "maf":
            layer = transforms.MaskedAffineAutoregressiveTransform(a.features, a.hidden, **net)
        else:
            layer = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                a.features, a.hidden, **net, **spline
            )
        layers.append(layer)
        if a.family not in COUPLINGS:
            layers.append(transforms.ReversePermutation(a.features))
        elif not a.cheapest:
            layers.append(transforms.RandomPermutation(a.features))
    if len(layers) > a.layers:
        layers.pop()  # a permutation before the base changes nothing
    flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([a.features]))
    return TorchFlow(flow, flow.log_prob, flow.sample)


def _normflows(a: Architecture) -> TorchFlow:
    """Its spline layers take residual nets only.

    The cheapest have one block (two products) where two hidden layers have one, the nearest that there is; those for a
    score have two blocks, and learned linear maps between the layers.
    """
    import normflows
    from normflows import flows

    blocks = 1 if a.cheapest else DEPTH
    spline: dict[str, Any] = {"num_bins": BINS, "tail_bound": BOUND}
    layers: list[Any] = []
    for i in range(a.layers):
        if a.family == "realnvp":
            net = normflows.nets.MLP([a.features // 2, *[a.hidden] * DEPTH, a.features], init_zeros=True)
            layer = [flows.AffineCouplingBlock(net), flows.Permute(a.features, mode="swap")]
        elif a.family == "maf":
            net = {"num_blocks": DEPTH - 1, "use_residual_blocks": False}
            # a layer's own direction is that of sampling here, unlike in its spline layers
            layer = [flows.Reverse(flows.MaskedAffineAutoregressive(a.features, a.hidden, **net))]
            layer.append(flows.Permute(a.features))
        else:
            if a.family == "nsf":
                make, mixing = flows.CoupledRationalQuadraticSpline, {"reverse_mask": i % 2 == 1}
            else:
                make, mixing = flows.AutoregressiveRationalQuadraticSpline, {"permute_mask": True}
            layer = [make(a.features, blocks, a.hidden, **(mixing if a.cheapest else {}), **spline)]
            if not a.cheapest:
                layer.append(flows.LULinearPermute(a.features))
        layers += layer
    if a.family not in SPLINES:
        layers.pop()  # a permutation before the base changes nothing
    base = normflows.distributions.DiagGaussian(a.features, trainable=False)
    flow = normflows.NormalizingFlow(base, layers)
    return TorchFlow(flow, flow.log_prob, lambda rows: flow.sample(rows)[0])


TORCH = {"zuko": _zuko, "nflows": _nflows, "normflows": _normflows}


def build_flowjax(a: Architecture, seed: int) -> Any:
    """Its own two kinds of flow, both fast in the direction of the density; it counts inner knots, bins less one."""
    import jax
    import jax.numpy as jnp
    from flowjax import bijections, distributions, flows

    make = flows.coupling_flow if a.family in COUPLINGS else flows.masked_autoregressive_flow
    if a.cheapest:
        base, knots = distributions.StandardNormal((a.features,)), BINS - 1
    else:
        base, knots = distributions.Normal(jnp.zeros(a.features)), BINS
    return make(
        jax.random.key(seed),
        base_dist=base,
        # None is its affine map
        transformer=bijections.RationalQuadraticSpline(knots=knots, interval=BOUND) if a.family in SPLINES else None,
        flow_layers=a.layers,
        nn_width=a.hidden,
        nn_depth=DEPTH,
    )


def normflows_glow(shape: tuple[int, int, int]) -> Any:
    """normflows' Glow, of the blocks of its example, with learned Gaussian bases."""
    import normflows as nf

    channels, height, width = shape
    bases, merges, flows = [], [], []
    for i in range(GLOW.scales):
        kept = channels * 2 ** (GLOW.scales + 1 - i)
        flows.append(
            [
                *(nf.flows.GlowBlock(kept, GLOW.hidden, split_mode="channel", scale=True) for _ in range(GLOW.steps)),
                nf.flows.Squeeze(),
            ]
        )
        side = 2 ** (GLOW.scales - i)
        if i > 0:
            merges.append(nf.flows.Merge())
            latent = (kept // 2, height // side, width // side)
        else:
            latent = (kept, height // side, width // side)
        bases.append(nf.distributions.DiagGaussian(latent, trainable=True))
    return nf.MultiscaleFlow(bases, flows, merges, class_cond=False)


def freia_glow(shape: tuple[int, int, int]) -> Any:
    """The same steps in FrEIA, but for its 1×1 convolutions, which are fixed."""
    import FrEIA.framework as ff
    import FrEIA.modules as fm
    import torch
    from torch import nn

    def orthogonal(n: int) -> Any:
        return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0)))[0]

    def net(channels_in: int, channels_out: int) -> Any:
        return nn.Sequential(
            nn.Conv2d(channels_in, GLOW.hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(GLOW.hidden, GLOW.hidden, 1),
            nn.ReLU(), nn.Conv2d(GLOW.hidden, channels_out, 3, padding=1),
        )  # fmt: skip

    nodes = [ff.InputNode(*shape)]
    outputs = []
    for level in range(GLOW.scales):
        nodes.append(ff.Node(nodes[-1], fm.IRevNetDownsampling, {}))
        for _ in range(GLOW.steps // 2):  # each of its coupling blocks is two couplings
            nodes.append(ff.Node(nodes[-1], fm.ActNorm, {}))
            nodes.append(ff.Node(nodes[-1], fm.Fixed1x1Conv, {"M": orthogonal(shape[0] * (4 if level == 0 else 8))}))
            nodes.append(ff.Node(nodes[-1], fm.GLOWCouplingBlock, {"subnet_constructor": net}))
        if level < GLOW.scales - 1:
            nodes.append(ff.Node(nodes[-1], fm.Split, {}))
            outputs.append(ff.OutputNode(nodes[-1].out1))
            nodes.append(ff.Node(nodes[-1].out0, fm.PermuteRandom, {"seed": 0}))
    outputs.append(ff.OutputNode(nodes[-1]))
    return ff.GraphINN(nodes + outputs)


def limit_threads(threads: int, jax: bool = False) -> None:
    """Must come before torch or jax is imported; XLA has a switch for one thread, else it takes the cores it sees."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    elif jax and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def train(library: str, family: str, table: str, seed: int, steps: int, threads: int) -> dict[str, Any]:
    """Fits one flow to the training rows and scores it on the test rows; a fit that diverges scores NaN."""
    rows, _, test = tables.peer_split(table)
    architecture = Architecture(family, rows.shape[1])
    if library == "flowjax":
        scores, wall, cpu = _train_jax(architecture, rows, test, seed, steps)
    else:
        scores, wall, cpu = _train_torch(library, architecture, rows, test, seed, steps)
    backend = "jax" if library == "flowjax" else "torch"
    return {
        "nats": float(scores.mean()),
        "stderr": float(scores.std() / np.sqrt(len(scores))),
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "version": version(library),
        backend: version(backend),
        "threads": threads,
    }


def batches(rows: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Row indices of each step: shuffled epochs of whole batches, the same order for every library."""
    rng = np.random.default_rng(seed)
    epoch: list[np.ndarray] = []
    for _ in range(steps):
        if not epoch:
            order = rng.permutation(rows)
            epoch = [order[i : i + BATCH] for i in range(0, max(rows - BATCH, 0) + 1, BATCH)]
        yield epoch.pop()


Trained = tuple[np.ndarray, float, float]  # scores; seconds by the wall clock and of the processors


def _train_torch(
    library: str, architecture: Architecture, train: np.ndarray, test: np.ndarray, seed: int, steps: int
) -> Trained:
    import torch

    torch.manual_seed(seed)
    module, log_prob, _ = TORCH[library](architecture)
    optimiser = torch.optim.Adam(module.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rows, held = torch.from_numpy(train), torch.from_numpy(test)
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches(len(train), steps, seed):
        loss = -log_prob(rows[torch.from_numpy(batch)]).mean()
        if not torch.isfinite(loss):  # the weights would be NaN from here on, and some libraries raise on that
            return np.full(len(test), np.nan), time.perf_counter() - wall, time.process_time() - cpu
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimiser.step()
        schedule.step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    module.eval()
    with torch.no_grad():
        try:
            scores = torch.cat([log_prob(part) for part in held.split(2048)]).double().numpy()
        except (ValueError, RuntimeError, AssertionError):  # what the libraries raise on weights gone bad in the end
            scores = np.full(len(test), np.nan)
    return scores, wall, cpu


def _train_jax(architecture: Architecture, train: np.ndarray, test: np.ndarray, seed: int, steps: int) -> Trained:
    import equinox as eqx
    import jax
    import optax
    import paramax

    flow = build_flowjax(architecture, seed)
    frozen = {"is_leaf": lambda leaf: isinstance(leaf, paramax.NonTrainable)}
    params, static = eqx.partition(flow, eqx.is_inexact_array, **frozen)
    optimiser = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(optax.cosine_decay_schedule(RATE, steps)))
    state = optimiser.init(params)

    def log_prob(params: Any, x: jax.Array) -> jax.Array:
        return paramax.unwrap(eqx.combine(params, static, **frozen)).log_prob(x)

    @eqx.filter_jit
    def step(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        grads = eqx.filter_grad(lambda params: -log_prob(params, x).mean())(params)
        updates, state = optimiser.update(grads, state, params)
        return eqx.apply_updates(params, updates), state

    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches(len(train), steps, seed):
        params, state = step(params, state, train[batch])
    jax.block_until_ready(params)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    score = eqx.filter_jit(log_prob)
    parts = [np.asarray(score(params, test[i : i + 2048]), np.float64) for i in range(0, len(test), 2048)]
    return np.concatenate(parts), wall, cpu


def main() -> None:
    """Runs what the output file lacks, in the order seed, library, family, table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--families", nargs="+", default=SPLINES, choices=SPLINES)
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "density_peers.json")
    args = parser.parse_args()
    limit_threads(args.threads, jax="flowjax" in args.libraries)
    jobs = [
        {"library": library, "family": family, "table": table, "seed": seed, "steps": args.steps}
        for seed in args.seeds
        for library in args.libraries
        for family in args.families
        for table in args.tables
    ]
    resume(args.out, PROTOCOL, jobs, lambda **job: train(**job, threads=args.threads))


if __name__ == "__main__":
    main()

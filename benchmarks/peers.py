"""The peers' half of the density benchmark: other flow libraries trained under the shared budget.

Every library gets the same rows, splits, steps, optimiser and flow size, and otherwise its own idiom: its own
conditioner network, permutations and initialisation. The adapters use only the public interfaces and import their
library on use, so that an environment with one of them is enough. Runs are appended to a JSON file that is read
first, so that an interrupted benchmark goes on where it stopped and environments can take turns on one file:

    python benchmarks/peers.py --libraries zuko nflows normflows --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import tables

LIBRARIES = ("flowjax", "zuko", "nflows", "normflows")
FAMILIES = ("nsf_ar", "nsf")  # autoregressive and coupling rational-quadratic splines
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

Result = dict[str, Any]


def train(library: str, family: str, train: np.ndarray, test: np.ndarray, seed: int, steps: int = STEPS) -> Result:
    """Fits one flow to the training rows and scores it on the test rows; a fit that diverges scores NaN."""
    if library not in LIBRARIES or family not in FAMILIES:
        raise ValueError(f"unknown library or family: {library}, {family}")
    fit = _fit_jax if library == "flowjax" else _fit_torch
    scores, seconds, cpu_seconds = fit(library, family, train, test, seed, steps)
    return {
        "nats": float(scores.mean()),
        "stderr": float(scores.std() / np.sqrt(len(scores))),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "version": version(library),
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


def _fit_torch(
    library: str, family: str, train: np.ndarray, test: np.ndarray, seed: int, steps: int
) -> tuple[np.ndarray, float, float]:
    import torch

    torch.manual_seed(seed)
    build = {"zuko": _zuko, "nflows": _nflows, "normflows": _normflows}[library]
    module, log_prob = build(family, train.shape[1])
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


def _zuko(family: str, dim: int) -> tuple[Any, Callable[[Any], Any]]:
    """zuko's coupling is two passes; its default order would keep the same two halves, so that permutes at random."""
    import zuko

    coupling: dict[str, Any] = {"passes": 2, "randperm": True} if family == "nsf" else {}
    flow = zuko.flows.NSF(dim, bins=BINS, transforms=LAYERS, hidden_features=[HIDDEN] * DEPTH, **coupling)
    return flow, lambda x: flow().log_prob(x)


def _nflows(family: str, dim: int) -> tuple[Any, Callable[[Any], Any]]:
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import MLP

    class Conditioner(MLP):
        """nflows' MLP as its coupling calls it: with a context, and with the width by which it scales the softmax."""

        hidden_features = HIDDEN

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__((inputs,), (outputs,), [HIDDEN] * DEPTH)

        def forward(self, inputs: Any, context: Any = None) -> Any:
            return super().forward(inputs)

    spline: dict[str, Any] = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    layers: list[Any] = []
    for i in range(LAYERS):
        if family == "nsf_ar":
            # MADE's first layer is a hidden layer too, so the depth has one block fewer
            net: dict[str, Any] = {"num_blocks": DEPTH - 1, "use_residual_blocks": False}
            layer = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(dim, HIDDEN, **net, **spline)
            between = transforms.ReversePermutation(dim)
        else:
            mask = [2 * (j % 2 == i % 2) - 1 for j in range(dim)]
            # the conditioning half gets a spline of its own: with random permutations some column of a narrow table
            # would else pass all layers untouched
            every: dict[str, Any] = {"apply_unconditional_transform": True}
            layer = transforms.PiecewiseRationalQuadraticCouplingTransform(mask, Conditioner, **every, **spline)
            between = transforms.RandomPermutation(dim)
        layers += [layer, between]
    flow = flows.Flow(transforms.CompositeTransform(layers[:-1]), distributions.StandardNormal([dim]))
    return flow, flow.log_prob


def _normflows(family: str, dim: int) -> tuple[Any, Callable[[Any], Any]]:
    import normflows

    layer = {
        "nsf_ar": normflows.flows.AutoregressiveRationalQuadraticSpline,
        "nsf": normflows.flows.CoupledRationalQuadraticSpline,
    }[family]
    layers: list[Any] = []
    for _ in range(LAYERS):
        layers += [
            layer(dim, DEPTH, HIDDEN, num_bins=BINS, tail_bound=BOUND),
            normflows.flows.LULinearPermute(dim),
        ]
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(dim, trainable=False), layers)
    return flow, flow.log_prob


def _fit_jax(
    library: str, family: str, train: np.ndarray, test: np.ndarray, seed: int, steps: int
) -> tuple[np.ndarray, float, float]:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    import paramax
    from flowjax import bijections, distributions, flows

    build = {"nsf_ar": flows.masked_autoregressive_flow, "nsf": flows.coupling_flow}[family]
    flow = build(
        jax.random.key(seed),
        base_dist=distributions.Normal(jnp.zeros(train.shape[1])),
        transformer=bijections.RationalQuadraticSpline(knots=BINS, interval=BOUND),
        flow_layers=LAYERS,
        nn_width=HIDDEN,
        nn_depth=DEPTH,
    )
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
    parser.add_argument("--libraries", nargs="+", default=LIBRARIES, choices=LIBRARIES)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "density_peers.json")
    args = parser.parse_args()
    _limit_threads(args.threads)

    content: dict[str, Any] = {"protocol": PROTOCOL, "runs": []}
    if args.out.exists():
        content = json.loads(args.out.read_text())
        if content["protocol"] != PROTOCOL:
            parser.error(f"{args.out} holds runs of another protocol: move it away or name another file")
    keys = ("library", "family", "table", "seed", "steps")
    done = {tuple(run[key] for key in keys) for run in content["runs"]}
    for seed in args.seeds:
        for library in args.libraries:
            for family in args.families:
                for table in args.tables:
                    job = dict(zip(keys, (library, family, table, seed, args.steps), strict=True))
                    if tuple(job.values()) in done:
                        continue
                    fit, _, test = tables.peer_split(table)
                    backend = "jax" if library == "flowjax" else "torch"
                    result = train(library, family, fit, test, seed, args.steps)
                    run = {**job, **result, backend: version(backend), "threads": args.threads}
                    content["runs"].append(run)
                    _write(args.out, content)
                    print(json.dumps(run), flush=True)


def _limit_threads(threads: int) -> None:
    """Must come before torch or jax is imported; XLA knows only one thread or all of them."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")


def _write(path: Path, content: dict[str, Any]) -> None:
    """Replaces the file at once, so that a run that is killed leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()

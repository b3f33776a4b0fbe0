"""One flow library in a process of its own, asked to take turns with others; `speed.py` starts it.

Nothing is imported here that only some libraries need, so that it runs in the environment of any of them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import libraries
from libraries import BINS, BOUND, COUPLINGS, DEPTH, PEERS, RATE, SPLINES, Architecture, TorchFlow

FLOORS = ("floor", "floor-onednn")  # products alone, no flows
USED = "diffeo-recipe"  # as users write it
LIBRARIES = ("diffeo", "diffeo-eager", USED, *FLOORS, *PEERS)
THREADS = 2
DEVICE = os.environ.get("BENCHMARK_DEVICE", "cpu")  # of the PyTorch libraries; JAX takes a GPU where it sees one
FITTED = (USED, "zuko", "flowjax")  # whose fits are timed as a whole
FIT_STEPS, EPOCHS, HELD_OUT = 3000, 100, 0.1
PACKAGES = {library: (library, "torch") for library in PEERS} | {
    "diffeo": ("diffeo", "torch"),
    "diffeo-eager": ("diffeo", "torch"),
    USED: ("diffeo", "torch"),
    "floor": ("torch",),
    "floor-onednn": ("torch",),
    "flowjax": ("flowjax", "jax", "jaxlib", "equinox", "optax"),
}
IDIOMS = {
    "diffeo": "alternating masks, or orders turned round; compiled by flow.compile(), the training step "
    "by CompiledGradients; ReLU, as all others use, in place of its default SiLU",
    "diffeo-eager": "the same without compiling",
    USED: "the recipe of that name with its start layers, linear maps, mixture and SiLU, set from the rows; "
    "flow.compile() and a plain loop: zero_grad, loss.backward(), Adam",
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

    @property
    def architecture(self) -> Architecture:
        """What the libraries build."""
        return Architecture(self.family, self.features, self.hidden, self.layers, cheapest=True)


Operation = Callable[[], Any]


class Peer(NamedTuple):
    """A built flow: what it can do, and how many trainable parameters (masked weights included) it does it with."""

    operations: dict[str, Operation]
    parameters: int
    fit: Callable[[np.ndarray], Any]  # trains for `FIT_STEPS` as users of the library do


class Worker:
    """A library in a process of its own, which sleeps on its input while others are timed.

    It speaks JSON lines: a request names a method of `_Server` and its arguments, the reply holds its result or an
    error, which is raised here.
    """

    def __init__(
        self,
        python: str | os.PathLike[str],
        library: str,
        threads: int = THREADS,
        script: Path = Path(__file__),
        **environment: str,
    ) -> None:
        self.library = library
        command, variables = (
            [os.fspath(python), os.fspath(script), library, str(threads)],
            {**os.environ, **environment},
        )
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )

    def build(self, configuration: Configuration, seed: int = 0) -> list[str]:
        """Builds a flow in place of the last one and returns the names of its operations."""
        return self._ask("build", configuration=list(configuration), seed=seed)

    def time(self, operation: str, repeats: int) -> list[float]:
        """Milliseconds of each repetition, by the worker's own clock; the first after `build` is a warm-up."""
        return self._ask("time", operation=operation, repeats=repeats)

    def fit(self) -> None:
        """Trains for `FIT_STEPS`, on rows of its own."""
        self._ask("fit")

    def check(self) -> dict[str, Any]:
        """Runs each operation once; the flow's parameters, and what is wrong with the results."""
        return self._ask("check")

    def versions(self) -> dict[str, str]:
        """Versions of Python, the library and what it runs on."""
        return self._ask("versions")

    def close(self) -> None:
        """Ends the process: it leaves when its input does."""
        self._process.communicate()

    def _ask(self, method: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.library}: the worker ended with exit status {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"{self.library}: {reply['error']}")
        return reply["result"]


class _Server:
    """The worker's side: one library, one flow at a time."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.configuration: Configuration | None = None
        self.peer: Peer | None = None

    def build(self, configuration: Sequence[Any], seed: int) -> list[str]:
        self.peer = None  # frees the last one first
        self.configuration = Configuration(*configuration)
        self.peer = build(self.library, self.configuration, seed)
        return list(self.peer.operations)

    def time(self, operation: str, repeats: int) -> list[float]:
        run = self.peer.operations[operation]
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - began))
        return times

    def fit(self) -> None:
        assert self.configuration is not None
        rows = round(FIT_STEPS / EPOCHS * self.configuration.batch / (1 - HELD_OUT))
        rng = np.random.default_rng(1)
        self.peer.fit(rng.standard_normal((rows, self.configuration.features), dtype=np.float32))

    def check(self) -> dict[str, Any]:
        results = {name: np.asarray(run()) for name, run in self.peer.operations.items()}
        assert self.configuration is not None
        batch, features = self.configuration.batch, self.configuration.features
        shapes = {"density": (batch,), "step": (), "sample": (batch, features)}
        faults = [
            f"{name}: shape {result.shape}, {np.isfinite(result).mean():.0%} finite"
            for name, result in results.items()
            if result.shape != shapes[name] or not np.isfinite(result).all()
        ]
        return {"parameters": self.peer.parameters, "faults": faults}

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES[self.library]}


def serve(library: str, threads: int) -> None:
    """Answers requests until the input ends; whatever the library prints goes to the standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    libraries.limit_threads(threads, jax=library == "flowjax")
    server = _Server(library)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"result": getattr(server, request["method"])(**request["arguments"])}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


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

    if library.startswith("diffeo"):
        import diffeo

    plain = libraries.TORCH.get(library, _recipe if library == USED else _diffeo)

    def make(architecture: Architecture) -> TorchFlow:
        made = plain(architecture)
        made.module.to(device)
        return made

    def done(result: Any) -> Any:
        """The result, once the device has it."""
        if device != "cpu":
            torch.cuda.synchronize()
        return result.cpu() if device != "cpu" else result

    torch.manual_seed(seed)
    device = DEVICE
    flow, trained = make(configuration.architecture), make(configuration.architecture)
    flow.module.eval()
    if library == "diffeo":
        flow.module.compile()
        gradients = diffeo.CompiledGradients(diffeo.MaximumLikelihood(trained.module))
    if library == USED:
        for made in (flow, trained):
            made.module.initialize(torch.from_numpy(rows).to(device))
            made.module.compile()
    optimiser = torch.optim.Adam(trained.module.parameters(), lr=RATE, fused=True)
    x = torch.from_numpy(rows).to(device)

    @torch.inference_mode()
    def density() -> Any:
        return done(flow.log_prob(x))

    @torch.inference_mode()
    def sample() -> Any:
        return done(flow.sample(configuration.batch))

    def compiled_step() -> Any:
        loss = gradients(x)
        optimiser.step()
        return done(loss)

    def step() -> Any:
        optimiser.zero_grad()
        loss = -trained.log_prob(x).mean()
        loss.backward()
        optimiser.step()
        return done(loss.detach())

    def fit(rows: np.ndarray) -> None:
        fitted, data = make(configuration.architecture), torch.from_numpy(rows).to(device)
        if library.startswith("diffeo"):
            diffeo.fit(
                fitted.module, data, steps=FIT_STEPS, batch_size=configuration.batch, validation=HELD_OUT,
                progress=False,
            )  # fmt: skip
            return
        adam = torch.optim.Adam(fitted.module.parameters(), lr=RATE)
        held = int(HELD_OUT * len(data))
        for _ in range(EPOCHS):
            for batch in data[held:][torch.randperm(len(data) - held)].split(configuration.batch):
                adam.zero_grad()
                (-fitted.log_prob(batch).mean()).backward()
                adam.step()
            with torch.no_grad():
                fitted.log_prob(data[:held]).mean()

    parameters = sum(p.numel() for p in flow.module.parameters() if p.requires_grad)
    steps = compiled_step if library == "diffeo" else step
    return Peer({"density": density, "step": steps, "sample": sample}, parameters, fit)


def _diffeo(a: Architecture) -> TorchFlow:
    import torch

    import diffeo

    family, features, hidden = a.family, a.features, [a.hidden] * DEPTH
    univariate = diffeo.RationalQuadraticSpline(BINS, BOUND) if family in SPLINES else diffeo.Affine()
    activation = torch.nn.ReLU
    layers: list[Any] = []
    for i in range(a.layers):
        if family in COUPLINGS:
            mask = torch.arange(features) % 2 == i % 2
            changed = int((~mask).sum())
            sizes = {"n_params": univariate.n_params, "hidden": hidden, "activation": activation}
            net = diffeo.nets.MLP(features - changed, changed, **sizes)
            layers.append(diffeo.Coupling(mask, net, univariate))
        else:
            order = torch.arange(features) if i % 2 == 0 else torch.arange(features).flip(0)
            net = diffeo.nets.MADE(features, univariate.n_params, hidden=hidden, order=order, activation=activation)
            layers.append(diffeo.Autoregressive(net, univariate))
    flow = diffeo.Flow(diffeo.Chain(*layers), diffeo.Normal(features))
    return TorchFlow(flow, flow, flow.sample)


def _recipe(a: Architecture) -> TorchFlow:
    import diffeo

    recipe = getattr(diffeo, a.family)
    flow = recipe(a.features, layers=a.layers, hidden=[a.hidden] * DEPTH)
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

    def fit(rows: np.ndarray) -> None:
        raise NotImplementedError("products alone are not fitted")

    parameters = sum(w.numel() for weights in nets for w in weights)
    return Peer({"density": density, "step": step, "sample": density}, parameters, fit)


def _jax_peer(library: str, configuration: Configuration, seed: int, rows: np.ndarray) -> Peer:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    flow = libraries.build_flowjax(configuration.architecture, seed)
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

    def fit(rows: np.ndarray) -> None:
        from flowjax.train import fit_to_data

        fitted = libraries.build_flowjax(configuration.architecture, seed)
        fit_to_data(
            key, fitted, jnp.asarray(rows), learning_rate=RATE, max_epochs=EPOCHS, max_patience=EPOCHS,
            batch_size=configuration.batch, val_prop=HELD_OUT, show_progress=False,
        )  # fmt: skip

    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Peer({"density": density, "step": step, "sample": sample}, parameters, fit)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))

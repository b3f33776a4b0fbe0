"""What flows of pictures cost: a training step and samples of Glow beside other libraries, and memory.

Part `speed` of image_uses.py.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import diffeo
import libraries
from libraries import GLOW
from results import markdown, short
from tables import data_root

ROUNDS = 15
COUNTS = (64, 256)  # samples
OURS, PLAIN = "diffeo", "diffeo, layer by layer"
BATCH = 64


def speed(_: float) -> dict[str, Any]:
    """A training step and sampling of the same Glow, in one run; and memory and time of `memory="invert"`."""
    shape = (1, 28, 28)
    with np.load(data_root() / "images" / "mnist.npz") as file:
        x = torch.from_numpy(file["x_train"][:BATCH]).unsqueeze(1)
    y = (x + 0.5) / 256
    torch.manual_seed(0)
    ours = diffeo.glow(shape, scales=GLOW.scales, layers=GLOW.steps, hidden=GLOW.hidden)
    ours.initialize(x)
    ready = diffeo.prepare_inference(ours)
    plain = copy.deepcopy(ours)
    peers: dict[str, Any] = {"normflows": libraries.normflows_glow(shape), "FrEIA": libraries.freia_glow(shape)}
    with torch.no_grad():
        peers["normflows"].log_prob(y, None)  # its activation norms start from the first batch
        z, _ = peers["FrEIA"](y)
    losses = {
        OURS: lambda: -ours(x).mean(),
        PLAIN: lambda: -plain(x).mean(),
        "normflows": lambda: -peers["normflows"].log_prob(y, None).mean(),
        "FrEIA": lambda: _freia_loss(peers["FrEIA"], y),
    }
    models = {OURS: ours, PLAIN: plain, **peers}
    optimizers = {name: torch.optim.Adam(m.parameters(), 1e-4, fused=True) for name, m in models.items()}

    def step(name: str) -> None:
        with diffeo.compiled_kernels(name == OURS):
            optimizers[name].zero_grad()
            losses[name]().backward()
            optimizers[name].step()

    @torch.no_grad()
    def sample(name: str, count: int) -> None:
        if name == "FrEIA":
            peers[name]([torch.randn(count, *t.shape[1:]) for t in z], rev=True)
        elif name == "normflows":
            peers[name].sample(count)
        else:
            with diffeo.compiled_kernels(name == OURS):
                (ready if name == OURS else plain).sample(count)

    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()}
    steps = timed({name: (lambda name=name: step(name)) for name in models})
    samples = {
        str(count): timed({name: (lambda name=name, count=count: sample(name, count)) for name in models})
        for count in COUNTS
    }
    memory = []
    for layers in (8, 16, 32, 64):
        row: dict[str, Any] = {"layers": layers}
        calls = {}
        for policy in ("store", "invert"):
            torch.manual_seed(0)
            model = diffeo.glow(shape, scales=1, layers=layers, hidden=GLOW.hidden)
            model.initialize(x)
            model.transform.memory = policy
            calls[policy] = lambda model=model: (-model(x).mean()).backward()
            with diffeo.compiled_kernels():
                row[f"{policy}_mib"] = saved_bytes(model, lambda model=model: model(x)) / 2**20
        with diffeo.compiled_kernels():
            took = timed(calls)
        row["time_ratio"] = took["invert"]["median"] / took["store"]["median"]
        memory.append(row)
    return {"parameters": sizes, "step_ms": steps, "sample_ms": samples, "memory": memory, "batch": BATCH}


def _freia_loss(model: Any, y: Tensor) -> Tensor:
    z, logdet = model(y)
    return (0.5 * sum(t.flatten(1).square().sum(1) for t in z) - logdet).mean()


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of all tensors that a forward pass keeps for the backward pass, but for weights, which are there anyway."""
    storages: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        keep = forward()
    del keep
    return sum(size for place, size in storages.items() if place not in own)


def timed(calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, interleaved: median and quartiles."""
    for call in calls.values():
        call()
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            took[name].append(1e3 * (time.perf_counter() - began))
    found = {}
    for name, values in took.items():
        low, middle, high = statistics.quantiles(values, n=4)
        found[name] = {"median": middle, "low": low, "high": high}
    return found


def told_speed(r: dict[str, Any]) -> str:
    rows = []
    for name, size in r["parameters"].items():
        cells = []
        for times in (r["step_ms"], *r["sample_ms"].values()):
            t = times[name]
            ratio = times[OURS]["median"] / t["median"]
            cells.append(f"{short(t['median'])} ({short(t['low'])} – {short(t['high'])}); {ratio:.2f}×")
        rows.append([name, f"{size:,}", *cells])
    memory = [
        [m["layers"], f"{m['store_mib']:.1f}", f"{m['invert_mib']:.1f}", f"{m['time_ratio']:.2f}×"] for m in r["memory"]
    ]
    return f"""\
**Speed.** The same Glow, {GLOW.scales} scales of {GLOW.steps} steps and {GLOW.hidden} channels, on {r["batch"]}
pictures of 28×28; median of {ROUNDS} interleaved rounds on {r["cores"]} shared cores in ms (quartiles), and our time
as a multiple of it. Ours is run as `fit` runs it, with `compiled_kernels`, and samples after `prepare_inference`; in
plain calls layers run one by one.

{markdown(["library", "parameters", "training step", *(f"{n} samples" for n in r["sample_ms"])], rows)}

What a forward pass keeps for the backward pass, {BATCH} of them, one scale, in MiB, by policy, and what
`memory="invert"` costs in time, forward and backward, with `compiled_kernels` too:

{markdown(["steps of flow", "store", "invert", "time"], memory)}"""

"""Fits in processes of their own: killed, interrupted, resumed, and of several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import diffeo
import structured


def run_worker(*args, env=None, **options):
    full = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen([sys.executable, __file__, *map(str, args)], env=full, **options)


def run_two(*args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run([*command, *map(str, args)], env=environment, timeout=300, check=False).returncode == 0


def data(features: int = 2) -> torch.Tensor:
    x = torch.randn(400, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] += x[:, 0] ** 2
    return x


def build() -> diffeo.Flow:
    torch.manual_seed(0)
    return diffeo.nsf_ar(2, layers=1, hidden=(16,), dropout=0.1, components=0)


def train(folder: str | Path, out: str | Path, steps: str | int, resume: bool) -> None:
    flow = build()
    result = diffeo.fit(
        flow, data(), steps=int(steps), patience=100, checkpoint=folder, checkpoint_every=0.05, resume=resume
    )
    torch.save(
        {
            "state": flow.state_dict(),
            "steps": result.steps,
            "resumed_steps": result.resumed_steps,
            "losses": [(e["train_loss"], e["validation_loss"]) for e in result.history],
        },
        out,
    )


def interrupt_in(call: int, put: Callable = setattr) -> None:
    """A Ctrl-C in the middle of some step: inside this forward pass of training."""
    forward, calls = diffeo.MaximumLikelihood.forward, 0

    def counting(self, *batch):
        nonlocal calls
        calls += self.training
        if self.training and calls == call:
            signal.raise_signal(signal.SIGINT)
        return forward(self, *batch)

    put(diffeo.MaximumLikelihood, "forward", counting)


def several(out: str, strategy: str, folder: str, stop: str) -> None:
    """As one process, or as those that torchrun started, which take the flow of the first."""
    torch.manual_seed(rank())
    flow = diffeo.nsf_ar(2, layers=2, hidden=(16, 16), components=3)
    weights = torch.linspace(0.5, 1.5, 400, dtype=torch.float64)
    options = {"strategy": strategy, "precision": "64-true", "accelerator": "cpu"}
    if stop == "stop" and rank() == 0:
        interrupt_in(65)
    try:
        result = diffeo.fit(
            flow, data(), weights=weights, steps=120, batch_size=64, checkpoint=folder, resume=True, **options
        )
    except KeyboardInterrupt:
        return
    assert stop == "go"
    if rank() == 0:
        torch.save({"state": flow.state_dict(), "steps": result.steps, "resumed_steps": result.resumed_steps}, out)


def ragged(out: str, kind: str, strategy: str, folder: str, stop: str) -> None:
    """Examples that a collate function joins, sentences of other lengths each or digits, with a dict of contexts."""
    if stop == "stop" and rank() == 0:
        interrupt_in(25)
    options = {"strategy": strategy, "precision": "64-true", "accelerator": "cpu", "checkpoint": folder, "resume": True}
    try:
        model, result = structured.fit(kind, steps=40, **options)
    except KeyboardInterrupt:
        return
    assert stop == "go"
    torch.save(
        {
            "state": model.state_dict(),
            "steps": result.steps,
            "resumed_steps": result.resumed_steps,
            "losses": [e["validation_loss"] for e in result.history],
        },
        f"{out}.{rank()}",
    )


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


class Explodes(diffeo.LeakyReLU):
    """A log-derivative that is not finite above 40, though its gradient is."""

    def forward(self, x, context=None):
        z, logdet = super().forward(x, context)
        return z, torch.where(x > 40, torch.inf, logdet)


def broken(out: str, strategy: str) -> None:
    """A fit with one row, and so in one process, whose loss is not finite."""
    flow = diffeo.Flow(diffeo.Chain(Explodes(0.5), *build().transform.parts), diffeo.Normal(2))
    x = data()
    x[137, 0] = 50.0
    try:
        diffeo.fit(flow, x, steps=40, batch_size=20, validation=0, strategy=strategy, accelerator="cpu")
    except diffeo.NonFiniteError as error:
        finite = all(p.isfinite().all() for p in flow.parameters())
        torch.save({"layer": error.layer, "rows": error.rows, "finite": finite}, f"{out}.{rank()}")


def noisy(out: str, strategy: str) -> None:
    """Fits whose losses are drawn, and differently in each process: of held-out rows, and by flow matching."""
    torch.manual_seed(0)
    flow = diffeo.Dequantized(build())
    counts = data().mul(2).round()
    result = diffeo.fit(flow, counts, steps=1000, patience=4, lr=5e-3, strategy=strategy, accelerator="cpu")
    continuous = diffeo.ffjord(2, hidden=(8,))
    diffeo.fit(diffeo.FlowMatching(continuous), data(), steps=20, strategy=strategy, accelerator="cpu")
    saved = {"best": result.best_step, "steps": result.steps, "loss": result.validation_loss}
    torch.save({**saved, "states": (flow.state_dict(), continuous.state_dict())}, f"{out}.{rank()}")


def fsdp(out: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from diffeo.training.sharding import register_forward_methods

    torch.distributed.init_process_group("gloo")
    whole, flow = build(), build()
    mesh = init_device_mesh("cpu", (2,))
    for part in flow.transform.parts:
        fully_shard(part, mesh=mesh)
    fully_shard(flow, mesh=mesh)
    register_forward_methods(flow)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = {
            "sharded": flow.sample((7,), generator=torch.Generator().manual_seed(2)),
            "whole": whole.eval().sample((7,), generator=torch.Generator().manual_seed(2)),
            "inverse": flow.eval().transform.parts[2].inverse(z)[0],
            "whole_inverse": whole.eval().transform.parts[2].inverse(z)[0],
        }
    if torch.distributed.get_rank() == 0:
        torch.save(got, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    command, *args = sys.argv[1:]
    if command == "train":
        train(*args, resume=False)
    else:
        {"several": several, "broken": broken, "noisy": noisy, "ragged": ragged, "fsdp": fsdp}[command](*args)

"""`diffeo.fit`: train a flow, or any objective, from rows to held-out figure."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffeo.core import Density, Objective
from diffeo.training import checkpoint as checkpoints
from diffeo.training.averaging import Average
from diffeo.training.data import Batch, Indexed, Table, as_batch, as_source, batch_index, split
from diffeo.training.diagnosis import NonFiniteError, first_non_finite
from diffeo.training.objectives import MaximumLikelihood
from diffeo.training.plan import Plan, make_plan
from diffeo.training.progress import Progress
from diffeo.training.result import FitResult

EVALUATION_ROWS = 4096  # rows scored at once
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
INITIAL_ROWS = 100_000  # rows that data-dependent layers see of a dataset that is not in memory


def fit(
    flow_or_objective: Density | Objective,
    x: Any = None,
    context: Any = None,
    *,
    weights: Any = None,
    validation: Any = 0.1,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    patience: int | None = None,
    time_limit: float | None = None,
    clip: float = 5.0,
    average: float = 0.995,
    compile: bool | str = "auto",
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    strategy: Any = "auto",
    precision: str = "32-true",
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 10.0,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train a flow by maximum likelihood (or minimise any objective) in place.

    AdamW (fused) with warm-up and cosine decay, gradient-norm clipping and exponential weight averaging; the averaged
    weights are validated, the best of them kept, and training stops early when they no longer get better. What is
    left open (steps, batch size, weight decay) follows the number of rows. The caller's random state is left alone.

    Args:
        flow_or_objective: a density, or an `Objective`.
        x: rows, shape (n, *event): array, tensor, `Dataset` or `DataLoader` (these two give x or (x, context)).
        context: what each row is conditioned on, shape (n, context).
        weights: weight of each row, ≥ 0.
        validation: share of rows held out, in [0, 1), or held-out rows: x, or (x, context).
        epochs, steps: passes over the rows, or optimiser steps (these win; early stopping then needs `patience`).
        batch_size: rows of a step, over all processes.
        lr: peak learning rate.
        weight_decay: decoupled, on matrices only.
        patience: evaluations without improvement before stopping.
        time_limit: seconds of training; the learning rate reaches zero by then.
        clip: largest gradient norm.
        average: decay of the weight average, in [0, 1).
        compile: compile the training step (needs a C++ compiler): True, False, or "auto" for long fits.
        accelerator, devices, strategy, precision: as in Lightning Fabric; `devices="auto"` is one, or all that
            `torchrun` started.
        seed: of split, batches and dropout.
        checkpoint: folder for the state of the fit, written atomically every `checkpoint_every` seconds.
        resume: continue the fit in that folder to the same result (an empty folder starts afresh, a finished one is
            loaded).
        progress: show a bar where stderr is a terminal.

    Returns:
        A `FitResult`.

    Raises:
        ValueError: data, arguments or checkpoint that do not fit, before any training.
        NonFiniteError: a loss that is not finite; names layer and rows. The flow keeps the best weights so far.

    Cost: `steps` forward and backward passes of `batch_size` rows.

    >>> import torch, diffeo
    >>> flow = diffeo.maf(2, layers=1)
    >>> result = diffeo.fit(flow, torch.randn(500, 2), epochs=2)
    >>> result.steps
    28
    """
    from lightning_fabric import Fabric

    objective = flow_or_objective if isinstance(flow_or_objective, Objective) else MaximumLikelihood(flow_or_objective)
    if x is None:
        raise ValueError("fit: expected rows to train on, got x=None")
    if not 0 <= average < 1 or not clip > 0:
        raise ValueError(f"fit: expected average in [0, 1) and clip > 0, got {average} and {clip}")
    if precision not in PRECISIONS:
        raise ValueError(f"fit: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    began = time.monotonic()
    dtype = torch.float64 if str(precision).startswith("64") else torch.float32
    if dtype == torch.float32 and any(p.dtype == torch.float64 for p in objective.parameters()):
        raise ValueError(f"fit: the flow is float64, but precision={precision!r}; pass precision='64-true'")
    source = as_source(x, context, weights, dtype)
    train, held, kept = _hold_out(source, validation, dtype, seed)
    folder, continued = checkpoints.open_folder(checkpoint, resume)
    if folder is not None and isinstance(train, DataLoader):
        raise ValueError(
            "fit: a checkpoint needs rows in memory or a Dataset; a DataLoader cannot be continued exactly"
        )

    launched = "WORLD_SIZE" in os.environ  # by torchrun
    if devices == "auto" and not launched:
        devices = 1
    options: dict[str, Any] = {"precision": precision}
    if precision.endswith("mixed"):
        options = {"plugins": _mixed_precision(precision, accelerator)}
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, **options)
    if fabric.strategy.launcher is not None:
        fabric.launch()
    plan = make_plan(
        len(train) if not isinstance(train, DataLoader) else len(train) * (train.batch_size or 1),
        epochs=epochs,
        steps=steps,
        batch_size=train.batch_size if isinstance(train, DataLoader) else batch_size,
        lr=lr,
        weight_decay=weight_decay,
        patience=patience if held is not None else None,
        time_limit=time_limit,
        seed=seed,
        average=average,
        clip=clip,
        world=fabric.world_size,
        steps_per_epoch=len(train) if isinstance(train, DataLoader) else None,
    )
    before = {k: v.detach().clone() for k, v in objective.state_dict().items()}
    run = None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # manual_seed reaches all of them
        torch.manual_seed(seed + fabric.global_rank)
        try:
            run = _Run(fabric, objective, train, held, kept, plan, compile, folder, checkpoint_every)
            run.elapsed = time.monotonic() - began
            return run.go(continued, progress)
        except BaseException:
            if run is None or run.step == 0:  # nothing was trained: leave the flow as it came
                objective.load_state_dict(before)
            raise


def _hold_out(
    source: Any, validation: Any, dtype: torch.dtype, seed: int
) -> tuple[Any, Table | Indexed | None, Tensor | None]:
    """Training rows, held-out rows, and the index of the former in the caller's data (None: all of it)."""
    if isinstance(validation, int | float) and not isinstance(validation, bool):
        if isinstance(source, DataLoader):
            if validation:
                raise ValueError("fit: a DataLoader cannot be split; pass validation=(x, context), or validation=0")
            return source, None, None
        kept, held = split(len(source), validation, seed)
        return source.take(kept), source.take(held) if len(held) else None, kept
    if validation is None:
        return source, None, None
    x, context = validation if isinstance(validation, tuple | list) and len(validation) == 2 else (validation, None)
    held_rows = as_source(x, context, None, dtype)
    if isinstance(held_rows, DataLoader):
        raise ValueError("fit: held-out rows must be in memory or a Dataset, not a DataLoader")
    return source, held_rows, None


class _Run:
    """One fit: the loop and what it carries from step to step."""

    def __init__(
        self,
        fabric: Any,
        objective: Objective,
        train: Table | Indexed | DataLoader,
        held: Table | Indexed | None,
        kept: Tensor | None,
        plan: Plan,
        compile: bool | str,
        folder: Path | None,
        checkpoint_every: float,
    ):
        self.fabric, self.objective, self.plan = fabric, objective, plan
        self.folder, self.checkpoint_every = folder, checkpoint_every
        self.kept = kept  # index of the training rows in the caller's data
        self.home = next((t.device for t in (*objective.parameters(), *objective.buffers())), torch.device("cpu"))
        self.data_digest = _digest(train, held) if folder is not None else ""
        self.held = held.to(fabric.device) if isinstance(held, Table) else held
        self.train = train
        if str(fabric._precision.precision).startswith("64"):
            objective.double()
        self._initialize()
        self.train = self.train.to(fabric.device) if isinstance(self.train, Table) else self.train
        self.scale = None  # of the rows' weights, so that they average to one
        if isinstance(self.train, Table) and self.train.weights is not None:
            self.scale = self.train.weights / self.train.weights.mean()

        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.result = FitResult(compiled=_wants_compile(compile, plan))
        self.best: dict[str, Tensor] | None = None
        self.best_loss = float("inf")
        self.waited = 0  # evaluations without improvement
        self.step = 0
        self.elapsed = 0.0
        self.total, self.counted = 0.0, 0  # training loss since the last evaluation

    def _initialize(self) -> None:
        """Data-dependent layers see training rows, once, before any wrapping."""
        initialize = getattr(self.objective, "initialize", None)
        densities = [child for child in self.objective.children() if isinstance(child, Density)]
        if initialize is None and len(densities) == 1:
            initialize = densities[0].initialize
        if initialize is None:
            return
        if isinstance(self.train, Table):
            rows = self.train.weighted_rows()
        elif isinstance(self.train, Indexed):
            rows = self.train.rows(torch.arange(min(len(self.train), INITIAL_ROWS)))
        else:
            dtype = next((p.dtype for p in self.objective.parameters()), torch.float32)
            seen: list[Batch] = []
            for batch in self.train:
                seen.append(as_batch(batch, dtype))
                if sum(len(b[0]) for b in seen) >= INITIAL_ROWS:
                    break
            rows = tuple(torch.cat(parts) for parts in zip(*seen, strict=True))
        initialize(*(t.to(self.home) for t in rows))

    def go(self, continued: bool, progress: bool) -> FitResult:
        """Train to the end; leaves the kept weights in the objective."""
        if not self.parameters:  # nothing to learn beyond what `initialize` set
            self.objective.to(self.fabric.device)
            if self.held is not None:
                self._keep_best(*self.evaluate())
            self._use_best()
            return self.result
        matrices = [p for p in self.parameters if p.ndim >= 2]
        rest = [p for p in self.parameters if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.plan.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=self.plan.lr,
            fused=True,
        )
        self.model, self.stepper = self.fabric.setup(self.objective, self.optimizer)
        register_forward_methods(self.objective)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.average = Average(self.parameters, self.plan.average)
        if continued and self._restore():
            self._use_best()
            return self.result
        try:
            if self.step == 0 and self.held is not None:
                loss, stderr = self.evaluate()
                if not math.isfinite(loss):
                    raise ValueError(
                        f"fit: the held-out loss is {loss} before training; rows outside the support of the base?"
                    )
                self._keep_best(loss, stderr)  # what `initialize` made may be hard to beat on a small table
            if self.result.compiled:
                self.objective.compile()
            shown = progress and self.fabric.global_rank == 0
            with Progress(self.plan.steps, self.step, shown) as bar, _deferred_interrupt() as interrupted:
                self.result.stopped = self._loop(bar, interrupted)
        finally:
            self.objective._compiled_call_impl = None
            self._use_best()
        self._write(finished=True)
        return self.result

    def _loop(self, bar: Progress, interrupted: list[int]) -> str:
        plan, fabric = self.plan, self.fabric
        device = fabric.device
        alone = fabric.world_size == 1
        check_every = 1 if device.type == "cpu" else 50  # reading `bad` waits for the device
        scaled = getattr(fabric._precision, "scaler", None) is not None  # it skips bad gradients by itself
        # Once a loss or gradient is not finite, the fused optimiser skips this and every later update by itself, so
        # that the weights stay as they were and nothing has to wait for the device to find out.
        bad = torch.zeros((), device=device)
        bad_step = torch.full((), -1, dtype=torch.long, device=device)
        if not scaled:
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        total = torch.full((), self.total, device=device, dtype=exact)
        since = time.monotonic()
        began, saved = since - self.elapsed, since - self.checkpoint_every  # the first state is written at once
        self.objective.train()
        for index, batch in self._batches():
            self.elapsed = time.monotonic() - began
            if plan.time_limit is not None:
                self.elapsed = self.elapsed if alone else fabric.broadcast(self.elapsed)
                if self.elapsed >= plan.time_limit and self.counted:
                    self._close_interval(bar, total, since)
                    return "time_limit"
            rate = plan.rate(self.step, self.elapsed)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            losses = self.model(*batch)
            if self.scale is not None:
                losses = losses * self.scale.index_select(0, index)
            loss = losses.mean()
            fabric.backward(loss)
            norm = fabric.clip_gradients(self.model, self.optimizer, max_norm=plan.clip, error_if_nonfinite=False)
            with torch.no_grad():
                fine = loss.isfinite() if scaled else loss.isfinite() & norm.isfinite()
                bad_step = torch.where((bad_step < 0) & ~fine, self.step, bad_step)
                torch.maximum(bad, (~fine).to(bad.dtype), out=bad)
                total += loss.detach()
            self.stepper.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self.counted += 1
            self.average.update(self.step)
            bar.advance()
            closing = self.step % plan.evaluate_every == 0 or self.step == plan.steps
            if (closing or self.step % check_every == 0) and bad:
                self._raise_non_finite(int(bad_step), batch)
            if closing:
                self.elapsed = time.monotonic() - began
                out_of_patience = self._close_interval(bar, total, since)
                total.zero_()
                since = time.monotonic()
                if out_of_patience:
                    return "patience"
                if self.step == plan.steps:
                    return "steps"
            # with several processes the clocks differ, so they agree to write after evaluations
            due = time.monotonic() - saved >= self.checkpoint_every or interrupted if alone else closing
            if self.folder and due:
                self.total = float(total)
                self._write(finished=False)
                saved = time.monotonic()
            if interrupted:
                raise KeyboardInterrupt
        raise RuntimeError("fit: the data ended")

    def _batches(self) -> Iterator[tuple[Tensor, Batch]]:
        """Index and rows of this process's part of every batch, from the current step on."""
        device = self.fabric.device
        if isinstance(self.train, DataLoader):
            dtype = self.parameters[0].dtype
            while True:
                for batch in self.train:
                    yield torch.empty(0), tuple(t.to(device) for t in as_batch(batch, dtype))
        else:
            for index in batch_index(len(self.train), self.plan.batch_size, self.plan.seed, self.step):
                index = index[self.fabric.global_rank :: self.fabric.world_size].to(device)
                yield index, tuple(t.to(device) for t in self.train.rows(index))

    def _close_interval(self, bar: Progress, total: Tensor, since: float) -> bool:
        """Validate the averaged weights and keep them if they are the best; True when patience has run out."""
        train_loss, held_loss, stderr = float(total) / self.counted, None, None
        with self.average.applied():
            if self.held is not None:
                held_loss, stderr = self.evaluate()
            improved = self._keep_best(train_loss if held_loss is None else held_loss, stderr)
        self.waited = 0 if improved else self.waited + 1
        self.result.steps, self.result.seconds = self.step, self.elapsed
        self.result.history.append(
            {
                "step": self.step,
                "epoch": self.step / self.plan.steps_per_epoch,
                "train_loss": train_loss,
                "validation_loss": held_loss,
                "lr": self.optimizer.param_groups[0]["lr"],
                "seconds": round(self.elapsed, 3),
            }
        )
        bar.report(train_loss, held_loss, self.counted / max(1e-9, time.monotonic() - since))
        self.total, self.counted = 0.0, 0
        return self.plan.patience is not None and self.waited >= self.plan.patience

    def _keep_best(self, loss: float, stderr: float | None = None) -> bool:
        # without held-out rows the last average is the best there is
        if self.held is not None and not loss < self.best_loss:
            return False
        self.best = {k: v.detach().clone() for k, v in self.objective.state_dict().items()}
        self.best_loss = loss
        self.result.best_step = self.step
        if self.held is not None:
            self.result.validation_loss, self.result.validation_stderr = loss, stderr
        return True

    def _use_best(self) -> None:
        """The kept weights into the objective, and the objective back to where it came from."""
        if self.best is not None:
            self.objective.load_state_dict(self.best)
        self.objective.to(self.home).eval()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Mean loss of the held-out rows and its standard error."""
        device, held = self.fabric.device, self.held
        if held is None:
            raise ValueError("fit: there are no held-out rows")
        self.objective.eval()
        losses = []
        for start in range(0, len(held), EVALUATION_ROWS):
            index = torch.arange(start, min(start + EVALUATION_ROWS, len(held)), device=device)
            batch = tuple(t.to(device) for t in held.rows(index))
            losses.append(self.objective.forward(*batch).cpu().double())  # not through __call__: eager, any size
        self.objective.train()
        loss = torch.cat(losses)
        w = torch.ones_like(loss) if held.weights is None else held.weights.cpu().double()
        w = w / w.sum()
        mean = (w * loss).sum()
        return float(mean), float((w * w * (loss - mean) ** 2).sum().sqrt())

    def _raise_non_finite(self, failed_step: int, batch: Batch) -> None:
        rows: list[int] = []
        if not isinstance(self.train, DataLoader):
            index = next(batch_index(len(self.train), self.plan.batch_size, self.plan.seed, failed_step))
            batch = tuple(t.to(self.fabric.device) for t in self.train.rows(index.to(self.fabric.device)))
            rows = (index if self.kept is None else self.kept[index]).tolist()
        layer = first_non_finite(self.objective, batch)
        written = self.folder is not None and (self.folder / checkpoints.NAME).exists()
        folder = str(self.folder) if written else None
        shown = f"; rows of the batch: {', '.join(map(str, rows[:8]))}{', …' if len(rows) > 8 else ''}" if rows else ""
        raise NonFiniteError(
            f"fit: the loss was not finite at step {failed_step + 1}, first in {layer}{shown}. "
            "The flow keeps its best weights so far"
            + (f", and the last good checkpoint is in {folder!r}" if folder else "")
            + ". A smaller lr often helps.",
            failed_step + 1,
            layer,
            rows,
            folder,
        )

    def _write(self, finished: bool) -> None:
        """Write the state of the fit, if there is a folder for it; every process takes part."""
        if self.folder is None:
            return
        random = {"cpu": self.fabric.all_gather(torch.get_rng_state()).cpu()}
        if self.fabric.device.type == "cuda":
            random["cuda"] = self.fabric.all_gather(torch.cuda.get_rng_state(self.fabric.device)).cpu()
        if self.fabric.global_rank != 0:
            return
        tensors = {
            **checkpoints.with_prefix("model", self.objective.state_dict()),
            **checkpoints.with_prefix("average", {str(i): t for i, t in enumerate(self.average.values)}),
            **checkpoints.with_prefix("best", self.best or {}),
            **checkpoints.with_prefix("optimizer", checkpoints.optimizer_tensors(self.optimizer, self.parameters)),
            **checkpoints.with_prefix("random", random),
        }
        own = {name: getattr(self, name) for name in _CARRIED}
        state = {"plan": self.plan.as_dict(), "data": self._fingerprint(), "finished": finished, **own}
        checkpoints.write(self.folder, tensors, {**state, "result": asdict(self.result)})

    def _restore(self) -> bool:
        """Continue from the folder's state; True where that fit had finished."""
        tensors, state = checkpoints.read(self.folder or Path())
        now = {"plan": self.plan.as_dict(), "data": self._fingerprint()}
        for name, value in now.items():
            if state[name] != value:
                was = state[name]
                differs = ", ".join(f"{k} ({was.get(k)}, now {value[k]})" for k in value if value[k] != was.get(k))
                raise ValueError(
                    f"fit: the checkpoint in {str(self.folder)!r} was made with other {name}: {differs}; "
                    "resume with the same flow, data and arguments"
                )
        self.objective.load_state_dict(checkpoints.without_prefix("model", tensors))
        self.average.values = [
            t.to(p.device)
            for t, p in zip(_in_order(checkpoints.without_prefix("average", tensors)), self.parameters, strict=True)
        ]
        self.best = checkpoints.without_prefix("best", tensors) or None
        checkpoints.restore_optimizer(self.optimizer, self.parameters, checkpoints.without_prefix("optimizer", tensors))
        random = checkpoints.without_prefix("random", tensors)
        rank = self.fabric.global_rank
        torch.set_rng_state(random["cpu"].reshape(-1, random["cpu"].shape[-1])[rank])
        if "cuda" in random and self.fabric.device.type == "cuda":
            state_of_rank = random["cuda"].reshape(-1, random["cuda"].shape[-1])[rank]
            torch.cuda.set_rng_state(state_of_rank, self.fabric.device)
        for name in _CARRIED:
            setattr(self, name, state[name])
        self.result = FitResult(**{**state["result"], "resumed_steps": self.step})
        return state["finished"]

    def _fingerprint(self) -> dict[str, Any]:
        """What tells flows and data apart: shapes of the state, number of rows, and a digest of what is in memory."""
        shapes = {k: tuple(v.shape) for k, v in self.objective.state_dict().items()}
        train: Any = self.train
        flow = hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]
        return {"flow": flow, "rows": len(train), "values": self.data_digest}


_CARRIED = ("step", "elapsed", "waited", "best_loss", "total", "counted")


def _in_order(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[str(i)] for i in range(len(tensors))]


def _digest(*sources: Any) -> str:
    """A digest of all rows in memory; of a dataset only its length counts, since reading it all may take long."""
    sha = hashlib.sha256()
    for source in sources:
        for t in (*source.tensors, source.weights) if isinstance(source, Table) else ():
            if t is not None:
                sha.update(t.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Inside, Ctrl-C only fills the list, so that the loop can stop between two steps; a second one acts at once."""
    caught: list[int] = []
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield caught  # ignored, or somebody else's: theirs to decide
        return

    def note(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _mixed_precision(precision: Any, accelerator: str) -> Any:
    """Fabric's autocast, but rows keep their digits: only what runs inside conditioners is rounded."""
    from lightning_fabric.plugins import MixedPrecision

    class KeepsInputs(MixedPrecision):
        def convert_input(self, data: Any) -> Any:
            return data

    return KeepsInputs(precision, "cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")


def _wants_compile(compile: bool | str, plan: Plan) -> bool:
    """Whether to compile the training step; "auto" does so where even a slow compiler pays for itself several times."""
    if compile not in (True, False, "auto"):
        raise ValueError(f"fit: compile must be True, False or 'auto', got {compile!r}")
    if not compile or (compile == "auto" and not _is_long(plan)):
        return False
    if torch.cuda.is_available() or any(shutil.which(c) for c in (os.environ.get("CXX", "g++"), "clang++")):
        return True
    logging.getLogger("diffeo").info("no C++ compiler found, so the training step runs eagerly")
    return False


def _is_long(plan: Plan) -> bool:
    return plan.steps >= 30_000 and (plan.time_limit is None or plan.time_limit >= 900)


def register_forward_methods(module: nn.Module) -> None:
    """Let FSDP gather the shards of a module also when `inverse` and the sampling methods are called."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    for part in module.modules():
        if isinstance(part, FSDPModule):
            for method in ("inverse", "sample", "rsample", "sample_and_log_prob", "draw"):
                if hasattr(part, method):
                    register_fsdp_forward_method(part, method)

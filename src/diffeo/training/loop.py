"""The training loop of `fit`, and what it carries from step to step."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diffeo.core import Density, Objective
from diffeo.kernels.compiling import compiled
from diffeo.kernels.dispatch import compiled_kernels
from diffeo.kernels.private import replace_calls
from diffeo.training import checkpoint as checkpoints
from diffeo.training.averaging import Average
from diffeo.training.compiling import CompiledGradients, is_traceable, wants_compile, wants_loops
from diffeo.training.data import Batch, Indexed, Table, as_batch, batch_index
from diffeo.training.diagnosis import NonFiniteError, first_non_finite
from diffeo.training.interrupts import deferred_interrupt
from diffeo.training.parquet import ParquetRows
from diffeo.training.plan import Plan
from diffeo.training.processes import everywhere, mean, of_each, of_the_first
from diffeo.training.progress import Progress
from diffeo.training.result import FitResult
from diffeo.training.sharding import in_shards, quietly, spread, whole

EVALUATION_ROWS = 4096  # rows scored at once
READ_EVERY = 20  # steps after which flags are read from a GPU, which waits for it
INITIAL_ROWS = 100_000  # rows that data-dependent layers see of a dataset that is not in memory


class Loop:
    """One fit: the loop and what it carries from step to step."""

    def __init__(
        self,
        fabric: Any,
        objective: Objective,
        train: Table | Indexed | ParquetRows | DataLoader,
        held: Table | Indexed | None,
        kept: Tensor | None,
        plan: Plan,
        compile: bool | str,
        folder: Path | None,
        checkpoint_every: float,
        sample: Table | None = None,
    ):
        self.fabric, self.objective, self.plan = fabric, objective, plan
        self.given = objective  # what the caller holds
        self.folder, self.checkpoint_every = folder, checkpoint_every
        self.kept = kept  # index of the training rows in the caller's data
        self.home = next((t.device for t in (*objective.parameters(), *objective.buffers())), torch.device("cpu"))
        self.data_digest = _digest(train, held) if folder is not None else ""
        self.held = held.to(fabric.device) if isinstance(held, Table) else held
        self.train = train
        if str(fabric._precision.precision).startswith("64"):
            objective.double()
        self._initialize(sample)
        self.train = self.train.to(fabric.device) if isinstance(self.train, Table) else self.train
        self.scale = None  # of the rows' weights, so that they average to one
        if isinstance(self.train, Table) and self.train.weights is not None:
            self.scale = self.train.weights / self.train.weights.mean()

        self.sharded = in_shards(fabric.strategy)
        if self.sharded:
            self.objective = copy.deepcopy(objective)  # since what is sharded stays so

        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        compiles = wants_compile(compile, plan, self.parameters, fabric.device.type, fabric.world_size)
        compiles = compiles and is_traceable(objective) and not self.sharded
        self.result = FitResult(in_nats=objective.in_nats, compiled=compiles)
        self.loops = wants_loops(compile, plan, self.parameters, fabric.device.type, fabric.world_size)
        self.gradients: CompiledGradients | None = None
        self.best: dict[str, Tensor] | None = None
        self.best_loss = float("inf")
        self.waited = 0  # evaluations without improvement
        self.step = 0
        self.elapsed = 0.0
        self.total, self.counted = 0.0, 0  # training loss since the last evaluation

    def _initialize(self, sample: Table | None) -> None:
        """Data-dependent layers see training rows, once, before any wrapping."""
        initialize = getattr(self.objective, "initialize", None)
        densities = [child for child in self.objective.children() if isinstance(child, Density)]
        if initialize is None and len(densities) == 1:
            initialize = densities[0].initialize
        if initialize is None:
            return
        if sample is not None:
            rows = sample.tensors
        elif isinstance(self.train, Table):
            rows = self.train.weighted_rows()
        elif isinstance(self.train, Indexed):
            rows = self.train.rows(torch.arange(min(len(self.train), INITIAL_ROWS)))
        else:
            if isinstance(self.train, ParquetRows):
                raise ValueError("fit: ParquetRows need a sample of their rows")
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
        self.model = self.fabric.setup_module(self.objective)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        matrices = [p for p in self.parameters if p.ndim >= 2]
        rest = [p for p in self.parameters if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.plan.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=self.plan.lr,
            fused=True,
        )
        self.stepper = self.fabric.setup_optimizers(self.optimizer)
        self.average = Average(self.parameters, self.plan.average)
        if continued and self._restore():
            self._use_best()
            return self.result
        together = not self.sharded  # whether all processes are here, to gather the weights
        try:
            if self.step == 0 and self.held is not None:
                with quietly():
                    loss, stderr = self.evaluate()
                if not math.isfinite(loss):
                    raise ValueError(
                        f"fit: the held-out loss is {loss} before training; rows outside the support of the base?"
                    )
                self._keep_best(loss, stderr)  # what `initialize` made may be hard to beat on a small table
            if self.result.compiled:
                self._compile()
            shown = progress and self.fabric.global_rank == 0
            progressing = Progress(self.plan.steps, self.step, shown, self.result.in_nats)
            with progressing as bar, deferred_interrupt() as interrupted, compiled_kernels(self.loops), quietly():
                stopped = self._loop(bar, interrupted)
            together = True
        except NonFiniteError:
            together = True
            raise
        finally:
            replace_calls(self.objective, None)
            if together:
                self._use_best()
        if stopped != "interrupt":
            self.result.stopped = stopped
            self._write(finished=True)
        if stopped == "interrupt" or interrupted:  # maybe too late to stop the fit, but not what comes after it
            raise KeyboardInterrupt
        return self.result

    def _compile(self) -> None:
        """One function of loss and gradients where nothing has to come between the two; else the loss alone."""
        from lightning_fabric.strategies.single_device import SingleDeviceStrategy

        plain = str(self.fabric._precision.precision).endswith("-true")
        plain = plain and isinstance(self.fabric.strategy, SingleDeviceStrategy)
        if plain and all(getattr(part, "memory", "store") == "store" for part in self.objective.modules()):
            self.gradients = CompiledGradients(self.objective)
        else:
            replace_calls(self.objective, compiled)

    def _loop(self, bar: Progress, interrupted: list[int]) -> str:
        plan, fabric = self.plan, self.fabric
        device = fabric.device
        alone = fabric.world_size == 1
        read_every = 1 if device.type == "cpu" else READ_EVERY
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
            weights = None if self.scale is None else self.scale.index_select(0, index)
            if self.gradients is not None:
                loss = self.gradients(*batch, weights=weights)
            else:
                losses = self.model(*batch)
                loss = (losses if weights is None else losses * weights).mean()
                fabric.backward(loss)
            norm = fabric.clip_gradients(self.model, self.optimizer, max_norm=plan.clip, error_if_nonfinite=False)
            norm = whole(norm)
            with torch.no_grad():
                fine = loss.isfinite() if scaled else loss.isfinite() & norm.isfinite()
                if not alone:  # what is not finite, or interrupted, in one process is so for all
                    fine, going = everywhere(fabric, fine, torch.tensor(not interrupted, device=device))
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
            reading = closing or self.step % read_every == 0
            if reading and bad:
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
            stop = bool(interrupted if alone else reading and not going)
            # the clocks of several processes differ, so they write after evaluations
            due = stop or (time.monotonic() - saved >= self.checkpoint_every if alone else closing)
            if self.folder and due:
                self.total = mean(fabric, total)
                self._write(finished=False)
                saved = time.monotonic()
            if stop:
                return "interrupt"
        raise RuntimeError("fit: the data ended")

    def _batches(self) -> Iterator[tuple[Tensor, Batch]]:
        """Index and rows of this process's part of every batch, from the current step on."""
        device = self.fabric.device
        if isinstance(self.train, DataLoader):
            dtype = self.parameters[0].dtype
            while True:
                for batch in self.train:
                    yield torch.empty(0), tuple(t.to(device) for t in as_batch(batch, dtype))
            return
        part = slice(self.fabric.global_rank, None, self.fabric.world_size)
        if isinstance(self.train, ParquetRows):
            for index, rows in self.train.batches(self.plan.batch_size, self.plan.seed, self.step):
                yield index[part], tuple(t[part].to(device) for t in rows)
            return
        for index in batch_index(len(self.train), self.plan.batch_size, self.plan.seed, self.step):
            index = index[part].to(device)
            yield index, tuple(t.to(device) for t in self.train.rows(index))

    def _close_interval(self, bar: Progress, total: Tensor, since: float) -> bool:
        """Validate the averaged weights and keep them if they are the best; True when patience has run out."""
        train_loss, held_loss, stderr = mean(self.fabric, total) / self.counted, None, None
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
        self._gathered().to(self.home).eval()

    def _gathered(self) -> Objective:
        """The objective with whole weights, for which every process must ask."""
        if self.sharded:
            self.given.load_state_dict({k: whole(v) for k, v in self.objective.state_dict().items()})
        return self.given

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Mean loss of the held-out rows and its standard error, the same in every process."""
        device, held = self.fabric.device, self.held
        if held is None:
            raise ValueError("fit: there are no held-out rows")
        self.objective.eval()
        score = self.objective if self.sharded else self.objective.forward  # past what is compiled: eager, any size
        losses = []
        for start in range(0, len(held), EVALUATION_ROWS):
            index = torch.arange(start, min(start + EVALUATION_ROWS, len(held)), device=device)
            batch = tuple(t.to(device) for t in held.rows(index))
            losses.append(score(*batch).cpu().double())
        self.objective.train()
        loss = torch.cat(losses)
        w = torch.ones_like(loss) if held.weights is None else held.weights.cpu().double()
        w = w / w.sum()
        average = (w * loss).sum()
        stderr = (w * w * (loss - average) ** 2).sum().sqrt()
        return of_the_first(self.fabric, (float(average), float(stderr)))

    def _raise_non_finite(self, failed_step: int, batch: Batch) -> None:
        rows: list[int] = []
        if isinstance(self.train, ParquetRows):
            index, batch = next(self.train.batches(self.plan.batch_size, self.plan.seed, failed_step))
            batch, rows = tuple(t.to(self.fabric.device) for t in batch), index.tolist()
        elif not isinstance(self.train, DataLoader):
            index = next(batch_index(len(self.train), self.plan.batch_size, self.plan.seed, failed_step))
            batch = tuple(t.to(self.fabric.device) for t in self.train.rows(index.to(self.fabric.device)))
            rows = (index if self.kept is None else self.kept[index]).tolist()
        objective = self._gathered().train()  # one in shards may fit only where it came from
        where = self.home if self.sharded else self.fabric.device
        layer = first_non_finite(objective, tuple(t.to(where) for t in batch))
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
        random = {"cpu": of_each(self.fabric, torch.get_rng_state())}
        if self.fabric.device.type == "cuda":
            random["cuda"] = of_each(self.fabric, torch.cuda.get_rng_state(self.fabric.device))
        tensors: dict[str, Tensor] = {}
        if self.fabric.global_rank == 0 or self.sharded:
            tensors = {
                **checkpoints.with_prefix("model", self.objective.state_dict()),
                **checkpoints.with_prefix("average", {str(i): t for i, t in enumerate(self.average.values)}),
                **checkpoints.with_prefix("best", self.best or {}),
                **checkpoints.with_prefix("optimizer", checkpoints.optimizer_tensors(self.optimizer, self.parameters)),
                **checkpoints.with_prefix("random", random),
            }
        if self.fabric.global_rank == 0:
            own = {name: getattr(self, name) for name in _CARRIED}
            state = {"plan": self.plan.as_dict(), "data": self._fingerprint(), "finished": finished, **own}
            checkpoints.write(self.folder, tensors, {**state, "result": asdict(self.result)})
        self.fabric.barrier()  # whoever started the processes may end them all once one has left

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
        here = self.objective.state_dict()
        model, best = (checkpoints.without_prefix(name, tensors) for name in ("model", "best"))
        self.objective.load_state_dict({k: spread(t, here[k]) for k, t in model.items()})
        averages = _in_order(checkpoints.without_prefix("average", tensors))
        self.average.values = [spread(t, p) for t, p in zip(averages, self.parameters, strict=True)]
        self.best = {k: spread(t, here[k]) for k, t in best.items()} or None
        checkpoints.restore_optimizer(self.optimizer, self.parameters, checkpoints.without_prefix("optimizer", tensors))
        random = checkpoints.without_prefix("random", tensors)
        for name in _CARRIED:
            setattr(self, name, state[name])
        if len(random["cpu"]) == self.fabric.world_size:
            # PyTorch reads a state from the start of its storage, wherever the view begins
            own = {k: t[self.fabric.global_rank].clone() for k, t in random.items()}
            torch.set_rng_state(own["cpu"])
            if "cuda" in own and self.fabric.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"], self.fabric.device)
        else:  # other numbers than any process has drawn
            torch.manual_seed(self.plan.seed + self.step * self.fabric.world_size + self.fabric.global_rank)
        self.result = FitResult(**{**state["result"], "resumed_steps": self.step})
        return state["finished"]

    def _fingerprint(self) -> dict[str, Any]:
        """What tells flows and data apart: shapes of the state, number of rows, and a digest of what is in memory."""
        shapes = {k: tuple(v.shape) for k, v in self.objective.state_dict().items()}
        train: Any = self.train
        flow = hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]
        # held-out rows are in memory, and tell files of equal layout apart
        values = f"{train.fingerprint} {self.data_digest}" if isinstance(train, ParquetRows) else self.data_digest
        return {"flow": flow, "rows": len(train), "values": values}


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

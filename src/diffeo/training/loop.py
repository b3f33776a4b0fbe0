"""The training loop of `fit`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffeo.core import Objective
from diffeo.functional import widest
from diffeo.kernels.compiling import compiled
from diffeo.kernels.dispatch import compiled_kernels
from diffeo.kernels.private import replace_calls
from diffeo.kernels.process import one_thread, prepare
from diffeo.training import checkpoint as checkpoints
from diffeo.training.averaging import Average
from diffeo.training.compiling import (
    TINY,
    CompiledGradients,
    is_traceable,
    mean_loss,
    one_each,
    seconds_of_step,
    wants_compile,
    wants_loops,
)
from diffeo.training.diagnosis import NonFiniteError, first_non_finite
from diffeo.training.interrupts import deferred_interrupt
from diffeo.training.plan import Plan
from diffeo.training.processes import everywhere, mean, of_the_first
from diffeo.training.progress import Progress
from diffeo.training.result import FitResult
from diffeo.training.sharding import in_shards, quietly, whole
from diffeo.training.source import Batch, Source, move
from diffeo.training.state import Counts, State, identify_data

READ_EVERY = 20  # steps after which flags are read from a GPU, which waits for it
GLANCES = 12  # evaluations at least within a time limit, as long as they take
GLANCING = 0.05  # of the time at most


class Loop:
    """One fit: the loop around its `State`."""

    def __init__(
        self,
        fabric: Any,
        objective: Objective,
        train: Source,
        held: Source | None,
        kept: Tensor | None,
        plan: Plan,
        compile: bool | str,
        folder: Path | None,
        checkpoint_every: float,
        on_evaluation: Callable[[FitResult], object] | None = None,
    ):
        self.fabric, self.objective, self.plan = fabric, objective, plan
        self.given = objective  # what the caller holds
        self.on_evaluation = on_evaluation
        self.evaluating = 0.0  # seconds of the last evaluation and what the caller did with it
        self.folder, self.checkpoint_every = folder, checkpoint_every
        self.kept = kept  # numbers of the training rows in the caller's data
        self.home = next((t.device for t in (*objective.parameters(), *objective.buffers())), torch.device("cpu"))
        if str(fabric._precision.precision).startswith("64"):
            objective.double()
        self.data = {} if folder is None else identify_data(objective, train, held)
        objective.initialize(*move(train.sample(), self.home))  # on training rows, once, before any wrapping
        self.train, self.held = train.to(fabric.device), None if held is None else held.to(fabric.device)
        self.scale = None  # of the rows' weights, so that they average to one
        if self.train.weights is not None:
            self.scale = self.train.weights / self.train.weights.mean()

        self.sharded = in_shards(fabric.strategy)
        if self.sharded:
            self.objective = copy.deepcopy(objective)  # since what is sharded stays so

        step = seconds_of_step(plan, objective, self.train, fabric.device.type, fabric.world_size)
        seconds = min(step * plan.steps, plan.time_limit or math.inf)
        # goes by the size of the work, not by a clock: threads may change roundings
        self.is_small = fabric.device.type == "cpu" and step < TINY
        compiles = wants_compile(compile, seconds, objective) and is_traceable(objective) and not self.sharded
        self.loops = wants_loops(compile, seconds)
        self.result = FitResult(in_nats=objective.in_nats, compiled=compiles)
        self.gradients: CompiledGradients | None = None
        self.counts = Counts()

    def go(self, continued: bool, progress: bool) -> FitResult:
        """Train to the end; leaves the kept weights in the objective."""
        if not any(p.requires_grad for p in self.objective.parameters()):
            self.objective.to(self.fabric.device)  # nothing to learn beyond what `initialize` set
            if self.held is not None:
                self.result.validation_loss, self.result.validation_stderr, _ = self.evaluate()
            self.given.to(self.home).eval()
            return self.result
        self.model = self.fabric.setup_module(self.objective)
        parameters = [p for p in self.objective.parameters() if p.requires_grad]
        matrices, rest = ([p for p in parameters if (p.ndim >= 2) is large] for large in (True, False))
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.plan.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=self.plan.lr,
            fused=True,
        )
        self.stepper = self.fabric.setup_optimizers(self.optimizer)
        self.average = Average(parameters, self.plan.average)
        self.state = State(self.fabric, self.objective, self.optimizer, self.average, self.result)
        self.state.counts = self.counts
        if continued and self.folder is not None:
            finished = self.state.restore(self.folder, self.plan, self.data)
            self.counts = self.state.counts
            if finished:
                self._use_best()
                return self.result
        together = not self.sharded  # whether all processes are here, to gather the weights
        try:
            if self.counts.step == 0 and self.held is not None:
                with quietly():
                    loss, stderr, losses = self.evaluate()
                if not math.isfinite(loss):
                    raise ValueError(
                        f"fit: the held-out loss is {loss} before training; rows outside the support of the base?"
                    )
                self._keep_best(loss, stderr, losses)  # what `initialize` made may be hard to beat on a small table
            if self.result.compiled:
                self._compile()
            shown = progress and self.fabric.global_rank == 0
            progressing = Progress(self.plan, shown, self.result.in_nats)
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
        # Once a loss or gradient is not finite, the fused optimiser skips this and every later update by itself, so
        # that the weights stay as they were and nothing has to wait for the device to find out.
        bad = torch.zeros((), device=device, dtype=torch.float32)
        bad_step = torch.full((), -1, dtype=torch.long, device=device)
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        total = torch.full((), self.counts.total, device=device, dtype=widest(device))
        since = time.monotonic()
        began, saved = since - self.counts.elapsed, since - self.checkpoint_every  # the first state is written at once
        self.objective.train()
        for index, batch in self._batches():
            prepare()
            self.counts.elapsed = time.monotonic() - began
            if plan.time_limit is not None:
                self.counts.elapsed = self.counts.elapsed if alone else fabric.broadcast(self.counts.elapsed)
                if self.counts.elapsed >= plan.time_limit and self.counts.counted:
                    self._close_interval(bar, total, since)
                    return "time_limit"
            rate = plan.rate(self.counts.step, self.counts.elapsed)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            weights = None if self.scale is None or index is None else self.scale.index_select(0, index)
            with one_thread(self.is_small):
                loss, norm = self._pull(batch, weights)
                with torch.no_grad():
                    fine = loss.isfinite() & norm.isfinite()
                    if not alone:  # a loss that is not finite, or an interrupt, in one process counts for all
                        fine, going = everywhere(fabric, fine, torch.tensor(not interrupted, device=device))
                    bad_step = torch.where((bad_step < 0) & ~fine, self.counts.step, bad_step)
                    torch.maximum(bad, (~fine).to(bad.dtype), out=bad)
                    total += loss.detach()
                self.stepper.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.counts.step += 1
                self.counts.counted += 1
                self.average.update(self.counts.step)
            bar.advance(self.counts.step, self.counts.elapsed)
            closing = self.counts.step % plan.evaluate_every == 0 or self.counts.step == plan.steps
            if plan.time_limit is not None and alone:  # slow steps: some evaluations within the limit all the same
                pause = max(plan.time_limit / GLANCES, self.evaluating / GLANCING)
                closing = closing or time.monotonic() - since >= pause
            reading = closing or self.counts.step % read_every == 0
            if reading and bad:
                self._raise_non_finite(int(bad_step), batch)
            if closing:
                self.counts.elapsed = time.monotonic() - began
                out_of_patience = self._close_interval(bar, total, since)
                total.zero_()
                since = time.monotonic()
                if out_of_patience:
                    return "patience"
                if self.counts.step == plan.steps:
                    return "steps"
            stop = bool(interrupted if alone else reading and not going)
            # the clocks of several processes differ, so they write after evaluations
            due = stop or (time.monotonic() - saved >= self.checkpoint_every if alone else closing)
            if self.folder and due:
                self.counts.total = mean(fabric, total)
                self._write(finished=False)
                saved = time.monotonic()
            if stop:
                return "interrupt"
        raise RuntimeError("fit: the data ended")

    def _pull(self, batch: Batch, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss of a batch and the norm of its gradients, which are left clipped."""
        if self.gradients is not None:
            loss = self.gradients(*batch, weights=weights)
        else:
            losses = self.model(*batch)
            loss = mean_loss(losses, weights)
            self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.plan.clip, error_if_nonfinite=False)
        return loss, whole(norm)

    def _batches(self) -> Iterator[tuple[Tensor | None, Batch]]:
        """Numbers and rows of this process's part of every batch, from the current step on."""
        part = slice(self.fabric.global_rank, None, self.fabric.world_size)
        for index, batch in self.train.batches(self.plan.batch_size, self.plan.seed, self.counts.step, part):
            yield index, move(batch, self.fabric.device)

    def _close_interval(self, bar: Progress, total: Tensor, since: float) -> bool:
        """Validate the averaged weights and keep them if they are the best; True when patience has run out."""
        asked = time.monotonic()
        train_loss, held_loss, stderr, losses = mean(self.fabric, total) / self.counts.counted, None, None, None
        with self.average.applied():
            if self.held is not None:
                held_loss, stderr, losses = self.evaluate()
            improved = self._keep_best(train_loss if held_loss is None else held_loss, stderr, losses)
            self.result.steps, self.result.seconds = self.counts.step, self.counts.elapsed
            self.result.history.append(
                {
                    "step": self.counts.step,
                    "epoch": self.counts.step / self.plan.steps_per_epoch,
                    "train_loss": train_loss,
                    "validation_loss": held_loss,
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "seconds": round(self.counts.elapsed, 3),
                }
            )
            self._tell()
        self.counts.waited = 0 if improved else self.counts.waited + 1
        bar.report(train_loss, held_loss, self.counts.counted / max(1e-9, time.monotonic() - since))
        self.counts.total, self.counts.counted = 0.0, 0
        self.evaluating = time.monotonic() - asked
        return self.plan.patience is not None and self.counts.waited >= self.plan.patience

    def _tell(self) -> None:
        """Let the caller look at the result so far, and at the weights."""
        if self.on_evaluation is None or self.fabric.global_rank != 0:
            return
        self.objective.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            self.on_evaluation(self.result)
        self.objective.train()

    def _keep_best(self, loss: float, stderr: float | None, losses: Tensor | None) -> bool:
        """Keep the weights with the least loss of those that beat the first by more than chance.

        True if no loss before was less, whether they are kept or not.

        The best of many evaluations is partly luck: on few held-out rows, weights that are no better than what
        `initialize` made would win by it. Without held-out rows the last average is the best there is.
        """
        improved = losses is None or loss < self.counts.best_loss
        self.counts.best_loss = min(loss, self.counts.best_loss) if losses is not None else loss
        kept = self.result.validation_loss
        if self.state.best is None:
            self.state.losses = losses
        elif losses is not None and kept is not None and not (loss < kept and self._surely_better(losses)):
            return improved
        self.state.best = {k: v.detach().clone() for k, v in self.objective.state_dict().items()}
        self.result.best_step = self.counts.step
        if losses is not None:
            self.result.validation_loss, self.result.validation_stderr = loss, stderr
        return improved

    def _surely_better(self, losses: Tensor) -> bool:
        """Whether the first weights are worse on the held-out rows by more than a standard error of the difference."""
        first = self.state.losses
        if first is None:
            return True
        gain, w = first - losses, self._held_weights(losses)
        average = (w * gain).sum()
        return of_the_first(self.fabric, bool(average > (w * w * (gain - average) ** 2).sum().sqrt()))

    def _held_weights(self, losses: Tensor) -> Tensor:
        """The weights of the held-out rows, which add up to one."""
        weights = None if self.held is None else self.held.weights
        w = torch.ones_like(losses) if weights is None else weights.cpu().double()
        return w / w.sum()

    def _use_best(self) -> None:
        """The kept weights into the objective, and the objective back to where it came from."""
        if self.state.best is not None:
            self.objective.load_state_dict(self.state.best)
        self._gathered().to(self.home).eval()

    def _gathered(self) -> Objective:
        """The objective with whole weights, for which every process must ask."""
        if self.sharded:
            self.given.load_state_dict({k: whole(v) for k, v in self.objective.state_dict().items()})
        return self.given

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float, Tensor]:
        """Mean loss of the held-out rows and its standard error, the same in every process; and each row's loss."""
        device, held = self.fabric.device, self.held
        if held is None:
            raise ValueError("fit: there are no held-out rows")
        self.objective.eval()
        score = self.objective if self.sharded else self.objective.forward  # past what is compiled: eager, any size
        blocks = [score(*move(batch, device)).cpu().double() for batch in held.blocks()]
        self.objective.train()
        losses = one_each(torch.cat(blocks))
        w = self._held_weights(losses)
        average = (w * losses).sum()
        stderr = (w * w * (losses - average) ** 2).sum().sqrt()
        return *of_the_first(self.fabric, (float(average), float(stderr))), losses

    def _raise_non_finite(self, failed_step: int, batch: Batch) -> None:
        index, rows = None, []
        if self.train.continues:
            index, batch = next(self.train.batches(self.plan.batch_size, self.plan.seed, failed_step))
        if index is not None:
            rows = (index if self.kept is None else self.kept[index.cpu()]).tolist()
        objective = self._gathered().train()  # one in shards may fit only where it came from
        where = self.home if self.sharded else self.fabric.device
        layer = first_non_finite(objective, move(batch, where))
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
        if self.folder is not None:
            self.state.write(self.folder, self.plan, self.data, self.sharded, finished)

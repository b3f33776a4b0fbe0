"""`diffeo.fit`: train a flow, or any objective, and report its held-out loss."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from diffeo.core import Density, Objective
from diffeo.training import checkpoint as checkpoints
from diffeo.training.loop import Loop
from diffeo.training.objectives import MaximumLikelihood
from diffeo.training.plan import make_plan
from diffeo.training.processes import launched, mean
from diffeo.training.result import FitResult
from diffeo.training.sharding import shards_strategy
from diffeo.training.source import Collate, Rows, Source, as_source
from diffeo.training.variational import Variational

DRAWN_STEPS, DRAWN_EPOCH = 5000, 250  # steps by default, and between evaluations, without rows to count
DRAWN_HELD = 4096  # samples of an evaluation
PRECISIONS = ("32-true", "64-true", "bf16-mixed")


@torch.inference_mode(False)
@torch.enable_grad()
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
    precision: str | None = None,
    collate: Collate | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 10.0,
    resume: bool = False,
    progress: bool = True,
    on_evaluation: Callable[[FitResult], object] | None = None,
) -> FitResult:
    """Train a flow by maximum likelihood (or minimise any objective) in place.

    AdamW (fused) with warm-up and cosine decay, gradient-norm clipping and exponential weight averaging; the averaged
    weights are validated, the best of them kept, and training stops early when they no longer get better. What is
    left open (steps, batch size, weight decay) follows the number of rows. The caller's random state is left alone.

    Args:
        flow_or_objective: a density, or an `Objective`.
        x: rows, shape (n, *event): array, tensor, `Dataset` or `DataLoader` (these two give x or (x, context)), or
            `ParquetRows` for a table larger than memory. For objectives that draw their own samples, such as
            `ReverseKL`, the number of samples of a step.
        context: what each row is conditioned on: an array (n, …), or a dict of such, as the flow reads it.
        weights: weight of each row, ≥ 0.
        validation: share of rows held out, in [0, 1), or held-out rows: x, (x, context), or with their weights
            (x, context, weights). Objectives that draw their
            own samples are evaluated on the same 4,096 of them each time; 0 for none.
        epochs, steps: passes over the rows, or optimiser steps (these win; early stopping then needs `patience`).
        batch_size: rows of a step, over all processes.
        lr: peak learning rate.
        weight_decay: decoupled, on matrices only.
        patience: evaluations without improvement before stopping.
        time_limit: seconds of training; the learning rate reaches zero by then, and there are about a dozen evaluations
            even where an epoch takes longer.
        clip: largest gradient norm.
        average: decay of the weight average, in [0, 1).
        compile: compile the training step (needs a C++ compiler): True, False, or "auto" for long fits. Flows that a
            compiler cannot follow, such as continuous ones, run eagerly. Unless False, fits predicted to take five
            seconds run splines and conditioners in C on CPUs (`compiled_kernels`).
        accelerator, devices, strategy: as in Lightning Fabric; `devices="auto"` is one, or all that `torchrun` started.
            `strategy="fsdp"` shards weights and optimiser over the processes, on CPUs too.
        precision: "32-true", "64-true" or "bf16-mixed"; None is that of the flow.
        collate: joins examples of a `Dataset` to a batch, as for a `DataLoader`; `diffeo.training.padded` pads those of
            different lengths and masks the padding. If the dataset has an attribute `lengths`, a number for each
            example, batches are of similar ones, which saves most of the padding.
        seed: of split, batches and dropout.
        checkpoint: folder for the state of the fit, written atomically every `checkpoint_every` seconds, or by several
            processes after every evaluation; they must all see it.
        resume: continue the fit in that folder to the same result (an empty folder starts afresh, a finished one is
            loaded).
        progress: show a bar where stderr is a terminal.
        on_evaluation: called with the result so far after each evaluation, while the flow holds the averaged weights:
            for samples, plots or logs as it goes. It does not disturb the random numbers of the fit; its time counts
            towards `time_limit`. Not where weights are sharded.

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
    from lightning_fabric.plugins.precision import DoublePrecision
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy

    objective = flow_or_objective if isinstance(flow_or_objective, Objective) else MaximumLikelihood(flow_or_objective)
    if x is None:
        raise ValueError("fit: expected rows to train on, got x=None")
    if not 0 <= average < 1 or not clip > 0:
        raise ValueError(f"fit: expected average in [0, 1) and clip > 0, got {average} and {clip}")
    wide = any(p.dtype == torch.float64 for p in objective.parameters())
    precision = ("64-true" if wide else "32-true") if precision is None else precision
    if precision not in PRECISIONS:
        raise ValueError(f"fit: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    parameters = list(objective.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        raise ValueError(
            "fit: no weight requires a gradient, so there is nothing to train; train the flow itself, not a copy by "
            "prepare_inference, or call requires_grad_() on what is to learn"
        )
    if any(p.is_inference() for p in parameters):
        raise ValueError(
            "fit: the flow was made in torch.inference_mode(), so PyTorch refuses to train it; make it outside"
        )
    began = time.monotonic()
    dtype = torch.float64 if str(precision).startswith("64") else torch.float32
    if dtype == torch.float32 and wide:
        raise ValueError(f"fit: the flow is float64, but precision={precision!r}; pass precision='64-true'")
    drawn = isinstance(objective, Variational)
    if drawn:
        if context is not None or weights is not None or batch_size is not None:
            raise ValueError(
                f"fit: {type(objective).__name__} draws its own rows; context, weights and batch_size do not apply"
            )
        train, held, kept = *_draws(x, validation, dtype, type(objective).__name__), None
    elif isinstance(x, int):
        raise ValueError(
            f"fit: expected rows to train on, got {x}; a number of samples is for objectives that draw their own"
        )
    else:
        train, held, kept = _hold_out(as_source(x, context, weights, dtype, collate), validation, dtype, collate, seed)
    folder, continued = checkpoints.open_folder(checkpoint, resume)
    if folder is not None and not train.continues:
        raise ValueError(
            "fit: a checkpoint needs rows in memory or a Dataset; a DataLoader cannot be continued exactly"
        )

    options: dict[str, Any] = {"precision": precision}
    if precision.endswith("mixed"):
        options = {"plugins": _mixed_precision(precision, accelerator)}
    if strategy == "fsdp":
        strategy = shards_strategy(objective, precision)
        if precision == "64-true":
            options = {"plugins": DoublePrecision()}  # of which Fabric knows no name for this strategy
    if devices == "auto":
        devices, options["num_nodes"] = launched()
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, **options)
    if not isinstance(fabric.strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)):
        raise ValueError(f"fit: strategy={strategy!r} is not one that fits run with; pass 'auto', 'ddp' or 'fsdp'")
    if not isinstance(fabric.strategy, SingleDeviceStrategy):
        fabric.launch()
        if mean(fabric, torch.tensor(float(continued), device=fabric.device)) not in (0, 1):
            raise ValueError(f"fit: not all processes see the checkpoint in {str(folder)!r}; use a folder they share")
    if on_evaluation is not None and isinstance(fabric.strategy, ModelParallelStrategy):
        raise ValueError(
            "fit: on_evaluation sees the flow, whose weights are sharded over processes; use another strategy"
        )
    if drawn:
        batch_size = len(train)
        steps = DRAWN_STEPS if steps is None and epochs is None else steps
    plan = make_plan(
        10**9 if drawn else len(train),
        epochs=epochs,
        steps=steps,
        batch_size=train.batch_size or batch_size,
        lr=lr,
        weight_decay=weight_decay,
        patience=patience if held is not None else None,
        time_limit=time_limit,
        seed=seed,
        average=average,
        clip=clip,
        world=fabric.world_size,
        steps_per_epoch=DRAWN_EPOCH if drawn else train.steps_per_epoch,
    )
    before = {k: v.detach().clone() for k, v in objective.state_dict().items()}
    run = None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # manual_seed reaches all of them
        torch.manual_seed(seed + fabric.global_rank)
        try:
            run = Loop(fabric, objective, train, held, kept, plan, compile, folder, checkpoint_every, on_evaluation)
            run.counts.elapsed = time.monotonic() - began
            result = run.go(continued, progress)
        except BaseException:
            if run is None or run.counts.step == 0:  # nothing was trained: leave the flow as it came
                objective.load_state_dict(before)
            raise
    if isinstance(objective, Variational):
        result.importance(objective.importance())
    return result


def _draws(n: Any, validation: Any, dtype: torch.dtype, who: str) -> tuple[Rows, Rows | None]:
    """Empty rows, which only say how many samples an objective is to draw."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"fit: {who} draws its own rows; pass the number of samples of a step, got {type(n).__name__}")
    if validation is not None and not isinstance(validation, int | float):
        raise ValueError(f"fit: {who} draws its own rows; validation must be a number, 0 for none")
    held = Rows((torch.zeros(DRAWN_HELD, 0, dtype=dtype),)) if validation else None
    return Rows((torch.zeros(n, 0, dtype=dtype),)), held


def _hold_out(
    source: Source, validation: Any, dtype: torch.dtype, collate: Collate | None, seed: int
) -> tuple[Source, Source | None, torch.Tensor | None]:
    """Training rows, held-out rows, and the numbers of the former in the caller's data (None: all of it)."""
    if isinstance(validation, int | float) and not isinstance(validation, bool):
        return source.hold_out(validation, seed)
    source, _, kept = source.hold_out(0.0, seed)
    if validation is None:
        return source, None, kept
    parts: Any = validation
    several = isinstance(parts, tuple | list) and len(parts) in (2, 3)
    x, context, *rest = parts if several else (parts, None)
    held = as_source(
        x, context, rest[0] if rest else None, dtype, collate if isinstance(x, torch.utils.data.Dataset) else None
    )
    if type(held).blocks is Source.blocks:
        raise ValueError(
            f"fit: held-out rows must be in memory or a Dataset, not {type(x).__name__}; pass a share, or read them"
        )
    return source, held, kept


def _mixed_precision(precision: Any, accelerator: str) -> Any:
    """Fabric's autocast, but rows keep their digits: only what runs inside conditioners is rounded."""
    from lightning_fabric.plugins import MixedPrecision

    class KeepsInputs(MixedPrecision):
        def convert_input(self, data: Any) -> Any:
            return data

    return KeepsInputs(precision, "cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")

"""What a fit carries from step to step, and its file."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffeo.core import Density, Objective
from diffeo.storage import to_json
from diffeo.training import checkpoint as checkpoints
from diffeo.training.averaging import Average
from diffeo.training.plan import Plan
from diffeo.training.processes import of_each
from diffeo.training.result import FitResult
from diffeo.training.sharding import place
from diffeo.training.source import Source


@dataclass
class Counts:
    """The numbers that a fit carries.

    Attributes:
        step: optimiser steps taken.
        elapsed: seconds of training.
        waited: evaluations without improvement.
        best_loss: the least so far.
        total, counted: training loss since the last evaluation, and of how many steps.
    """

    step: int = 0
    elapsed: float = 0.0
    waited: int = 0
    best_loss: float = float("inf")
    total: float = 0.0
    counted: int = 0


class State:
    """Weights, their average and the best of them, the optimiser's moments, random numbers, counts, and the result."""

    def __init__(
        self,
        fabric: Any,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        average: Average,
        result: FitResult,
    ):
        self.fabric, self.objective, self.optimizer, self.average = fabric, objective, optimizer, average
        self.result = result
        self.counts = Counts()
        self.best: dict[str, Tensor] | None = None
        self.losses: Tensor | None = None  # of the held-out rows under the first weights

    def write(self, folder: Path, plan: Plan, data: dict[str, Any], sharded: bool, finished: bool) -> None:
        """Write the state to a folder; every process takes part."""
        random = {"cpu": of_each(self.fabric, torch.get_rng_state())}
        if self.fabric.device.type == "cuda":
            random["cuda"] = of_each(self.fabric, torch.cuda.get_rng_state(self.fabric.device))
        tensors: dict[str, Tensor] = {}
        if self.fabric.global_rank == 0 or sharded:
            moments = checkpoints.optimizer_tensors(self.optimizer, self.average.parameters)
            tensors = {
                **checkpoints.with_prefix("model", self.objective.state_dict()),
                **checkpoints.with_prefix("average", {str(i): t for i, t in enumerate(self.average.values)}),
                **checkpoints.with_prefix("best", self.best or {}),
                **checkpoints.with_prefix("held", {} if self.losses is None else {"losses": self.losses}),
                **checkpoints.with_prefix("optimizer", moments),
                **checkpoints.with_prefix("random", random),
            }
        if self.fabric.global_rank == 0:
            state = {"plan": plan.as_dict(), "data": data, "finished": finished, **asdict(self.counts)}
            checkpoints.write(folder, tensors, {**state, "result": asdict(self.result)})
        self.fabric.barrier()  # whoever started the processes may end them all once one has left

    def restore(self, folder: Path, plan: Plan, data: dict[str, Any]) -> bool:
        """Continue from the folder's state; True where that fit had finished.

        Raises:
            ValueError: it was made with another plan, flow or data.
        """
        tensors, state = checkpoints.read(folder)
        for name, value in {"plan": plan.as_dict(), "data": data}.items():
            if state[name] != value:
                was = state[name]
                differs = ", ".join(f"{k} ({was.get(k)}, now {value[k]})" for k in value if value[k] != was.get(k))
                what = "flow or data" if name == "data" else name
                raise ValueError(
                    f"fit: the checkpoint in {str(folder)!r} was made with another {what}: {differs}; "
                    "resume with the same flow, data and arguments"
                )
        here = self.objective.state_dict()
        model, best = (checkpoints.without_prefix(name, tensors) for name in ("model", "best"))
        self.objective.load_state_dict({k: place(t, here[k]) for k, t in model.items()})
        averages = checkpoints.without_prefix("average", tensors)
        parameters = self.average.parameters
        self.average.values = [place(averages[str(i)], p) for i, p in enumerate(parameters)]
        self.best = {k: place(t, here[k]) for k, t in best.items()} or None
        self.losses = checkpoints.without_prefix("held", tensors).get("losses")
        checkpoints.restore_optimizer(self.optimizer, parameters, checkpoints.without_prefix("optimizer", tensors))
        self.counts = Counts(**{field.name: state[field.name] for field in fields(Counts)})
        self.result.__dict__.update({**state["result"], "resumed_steps": self.counts.step})
        self._continue_random(checkpoints.without_prefix("random", tensors), plan.seed)
        return state["finished"]

    def _continue_random(self, random: dict[str, Tensor], seed: int) -> None:
        fabric = self.fabric
        if len(random["cpu"]) != fabric.world_size:  # other numbers than any process has drawn
            torch.manual_seed(seed + self.counts.step * fabric.world_size + fabric.global_rank)
            return
        # PyTorch reads a state from the start of its storage, wherever the view begins
        own = {k: t[fabric.global_rank].clone() for k, t in random.items()}
        torch.set_rng_state(own["cpu"])
        if "cuda" in own and fabric.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], fabric.device)


def identify_data(objective: Objective, train: Source, held: Source | None) -> dict[str, Any]:
    """A fingerprint of flow and data: arguments of recipes, modules and shapes of their state; how many rows, and
    fingerprints of the sources."""
    shapes = {k: tuple(v.shape) for k, v in objective.state_dict().items()}
    values = " ".join(source.fingerprint for source in (train, held) if source is not None)
    told = repr((shapes, objective))  # with how an objective changes its rows
    arguments: dict[str, str] = {}
    for module in objective.modules():
        if isinstance(module, Density) and module.recipe is not None:
            name, given = module.recipe
            with suppress(ValueError):  # what cannot be written is not compared
                arguments |= {f"{name}'s {argument}": to_json(value) for argument, value in given.items()}
    flow = hashlib.sha256(told.encode()).hexdigest()[:16]
    return {**arguments, "flow": flow, "rows": len(train), "values": values}

"""How long and how hard to train, from the size of the table where the caller leaves it open."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What a fit is going to do; it must be the same when the fit is resumed."""

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    patience: int | None
    evaluate_every: int
    steps_per_epoch: int
    time_limit: float | None
    seed: int
    average: float
    clip: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rate(self, step: int, elapsed: float) -> float:
        """Learning rate before step `step` (from 0): linear warm-up, then a cosine to zero."""
        warmup = min(200, max(1, self.steps // 20))
        return self.lr * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * self.done(step, elapsed)))

    def done(self, step: int, elapsed: float) -> float:
        """The share of the fit that is over, 0 … 1: of its steps or of its time limit, whichever is further on."""
        share = step / self.steps
        return share if self.time_limit is None else max(share, min(1.0, elapsed / self.time_limit))


def make_plan(
    n: int,
    *,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    lr: float | None,
    weight_decay: float | None,
    patience: int | None,
    time_limit: float | None,
    seed: int,
    average: float,
    clip: float,
    world: int,
    steps_per_epoch: int | None = None,
) -> Plan:
    """The plan for n training rows.

    Small tables get small batches, many epochs and weight decay; large ones a bounded number of steps.
    """
    for name, value in [("epochs", epochs), ("steps", steps), ("batch_size", batch_size), ("patience", patience)]:
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"fit: {name} must be a positive integer, got {value!r}")
    for name, number in [("lr", lr), ("time_limit", time_limit)]:
        if number is not None and not number > 0:
            raise ValueError(f"fit: {name} must be positive, got {number!r}")
    if batch_size is None:
        batch_size = min(512, max(32, 2 ** int(math.log2(max(1, n / 16)))))
    batch_size = min(batch_size, n)
    batch_size -= batch_size % world
    if batch_size == 0:
        raise ValueError(f"fit: {n} rows cannot be shared by {world} processes")
    steps_per_epoch = steps_per_epoch or max(1, n // batch_size)
    early_stopping = steps is None or patience is not None
    if steps is None:
        steps = epochs * steps_per_epoch if epochs else min(6000, max(1000, 100 * steps_per_epoch))
    # a few hundred rows are learnt by heart within ten epochs, so their best weights have to be looked for in between
    evaluate_every = min(max(steps_per_epoch, min(50, 5 * steps_per_epoch)), 2000)
    if early_stopping and patience is None:
        patience = max(10, round(max(500, 0.15 * steps) / evaluate_every))
    return Plan(
        steps=steps,
        batch_size=batch_size,
        lr=lr or 2e-3,
        weight_decay=(1e-2 if n < 20_000 else 1e-4) if weight_decay is None else weight_decay,
        patience=patience if early_stopping else None,
        evaluate_every=min(evaluate_every, steps),
        steps_per_epoch=steps_per_epoch,
        time_limit=time_limit,
        seed=seed,
        average=average,
        clip=clip,
    )

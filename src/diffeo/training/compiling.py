"""The compiled training step, and whether a fit is long enough, and the machine able, to compile it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffeo.core import Transform
from diffeo.kernels.compiling import OPTIONS, has_compiler, own_code
from diffeo.kernels.private import trace_gradients
from diffeo.kernels.process import prepare
from diffeo.training.plan import Plan
from diffeo.training.source import Source, move

# floating-point operations a second of an uncompiled step: two cores do so many, a GPU some fifty times more
RATE = {"cpu": 2e10}
ELSEWHERE = 1e12
SHORT = 5.0  # seconds: C takes two or three to compile, the first time on a machine
COUNTED = 8  # rows whose operations are counted
# Seconds of a step below which a second thread gains nothing: what is not products runs on one anyway. Beside other
# programs, whose share of the cores it would wait for, a step on one thread takes half to two thirds of the time.
TINY = 0.025
LONG = 240.0  # seconds: a cold compiler takes up to a minute or two, and compiled steps less than half the time


def wants_compile(compile: bool | str, seconds: float, objective: nn.Module) -> bool:
    """Whether to compile the training step; "auto" does so where even a slow compiler pays for itself.

    It goes by the length of the fit as predicted from its size, not by a clock, so that equal fits take equal steps. A
    compiler has nothing to gain on convolutions, and takes minutes over many of them.
    """
    if compile not in (True, False, "auto"):
        raise ValueError(f"fit: compile must be True, False or 'auto', got {compile!r}")
    pays = seconds >= LONG and not any(isinstance(part, nn.Conv1d | nn.Conv2d) for part in objective.modules())
    return bool(compile) and (compile is True or pays) and has_compiler()


def wants_loops(compile: bool | str, seconds: float) -> bool:
    """Whether to run splines and conditioners in C: "auto" does so in all but the shortest fits."""
    return bool(compile) and (compile is True or seconds > SHORT)


def is_traceable(objective: nn.Module) -> bool:
    """Whether a compiler can follow all transforms of an objective."""
    return all(part.traceable for part in objective.modules() if isinstance(part, Transform))


def seconds_of_step(plan: Plan, objective: nn.Module, train: Source, device: str, world: int) -> float:
    """About how long a step takes without compiling, from the products of one row: forward, and twice that back.

    Where products cannot be counted, each weight counts as one of them (Kaplan et al., 2020).
    """
    return 3.0 * plan.batch_size / world * _operations(objective, train) / RATE.get(device, ELSEWHERE)


def _operations(objective: nn.Module, train: Source) -> float:
    """Floating-point operations of the products of one row, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next((p.device for p in objective.parameters()), torch.device("cpu"))
    batch = next(train.batches(min(len(train), COUNTED), 0, 0))[1]
    learned = [p for p in objective.parameters() if p.requires_grad]
    # random numbers are drawn from a copy of the generator, and buffers such as running means stay as they are
    with torch.random.fork_rng(devices=[]), torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            for p in learned:  # its hooks fail on modules that give a view of a parameter
                p.requires_grad_(False)
            objective.eval()(*move(batch, device))
        finally:
            for p in learned:
                p.requires_grad_(True)
    weights = 2 * sum(p.numel() for p in objective.parameters())
    return counter.get_total_flops() / len(batch[0]) or weights


class CompiledGradients:
    """The mean loss of a batch, and its gradients left in `.grad`, as one compiled function.

    loss = Σᵢ wᵢ objective(batch)ᵢ / n;   p.grad = ∂loss/∂p, in place of what was there

    What `fit(compile=True)` runs on one device, for loops of one's own: values and gradients come from a single graph,
    so that a step of a small model takes less time than with `flow.compile()` and `backward()`. Hooks of parameters do
    not run. Without a C++ compiler it runs eagerly.

    Args:
        objective: gives the losses of a batch's rows, as `diffeo.MaximumLikelihood(flow)` does.

    Cost: a forward and a backward pass; the first call compiles, for ten seconds to two minutes, and so does the second
    batch size.

    >>> import torch, diffeo
    >>> flow = diffeo.gaussian(2, context=1)
    >>> optimizer = torch.optim.AdamW(flow.parameters(), fused=True)
    >>> gradients = diffeo.CompiledGradients(diffeo.MaximumLikelihood(flow))
    >>> def step(x, context):
    ...     loss = gradients(x, context)   # the first call compiles
    ...     optimizer.step()
    ...     return loss
    """

    def __init__(self, objective: nn.Module):
        self.parameters = [p for p in objective.parameters() if p.requires_grad]

        def run(weights: Tensor | None, batch: tuple[Any, ...]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            losses = objective(*batch)
            loss = mean_loss(losses, weights)
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            return loss.detach(), tuple(map(_laid_out, gradients, self.parameters))

        self._run = torch.compile(own_code(run), options=dict(OPTIONS)) if has_compiler() else run
        self._tracing = trace_gradients()

    def __call__(self, *batch: Any, weights: Tensor | None = None) -> Tensor:
        prepare()
        with self._tracing:
            loss, gradients = self._run(weights, batch)
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        return loss


def mean_loss(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of the losses of examples, weighted."""
    losses = one_each(losses)
    return (losses if weights is None else losses * weights).mean()


def one_each(losses: Tensor) -> Tensor:
    """Losses, refused if they are not one for each example, as when a context of shape (n, 1) meets labels (n,)."""
    if losses.ndim != 1:
        raise ValueError(
            f"fit: expected one loss for each example, got shape {tuple(losses.shape)}: has the context one entry for "
            "each row? Class labels have shape (n,)"
        )
    return losses


def _laid_out(gradient: Tensor | None, p: Tensor) -> Tensor | None:
    """The gradient in memory as its parameter is, which fused optimisers rely on."""
    return None if gradient is None else torch.empty_like(p).copy_(gradient)

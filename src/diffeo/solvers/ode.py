"""Ordinary differential equations, by torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffeo.solvers.roots import UnsolvedError

State = tuple[Tensor, ...]
ADAPTIVE, FIXED = ("dopri5", "dopri8", "bosh3", "adaptive_heun"), ("rk4", "midpoint", "euler")


@dataclass(frozen=True)
class Integrator:
    """How an equation is solved.

    Args:
        method: "dopri5" and other adaptive methods of torchdiffeq, or "rk4", "midpoint" and "euler" with fixed steps.
        rtol, atol: tolerances of adaptive methods, > 0.
        steps: of methods with fixed steps, at least 1.
        adjoint: gradients by solving the adjoint equation backwards, in memory that does not grow with the number of
            steps, instead of through the solver's steps; they then carry an error of the size of the tolerances.

    Raises:
        ValueError: an unknown method; values outside these.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-6
    steps: int = 20
    adjoint: bool = False

    def __post_init__(self) -> None:
        if self.method not in ADAPTIVE + FIXED:
            raise ValueError(f"method must be one of {', '.join(ADAPTIVE + FIXED)}, got {self.method!r}")
        if not (self.rtol > 0 and self.atol > 0 and self.steps >= 1):
            raise ValueError(
                f"expected rtol > 0, atol > 0 and steps >= 1, got {self.rtol}, {self.atol} and {self.steps}"
            )

    def solve(
        self,
        f: Callable[[Tensor, State], State],
        state: State,
        start: float,
        end: float,
        parameters: Iterable[Tensor],
    ) -> State:
        """The state at `end`, for d state / dt = f(t, state), from the state at `start`.

        Args:
            parameters: what f depends on besides the state, for the adjoint's gradients.

        Raises:
            UnsolvedError: an adaptive method's steps shrink to nothing, as with NaN in the state.
        """
        from torchdiffeq import odeint, odeint_adjoint  # it brings SciPy along

        t = torch.tensor([start, end], dtype=state[0].dtype, device=state[0].device)
        if self.method in ADAPTIVE:
            options: dict[str, Any] = {"norm": _worst_row}
        else:
            options = {"step_size": abs(end - start) / self.steps}
        arguments = {"rtol": self.rtol, "atol": self.atol, "method": self.method, "options": options}
        try:
            if self.adjoint and torch.is_grad_enabled():
                needed = tuple(p for p in parameters if p.requires_grad)
                path = odeint_adjoint(f, state, t, adjoint_params=needed, **arguments)
            else:
                path = odeint(f, state, t, **arguments)
        except AssertionError as error:  # steps that shrink to nothing
            raise UnsolvedError(
                f"{self.method}: no step is short enough for rtol={self.rtol} and atol={self.atol} ({error}); "
                "are there NaN or huge values among the rows?"
            ) from error
        return tuple(values[-1] for values in path)


def _worst_row(state: State) -> Tensor:
    """Root mean square of each row's error, the largest of them: no row's solution depends on how easy others are."""
    x, *rest = state
    squares = torch.stack([x.square().sum(-1), *(part.square() for part in rest)]).sum(0)
    worst = (squares / (x.shape[-1] + len(rest))).flatten()
    return torch.cat([worst, worst.new_zeros(1)]).max().sqrt()  # there may be no row

"""What a fit tells afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffeo.training.importance_weights import Importance


@dataclass
class FitResult:
    """History and outcome of a fit. Losses are means per row, in nats for maximum likelihood.

    Attributes:
        history: one entry for each evaluation: step, epoch, train_loss, validation_loss (None without held-out rows),
            lr, seconds.
        steps: optimiser steps taken in all, those before a resume included.
        resumed_steps: of these, the ones taken before the resume.
        best_step: step whose averaged weights were kept.
        validation_loss: of the kept weights on the held-out rows, with its standard error over rows; None without.
        seconds: training time, that before a resume included.
        stopped: "steps", "patience" or "time_limit".
        compiled: whether the training step was compiled.
        in_nats: whether losses are negative log-densities, or bounds of them.
        effective_sample_size: share of the flow's samples that importance weights against the target leave, in (0, 1];
            for objectives with a target (`ReverseKL` and its like), else None.
        pareto_k: how heavy the tail of these weights is; above 0.7 they are not to be trusted.
        log_normalizer: estimate of log ∫ p̃ from them.
        missed: share of the target's mass that the flow leaves out, which these weights cannot show (see
            `diffeo.importance`).
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    resumed_steps: int = 0
    best_step: int = 0
    validation_loss: float | None = None
    validation_stderr: float | None = None
    seconds: float = 0.0
    stopped: str = "steps"
    compiled: bool = False
    in_nats: bool = True
    effective_sample_size: float | None = None
    pareto_k: float | None = None
    log_normalizer: float | None = None
    missed: float | None = None

    def importance(self, weights: Importance) -> None:
        """Note what importance weights say of the flow."""
        self.effective_sample_size = weights.effective_sample_size / len(weights.log_weights)
        self.pareto_k, self.log_normalizer, self.missed = weights.pareto_k, weights.log_normalizer, weights.missed

    @property
    def validation_nats(self) -> float | None:
        """Mean held-out log-density of the kept weights, in nats per row; None where losses are something else."""
        return -self.validation_loss if self.in_nats and self.validation_loss is not None else None

    def plot(self, ax: Any = None) -> Any:
        """Loss curves of training and held-out rows; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        if ax is None:
            ax = plt.figure(figsize=(6, 3.5), layout="constrained").subplots()
        steps = [entry["step"] for entry in self.history]
        sign = -1 if self.in_nats else 1
        ax.plot(steps, [sign * entry["train_loss"] for entry in self.history], color="#3d5a80", label="training rows")
        if self.validation_loss is not None:
            held = [sign * entry["validation_loss"] for entry in self.history]
            ax.plot(steps, held, color="#ee6c4d", label="held-out rows")
            ax.axvline(self.best_step, color="#1b1f24", lw=0.8, ls=":", label=f"kept: step {self.best_step}")
        ax.set(xlabel="steps", ylabel="log-density (nats per row)" if self.in_nats else "loss per row")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
        return ax

    def __str__(self) -> str:
        held = ""
        if self.validation_loss is not None:
            shown = f"{-self.validation_loss:.3f} nats" if self.in_nats else f"loss {self.validation_loss:.4g}"
            held = f", held-out {shown}"
        if self.validation_stderr is not None:
            held += f" ± {self.validation_stderr:.3f}"
        if self.effective_sample_size is not None:
            held = f", {self.effective_sample_size:.1%} effective samples, Pareto k {self.pareto_k:.2f}"
            held += "" if self.missed is None else f", {self.missed:.1%} of the target missed"
        return f"{self.steps} steps in {self.seconds:.1f} s (stopped by {self.stopped}; best at {self.best_step}){held}"

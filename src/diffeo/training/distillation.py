"""Distillation: a flow that samples in one pass learns the density of an autoregressive one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffeo.core import Chain, Flow, Inverse, Objective
from diffeo.densities import Normal
from diffeo.functional import Context, context_mask
from diffeo.transforms import Affine, Along, Autoregressive, LocationScale, Standardize

SMALLEST = -9.0  # log of a scale of the teacher: below it, differences count no more


class Distillation(Objective):
    """KL(student ‖ teacher) of flows of sequences in closed form at each position, in nats a position.

    Both are normal at each position: the student's x_t given its noise before t, N(m_q, s_q), the teacher's given the
    student's own x before t, N(m_p, s_p). Noise is drawn, and then

    loss = mean_t [log s_p/s_q + (s_q² + (m_q − m_p)²) / (2 s_p²) − ½ + weight (log s_q − log s_p)²] + extra(x, sample)

    whose first part estimates the divergence of the sequences without bias and with far less noise than samples of
    log q − log p. The teacher is not trained.

    Args:
        student: a `parallel_wavenet`, or another flow whose transform is a chain of standardisation and inverses of
            `Autoregressive` layers with `Affine` maps, before a `Normal`.
        teacher: a `wavenet`, or another with one `Autoregressive` layer of `LocationScale` or `Affine` maps.
        weight: of the squared difference of log-scales, at least 0; it keeps the first steps stable.
        extra: a further loss (*batch,) of recordings and samples, such as a distance of spectra; None for none.

    Raises:
        ValueError: flows of another kind; a negative weight.

    Cost: a sample of the student and a density of the teacher.

    "Parallel WaveNet: Fast High-Fidelity Speech Synthesis" (van den Oord et al., 2017),
    https://arxiv.org/abs/1711.10433; "ClariNet: Parallel Wave Generation in End-to-End Text-to-Speech" (Ping et al.,
    2018), https://arxiv.org/abs/1807.07281

    >>> import torch, diffeo
    >>> teacher, student = diffeo.wavenet(0, 1, preset="tiny"), diffeo.parallel_wavenet(0, 1, preset="tiny")
    >>> diffeo.Distillation(student, teacher)(torch.randn(5, 30, 1)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        student: Flow,
        teacher: Flow,
        *,
        weight: float = 0.0,
        extra: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"Distillation: expected weight >= 0, got {weight}")
        count = sum(isinstance(part, Autoregressive) for part in _layers(teacher, "teacher"))
        inverses = [part for part in _layers(student, "student") if isinstance(part, Inverse)]
        if count != 1 or not inverses:
            raise ValueError(
                "Distillation: expected a teacher with one Autoregressive layer and a student of inverses of them, "
                f"got {count} and {len(inverses)}"
            )
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.weight, self.extra = weight, extra

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        self.teacher.eval()
        return self

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Standardisations of the student, from training rows."""
        self.student.check_context(context)
        inner = self.student.encode(context)
        for part in _layers(self.student, "student"):
            if isinstance(part, Along):
                part.initialize(x, inner)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        generator = None if self.training else torch.Generator(x.device).manual_seed(1)
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        sample, log_s_q = _with_scales(self.student, noise, context, "inverse")
        noise_p, log_slope = _with_scales(self.teacher, sample, context, "forward")
        log_s_p = (-log_slope).clamp_min(SMALLEST)
        ratio = log_s_q.clamp_min(SMALLEST) - log_s_p
        # (m_q − m_p) / s_p, from x = m_q + s_q ε and ε_p = (x − m_p) / s_p
        apart = (-log_slope - log_s_p).exp() * noise_p - (log_s_q - log_s_p).exp() * noise
        each = 0.5 * ((2 * ratio).exp() + apart.square() - 1) - ratio + self.weight * ratio.square()
        mask = context_mask(context)
        if mask is None:
            loss = each.mean((-1, -2))
        else:
            loss = torch.where(mask, each, 0.0).sum((-1, -2)) / mask.expand(each.shape).sum((-1, -2))
        return loss if self.extra is None else loss + self.extra(x, sample)


def _with_scales(flow: Flow, x: Tensor, context: Context, direction: str) -> tuple[Tensor, Tensor]:
    """x mapped by a flow's layers in a direction, and the log-slope at each position."""
    context = flow.encode(context)
    parts = _layers(flow, "flow")
    total = torch.zeros_like(x)
    for part in parts if direction == "forward" else reversed(parts):
        if isinstance(part, Along):
            standard: Any = part.transform
            slope = -standard.scale.log()
            x = (part if direction == "forward" else part.inverse)(x, context)[0]
            slopes = slope if direction == "forward" else -slope
        else:
            layer: Any = part.transform if isinstance(part, Inverse) else part
            if isinstance(part, Inverse) == (direction == "forward"):
                raise ValueError("Distillation: this direction would run position by position")
            a, b = layer.take(x)
            x, slopes = layer.map_scalars(b, layer.params(a, b, context), context, "forward")  # pyright: ignore
        total = total + slopes
    return x, total


def _layers(flow: Flow, which: str) -> list[Any]:
    """The layers of a flow, each of a kind whose slope at a position is known."""
    chained = isinstance(flow.transform, Chain)
    parts: list[Any] = list(flow.transform.parts) if chained else [flow.transform]  # pyright: ignore

    def known(part: Any) -> bool:
        inner = part.transform if isinstance(part, Inverse) else part
        if isinstance(part, Along):
            return isinstance(part.transform, Standardize)
        plain = isinstance(inner, Autoregressive) and isinstance(inner.univariate, Affine | LocationScale)
        return plain and inner.net.order is None and inner.event_ndim == 2  # pyright: ignore

    if not isinstance(flow.base, Normal) or any(not known(part) for part in parts):
        raise ValueError(
            f"Distillation: the {which} must be a chain of standardisation and autoregressive layers of scalings and "
            f"shifts over sequences, before a Normal; got {', '.join(type(part).__name__ for part in parts)} before "
            f"{type(flow.base).__name__}"
        )
    return parts

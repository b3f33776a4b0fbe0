"""Linear prediction of sound, by coefficients that its context brings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import Context, as_fixed_event, check_event, entries, joined, keep_masked, precise, sum_event


class LinearPrediction(Transform):
    """z_t = (x_t − Σ_k a_k x_{t−k}) / g: what a linear prediction from the samples before misses, in units of its size.

    log|det| = −Σ_t log g. Coefficients and gains belong to frames; a sample has those of the nearest frame's centre.

    Args:
        order: how many samples before.
        hop: samples from the centre of a frame to that of the next; frame 0 is centred on the first sample.

    Context: `"prediction"`, (*batch, F, order + 1), a_1 … a_order and log g of each frame; the last frame goes on.

    Raises:
        ValueError: sizes below 1; a context without the entry.

    Cost: O(N · order); the inverse solves a triangular system for each frame, one after the other.

    "Linear Prediction: A Tutorial Review" (Makhoul, 1975), https://doi.org/10.1109/PROC.1975.9792; "LPCNet: Improving
    Neural Speech Synthesis Through Linear Prediction" (Valin and Skoglund, 2018), https://arxiv.org/abs/1810.11846

    >>> import torch, diffeo
    >>> half = torch.tensor([[0.5, 0.0]])  # a_1 and log g of the only frame
    >>> diffeo.LinearPrediction(1, 10)(torch.ones(3, 1), {"prediction": half})[0].flatten()
    tensor([1.0000, 0.5000, 0.5000])
    """

    event_ndim = event_ndim_out = 2
    domain = codomain = constraints.independent(constraints.real, 2)
    event = (None, 1)

    def __init__(self, order: int, hop: int):
        super().__init__()
        as_fixed_event((order, hop), self)
        self.order, self.hop, self.reads = order, hop, {"prediction": 2}

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "LinearPrediction")
        own, x = x, precise(x)
        frames = self._frames(context).to(x.dtype)
        taps = frames.index_select(-2, self._frame_of(x, frames))
        padded, n = torch.nn.functional.pad(x[..., 0], (self.order, 0)), x.shape[-2]
        before = torch.stack([padded[..., self.order - k : self.order - k + n] for k in range(1, self.order + 1)], -1)
        missed = x[..., 0] - (before * taps[..., :-1]).sum(-1)
        log_gain = taps[..., -1:].expand(*missed.shape, 1)
        z = (missed.unsqueeze(-1) * (-log_gain).exp()).to(own.dtype)
        z, logdet = keep_masked(own, z, -log_gain, context)
        return z, sum_event(logdet, 2)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, self.event, "LinearPrediction")
        own, z = z, precise(z)
        frames = self._frames(context).to(z.dtype)
        batch = joined(z.shape[:-2], frames.shape[:-2])
        log_gain = frames[..., -1:].index_select(-2, self._frame_of(z, frames)).expand(*batch, z.shape[-2], 1)
        missed = (z * log_gain.exp())[..., 0].expand(*batch, -1)
        past, parts = z.new_zeros(*batch, self.order), []
        ends = self._ends(z.shape[-2], frames.shape[-2])
        for f, (a, b) in enumerate(ends):
            past = self._solve(missed[..., a:b], past, frames[..., f, :-1].expand(*batch, -1))
            parts.append(past[..., self.order :])
            past = past[..., past.shape[-1] - self.order :]
        found = torch.cat(parts, -1).unsqueeze(-1) if parts else z
        x, logdet = keep_masked(own, found.to(own.dtype), log_gain, context)
        return x, sum_event(logdet, 2)

    def _solve(self, missed: Tensor, past: Tensor, taps: Tensor) -> Tensor:
        """The past and the samples after it that are predicted so, but for what is missed."""
        n = missed.shape[-1]
        i = torch.arange(n, device=missed.device)[:, None]
        lag = i + self.order - torch.arange(self.order + n, device=missed.device)  # from each sample to each before it
        weights = torch.where((lag >= 1) & (lag <= self.order), taps[..., (lag - 1).clamp(0, self.order - 1)], 0.0)
        known = missed + (weights[..., : self.order] * past.unsqueeze(-2)).sum(-1)  # no product, which autocast rounds
        system = torch.eye(n, dtype=missed.dtype, device=missed.device) - weights[..., self.order :]
        found = torch.linalg.solve_triangular(system, known.unsqueeze(-1), upper=False, unitriangular=True)
        return torch.cat([past, found.squeeze(-1)], -1)

    def _frames(self, context: Context) -> Tensor:
        found = entries(context).get("prediction")
        if found is None or found.shape[-1] != self.order + 1:
            got = "none" if found is None else f"shape {tuple(found.shape)}"
            raise ValueError(
                f"LinearPrediction: expected the entry 'prediction', {self.order} coefficients and log g a frame, "
                f"got {got}"
            )
        return found

    def _frame_of(self, x: Tensor, frames: Tensor) -> Tensor:
        """The frame of each sample."""
        nearest = (torch.arange(x.shape[-2], device=x.device) + self.hop // 2) // self.hop
        return nearest.clamp_max(frames.shape[-2] - 1)

    def _ends(self, samples: int, frames: int) -> list[tuple[int, int]]:
        """Where the samples of each frame begin and end."""
        begins = [max(0, f * self.hop - self.hop // 2) for f in range(frames)]
        ends = [*begins[1:], samples]
        return [(a, min(b, samples)) for a, b in zip(begins, ends, strict=True) if a < samples]

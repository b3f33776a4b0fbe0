"""WaveNets that can take a step at a time: over samples one after another, and over the rows of a folded sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from diffeo.core import Incremental
from diffeo.functional import Context, as_fixed_event, context_mask, joined
from diffeo.nets.beside import Beside, reads_of


class CausalWaveNet(Incremental):
    """A WaveNet whose parameters for a frame depend on the frames before it, one after another; zero at the start.

    Frames are shifted by one; layer i convolves each with the one dilation[i] before it, gated, as in `WaveNet`. A step
    keeps the last dilation[i] frames of each layer, so that it costs one frame.

    Args:
        features: of each frame; 1 for sound.
        n_params: of each scalar.
        hidden: channels of the layers.
        layers: at least 1.
        cycle: layer i has the dilation 2^(i mod cycle).
        beside: what lies beside the frames in the context; None for nothing.

    Returns:
        Parameters of shape `(*batch, T, features, n_params)`.

    Raises:
        ValueError: sizes outside these.

    Cost: O(T · hidden²) for each layer.

    "WaveNet: A Generative Model for Raw Audio" (van den Oord et al., 2016), https://arxiv.org/abs/1609.03499; "Fast
    Wavenet Generation Algorithm" (Le Paine et al., 2016), https://arxiv.org/abs/1611.09482

    >>> import torch, diffeo
    >>> net = diffeo.nets.CausalWaveNet(1, 2, hidden=8, layers=3)
    >>> layer = diffeo.Autoregressive(net, diffeo.Affine(), dim=-2, event_ndim=2)
    >>> layer.inverse(torch.zeros(5, 9, 1))[0].shape
    torch.Size([5, 9, 1])
    """

    def __init__(
        self,
        features: int,
        n_params: int,
        *,
        hidden: int = 32,
        layers: int = 8,
        cycle: int = 8,
        beside: Beside | None = None,
    ):
        super().__init__()
        as_fixed_event((features, n_params, hidden, layers, cycle), self)
        self.features, self.n_params, self.beside, self.reads = features, n_params, beside, reads_of(beside)
        spans = [Span(2, 2 ** (i % cycle)) for i in range(layers)]
        self.stack = GatedStack(features, features * n_params, hidden, spans, -1, beside)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        known, batch = self._known(x, context)
        seen = F.pad(x[..., :-1, :], (0, 0, 1, 0)).expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
        params = self.stack(seen.mT.unsqueeze(-2), known)[..., 0, :].mT.unflatten(-1, (self.features, self.n_params))
        return params.reshape(*batch, *params.shape[1:])

    def start(self, z: Tensor, context: Context = None) -> tuple[int, Tensor | None, Tensor, list[Tensor]]:
        known, batch = self._known(z, context)
        first = z.new_zeros(*batch, self.features).reshape(-1, self.features, 1, 1)
        return 0, known, first, self.stack.empty(first)

    def step(self, x_prev: Tensor | None, state: Any) -> tuple[Tensor, Any, Any]:
        done, known, first, queues = state
        seen = first if x_prev is None else x_prev[..., None, None]
        here = None if known is None else known[..., done : done + 1]
        found, queues = self.stack.step(seen, queues, here)
        return found[..., 0, 0].unflatten(-1, (self.features, self.n_params)), None, (done + 1, known, first, queues)

    def _known(self, x: Tensor, context: Context) -> tuple[Tensor | None, Sequence[int]]:
        """What lies beside each frame, (rows, channels, 1, T); and the batch of all."""
        if self.beside is None or self.stack.known is None:
            return None, x.shape[:-2]
        known = self.beside.at(self.stack.known, x.shape[-2], context, "CausalWaveNet")
        batch = joined(x.shape[:-2], known.shape[:-2])
        return known.expand(*batch, *known.shape[-2:]).reshape(-1, *known.shape[-2:]).mT.unsqueeze(-2), batch


class RowWaveNet(Incremental):
    """A WaveNet over the rows of a folded sound: causal from row to row, free along each row; zero at the start.

    The features of frames (T, rows) are rows, T long. Convolutions of 3×3 see this row and two before it, and dilated
    neighbours to both sides. With one row it is a plain net, with as many rows as samples a WaveNet. A step keeps the
    last rows of each layer, so that it costs one row.

    Args:
        rows: their number, h.
        n_params: of each scalar.
        hidden: channels of the layers.
        layers: at least 1; layer i has the dilation 2^i along a row.
        heights: dilations of the layers from row to row, repeated; default: 1.
        order: the order of the steps, a permutation of the rows; default: first to last.
        beside: what lies beside the frames in the context; None for nothing.

    Returns:
        Parameters of shape `(*batch, T, rows, n_params)`, in the order of the steps.

    Raises:
        ValueError: sizes outside these; an order that is no permutation.

    Cost: O(T · rows · 9 · hidden²) for each layer.

    "WaveFlow: A Compact Flow-based Model for Raw Audio" (Ping et al., 2019), https://arxiv.org/abs/1912.01219

    >>> import torch, diffeo
    >>> net = diffeo.nets.RowWaveNet(4, 2, hidden=8, layers=2)
    >>> layer = diffeo.Autoregressive(net, diffeo.Affine(), dim=-1, event_ndim=2)
    >>> layer.inverse(torch.zeros(5, 9, 4))[0].shape
    torch.Size([5, 9, 4])
    """

    order: Tensor
    rank: Tensor

    def __init__(
        self,
        rows: int,
        n_params: int,
        *,
        hidden: int = 64,
        layers: int = 8,
        heights: Sequence[int] = (1,),
        order: Tensor | None = None,
        beside: Beside | None = None,
    ):
        super().__init__()
        as_fixed_event((rows, n_params, hidden, layers, *heights), self)
        self.order = torch.arange(rows) if order is None else order.clone()
        if not torch.equal(self.order.sort().values, torch.arange(rows)):
            raise ValueError(f"RowWaveNet: expected a permutation of {rows} rows, got {self.order.tolist()}")
        self.rank = self.order.argsort()
        self.n_params, self.beside, self.reads = n_params, beside, reads_of(beside)
        spans = [Span(3, heights[i % len(heights)], 3, 2**i) for i in range(layers)]
        self.stack = GatedStack(1, n_params, hidden, spans, -2, beside)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        known, mask, batch = self._known(x, context)
        seen = F.pad(x.index_select(-1, self.order)[..., :-1], (1, 0)).mT.unsqueeze(-3)  # (*batch, 1, rows, T)
        seen = seen.expand(*batch, *seen.shape[-3:]).reshape(-1, *seen.shape[-3:])
        params = self.stack(seen, known, mask).movedim(1, -1).transpose(-3, -2)
        return params.reshape(*batch, *params.shape[1:])

    def start(self, z: Tensor, context: Context = None) -> tuple[Tensor | None, Tensor | None, Tensor, list[Tensor]]:
        known, mask, batch = self._known(z, context)
        first = z.new_zeros(*batch, z.shape[-2]).reshape(-1, 1, 1, z.shape[-2])
        return known, mask, first, self.stack.empty(first)

    def step(self, x_prev: Tensor | None, state: Any) -> tuple[Tensor, Any, Any]:
        known, mask, first, queues = state
        found, queues = self.stack.step(first if x_prev is None else x_prev[:, None, None], queues, known, mask)
        return found.squeeze(-2).mT, None, (known, mask, first, queues)

    def _known(self, x: Tensor, context: Context) -> tuple[Tensor | None, Tensor | None, Sequence[int]]:
        """What lies beside each frame, (n, channels, 1, T), alike in all rows; the mask; and the batch of all."""
        known, batch, mask = None, x.shape[:-2], context_mask(context)
        if self.beside is not None and self.stack.known is not None:
            known = self.beside.at(self.stack.known, x.shape[-2], context, "RowWaveNet").mT.unsqueeze(-2)
            batch = joined(batch, known.shape[:-3])
        if mask is not None:  # one number a frame, however the rows were masked
            mask = mask.any(-1, keepdim=True).mT.unsqueeze(-3)
            batch = joined(batch, mask.shape[:-3])
            mask = mask.expand(*batch, 1, 1, x.shape[-2]).reshape(-1, 1, 1, x.shape[-2])
        if known is not None:
            known = known.expand(*batch, *known.shape[-3:]).reshape(-1, *known.shape[-3:])
        return known, mask, batch


class Span(NamedTuple):
    """What a causal convolution sees: positions up to this one, and across them neighbours to both sides."""

    kernel: int
    dilation: int
    width: int = 1
    dilation_across: int = 1

    @property
    def kept(self) -> int:
        """Positions before this one."""
        return (self.kernel - 1) * self.dilation


class GatedStack(nn.Module):
    """Gated convolutions over images (n, channels, ·, ·), causal along one dim, which can take one position at a time.

    h ← h + W (tanh(a) σ(b)), with (a, b) a convolution of h and what is known beside it; then a map of the sum of all.
    Positions lie along `dim`, −1 or −2.
    """

    def __init__(self, features: int, out: int, hidden: int, spans: Sequence[Span], dim: int, beside: Beside | None):
        super().__init__()
        self.spans, self.hidden, self.dim = tuple(spans), hidden, dim

        def ordered(along: int, across: int) -> tuple[int, int]:
            return (along, across) if dim == -2 else (across, along)

        self.enter = nn.Conv2d(features, hidden, 1)
        self.near = nn.ModuleList(
            nn.Conv2d(
                hidden,
                2 * hidden,
                ordered(s.kernel, s.width),
                dilation=ordered(s.dilation, s.dilation_across),
                padding=ordered(0, (s.width - 1) * s.dilation_across // 2),
            )
            for s in spans
        )
        self.known = nn.Linear(beside.features, 2 * hidden * len(spans), bias=False) if beside else None
        last = len(spans) - 1  # which gives nothing to a next one
        self.mix = nn.ModuleList(nn.Conv2d(hidden, hidden * (1 + (i < last)), 1) for i in range(len(spans)))
        self.leave = nn.Conv2d(hidden, out, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # pyright: ignore[reportArgumentType] (it has one)

    def forward(self, x: Tensor, known: Tensor | None, mask: Tensor | None = None) -> Tensor:
        return self.step(x, self.empty(x), known, mask)[0]

    def empty(self, x: Tensor) -> list[Tensor]:
        """What each layer has seen before any position of x: zeros."""
        shape = [len(x), self.hidden, *x.shape[-2:]]
        found: list[Tensor] = []
        for span in self.spans:
            shape[self.dim] = span.kept
            found.append(x.new_zeros(shape))
        return found

    def step(
        self, x: Tensor, before: list[Tensor], known: Tensor | None, mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The next positions, one or all: what the stack makes of them, and what each layer has then seen."""
        shares = [None] * len(self.spans) if known is None else known.chunk(len(self.spans), 1)

        def real(h: Tensor) -> Tensor:
            return h if mask is None else torch.where(mask, h, 0.0)

        h, total, seen = real(self.enter(x)), None, []
        layers = zip(self.near, self.mix, self.spans, shares, before, strict=True)
        for i, (near, mix, span, share, old) in enumerate(layers):
            both = torch.cat([old, h], self.dim)
            seen.append(both.narrow(self.dim, both.shape[self.dim] - span.kept, span.kept))
            found = near(both)
            value, gate = (found if share is None else found + share).chunk(2, 1)
            found = mix(value.tanh() * gate.sigmoid())
            if i < len(self.spans) - 1:
                h = real(h + found[:, : self.hidden])
            total = found[:, -self.hidden :] if total is None else total + found[:, -self.hidden :]
        return self.leave(F.relu(total)), seen  # pyright: ignore[reportArgumentType]

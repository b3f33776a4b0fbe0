"""WaveNets: gated dilated convolutions over frames, over samples one after another, over rows of a folded sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from diffeo.core import Incremental
from diffeo.functional import Context, as_fixed_event, context_features, context_mask, entries, joined
from diffeo.kernels import gated, perceptron
from diffeo.kernels.dispatch import compiled_kernels
from diffeo.kernels.private import has_hooks


class Beside(NamedTuple):
    """Frames of a context that lie beside what a net runs over, and how many of its positions pass in one of them.

    Attributes:
        entry: of the context, (*batch, F, features).
        features: of each frame.
        positions: from the centre of a frame to that of the next, > 0.
        first: position at the centre of frame 0.
    """

    entry: str
    features: int
    positions: float
    first: float = 0.0

    def at(self, project: nn.Module, count: int, context: Context, who: str) -> Tensor:
        """The projected frames, (*batch, count, width), interpolated at so many positions; the last one goes on."""
        return gated.interpolated(self.frames(project, count, context, who), count, self.positions, self.first)

    def frames(self, project: nn.Module, count: int, context: Context, who: str) -> Tensor:
        """The projected frames, (*batch, F, width), which have to be enough for so many positions."""
        found = entries(context).get(self.entry)
        if found is None or found.shape[-1] != self.features:
            got = "none" if found is None else f"shape {tuple(found.shape)}"
            raise ValueError(
                f"{who}: expected the entry {self.entry!r} with {self.features} features a frame, got {got}"
            )
        frames = project(found)
        needed = (count - 1 - self.first) / self.positions
        if needed >= frames.shape[-2]:
            raise ValueError(
                f"{who}: {frames.shape[-2]} frames of {self.entry!r} are too few for {count} positions, of which "
                f"{self.positions:g} pass in a frame"
            )
        return frames


def reads_of(beside: Beside | None) -> dict[str, int]:
    """The entry, for a net's `reads`."""
    return {} if beside is None else {beside.entry: 2}


class FrameMap(nn.Module):
    """Parameters of each frame that are a linear map of what lies beside it in the context; zero at the start.

    Args:
        out: scalars at each frame.
        n_params: of each.
        beside: what lies beside the frames.

    Returns:
        Parameters of shape `(*batch, T, out, n_params)`, whatever the frames hold.

    Raises:
        ValueError: sizes below 1; a context without such frames, or with too few.

    Cost: one product of matrices.

    >>> import torch, diffeo
    >>> net = diffeo.nets.FrameMap(2, 2, beside=diffeo.nets.Beside("features", 3, 1.0))
    >>> net(torch.zeros(5, 9, 0), {"features": torch.zeros(9, 3)}).shape
    torch.Size([5, 9, 2, 2])
    """

    def __init__(self, out: int, n_params: int, *, beside: Beside):
        super().__init__()
        as_fixed_event((out, n_params), self)
        self.out, self.n_params, self.beside, self.reads = out, n_params, beside, reads_of(beside)
        self.known = nn.Linear(beside.features, out * n_params)
        nn.init.zeros_(self.known.weight)
        nn.init.zeros_(self.known.bias)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        params = self.beside.at(self.known, x.shape[-2], context, "FrameMap")
        batch = joined(x.shape[:-2], params.shape[:-2])
        return params.expand(*batch, *params.shape[-2:]).unflatten(-1, (self.out, self.n_params))


class WaveNet(nn.Module):
    """Gated dilated convolutions over frames, as a conditioner whose output is zero at the start.

    h ← h + W (tanh(a) σ(b)), with (a, b) a dilated convolution of h and a linear map of the context; the parameters
    are a map of the sum of all such layers. Every frame sees frames on both sides. Padding counts as zero in every
    layer, so it changes nothing. Slower frames of a context, such as a spectrogram's beside sound, are interpolated.

    Args:
        features: of x_a at each frame.
        out: scalars of x_b at each frame.
        n_params: of each.
        hidden: channels of the layers.
        layers: at least 1.
        kernel: frames that a convolution spans, odd.
        dilation: of layer i, dilation**i.
        context: width of a context vector; 0 for none.
        beside: what lies beside the frames in the context; None for nothing.
        dropout: in [0, 1).

    Returns:
        Parameters of shape `(*batch, T, out, n_params)`.

    Raises:
        ValueError: sizes outside these.

    Cost: O(T · hidden² · kernel) for each layer.

    "WaveNet: A Generative Model for Raw Audio" (van den Oord et al., 2016), https://arxiv.org/abs/1609.03499;
    "WaveGlow: A Flow-based Generative Network for Speech Synthesis" (Prenger et al., 2018),
    https://arxiv.org/abs/1811.00002

    >>> import torch, diffeo
    >>> diffeo.nets.WaveNet(2, 2, 2, hidden=8)(torch.zeros(5, 9, 2)).shape
    torch.Size([5, 9, 2, 2])
    """

    def __init__(
        self,
        features: int,
        out: int,
        n_params: int,
        *,
        hidden: int = 64,
        layers: int = 4,
        kernel: int = 5,
        dilation: int = 1,
        context: int = 0,
        beside: Beside | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        as_fixed_event((features, out, n_params, hidden, layers, kernel, dilation), self)
        if kernel % 2 == 0 or context < 0:
            raise ValueError(f"WaveNet: expected an odd kernel and context >= 0, got {kernel} and {context}")
        self.out, self.n_params, self.context, self.hidden, self.beside = out, n_params, context, hidden, beside
        self.reads = {**({"features": 1} if context else {}), **reads_of(beside)}
        self.enter = nn.Conv1d(features, hidden, 1)
        self.near = nn.ModuleList(
            nn.Conv1d(hidden, 2 * hidden, kernel, dilation=dilation**i, padding=dilation**i * (kernel // 2))
            for i in range(layers)
        )
        self.given = nn.Linear(context, 2 * hidden * layers, bias=False) if context else None
        self.known = nn.Linear(beside.features, 2 * hidden * layers, bias=False) if beside else None
        # the last layer gives nothing to a next one
        self.mix = nn.ModuleList(nn.Conv1d(hidden, hidden * (1 + (i < layers - 1)), 1) for i in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Conv1d(hidden, out * n_params, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # pyright: ignore[reportArgumentType] (it has one)
        self.panels: gated.Panels | None = None  # the weights as C reads them

    def pack(self) -> None:
        """Lay the weights out as C reads them, once for many calls.

        They are laid out anew at each call once they have changed; but changes through `.data` go unnoticed.
        """
        self.panels = None
        with torch.no_grad(), compiled_kernels():
            like = self.enter.weight
            apart = len(self.near) * 2 * self.hidden
            given = None if self.given is None and self.known is None else like.new_zeros(1, 1, apart)
            whole = self._as_gated(like.new_zeros(1, 1, like.shape[1]), None, given)
            if whole is not None:
                self.panels = gated.pack(whole._replace(dropped=None), self.n_params)

    def _apply(self, *args: Any, **kwargs: Any) -> WaveNet:
        moved = super()._apply(*args, **kwargs)  # to another dtype or device
        if self.panels is not None:
            self.pack()
        return moved

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "panels": self.panels is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "panels": None})
        if state["panels"]:  # a copy has weights of its own, and other processors read them in another order
            self.pack()

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        batch, mask, given = x.shape[:-2], context_mask(context), None
        if self.given is not None:
            features = context_features(context)
            if features is None or features.shape[-1] != self.context:
                got = "none" if features is None else f"shape {tuple(features.shape)}"
                raise ValueError(f"WaveNet: expected a context with {self.context} features, got {got}")
            given = self.given(features.to(x.dtype))
            batch = joined(batch, given.shape[:-1])
            given = given.unsqueeze(-2)
        if self.known is not None and self.beside is not None:
            known = self.beside.frames(self.known, x.shape[-2], context, "WaveNet")
            batch = joined(batch, known.shape[:-2])
            given = known if given is None else given + known
        if mask is not None:  # one number a frame, however the features were masked
            mask = mask.any(-1, keepdim=True)
            batch = joined(batch, mask.shape[:-2])
            mask = mask.expand(*batch, x.shape[-2], 1).reshape(-1, 1, x.shape[-2])
        if given is not None:
            given = given.expand(*batch, *given.shape[-2:]).reshape(-1, *given.shape[-2:])
        frames = x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
        whole = self._as_gated(frames, mask, given)
        if whole is None:
            params = self._layers(frames, mask, given).mT.unflatten(-1, (self.out, self.n_params))
        else:
            params = gated.run(whole, self.n_params)
        return params.reshape(*batch, *params.shape[1:])

    def _layers(self, x: Tensor, mask: Tensor | None, given: Tensor | None) -> Tensor:
        h, counts = self.enter(x.mT), None
        if given is not None and self.beside is not None:
            given = gated.interpolated(given, x.shape[1], self.beside.positions, self.beside.first)
        given = None if given is None else given.mT
        if mask is not None:  # what comes from outside may be anything there; inside, a product with zero is faster
            h, counts = torch.where(mask, h, 0.0), mask.to(h.dtype)
            given = torch.where(mask, given, 0.0) if self.known is not None and given is not None else given
        shares = None if given is None else given.chunk(len(self.near), 1)
        total: Tensor | None = None
        for i, (near, mix) in enumerate(zip(self.near, self.mix, strict=True)):
            both = near(h) if shares is None else near(h) + shares[i]
            value, gate = both.chunk(2, 1)
            found = mix(self.dropout(value.tanh() * gate.sigmoid()))
            kept, share = found[:, : self.hidden], found[:, -self.hidden :]
            if i < len(self.near) - 1:
                h = h + kept if counts is None else (h + kept) * counts
            total = share if total is None else total + share
        return self.leave(F.relu(total))  # pyright: ignore[reportArgumentType] (there is a layer)

    def _as_gated(self, x: Tensor, mask: Tensor | None, given: Tensor | None) -> gated.Gated | None:
        """What to run as one operation, where that can be."""
        if type(self) is not WaveNet or not perceptron.may_run(x):
            return None
        layers: list[Any] = [self.enter, *self.near, *self.mix, self.leave]
        if not all(map(_is_plain, layers)) or type(self.dropout) is not nn.Dropout or has_hooks(self.dropout):
            return None
        whole = gated.Gated(
            x,
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
            tuple(layer.dilation[0] for layer in layers[1 : 1 + len(self.near)]),
            None if given is None else given.expand(len(x), -1, -1),
            None if mask is None else mask.expand(len(x), 1, -1).squeeze(1).to(x.dtype),
            None if self.beside is None else (self.beside.positions, self.beside.first),
            panels=self.panels,
        )
        if len(self.enter.weight) != self.hidden or not gated.fits(whole, self.n_params, self.out):
            return None
        if not (self.dropout.training and self.dropout.p > 0):
            return whole
        # the same numbers at random as those of the layers
        ones = x.new_ones(len(x), self.hidden, x.shape[1])
        return whole._replace(dropped=torch.stack([F.dropout(ones, self.dropout.p) for _ in self.near]).mT)


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is a convolution with a bias, as wide after it as before, with zeros around, and nothing else."""
    if not perceptron.is_plain(layer, (nn.Conv1d,)):
        return False
    reach = layer.dilation[0] * (layer.kernel_size[0] // 2)  # pyright: ignore
    sizes = tuple(layer.weight.shape[2:])  # pyright: ignore[reportIndexIssue]
    settings = layer.stride, layer.padding, layer.groups, layer.padding_mode, layer.kernel_size
    return settings == ((1,), (reach,), 1, "zeros", sizes)


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
    spread: int = 1  # dilation across

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
                dilation=ordered(s.dilation, s.spread),
                padding=ordered(0, (s.width - 1) * s.spread // 2),
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

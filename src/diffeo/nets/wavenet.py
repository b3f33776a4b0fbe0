"""WaveNets over frames: gated dilated convolutions, one operation in C where kernels run."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from diffeo.functional import Context, as_fixed_event, context_features, context_mask, joined
from diffeo.kernels import gated, perceptron
from diffeo.kernels.dispatch import can_run, compiled_kernels
from diffeo.kernels.private import has_hooks
from diffeo.nets.beside import Beside, reads_of


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
            job = self._as_gated(like.new_zeros(1, 1, like.shape[1]), None, given)
            if job is not None:
                self.panels = gated.pack(job._replace(dropped=None), self.n_params)

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
        job = self._as_gated(frames, mask, given)
        if job is None:
            params = self._layers(frames, mask, given).mT.unflatten(-1, (self.out, self.n_params))
        else:
            params = gated.run(job, self.n_params)
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
        if type(self) is not WaveNet or not can_run(x, products=True):
            return None
        layers: list[Any] = [self.enter, *self.near, *self.mix, self.leave]
        if not all(map(_is_unmodified, layers)) or type(self.dropout) is not nn.Dropout or has_hooks(self.dropout):
            return None
        job = gated.Gated(
            x,
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
            tuple(layer.dilation[0] for layer in layers[1 : 1 + len(self.near)]),
            None if given is None else given.expand(len(x), -1, -1),
            None if mask is None else mask.expand(len(x), 1, -1).squeeze(1).to(x.dtype),
            None if self.beside is None else (self.beside.positions, self.beside.first),
            panels=self.panels,
        )
        if len(self.enter.weight) != self.hidden or not gated.fits(job, self.n_params, self.out):
            return None
        if not (self.dropout.training and self.dropout.p > 0):
            return job
        # the same numbers at random as those of the layers
        ones = x.new_ones(len(x), self.hidden, x.shape[1])
        return job._replace(dropped=torch.stack([F.dropout(ones, self.dropout.p) for _ in self.near]).mT)


def _is_unmodified(layer: nn.Module) -> bool:
    """Whether it is a convolution with a bias, as wide after it as before, with zeros around, and nothing else."""
    if not perceptron.is_unmodified(layer, (nn.Conv1d,)):
        return False
    reach = layer.dilation[0] * (layer.kernel_size[0] // 2)  # pyright: ignore
    sizes = tuple(layer.weight.shape[2:])  # pyright: ignore[reportIndexIssue]
    settings = layer.stride, layer.padding, layer.groups, layer.padding_mode, layer.kernel_size
    return settings == ((1,), (reach,), 1, "zeros", sizes)

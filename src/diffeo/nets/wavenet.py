"""WaveNet: gated dilated convolutions over frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from diffeo.functional import Context, as_fixed_event, context_features, context_mask, joined


class WaveNet(nn.Module):
    """Gated dilated convolutions over frames, as a conditioner whose output is zero at the start.

    h ← h + W (tanh(a) σ(b)), with (a, b) a dilated convolution of h and a linear map of the context; the parameters
    are a map of the sum of all such layers. Every frame sees frames on both sides. Padding counts as zero in every
    layer, so it changes nothing.

    Args:
        features: of x_a at each frame.
        out: scalars of x_b at each frame.
        n_params: of each.
        hidden: channels of the layers.
        layers: at least 1.
        kernel: frames that a convolution spans, odd.
        dilation: of layer i, dilation**i.
        context: width of a context vector; 0 for none.
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
        dropout: float = 0.0,
    ):
        super().__init__()
        as_fixed_event((features, out, n_params, hidden, layers, kernel, dilation), self)
        if kernel % 2 == 0 or context < 0:
            raise ValueError(f"WaveNet: expected an odd kernel and context >= 0, got {kernel} and {context}")
        self.out, self.n_params, self.context, self.hidden = out, n_params, context, hidden
        self.reads = {"features": 1} if context else {}
        self.enter = nn.Conv1d(features, hidden, 1)
        self.near = nn.ModuleList(
            nn.Conv1d(hidden, 2 * hidden, kernel, dilation=dilation**i, padding=dilation**i * (kernel // 2))
            for i in range(layers)
        )
        self.given = nn.Linear(context, 2 * hidden * layers, bias=False) if context else None
        # the last layer gives nothing to a next one
        self.mix = nn.ModuleList(nn.Conv1d(hidden, hidden * (1 + (i < layers - 1)), 1) for i in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Conv1d(hidden, out * n_params, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # pyright: ignore[reportArgumentType] (it has one)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        batch, mask, given = x.shape[:-2], context_mask(context), None
        if self.given is not None:
            features = context_features(context)
            if features is None or features.shape[-1] != self.context:
                got = "none" if features is None else f"shape {tuple(features.shape)}"
                raise ValueError(f"WaveNet: expected a context with {self.context} features, got {got}")
            given = self.given(features.to(x.dtype))
            batch = joined(batch, given.shape[:-1])
            given = given.expand(*batch, -1).reshape(-1, given.shape[-1], 1).chunk(len(self.near), 1)
        if mask is not None:  # one number a frame, however the features were masked
            mask = mask.any(-1, keepdim=True)
            batch = joined(batch, mask.shape[:-2])
            mask = mask.expand(*batch, x.shape[-2], 1).reshape(-1, 1, x.shape[-2])

        def real(h: Tensor) -> Tensor:
            return h if mask is None else torch.where(mask, h, 0.0)

        h = real(self.enter(x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:]).mT))
        total: Tensor | None = None
        for i, (near, mix) in enumerate(zip(self.near, self.mix, strict=True)):
            both = near(h) if given is None else near(h) + given[i]
            value, gate = both.chunk(2, 1)
            found = mix(self.dropout(value.tanh() * gate.sigmoid()))
            kept, share = found[:, : self.hidden], found[:, -self.hidden :]
            if i < len(self.near) - 1:
                h = real(h + kept)
            total = share if total is None else total + share
        params = self.leave(F.relu(total)).mT.unflatten(-1, (self.out, self.n_params))  # pyright: ignore
        return params.reshape(*batch, *params.shape[1:])

"""What lies beside the positions of a net in its context: frames that are fewer, interpolated."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from diffeo.functional import Context, as_fixed_event, entries, joined
from diffeo.kernels import gated


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

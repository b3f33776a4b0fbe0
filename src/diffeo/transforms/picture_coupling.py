"""Couplings of pictures, as far as they run as one operation with their net."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from diffeo.functional import Context, check_event, context_mask, narrowed
from diffeo.kernels import coupling
from diffeo.kernels.convolution import Convolution
from diffeo.kernels.dispatch import can_run
from diffeo.kernels.private import has_hooks
from diffeo.kernels.segments import Rebuilt
from diffeo.transforms.conditioned import Conditioned


class PictureCoupling(Conditioned):
    """A coupling that tells kernels which channels of a picture its net sees, and which it changes."""

    apart: Tensor  # an order: first what conditions, `kept` of them, then what is transformed
    kept: int
    first: bool  # whether what conditions comes first

    @property
    @abstractmethod
    def sliced(self) -> bool:
        """Whether both parts are slices."""

    def map(self, x: Tensor, context: Context, direction: str) -> tuple[Tensor, Tensor]:
        net = self.picture_net(x, context)
        if net is not None:
            pictures = x.reshape(-1, *x.shape[-3:])
            found = coupling.map_pictures(self.univariate, net, pictures, *self.runs, direction == "inverse")
            if found is not None:
                return found[0].view(x.shape), found[1].view(x.shape[:-3])
        return super().map(x, context, direction)

    @property
    def runs(self) -> tuple[int, int]:
        """Where the slices begin that condition and that are transformed."""
        return (0, self.kept) if self.first else (len(self.apart) - self.kept, 0)

    def picture_net(self, x: Tensor, context: Context) -> Convolution | None:
        """The net, where channels of pictures x can run in one operation with it."""
        describe = getattr(self.net, "as_convolution", None)
        if self.dim != -3 or self.event_ndim != 3 or describe is None or not self.kept or self.has_own_steps:
            return None
        if not self.sliced or context_mask(context) is not None or has_hooks(self.net):
            return None
        if not can_run(x, traced=False, products=True):
            return None
        check_event(x, self.event, "Coupling")
        if narrowed(x, self.net).dtype != x.dtype:
            return None
        net: Convolution | None = describe(self.take(x)[0], context)
        outputs = self.net.n_params * (len(self.apart) - self.kept)  # pyright: ignore
        fits = net is not None and net.x.shape[1] == self.kept and net.weights[2].shape[0] == outputs
        return net if fits and self.net.n_params == self.univariate.n_params else None

    @torch.enable_grad()
    def rebuild_pictures(self, z: Tensor, context: Context) -> Rebuilt | None:
        net = self.picture_net(z.detach(), context)
        if net is None:
            return None
        pictures = z.detach().reshape(-1, *z.shape[-3:])
        found = coupling.rebuild_pictures(self.univariate, net, pictures, *self.runs)
        if found is None:
            return None
        x, again, logdet = found
        whole, of_all = again.view(z.shape), logdet.view(z.shape[:-3])
        return Rebuilt(x.detach().view(z.shape), (x,), whole, of_all, lambda g: g[0].view(z.shape))

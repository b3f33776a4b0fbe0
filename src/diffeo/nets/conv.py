"""Convolutional conditioners: parameters for every place of an image from its other channels and a context."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from diffeo.functional import Context, context_features, context_mask, entries, joined, precise
from diffeo.kernels import convolution, perceptron
from diffeo.kernels.dispatch import can_run, is_traced
from diffeo.kernels.private import has_hooks
from diffeo.nets.attention import attend
from diffeo.nets.mlp import require_context


class ConvNet(nn.Module):
    """A convolutional net whose output is zero at the start, as a conditioner of channels.

    A 3×3 convolution enters, then either a 1×1 convolution follows, as in Glow, or `blocks` gated residual blocks, as
    in Flow++, each with self-attention over all positions if asked for; a 3×3 convolution gives the parameters. A
    context vector is added, through a linear map, to every place of the hidden layers; a context map is put beside
    x_a. Places that a mask leaves out count as zeros in every layer, as those beyond the border do: a padded image gets
    the parameters that it gets alone.

    Args:
        channels: of x_a; 0 where a map alone sets the parameters.
        out: channels of x_b.
        n_params: of each element of x_b.
        hidden: channels of the hidden layers, at least 1.
        blocks: gated residual blocks; 0 for one 1×1 convolution.
        heads: of self-attention after each block; 0 for none.
        size: (H, W) of x, which attention needs for its learned positions.
        concat: whether blocks use elu of (h, −h), twice as wide, as Flow++ does, instead of silu.
        concat_last: whether the last convolution does, instead of relu.
        dropout: inside blocks, in [0, 1).
        context: width of a context vector; 0 for none.
        map: (entry, channels) of a context map `(*batch, channels, H, W)`; None for none.

    Returns:
        Parameters of shape `(*batch, out, H, W, n_params)`.

    Raises:
        ValueError: sizes outside these; heads that do not divide `hidden`, or without `size`.

    Cost: O(hidden · (9 · channels + hidden + 9 · out · n_params)) for each place; O(9 · hidden²) for each block;
    attention, O(H · W · hidden).

    "Glow: Generative Flow with Invertible 1x1 Convolutions" (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039; "Flow++: Improving Flow-Based Generative Models with Variational Dequantization
    and Architecture Design" (Ho et al., 2019), https://arxiv.org/abs/1902.00275

    >>> import torch, diffeo
    >>> net = diffeo.nets.ConvNet(2, 2, n_params=2, hidden=8)
    >>> net(torch.zeros(5, 2, 4, 4)).shape
    torch.Size([5, 2, 4, 4, 2])
    """

    def __init__(
        self,
        channels: int,
        out: int,
        n_params: int,
        *,
        hidden: int = 64,
        blocks: int = 0,
        heads: int = 0,
        size: tuple[int, int] | None = None,
        concat: bool = False,
        concat_last: bool = False,
        dropout: float = 0.0,
        context: int = 0,
        map: tuple[str, int] | None = None,
    ):
        super().__init__()
        seen = channels + (map[1] if map else 0)
        if heads and not blocks:
            raise ValueError("ConvNet: attention follows blocks, of which there are none")
        if min(seen, out, n_params, hidden) < 1 or min(channels, blocks, context) < 0:
            raise ValueError(
                "ConvNet: expected at least 1 channel, output, parameter and hidden channel, and no negative size, got "
                f"channels={channels}, out={out}, n_params={n_params}, hidden={hidden}, blocks={blocks}, "
                f"context={context}, map={map}"
            )
        self.out, self.n_params, self.context, self.map = out, n_params, context, map
        self.reads = {**({"features": 1} if context else {}), **({map[0]: 3} if map else {})}
        self.enter = nn.Conv2d(seen, hidden, 3, padding=1)
        inner: list[nn.Module] = [] if blocks else [Pointwise(hidden, context)]
        for _ in range(blocks):
            inner.append(GatedBlock(hidden, context, concat=concat, dropout=dropout))
            if heads:
                inner.append(AttentionBlock(hidden, heads))
        self.inner = nn.ModuleList(inner)
        if heads and (size is None or hidden % heads):
            raise ValueError(
                f"ConvNet: attention needs a size (H, W) and heads that divide hidden, got {size}, {heads} and {hidden}"
            )
        self.place = nn.Parameter(0.01 * torch.randn(hidden, *size)) if heads and size else None
        self.concat_last = concat_last
        self.leave = nn.Conv2d((1 + concat_last) * hidden, out * n_params, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # pyright: ignore[reportArgumentType] (it has one)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        batch, x, given, mask = self._seen(x, context)
        job = self._as_convolution(x, given) if mask is None and can_run(x, products=True) else None
        params = self._layers(x, given, mask) if job is None else convolution.run(job, self.n_params)
        return params.reshape(*batch, *params.shape[1:])

    def as_convolution(self, x: Tensor, context: Context) -> convolution.Convolution | None:
        """What to run as one operation, where that can be, if x `can_run` so."""
        batch, seen, given, mask = self._seen(x, context)
        return self._as_convolution(seen, given) if mask is None and batch == x.shape[:-3] else None

    def _seen(self, x: Tensor, context: Context) -> tuple[torch.Size, Tensor, Tensor | None, Tensor | None]:
        """The batch; what the first layer reads, the context vectors and the mask of places, in a batch of one dim."""
        batch, given, beside, mask = x.shape[:-3], None, None, places(context)
        batch = batch if mask is None else joined(batch, mask.shape[:-3])
        if self.context:
            given = require_context(context, self.context, "ConvNet").to(x.dtype)
            batch = joined(batch, given.shape[:-1])
        if self.map:
            beside = require_map(context, *self.map, "ConvNet").to(x.dtype)
            batch = joined(batch, beside.shape[:-3])
            if beside.shape[-2:] != x.shape[-2:]:
                raise ValueError(
                    f"ConvNet: expected the context map {self.map[0]!r} of as many places as the picture, "
                    f"{tuple(x.shape[-2:])}, got {tuple(beside.shape[-2:])}"
                )
            x = torch.cat([t.expand(*batch, *t.shape[-3:]) for t in (x, beside)], -3)
        given = None if given is None else given.expand(*batch, -1).reshape(-1, self.context)
        x = x.expand(*batch, *x.shape[-3:]).reshape(-1, *x.shape[-3:])
        mask = None if mask is None else mask.expand(*batch, 1, *x.shape[-2:]).reshape(-1, 1, *x.shape[-2:])
        if self.place is not None and x.shape[-2:] != self.place.shape[-2:]:
            raise ValueError(
                f"ConvNet: its attention has learned places of {tuple(self.place.shape[-2:])}, got a picture of "
                f"{tuple(x.shape[-2:])}"
            )
        return batch, x, given, mask

    def _layers(self, x: Tensor, given: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.enter(_channels_last(only_real(x, mask)))
        for layer in self.inner:
            h = layer(h, self.place if isinstance(layer, AttentionBlock) else given, mask)
        h = _concat_elu(h) if self.concat_last else F.relu(h, inplace=True)
        return self.leave(only_real(h, mask)).unflatten(1, (self.out, self.n_params)).movedim(2, -1)

    @property
    def three_layers(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d] | None:
        """The layers of a net without blocks, if they are plain convolutions."""
        inner = self.inner[0]
        if type(self) is not ConvNet or type(inner) is not Pointwise or has_hooks(inner):
            return None
        layers = self.enter, inner.mix, self.leave
        plain = len(self.inner) == 1 and not self.concat_last and all(map(_is_unmodified, layers, (1, 0, 1)))
        return layers if plain else None

    def _as_convolution(self, x: Tensor, given: Tensor | None) -> convolution.Convolution | None:
        layers = self.three_layers
        if layers is None:
            return None
        shifted: nn.Linear | None = self.inner[0].given  # pyright: ignore[reportAssignmentType]
        shift = None if shifted is None or given is None else shifted(given)
        enter, mix, leave = layers
        weights, biases = (enter.weight, mix.weight, leave.weight), (enter.bias, mix.bias, leave.bias)
        job = convolution.Convolution(x, shift, weights, biases)  # pyright: ignore[reportArgumentType] (they have biases)
        return job if convolution.fits(job) else None


def require_map(context: Context, entry: str, channels: int, who: str) -> Tensor:
    """The map of a context, which must have so many channels."""
    found = entries(context).get(entry)
    if found is None or found.shape[-3] != channels:
        got = "none" if found is None else f"shape {tuple(found.shape)}"
        raise ValueError(f"{who}: expected a context map {entry!r} with {channels} channels, got {got}")
    return found


def places(context: Context) -> Tensor | None:
    """Which places of images hold anything real, (*batch, 1, H, W), where a mask tells them apart."""
    mask = context_mask(context)
    if mask is None or mask.shape[-2:] == (1, 1):
        return None
    return mask.any(-3, keepdim=True)


def only_real(h: Tensor, mask: Tensor | None) -> Tensor:
    """h with zeros at the places that the mask leaves out, whatever is there."""
    return h if mask is None else torch.where(mask, h, 0.0)


def _channels_last(x: Tensor) -> Tensor:
    """x in the layout in which convolutions of few channels run several times faster on a CPU."""
    return x if is_traced() else x.to(memory_format=torch.channels_last)


def _is_unmodified(layer: nn.Module, padding: int) -> bool:
    """Whether it is a convolution with a bias, of neighbours, with zeros around, and nothing else."""
    if not perceptron.is_unmodified(layer, (nn.Conv2d,)):
        return False
    settings = layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    return settings == ((1, 1), (padding, padding), (1, 1), 1, "zeros")


class Pointwise(nn.Module):
    """h ↦ W relu(h + V c), at every place."""

    def __init__(self, hidden: int, context: int):
        super().__init__()
        self.mix = nn.Conv2d(hidden, hidden, 1)
        self.given = nn.Linear(context, hidden, bias=False) if context else None

    def forward(self, h: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        return self.mix(F.relu(_shifted(h, self.given, context), inplace=True))  # h is nobody else's


class GatedBlock(nn.Module):
    """h ↦ h + a · σ(b), (a, b) from a 3×3 and a 1×1 convolution of φ(h), the context in between; then normalised.

    "Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design" (Ho et
    al., 2019), https://arxiv.org/abs/1902.00275
    """

    def __init__(self, hidden: int, context: int, *, concat: bool = False, dropout: float = 0.0):
        super().__init__()
        self.bend = _concat_elu if concat else F.silu
        wide = 2 * hidden if concat else hidden
        self.near = nn.Conv2d(wide, hidden, 3, padding=1)
        self.mix = nn.Conv2d(wide, 2 * hidden, 1)
        self.given = nn.Linear(context, hidden, bias=False) if context else None
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.GroupNorm(1, hidden)

    def forward(self, h: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        inner = self.bend(_shifted(self.near(only_real(self.bend(h), mask)), self.given, context))
        return _normed(self.norm, _gated(h, self.mix(self.dropout(inner))), mask)


class AttentionBlock(nn.Module):
    """h ↦ h + a · σ(b), (a, b) from what each place gathers from all others by multi-head attention; then normalised.

    Places are told apart by learned positions, `place`. "Flow++" (Ho et al., 2019), https://arxiv.org/abs/1902.00275
    """

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ask = nn.Conv2d(hidden, 3 * hidden, 1)
        self.mix = nn.Conv2d(hidden, 2 * hidden, 1)
        self.norm = nn.GroupNorm(1, hidden)

    def forward(self, h: Tensor, place: Tensor, mask: Tensor | None) -> Tensor:
        asked = self.ask(h + place).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        query, key, value = asked.unbind(1)  # (n, heads, places, hidden / heads)
        seen = attend(query, key, value, mask=None if mask is None else mask.flatten(1))
        return _normed(self.norm, _gated(h, self.mix(seen.transpose(-1, -2).reshape(h.shape))), mask)


def _normed(norm: nn.GroupNorm, h: Tensor, mask: Tensor | None) -> Tensor:
    """The norm of all channels and places together, by the mean and the variance of real places."""
    if mask is None:
        return norm(h)
    wide = precise(only_real(h, mask))
    real = mask.to(wide.dtype) / (h.shape[1] * mask.sum((1, 2, 3), keepdim=True).clamp_min(1))
    centred = wide - (wide * real).sum((1, 2, 3), keepdim=True)
    scale = ((centred.square() * real).sum((1, 2, 3), keepdim=True) + norm.eps).rsqrt()
    return (centred * scale * norm.weight[:, None, None] + norm.bias[:, None, None]).to(h.dtype)


def _gated(h: Tensor, change: Tensor) -> Tensor:
    """h + a · σ(b), the two halves of the change."""
    value, gate = change.chunk(2, 1)  # F.glu has no second derivative under vmap
    return h + value * gate.sigmoid()


def _concat_elu(h: Tensor) -> Tensor:
    return F.elu(torch.cat([h, -h], 1))


def _shifted(h: Tensor, given: nn.Linear | None, context: Tensor | None) -> Tensor:
    """h with what the context adds at every place."""
    return h if given is None or context is None else h + given(context)[..., None, None]


def one_hot(label: Tensor, classes: int, who: str) -> Tensor:
    """Labels 0 … classes − 1 as truth values, (*label.shape, classes)."""
    if not is_traced() and not bool(((label >= 0) & (label < classes) & (label % 1 == 0)).all()):
        raise ValueError(
            f"{who}: expected class labels 0 … {classes - 1}, got {label.min().item()} … {label.max().item()}"
        )
    return label.unsqueeze(-1) == torch.arange(classes, device=label.device)


class OneHot(nn.Module):
    """Class labels as one-hot vectors: the encoder of a class-conditional flow.

    Args:
        classes: their number, at least 1; labels are 0 … classes − 1.
        drop: chance, in [0, 1), that a label is left out in training, as zeros: what `Guided` layers learn from.

    >>> import torch, diffeo
    >>> diffeo.nets.OneHot(3)(torch.tensor([0, 2]))
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """

    def __init__(self, classes: int, drop: float = 0.0):
        super().__init__()
        if classes < 1 or not 0 <= drop < 1:
            raise ValueError(f"OneHot: expected at least 1 class and 0 <= drop < 1, got {classes} and {drop}")
        self.classes, self.drop = classes, drop
        self.reads = {"features": 0}  # a label is a scalar
        self.register_buffer("one", torch.ones(()), persistent=False)  # in the precision of the weights beside

    one: Tensor

    def forward(self, context: Context) -> Context:
        label = context_features(context)
        if label is None:
            raise ValueError(
                f"OneHot: expected class labels 0 … {self.classes - 1} as context, its entry 'features', got none"
            )
        found = one_hot(label, self.classes, "OneHot").to(self.one.dtype)
        if self.training and self.drop:
            found = found * (torch.rand(label.shape, device=label.device) >= self.drop).unsqueeze(-1)
        return found if context is None or isinstance(context, Tensor) else {**context, "features": found}

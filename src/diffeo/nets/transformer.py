"""Causal transformers: each position's parameters from all positions before it, with a cache for one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffeo.core import Incremental
from diffeo.functional import Context, as_fixed_event, context_features, joined
from diffeo.nets.attention import attend
from diffeo.nets.mlp import require_context


class Cache(NamedTuple):
    """What a run remembers: the context's share of every token, how far it is, and each layer's keys and values."""

    given: Tensor | None
    done: int
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class CausalTransformer(Incremental):
    """A transformer over a sequence of vectors whose parameters for a position depend on those before; zero at first.

    Tokens are the vectors shifted by one, a learned one first, plus learned positions and a linear map of the context;
    layers of causal multi-head attention and a perceptron follow, each behind a layer norm. A step keeps keys and
    values, so that it costs one token.

    Args:
        features: of each vector, F.
        n_params: of each scalar.
        positions: T.
        width: of tokens.
        layers: at least 1.
        heads: of attention; they divide `width`.
        context: width of a context vector; 0 for none.
        reverse: whether the last position comes first.
        dropout: inside layers, in [0, 1).

    Returns:
        Parameters of shape `(*batch, T, F, n_params)`, in the order of the steps.

    Raises:
        ValueError: sizes outside these.

    Cost: O(T · width · (T + width)) for each layer; a step, O(width · (T + width)).

    "Normalizing Flows are Capable Generative Models" (Zhai et al., 2024), https://arxiv.org/abs/2412.06329; "Attention
    Is All You Need" (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762

    >>> import torch, diffeo
    >>> net = diffeo.nets.CausalTransformer(4, 2, positions=9, width=16, heads=2)
    >>> layer = diffeo.Autoregressive(net, diffeo.Affine(), dim=-2, event_ndim=2)
    >>> layer(torch.zeros(5, 9, 4))[0].shape
    torch.Size([5, 9, 4])
    """

    place: nn.Parameter

    def __init__(
        self,
        features: int,
        n_params: int,
        positions: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        context: int = 0,
        reverse: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        as_fixed_event((features, n_params, positions, width, layers, heads), self)
        if width % heads or context < 0:
            raise ValueError(
                f"CausalTransformer: expected heads that divide width and context >= 0, got {heads}, {width}, {context}"
            )
        steps = torch.arange(positions)
        self.order = steps.flip(0) if reverse else steps
        self.rank = self.order.clone()  # a reversal is its own inverse
        self.features, self.n_params, self.context = features, n_params, context
        self.reads = {"features": 1} if context else {}
        self.enter = nn.Linear(features, width) if positions > 1 else None
        self.begin = nn.Parameter(0.02 * torch.randn(width))
        self.place = nn.Parameter(0.02 * torch.randn(positions, width))
        self.given = nn.Linear(context, width, bias=False) if context else None
        self.layers = nn.ModuleList(CausalLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, features * n_params)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        given = self._given(context)
        batch = x.shape[:-2] if given is None else joined(x.shape[:-2], given.shape[:-1])
        x = x.to(self.place.dtype).index_select(-2, self.order).expand(*batch, *x.shape[-2:])  # pyright: ignore
        h = self.begin.expand(*batch, 1, -1)
        if self.enter is not None:
            h = torch.cat([h, self.enter(x[..., :-1, :])], -2)
        h = h + self.place
        h = h if given is None else h + given.unsqueeze(-2)
        h = h.reshape(-1, *h.shape[-2:])  # attention knows one batch dim
        for layer in self.layers:
            h = layer(h)
        params = self._params(h)
        return params.reshape(*batch, *params.shape[1:])

    def start(self, z: Tensor, context: Context = None) -> Cache:
        given, batch = self._given(context), z.shape[:-2]
        if given is not None:
            given = given.expand(*batch, -1).reshape(-1, given.shape[-1])
        rows = z.reshape(-1, *z.shape[-2:])
        none = tuple(layer.empty(rows) for layer in self._layers())  # pyright: ignore[reportUnknownVariableType]
        return Cache(given, 0, none, none)

    def step(self, x_prev: Tensor | None, state: Cache) -> tuple[Tensor, Any, Cache]:
        given, done, keys, values = state
        if x_prev is None or self.enter is None:
            h = self.begin.expand(keys[0].shape[0], -1)
        else:
            h = self.enter(x_prev.to(self.place.dtype))
        h = h + self.place[done]
        h = h if given is None else h + given
        kept = []
        for layer, key, value in zip(self._layers(), keys, values, strict=True):
            h, key, value = layer.step(h, key, value)
            kept.append((key, value))
        return self._params(h), None, Cache(given, done + 1, *zip(*kept, strict=True))

    def _layers(self) -> list[CausalLayer]:
        return list(self.layers)  # pyright: ignore[reportReturnType] (a ModuleList forgets its element type)

    def _given(self, context: Context) -> Tensor | None:
        if self.given is None:
            return None
        return self.given(require_context(context, self.context, "CausalTransformer").to(self.place.dtype))

    def _params(self, h: Tensor) -> Tensor:
        return self.leave(self.norm(h)).unflatten(-1, (self.features, self.n_params))


class CausalLayer(nn.Module):
    """h ← h + attention(norm(h)), h ← h + perceptron(norm(h)), no position seeing later ones."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm, self.ask, self.answer = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = self._asked(h)
        seen = attend(query, key, value, causal=True)
        return self._rest(h, seen.transpose(-3, -2).flatten(-2))

    def empty(self, rows: Tensor) -> Tensor:
        """The keys, or values, of no position."""
        width = self.answer.in_features
        return self.answer.weight.new_zeros(len(rows), self.heads, 0, width // self.heads)

    def step(self, h: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One more position, h of shape (rows, width), beside what is kept of those before."""
        query, new_key, new_value = self._asked(h.unsqueeze(-2))
        key, value = torch.cat([key, new_key], -2), torch.cat([value, new_value], -2)
        seen = attend(query, key, value)
        return self._rest(h, seen.flatten(-3)), key, value

    def _asked(self, h: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (rows, heads, positions, width / heads) each."""
        return self.ask(self.norm(h)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2).unbind(0)

    def _rest(self, h: Tensor, seen: Tensor) -> Tensor:
        h = h + self.dropout(self.answer(seen))
        return h + self.dropout(self.think(h))


class Guided(Incremental):
    """A conditioner whose parameters are pushed away from those without context: p = p_c + w (p_c − p_0).

    p_0 are the parameters for a context of zeros, which a net learns from where contexts were dropped in training. A
    flow of guided layers is a flow again, with a density of its own: sharper than the one that was trained.

    Args:
        net: the conditioner; it reads a context vector.
        weight: w, at least 0; 0 changes nothing. An attribute that may be set later.

    Raises:
        ValueError: a negative weight, or a net without context.

    Cost: twice that of the net.

    "Classifier-Free Diffusion Guidance" (Ho and Salimans, 2022), https://arxiv.org/abs/2207.12598; "Normalizing Flows
    are Capable Generative Models" (Zhai et al., 2024), https://arxiv.org/abs/2412.06329

    >>> import torch, diffeo
    >>> net = diffeo.nets.CausalTransformer(4, 2, positions=9, width=16, heads=2, context=3)
    >>> diffeo.nets.Guided(net, 1.0)(torch.zeros(5, 9, 4), torch.ones(3)).shape
    torch.Size([5, 9, 4, 2])
    """

    def __init__(self, net: Incremental, weight: float = 1.0):
        super().__init__()
        if not weight >= 0 or not net.reads:
            raise ValueError(f"Guided: expected weight >= 0 and a net with context, got {weight} and {net.reads}")
        self.net, self.weight = net, weight
        self.order, self.rank, self.reads = net.order, net.rank, net.reads

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        return self._pushed(self.net(x, context), self.net(x, _without(context)))

    def start(self, z: Tensor, context: Context = None) -> tuple[Any, Any]:
        return self.net.start(z, context), self.net.start(z, _without(context))

    def step(self, x_prev: Tensor | None, state: tuple[Any, Any]) -> tuple[Tensor, Any, tuple[Any, Any]]:
        with_context, aux, first = self.net.step(x_prev, state[0])
        without, _, second = self.net.step(x_prev, state[1])
        return self._pushed(with_context, without), aux, (first, second)

    def _pushed(self, with_context: Tensor, without: Tensor) -> Tensor:
        return with_context + self.weight * (with_context - without)


def _without(context: Context) -> Context:
    """The context with zeros for features."""
    features = context_features(context)
    if features is None:
        return context
    nothing = torch.zeros_like(features)
    return {**context, "features": nothing} if isinstance(context, Mapping) else nothing

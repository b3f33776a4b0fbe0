"""MADE: an autoregressive network with masked weights, which also runs one coordinate at a time.

Every coordinate i may depend on the set A_i (a row of `adjacency`; for a plain order, the coordinates before it). Each
hidden unit carries one of these sets, T: it sees the inputs in T and the units of the layer below whose set lies in T.
Output i sees the units whose set lies in A_i. Units are sorted by the step at which the last coordinate of their set is
known, so that step d of a sampling run computes one contiguous slice of each layer, each unit once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Size, Tensor, nn

from diffeo.core import Incremental
from diffeo.functional import Context, permute_last
from diffeo.nets.mlp import Activation, require_context
from diffeo.nets.products import Linear, affine, scalar_params


class MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a constant mask of shape (out, in)."""

    mask: Tensor

    def __init__(self, mask: Tensor, bias: bool = True):
        super().__init__(mask.shape[1], mask.shape[0], bias=bias)
        self.register_buffer("mask", mask.to(self.weight.dtype))
        if not mask.any():  # nothing to learn: the net of a single coordinate
            del self.weight
            self.register_buffer("weight", torch.zeros(mask.shape))

    @property
    def masked(self) -> Tensor:
        return self.weight * self.mask

    def forward(self, input: Tensor) -> Tensor:
        return affine(input, self.masked, self.bias)


class MaskedParameterLayer(MaskedLinear):
    """The last layer, its result as parameters of scalars, laid out for the maps that read them."""

    def __init__(self, mask: Tensor, n_params: int):
        super().__init__(mask.repeat_interleave(n_params, 0))
        self.n_params = n_params

    def forward(self, input: Tensor) -> Tensor:
        return scalar_params(input, self.masked, self.bias, self.n_params)


class MADE(Incremental):
    """A masked autoregressive network `(x, context) -> params`, zero at the start.

    The parameters of coordinate i depend on the coordinates before it in `order` (or on row i of `adjacency`), and on
    the whole context.

    Args:
        features: D, the number of coordinates.
        n_params: parameters for each coordinate; the output has shape `(*batch, D, n_params)`, by position: entry d
            belongs to coordinate `order[d]`.
        context: width of the context; 0 ignores it.
        hidden: widths of the hidden layers (with `residual`, one residual block of two layers each, equal widths).
        order: `order[d]` is the coordinate at position d; default 0 … D-1.
        adjacency: (D, D) booleans, `adjacency[i, j]` says that coordinate i may depend on j; acyclic; replaces `order`.
        activation: class of the activation.
        dropout: probability in [0, 1) of dropping a hidden unit while training.
        residual: residual blocks instead of plain layers.

    Raises:
        ValueError: an order that is no permutation, an adjacency with a cycle, residual blocks of different widths.

    Cost: one dense pass for all parameters; a run of D steps computes each hidden unit once.

    "MADE: Masked Autoencoder for Distribution Estimation" (Germain et al., 2015), https://arxiv.org/abs/1502.03509
    """

    has_adjoint = True

    def __init__(
        self,
        features: int,
        n_params: int,
        *,
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        order: Tensor | Sequence[int] | None = None,
        adjacency: Tensor | None = None,
        activation: Activation = nn.SiLU,
        dropout: float = 0.0,
        residual: bool = False,
    ):
        super().__init__()
        if residual and len(set(hidden)) > 1:
            raise ValueError(f"MADE: residual blocks need equal widths, got hidden={tuple(hidden)}")
        self.features, self.n_params, self.context, self.residual = features, n_params, context, residual
        if adjacency is not None:
            if order is not None:
                raise ValueError("MADE: give order or adjacency, not both")
            order, sees = _sort_adjacency(adjacency, features)
        else:
            order = torch.arange(features) if order is None else torch.as_tensor(order, dtype=torch.long)
            if not torch.equal(order.sort().values, torch.arange(features)):
                raise ValueError(f"MADE: expected an order of 0 … {features - 1}, got {order.tolist()}")
            sees = torch.ones(features, features, dtype=torch.bool).tril(-1)
        self.register_buffer("order", order)
        self.register_buffer("rank", order.argsort())

        sets = torch.unique(sees, dim=0)
        if not context and len(sets) > 1:
            sets = sets[sets.any(1)]  # without a context, units that see nothing are wasted
        positions = torch.arange(1, features + 1)
        ready = (sets * positions).amax(1)  # the step from which a unit with this set can be computed
        sets = sets[ready.argsort(stable=True)]
        ready = ready.sort().values
        if adjacency is not None and hidden and min(hidden) < len(sets):
            raise ValueError(
                f"MADE: this adjacency has {len(sets)} different sets of parents, so hidden layers need at least "
                f"that many units, got {tuple(hidden)}"
            )
        kinds = [_spread(len(sets), width) for width in hidden]
        inside = _contains(sets, sets)  # inside[t, s]: set s lies in set t
        outputs = _contains(sees, sets)  # outputs[i, s]: output i may see units with set s

        widths = list(kinds)
        if residual and hidden:
            widths = [kinds[0]] * (1 + 2 * len(hidden))
        masks = [sets[widths[0]]] if widths else []
        masks += [inside[upper][:, lower] for lower, upper in pairwise(widths)]
        last = outputs[:, widths[-1]] if widths else sees
        self.layers = nn.ModuleList([*map(MaskedLinear, masks), MaskedParameterLayer(last, n_params)])
        self.from_context = Linear(context, self._stack()[0].out_features, bias=False) if context else None
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)
        # steps whose products with everything before them are done at once: more of them make these larger, but all
        # units of a block (about 32) are computed at each of its steps
        self.block = max(1, min(8, 32 * features // max(hidden, default=1)))
        # slices[i][d]: how many units of layer i can be computed at step d
        self._slices = [torch.searchsorted(ready[k], torch.arange(features), right=True).tolist() for k in widths]
        last_layer = self._stack()[-1]
        nn.init.zeros_(last_layer.weight)
        nn.init.zeros_(last_layer.bias)
        if self.from_context is not None and not widths:
            nn.init.zeros_(self.from_context.weight)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        h, _ = self._pass(x, context, self.dropout)
        return h

    def _pass(self, x: Tensor, context: Context, dropout: nn.Module) -> tuple[Tensor, list[Tensor]]:
        """Parameters, and the pre-activations of the hidden layers."""
        h = self.layers[0](permute_last(x, self.order, self.rank))
        if self.from_context is not None:
            c = self.from_context(require_context(context, self.context, "MADE"))
            h = h + (c if len(self.layers) > 1 else c.unflatten(-1, (self.features, self.n_params)))
        skip, inner = h, []
        for i, layer in enumerate(self._stack()[1:], start=1):
            inner.append(h)
            h = layer(dropout(self.activation(h)))
            if self._closes_block(i):
                h = skip = h + skip
        return h, inner

    def start(self, z: Tensor, context: Context = None) -> MADEState:
        batch, c = z.shape[:-1], None
        if self.from_context is not None:
            c = self.from_context(require_context(context, self.context, "MADE"))
            batch = torch.broadcast_shapes(batch, c.shape[:-1])
            c = c.expand(*batch, -1).reshape(-1, c.shape[-1]).T
        x = z.expand(*batch, -1).reshape(-1, self.features).T[:0]
        weights = tuple(layer.masked for layer in self._stack())
        return MADEState(0, batch, c, weights, (x,) * len(weights), (), (), ())  # no rows yet, in any layer

    def look_ahead(self, d: int, x_block: Tensor | None, state: MADEState) -> MADEState:
        known = state.known
        if x_block is not None:
            found = (x_block.reshape(-1, x_block.shape[-1]).T, *state.inner)
            places = (d - self.block, *(self._window(i, d - self.block)[0] for i in range(len(self.layers) - 1)))
            heights = (self.features, *(layer.out_features for layer in self._stack()[:-1]))
            known = tuple(map(_insert, known, found, places, heights))
        near: list[Tensor] = []
        ahead: list[Tensor] = []
        low, high = d, min(d + self.block, self.features)  # of what feeds the layer, inside the block
        for i, layer in enumerate(self._stack()):
            start, stop = self._window(i, d)
            h = layer.bias[start:stop].unsqueeze(1)
            if low:
                h = h + state.weights[i][start:stop, :low] @ known[i][:low]
            if i == 0 and state.context is not None:
                h = h + state.context[start:stop]
            ahead.append(h.expand(-1, known[0].shape[1]))
            near.append(state.weights[i][start:stop, low:high])
            low, high = start, stop
        return state._replace(index=0, known=known, near=tuple(near), ahead=tuple(ahead), inner=())

    def step(self, x_prev: Tensor | None, state: MADEState) -> tuple[Tensor, None, MADEState]:
        i, p, top = state.index, self.n_params, len(self.layers) - 1
        ahead, near = state.ahead, state.near
        if i and x_prev is not None:
            ahead = (torch.addcmul(ahead[0], near[0][:, i - 1 : i], x_prev.reshape(1, -1)), *ahead[1:])
        h = skip = ahead[0]
        inner: list[Tensor] = []
        for layer in range(top):
            if layer:
                h = torch.addmm(ahead[layer], near[layer], inner[-1])
            if self._closes_block(layer):
                h = skip = h + skip
            inner.append(self.activation(h))
        rows = slice(i * p, (i + 1) * p)
        params = torch.addmm(ahead[top][rows], near[top][rows], inner[-1]) if top else h[rows]
        state = state._replace(index=i + 1, ahead=ahead, inner=tuple(inner))
        return params.T.reshape(*state.batch, p), None, state

    def _ready(self, i: int, d: int) -> int:
        """How many rows of layer i can be computed at step d: units, or parameters for the last layer."""
        if i == len(self.layers) - 1:
            return (d + 1) * self.n_params
        return self._slices[i][d] if d >= 0 else 0

    def _known(self, i: int, d: int) -> int:
        """How many inputs of layer i there are at step d: coordinates before d, or units of the layer below."""
        return d if i == 0 else self._ready(i - 1, d)

    def _window(self, i: int, d: int) -> tuple[int, int]:
        """The rows of layer i that are computed in the block of steps from d.

        For hidden layers as many in every block, so that compiled code serves all of them: some were ready before, or
        are not ready yet and seen by nothing in the block.
        """
        steps = range(0, self.features, self.block)
        end = min(d + self.block, self.features) - 1
        if i == len(self.layers) - 1:
            return self._ready(i, d - 1), self._ready(i, end)
        height = max(self._ready(i, min(s + self.block, self.features) - 1) - self._ready(i, s - 1) for s in steps)
        start = min(self._ready(i, d - 1), self._stack()[i].out_features - height)
        return start, start + height

    def trace(self, x: Tensor, context: Context = None) -> tuple[Tensor, MADETrace]:
        params, inner = self._pass(x, context, nn.Identity())
        rows = tuple(h.detach().reshape(-1, h.shape[-1]).T for h in inner)
        return params, MADETrace(tuple(layer.masked.detach() for layer in self._stack()), rows)

    def solve_adjoint(self, trace: MADETrace, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
        weights, inner = trace
        solved = g.reshape(-1, self.features).T.clone()  # (D, rows): what has arrived at each coordinate so far
        a, b = (t.expand(*g.shape, -1).reshape(-1, self.features, self.n_params).permute(1, 2, 0) for t in (a, b))
        slopes = [self._activation_slope(h) for h in inner]
        arrived = [torch.zeros_like(h) for h in inner]  # at the activations of each layer
        skipped = [torch.zeros_like(h) for h in inner]  # at their pre-activations, past a residual block
        for d in reversed(range(self.features)):
            at_params = torch.addcmul(b[d], a[d], solved[d])  # complete: only later coordinates depend on this one
            top, p = len(inner), self.n_params
            known = self._known(top, d)
            into = arrived[-1] if inner else solved
            into[:known] += weights[top][d * p : (d + 1) * p, :known].T @ at_params
            for i in reversed(range(top)):
                start, stop, known = self._ready(i, d - 1), self._ready(i, d), self._known(i, d)
                at_rows = torch.addcmul(skipped[i][start:stop], arrived[i][start:stop], slopes[i][start:stop])
                if self._closes_block(i):
                    skipped[i - 2][start:stop] += at_rows
                into = arrived[i - 1] if i else solved
                into[:known] += weights[i][start:stop, :known].T @ at_rows
        return solved.T.reshape(g.shape)

    def _activation_slope(self, h: Tensor) -> Tensor:
        return torch.func.jvp(self.activation, (h,), (torch.ones_like(h),))[1]

    def _stack(self) -> list[MaskedLinear]:
        return list(self.layers)  # pyright: ignore[reportReturnType] (a ModuleList forgets its element type)

    def _closes_block(self, i: int) -> bool:
        return self.residual and i % 2 == 0 and 0 < i < len(self.layers) - 1


class MADEState(NamedTuple):
    """What a run carries; activations are (units, rows), so that those of some units are contiguous."""

    index: int  # of the step in its block
    batch: Size
    context: Tensor | None
    weights: tuple[Tensor, ...]  # masked
    known: tuple[Tensor, ...]  # inputs of each layer, of all blocks before
    near: tuple[Tensor, ...]  # weights inside the block
    ahead: tuple[Tensor, ...]  # pre-activations of the block from everything before it
    inner: tuple[Tensor, ...]  # activations of the block


class MADETrace(NamedTuple):
    """Where a run ended: masked weights, and pre-activations of the hidden layers as (units, rows)."""

    weights: tuple[Tensor, ...]
    inner: tuple[Tensor, ...]


def _spread(sets: int, width: int) -> Tensor:
    """Which set each of `width` units carries: evenly, sorted, the last set included."""
    units = torch.arange(width)
    return units * sets // width if width >= sets else (units * (sets - 1)) // max(1, width - 1)


def _contains(outer: Tensor, inner: Tensor) -> Tensor:
    """(n, m) booleans: the set in row t of `outer` contains the set in row s of `inner`."""
    return (~outer).float() @ inner.float().T == 0


def _insert(known: Tensor, rows: Tensor, start: int, height: int) -> Tensor:
    """Rows from `start` on: written into a buffer of full height, or joined anew where autograd may look."""
    if torch.is_grad_enabled():
        return torch.cat([known[:start], rows])
    if len(known) == 0:
        known = rows.new_empty(height, rows.shape[1])
    known[start : start + len(rows)] = rows
    return known


def _sort_adjacency(adjacency: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """A topological order of the coordinates, and the adjacency in that order."""
    adjacency = torch.as_tensor(adjacency, dtype=torch.bool)
    if adjacency.shape != (features, features):
        raise ValueError(f"MADE: expected an adjacency of shape {(features, features)}, got {tuple(adjacency.shape)}")
    order: list[int] = []
    while len(order) < features:
        placed = set(order)
        free = [i for i in range(features) if i not in placed and set(adjacency[i].nonzero()[:, 0].tolist()) <= placed]
        if not free:
            cycle = sorted(set(range(features)) - placed)
            raise ValueError(f"MADE: the adjacency must be acyclic, but coordinates {cycle} wait for each other")
        order.extend(free)
    index = torch.tensor(order)
    return index, adjacency[index][:, index]

"""MADE: an autoregressive network with masked weights, which also runs one coordinate at a time.

Every coordinate i may depend on the set A_i (a row of `adjacency`; for a plain order, the coordinates before it). Each
hidden unit carries one of these sets, T: it sees the inputs in T and the units of the layer below whose set lies in T.
Output i sees the units whose set lies in A_i. Units are sorted by the step at which the last coordinate of their set is
known, so that step d of a sampling run computes one contiguous slice of each layer, each unit once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

from diffeo.functional import Context, as_fixed_event
from diffeo.kernels import perceptron
from diffeo.kernels.compiling import signature
from diffeo.kernels.dispatch import can_run
from diffeo.kernels.inverse import MaskedRun
from diffeo.kernels.layout import affine, permute, scalar_params
from diffeo.nets.blockwise import SHORT, Blockwise
from diffeo.nets.mlp import Activation, Linear, require_context

# units of each layer in a block of steps: fewer make the products before the block smaller, more those inside
BLOCK_UNITS = 32
LONGEST_BLOCK = 32  # steps
# units of a block whose products a compiled step writes out, so that they fuse with what is before and after
UNROLLED = 48


class MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a constant mask of shape (out, in)."""

    mask: Tensor

    def __init__(self, mask: Tensor, bias: bool = True):
        super().__init__(mask.shape[1], mask.shape[0], bias=bias)
        self.register_buffer("mask", mask.to(self.weight.dtype))
        if not mask.any():  # nothing to learn: the net of a single coordinate
            del self.weight
            self.register_buffer("weight", torch.zeros(mask.shape))
        self.register_load_state_dict_pre_hook(_check_mask)

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


MASKED_LAYERS = (MaskedLinear, MaskedParameterLayer)


class MADE(Blockwise):
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

    rows1: Tensor
    ready: Tensor

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
        as_fixed_event((features, n_params), self)
        if residual and len(set(hidden)) > 1:
            raise ValueError(f"MADE: residual blocks need equal widths, got hidden={tuple(hidden)}")
        self.features, self.n_params, self.context, self.residual = features, n_params, context, residual
        self.reads = {"features": 1} if context else {}
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
        kinds = [_share_out(len(sets), width) for width in hidden]
        inside = _contains(sets, sets)  # inside[t, s]: set s lies in set t
        outputs = _contains(sees, sets)  # outputs[i, s]: output i may see units with set s

        widths = list(kinds)
        if residual and hidden:
            widths = [kinds[0]] * (1 + 2 * len(hidden))
        masks = [sets[widths[0]]] if widths else []
        masks += [inside[upper][:, lower] for lower, upper in pairwise(widths)]
        last = outputs[:, widths[-1]] if widths else sees
        self.layers = nn.ModuleList([*map(MaskedLinear, masks), MaskedParameterLayer(last, n_params)])
        for i, layer in enumerate(self._stack()):
            self.register_buffer(f"bounds{i}", _bounds(layer.mask), persistent=False)
        self.from_context = Linear(context, self._stack()[0].out_features, bias=False) if context else None
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)
        # slices[i][d]: how many units of layer i can be computed at step d
        self._slices = [torch.searchsorted(ready[k], torch.arange(features), right=True).tolist() for k in widths]
        # ready[i, d]: how many rows of layer i can be computed before step d
        steps = [[self._ready(i, d - 1) for d in range(features + 1)] for i in range(len(self.layers))]
        self.register_buffer("ready", torch.tensor(steps), persistent=False)
        units = int(BLOCK_UNITS * (2 / max(2, len(widths))) ** 0.5)  # compiling takes its square, times the layers
        block = min(features, LONGEST_BLOCK, max(1, units * features // max(hidden, default=1)))
        self._set_block(features if features <= SHORT else block)
        slots = max(offsets[-1] for offsets in self._offsets[:-1]) * len(self.rows1) if widths else 0
        if slots > 3 * max((features, *hidden)):  # steps differ so much that equal blocks would be mostly padding
            self._set_block(features)
        last_layer = self._stack()[-1]
        nn.init.zeros_(last_layer.weight)
        nn.init.zeros_(last_layer.bias)
        if self.from_context is not None and not widths:
            nn.init.zeros_(self.from_context.weight)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        job = self.as_perceptron(x, context)
        if job is None:
            return self._pass(x, context, self.dropout)[0]
        return perceptron.run(job, self.n_params)

    def as_perceptron(self, x: Tensor, context: Context, enter: bool = True) -> perceptron.Perceptron | None:
        """What to run as one operation, where that can be; without `enter`, all of the net or nothing."""
        activation, layers = self._plain_activation() if can_run(x, products=True) else None, self._stack()
        if activation is None:
            return None
        enters = self.from_context is not None or not perceptron.is_unmodified(layers[0], MASKED_LAYERS)
        if enters and not enter:
            return None
        used = range(1 if enters else 0, len(layers))
        weights, biases = [layers[i].masked for i in used], [layers[i].bias for i in used]
        bounds = [getattr(self, f"bounds{i}") for i in used]
        h = self._enter(x, context) if enters else permute(x, self.order, self.rank)
        job = perceptron.Perceptron(activation, h, weights, biases, bounds, enters)
        return job if perceptron.fits(job) else None

    def as_run(self, z: Tensor, context: Context) -> MaskedRun | None:
        """What to run a step at a time as one operation, where that can be; z has the whole batch."""
        activation = self._plain_activation()
        if activation is None:
            return None
        weights = [layer.masked.contiguous() for layer in self._stack()]
        biases = [layer.bias.contiguous() for layer in self._stack()]
        added = self._from_context_by_unit(z.shape[:-1], context)
        return MaskedRun(activation, weights, biases, self.order, self.ready, added)

    def _plain_activation(self) -> str | None:
        """What `perceptron` calls the activation, if after the first layer nothing else stands between the layers."""
        if type(self) is not MADE:
            return None
        between = [m for layer in self._stack()[1:] for m in (self.activation, self.dropout, layer)]
        parts = None if self.residual else perceptron.take_apart(between, MASKED_LAYERS)
        return None if parts is None else parts[0]

    def _pass(self, x: Tensor, context: Context, dropout: nn.Module) -> tuple[Tensor, list[Tensor]]:
        """Parameters, and the pre-activations of the hidden layers."""
        h = self._enter(x, context)
        skip, inner = h, []
        for i, layer in enumerate(self._stack()[1:], start=1):
            inner.append(h)
            h = layer(dropout(self.activation(h)))
            if self._closes_block(i):
                h = skip = h + skip
        return h, inner

    def _enter(self, x: Tensor, context: Context) -> Tensor:
        h = self.layers[0](permute(x, self.order, self.rank))
        if self.from_context is not None:
            c = self.from_context(require_context(context, self.context, "MADE"))
            h = h + (c if len(self.layers) > 1 else c.unflatten(-1, (self.features, self.n_params)))
        return h

    def begin(self, z: Tensor, context: Context = None) -> MADEState:
        c = self._from_context_by_unit(z.shape[:-1], context)
        layers = []
        for i, layer in enumerate(self._stack()):
            columns, there, rows = (getattr(self, name) for name in (f"rows{i}", f"there{i}", f"rows{i + 1}"))
            weight = layer.masked.index_select(0, rows.flatten()).unflatten(0, rows.shape)
            near = weight.gather(2, columns.unsqueeze(1).expand(-1, rows.shape[1], -1))
            near = torch.where(there.unsqueeze(1), near, 0.0)
            bias = layer.bias.index_select(0, rows.flatten()).view(*rows.shape, 1)
            layers.append((weight.unbind(), near.unbind(), bias.unbind()))
        nothing = z.reshape(-1, self.features).T[:0]
        return MADEState(c, tuple(layers), (nothing,) * len(layers))

    def _from_context_by_unit(self, batch: Size, context: Context) -> Tensor | None:
        """What the context adds to the units of the first layer, (units, rows), if anything."""
        if self.from_context is None:
            return None
        c = self.from_context(require_context(context, self.context, "MADE"))
        return c.expand(*batch, -1).reshape(-1, c.shape[-1]).T

    def look_ahead(
        self, d: int, x_block: Tensor | None, found: tuple[Tensor, ...] | None, run: MADEState
    ) -> tuple[MADEState, tuple[Tensor, ...], MADEBlock]:
        if x_block is not None and found is not None:
            start = d - self.block
            new, places, heights = [x_block], [start], [self.features]
            for i, units in enumerate(found):
                first, last = self._ready(i, start - 1), self._ready(i, d - 1)
                padded = last - first < len(units)
                new.append(units.index_select(0, getattr(self, f"slots{i + 1}")[first:last]) if padded else units)
                places.append(first)
                heights.append(self._stack()[i].out_features)
            run = run._replace(known=tuple(map(_insert, run.known, new, places, heights)))
        k, known = d // self.block, run.known
        ahead: list[Tensor] = []
        for i, (weight, _, bias) in enumerate(run.layers):
            low = self._ready(i - 1, d - 1) if i else d
            if low:
                h = torch.addmm(bias[k], weight[k][:, :low], known[i][:low])
            else:
                h = bias[k].expand(-1, known[0].shape[1]).contiguous()
            if i == 0 and run.context is not None:
                h = h + run.context.index_select(0, self.rows1[k])
            ahead.append(h)
        return run, tuple(near[k] for _, near, _ in run.layers), MADEBlock(tuple(ahead), (), ())

    def step_in_block(
        self, x_prev: Tensor | None, weights: tuple[Tensor, ...], block: MADEBlock
    ) -> tuple[Tensor, MADEBlock]:
        i, xs = len(block.units), block.xs
        units: list[Tensor] = []
        skip = block.ahead[0]
        if i and x_prev is not None:  # what came before the block is in `ahead`
            xs = (*xs, x_prev.unsqueeze(0))
        for layer, (ahead, near) in enumerate(zip(block.ahead, weights, strict=True)):
            rows = slice(self._offsets[layer][i], self._offsets[layer][i + 1])
            before = xs if layer == 0 else (*(step[layer - 1] for step in block.units), units[-1])
            h = _add_products(ahead[rows], near[rows], before, UNROLLED if self.writes_out else SHORT)
            if self._closes_block(layer):
                h = h + skip
            skip = h if layer == 0 or self._closes_block(layer) else skip
            if layer < len(self.layers) - 1:
                units.append(self.activation(h))
        return h.T, block._replace(xs=xs, units=(*block.units, tuple(units)))

    def finish(self, block: MADEBlock) -> tuple[Tensor, ...]:
        return tuple(torch.cat(pieces) for pieces in zip(*block.units, strict=True))

    def _set_block(self, block: int) -> None:
        """Lay out coordinates (0) and the rows of each layer (1, …) by block, as many for step i of every block.

        `rows` says which row each slot of a block holds, row 0 where it holds none, `there` whether it holds one, and
        `slots` in which slot of its block each row is.
        """
        self.block = block
        starts = range(0, self.features, block)
        self._offsets: list[list[int]] = []
        for layer in range(-1, len(self.layers)):
            ready = [d if layer < 0 else self._ready(layer, d - 1) for d in range(self.features + 1)]
            at = [range(*ends) for ends in pairwise(ready)] + [range(0)] * (len(starts) * block - self.features)
            heights = [max(len(at[start + i]) for start in starts) for i in range(block)]
            offsets = [0, *accumulate(heights)]
            rows = torch.zeros(len(starts), offsets[-1], dtype=torch.long)
            there = torch.zeros_like(rows, dtype=torch.bool)
            slots = torch.zeros(ready[-1], dtype=torch.long)
            for d, here in enumerate(at):
                place = offsets[d % block] + torch.arange(len(here))
                rows[d // block, place] = torch.tensor(here, dtype=torch.long)
                there[d // block, place] = True
                slots[here.start : here.stop] = place
            for name, buffer in (("rows", rows), ("there", there), ("slots", slots)):
                self.register_buffer(f"{name}{layer + 1}", buffer, persistent=False)
            if layer >= 0:
                self._offsets.append(offsets)

    def signature(self) -> Hashable:
        activation, kind = signature(self.activation), type(self.activation)
        known = kind.__module__ == "torch.nn.modules.activation" and kind is not nn.RReLU  # random while training
        if type(self) is not MADE or activation is None or not known:
            return None
        return self.n_params, self.residual, activation, *map(tuple, self._offsets)

    def _ready(self, i: int, d: int) -> int:
        """How many rows of layer i can be computed at step d: units, or parameters for the last layer."""
        if i == len(self.layers) - 1:
            return (d + 1) * self.n_params
        return self._slices[i][d] if d >= 0 else 0

    def _known(self, i: int, d: int) -> int:
        """How many inputs of layer i there are at step d: coordinates before d, or units of the layer below."""
        return d if i == 0 else self._ready(i - 1, d)

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

    context: Tensor | None  # what it adds to the first layer
    layers: tuple[tuple[Sequence[Tensor], ...], ...]  # by block: rows of the weights, those inside the block, biases
    known: tuple[Tensor, ...]  # inputs of each layer, of all blocks before


class MADEBlock(NamedTuple):
    """What the steps of a block start from, by layer, and what they found."""

    ahead: tuple[Tensor, ...]  # pre-activations from everything before the block
    xs: tuple[Tensor, ...]  # coordinates
    units: tuple[tuple[Tensor, ...], ...]  # activations, by step and layer


class MADETrace(NamedTuple):
    """Where a run ended: masked weights, and pre-activations of the hidden layers as (units, rows)."""

    weights: tuple[Tensor, ...]
    inner: tuple[Tensor, ...]


def _share_out(sets: int, width: int) -> Tensor:
    """Which set each of `width` units carries: evenly, sorted, the last set included."""
    units = torch.arange(width)
    return units * sets // width if width >= sets else (units * (sets - 1)) // max(1, width - 1)


def _contains(outer: Tensor, inner: Tensor) -> Tensor:
    """(n, m) booleans: the set in row t of `outer` contains the set in row s of `inner`."""
    return (~outer).float() @ inner.float().T == 0


def _bounds(mask: Tensor) -> Tensor:
    """(2, out) integers: from which input to which (not included) each output sees some."""
    count = mask.shape[1]
    at = torch.arange(count)
    first = torch.where(mask > 0, at, count).amin(1) if count else torch.zeros(len(mask))
    last = torch.where(mask > 0, at + 1, 0).amax(1) if count else torch.zeros(len(mask))
    return torch.stack([first, last]).int()


def _add_products(ahead: Tensor, weight: Tensor, pieces: Sequence[Tensor], unrolled: int) -> Tensor:
    """ahead + weight @ cat(pieces), where weight may have more columns, for what is not there yet."""
    n = sum(len(piece) for piece in pieces)
    if n == 0 or len(ahead) == 0:
        return ahead
    if weight.shape[1] <= unrolled and torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
        for k, row in enumerate(row for piece in pieces for row in piece):  # fused with what is before and after
            ahead = ahead + weight[:, k : k + 1] * row
        return ahead
    return torch.addmm(ahead, weight[:, :n], torch.cat(tuple(pieces)))


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


def _check_mask(layer: MaskedLinear, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Weights of another adjacency are refused: they would be multiplied by a mask that they were not trained with."""
    mask, errors = state.get(f"{prefix}mask"), rest[-1]
    if mask is not None and mask.shape == layer.mask.shape and not (mask.is_meta or layer.mask.is_meta):
        same = torch.equal(mask.bool().cpu(), layer.mask.bool().cpu())
        errors.extend([] if same else [f"{prefix}mask is that of another adjacency"])

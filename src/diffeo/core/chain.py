"""Composition of transforms, with the shapes of neighbours checked when it is built."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core.joining import join_neighbours
from diffeo.core.memory import POLICIES, turn_back, turns_back
from diffeo.core.transform import Transform, Univariate
from diffeo.functional import Context, Event, check_event, in_blocks, keep_masked, meet, show_event, sum_event
from diffeo.kernels import vector_steps
from diffeo.kernels.dispatch import can_run
from diffeo.kernels.segments import Back, Rebuilt, run_parts


class Chain(Transform):
    """Transforms applied one after the other: z = f_n(… f_2(f_1(x))), log-dets added up.

    logdet(x) = Σ_i log|det ∂f_i|, each folded to the batch of the whole chain. Both directions cost the sum of their
    parts.

    Args:
        *parts: transforms in the normalizing direction, the one next to the data first.
        memory: what training keeps for the backward pass, an attribute that may be set later. "store": every
            activation. "recompute": the input of each part, which is run again. "invert": at most four of these inputs;
            the rest is rebuilt by inverting, checked against what was kept, and recomputed from there where a part is
            ill-conditioned, or where its inverse is numerical or runs step by step. Parts with a `memory` of their own,
            such as chains, get the same.

    Raises:
        ValueError: no part; an unknown memory policy; a bare parameterised `Univariate`; neighbours whose event shapes
            cannot meet.
        RuntimeError: from the backward pass, where "recompute" or "invert" would find other weights than the forward
            pass did: after a step of an optimizer, or the end of a `functional_call`.

    >>> import torch, diffeo
    >>> chain = diffeo.Chain(diffeo.Exp(), diffeo.Permute(torch.tensor([2, 0, 1])))
    >>> z, logdet = chain(torch.zeros(5, 3))
    >>> z.shape, logdet.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, *parts: Transform, memory: str = "store"):
        super().__init__()
        if not parts:
            raise ValueError("Chain: expected at least one transform, got none")
        for i, part in enumerate(parts):
            if isinstance(part, Univariate) and part.n_params:
                raise ValueError(
                    f"{_name(parts, i)} needs {part.n_params} parameters for each scalar: "
                    "wrap it in Elementwise, Coupling or Autoregressive"
                )
        self.parts = nn.ModuleList(parts)
        self._memory = "store"
        if memory != "store":  # else inner chains keep what they were given
            self.memory = memory

        ndim = parts[-1].event_ndim_out
        for part in reversed(parts):
            ndim = max(ndim - part.event_ndim_out + part.event_ndim, part.event_ndim)
        self.event_ndim = ndim
        folds: list[int] = []  # how many trailing dims of each log-det belong to the chain's event
        for part in parts:
            folds.append(ndim - part.event_ndim)
            ndim += part.event_ndim_out - part.event_ndim
        self.event_ndim_out = ndim
        self._folds = tuple(folds)

        self._entry, self.event = self._meet(parts)
        self.domain = _lift(parts[0].domain, self.event_ndim)
        self.codomain = _lift(parts[-1].codomain, self.event_ndim_out)
        self.exact_inverse = all(part.exact_inverse for part in parts)
        self.exact_logdet = all(part.exact_logdet for part in parts)
        self.traceable = all(part.traceable for part in parts)
        self.stepwise = frozenset(direction for part in parts for direction in part.stepwise)

    def _meet(self, parts: tuple[Transform, ...]) -> tuple[str, Event | None]:
        """Follow what is known of the event from part to part, and back; with the first part that knows any."""
        known: Event | None = None
        shapes: list[Event | None] = []
        source = ""
        for i, part in enumerate(parts):
            if part.event is not None:
                met = part.event if known is None else meet(known, part.event)
                if met is None or (known is not None and len(known) < len(part.event)):
                    raise ValueError(
                        f"{source} gives events of shape {show_event(known or ())}, "
                        f"but {_name(parts, i)} expects {show_event(part.event)}"
                    )
                known, source = met, _name(parts, i)
            shapes.append(known)
            known = None if known is None else part.output_shape(known)
        for part, shape in zip(reversed(parts), reversed(shapes), strict=True):
            known = None if known is None else part.input_shape(known)
            known = shape if known is None else known if shape is None else meet(known, shape)
        entry = next((_name(parts, i) for i, part in enumerate(parts) if part.event is not None), "Chain")
        return entry, known if known is not None and len(known) == self.event_ndim else None

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        if self.event is not None:
            check_event(x, self.event, self._entry)
        parts, contexts = list(self._transforms()), self.contexts(context)
        if self.memory != "store" and torch.is_grad_enabled():
            return self._sparing(parts, x, contexts)
        z, i = x, 0
        groups = {}
        if self.event_ndim == 1:
            groups = join_neighbours(
                [None if fold else part for part, fold in zip(parts, self._folds, strict=True)], contexts, x
            )
        logdets: list[Tensor] = []
        while i < len(parts):
            steps = groups.get(i, [])
            # an earlier part may have changed the size or dtype for which the group was made
            same = z.shape[-1:] == x.shape[-1:] and z.dtype == x.dtype
            together = bool(steps) and same and can_run(z, products=True)
            z, logdet = vector_steps.run(steps, z) if together else self.run(i, z, contexts[i])
            logdets.append(logdet)
            i += len(steps) if together else 1
        return z, sum(logdets[1:], logdets[0])

    @property
    def memory(self) -> str:
        """What training keeps for the backward pass: "store", "recompute" or "invert"."""
        return self._memory

    @memory.setter
    def memory(self, policy: str) -> None:
        if policy not in POLICIES:
            raise ValueError(f"Chain: memory must be one of {', '.join(POLICIES)}, got {policy!r}")
        self._memory = policy
        for part in self.parts:
            if hasattr(part, "memory"):
                part.memory = policy  # pyright: ignore[reportArgumentType]

    def _sparing(self, parts: list[Transform], x: Tensor, contexts: list[Context]) -> tuple[Tensor, Tensor]:
        """The forward pass under a memory policy, which parts with a memory of their own follow by themselves."""
        z = x
        logdets: list[Tensor] = []
        numbered = enumerate(zip(parts, contexts, strict=True))
        for own, group in itertools.groupby(numbered, key=lambda item: hasattr(item[1][0], "memory")):
            some = list(group)
            if own:
                for i, (_, c) in some:
                    z, logdet = self.run(i, z, c)
                    logdets.append(logdet)
                continue
            first = some[0][0]
            inner, given = [part for _, (part, _) in some], [c for _, (_, c) in some]

            def run(i: int, x: Tensor, context: Context, first: int = first) -> tuple[Tensor, Tensor]:
                return self.run(first + i, x, context)

            def invert(i: int, z: Tensor, context: Context, inner: list[Transform] = inner) -> Rebuilt | Tensor:
                return turn_back(inner[i], z, context)

            pairs = run_parts(inner, run, Back(invert, [turns_back(part) for part in inner]), z, given, self.memory)
            z = pairs[-1][0]
            logdets += [logdet for _, logdet in pairs]
        return z, sum(logdets[1:], logdets[0])

    def run(self, i: int, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Part i, its log-det folded to the batch of the chain."""
        part = self.parts[i]
        z, logdet = part(x, context)
        if part.event_ndim == 0:
            z, logdet = keep_masked(x, z, logdet, context)
        return z, self.fold(i, logdet)

    def fold(self, i: int, logdet: Tensor) -> Tensor:
        """The log-det of part i, summed to the batch of the chain."""
        return sum_event(logdet, self._folds[i])

    def contexts(self, context: Context) -> list[Context]:
        """The context of each part."""
        contexts: list[Context] = []
        for part in self._transforms():
            contexts.append(context)
            context = part.map_context(context)
        return contexts

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        parts, contexts = list(self._transforms()), self.contexts(context)
        x = z
        logdets: list[Tensor] = []
        for part, fold, c in zip(parts[::-1], self._folds[::-1], contexts[::-1], strict=True):
            z, (x, logdet) = x, part.inverse(x, c)
            if part.event_ndim == 0:
                x, logdet = keep_masked(z, x, logdet, c)
            logdets.append(sum_event(logdet, fold))
        return x, sum(logdets[1:], logdets[0])

    def _transforms(self) -> Iterator[Transform]:
        return iter(self.parts)  # pyright: ignore[reportReturnType] (a ModuleList forgets its element type)

    def output_shape(self, event: Event) -> Event:
        for part in self._transforms():
            event = part.output_shape(event)
        return event

    def input_shape(self, event: Event) -> Event:
        for part in reversed(list(self._transforms())):
            event = part.input_shape(event)
        return event

    def map_context(self, context: Context) -> Context:
        for part in self._transforms():
            context = part.map_context(context)
        return context

    def unmap_context(self, context: Context) -> Context:
        for part in reversed(list(self._transforms())):
            context = part.unmap_context(context)
        return context

    def compile_direction(self, direction: str) -> None:
        if direction in self.stepwise:
            for part in self._transforms():
                part.compile_direction(direction)
        else:
            super().compile_direction(direction)

    @property
    def wants_rows(self) -> bool:
        return any(part.wants_rows for part in self._transforms())

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        parts = list(self._transforms())
        wanting = [i for i, part in enumerate(parts) if part.wants_rows]
        for i in range(wanting[-1] + 1 if wanting else 0):
            parts[i].initialize(x, context)
            if i < wanting[-1]:
                x = in_blocks(parts[i], x, context, parts[i].event_ndim)
                context = parts[i].map_context(context)


def _name(parts: tuple[Transform, ...], i: int) -> str:
    return f"{type(parts[i]).__name__} {i + 1} of {len(parts)}"


def _lift(constraint: Constraint, event_ndim: int) -> Constraint:
    missing = event_ndim - constraint.event_dim
    return constraints.independent(constraint, missing) if missing > 0 else constraint

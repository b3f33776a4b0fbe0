"""What recipes are made of: couplings, autoregressive layers, the base and the encoder around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from diffeo.core import Chain, Flow, Transform, Univariate
from diffeo.densities import GaussianMixture, Normal
from diffeo.functional import is_real
from diffeo.nets import MADE, MLP, ContextScaler
from diffeo.solvers.mixtures import FEW
from diffeo.transforms import Autoregressive, Coupling, LULinear
from diffeo.transforms import univariate as maps


def flow(features: int, context: int, parts: Sequence[Transform], components: int = 0) -> Flow:
    """The parts before a standard normal, or a mixture of Gaussians; a context is standardised by training rows."""
    base = GaussianMixture(features, components) if components else Normal(features)
    return Flow(Chain(*parts), base, ContextScaler(context) if context else None)


def mixture_size(features: int, components: int | None) -> int:
    """Room for several fits of many clusters where columns are few; else few, since more hold training back."""
    return components if components is not None else 64 if features <= FEW else 8


def alternate(features: int, i: int) -> Tensor:
    """Every other coordinate, the other half the next time; in one dimension nothing is left to condition on."""
    return torch.arange(features) % 2 == i % 2 if features > 1 else torch.zeros(1, dtype=torch.bool)


def coupling(mask: Tensor, univariate: Univariate, context: int, hidden: Sequence[int], options: dict) -> Coupling:
    """A coupling with an MLP as its conditioner."""
    keeps = int(mask.sum())
    net = MLP(keeps, len(mask) - keeps, n_params=univariate.n_params, context=context, hidden=hidden, **options)
    return Coupling(mask, net, univariate)


def autoregressive(
    features: int, univariate: Univariate, context: int, layers: int, hidden: Sequence[int], options: dict, mix: bool
) -> list[Transform]:
    """Layers with the order turned round each time, a copy of the scalar map in each, and learned linear maps between
    them if `mix`.

    With an adjacency neither is possible: it is the same in every layer.
    """
    parts: list[Transform] = []
    free = options.get("adjacency") is None
    for i in range(layers):
        order = torch.arange(features) if i % 2 == 0 else torch.arange(features - 1, -1, -1)
        net = MADE(
            features, univariate.n_params, context=context, hidden=hidden, order=order if free else None, **options
        )
        parts += [Autoregressive(net, deepcopy(univariate)), *([LULinear(features)] if mix and free else [])]
    return parts


def preset_sizes(name: str, presets: Mapping[str, dict[str, int]], preset: str, **asked: int | None) -> dict[str, int]:
    """The sizes of a preset, but for those asked for."""
    if preset not in presets:
        raise ValueError(f"{name}: preset must be one of {', '.join(presets)}, got {preset!r}")
    wrong = {k: v for k, v in asked.items() if v is not None and not (isinstance(v, Integral) and v >= 1)}
    if wrong:
        raise ValueError(f"{name}: expected whole numbers of at least 1, got {wrong}")
    return {**presets[preset], **{k: v for k, v in asked.items() if v is not None}}


def scalar_map(name: str, options: Mapping[str, Any] | None = None) -> Univariate:
    """The scalar map of this name, or an error that lists those that there are."""
    names = scalar_maps()
    if name not in names:
        raise ValueError(f"unknown scalar map {name!r}; there are {', '.join(names)}")
    try:
        return getattr(maps, name)(**(options or {}))
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


@cache
def scalar_maps() -> tuple[str, ...]:
    """Names of the scalar maps with parameters, of the whole line onto itself."""
    found = []
    for name in maps.__all__:
        with torch.random.fork_rng(devices=[]):  # some have nets, and asking must not move the weights of what follows
            made = getattr(maps, name)() if name != "Composed" else None
        if made is not None and made.n_params and is_real(made.domain) and is_real(made.codomain):
            found.append(name)
    return tuple(found)

"""Maps defined on an interval, continued as their tangents: with slopes that stay, beyond any bound."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def tangent_beyond(bound: float, x: Tensor, inside: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Values and log-slopes of a map given on [-bound, bound]; outside, those of its tangent at the nearer end."""
    near = x.clamp(-bound, bound)
    z, log_slope = inside(near)
    return z + log_slope.exp() * (x - near), log_slope

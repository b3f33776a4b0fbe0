"""Rows of categories, whole numbers, bounded and unbounded numbers: the recipe behind tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffeo.core import Chain, Density, Flow
from diffeo.densities import Categorical, Dequantized, Mixed
from diffeo.recipes.registry import find_recipe, recipe
from diffeo.transforms import Regress, Unconstrain


@recipe(events="rows")
def mixed(
    features: int,
    *,
    levels: Sequence[int] = (),
    context: int = 0,
    low: Sequence[float | None] | None = None,
    high: Sequence[float | None] | None = None,
    whole: Sequence[int] = (),
    atoms: Sequence[int] = (),
    flow: str = "nsf_ar",
    options: Mapping[str, Any] | None = None,
) -> Density:
    """Categories, then numbers by a flow that is conditional on them; whole numbers are dequantized.

    log p(k, y | c) = log P(k | c) + log p(y | k, c); exact without whole numbers, else a lower bound. It starts as a
    tree of categories and a linear regression of the numbers on them, in front of the flow.

    Args:
        features: how many numbers, at least 0.
        levels: number of categories of each categorical column; events begin with their codes.
        context: width of the context, which should be on a common scale; 0 for none.
        low, high: bounds of the numbers, None for none; the flow runs on the unbounded line behind them.
        whole: positions, among the numbers, of those that take whole values only: the density of one is its
            probability.
        atoms: positions, among the numbers, of those that are absent where a category of their own, one of the last of
            `levels` in the same order, is not 0: what holds a certain value often (no rain) is that category.
        flow: name of the recipe for the numbers.
        options: further arguments of that recipe.

    Cost: that of the recipe, and one pass (a pass for each categorical column of a sample) for the categories.

    >>> import torch, diffeo
    >>> model = diffeo.mixed(2, levels=[3], whole=[1], flow="maf")
    >>> model(torch.tensor([[2.0, 0.1, 5.0]])).shape
    torch.Size([1])
    """
    if not features and not levels:
        raise ValueError("mixed: expected at least one column, got neither categories nor numbers")
    categories = Categorical(levels, context=context) if levels else None
    if categories is not None and not features:
        return categories
    numbers = find_recipe(flow)(features, context=context + sum(levels), **(options or {}))
    if not isinstance(numbers, Flow):
        raise ValueError(f"mixed: the recipe {flow!r} makes no flow of vectors")
    transform = numbers.transform
    if width := context + sum(levels):
        transform = Chain(Regress(features, width), transform)
    if any(bound is not None for bound in (*(low or ()), *(high or ()))):
        free = [None] * features
        transform = Chain(Unconstrain(low or free, high or free), transform)
    # no encoder: standardising one-hot columns would blow up rare categories
    density: Density = Flow(transform, numbers.base)
    if categories is not None:
        density = Mixed(categories, density)
    if not whole and not atoms:
        return density
    spacing, absent = torch.zeros(len(levels) + features), torch.full((len(levels) + features,), -1)
    spacing[[len(levels) + i for i in whole]] = 1.0
    for code, i in zip(range(len(levels) - len(atoms), len(levels)), atoms, strict=True):
        absent[len(levels) + i] = code
    bounds = [
        torch.tensor([side] * len(levels) + [side if b is None else b for b in given or [None] * features])
        for given, side in ((low, -torch.inf), (high, torch.inf))
    ]
    return Dequantized(density, spacing, absent=absent, low=bounds[0], high=bounds[1])

"""Arguments that docstrings exclude are refused by name, by every recipe and every class that takes them."""

import inspect
import math

import pytest
import torch

import diffeo

RECIPES = {name: build for name, build in diffeo.recipes().items() if build.__module__.startswith("diffeo.")}
del RECIPES["mixed"], RECIPES["regression"]
WRONG = {"features": (0, -1, 2.5), "layers": (-1, 1.5), "context": (-1,), "hidden": ((0,), (8, -1)),
         "scales": (0, 1.5), "blocks": (0,), "classes": (-1, 2.5), "levels": (1, 2.5)}  # fmt: skip
BOUNDED = [
    diffeo.RationalQuadraticSpline, diffeo.Affine, diffeo.SinhArcsinh, diffeo.Power, diffeo.MixtureCDF,
    diffeo.SumOfSquares, diffeo.Bernstein, diffeo.UnconstrainedMonotonic, diffeo.DeepSigmoidal, diffeo.DenseSigmoidal,
    lambda bound: diffeo.LULinear(2, bound=bound), lambda bound: diffeo.TriangularLinear(2, bound=bound),
    lambda bound: diffeo.ExpLinear(2, bound=bound), lambda bound: diffeo.DiagonalNormal(2, bound=bound),
]  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name):
    taken = inspect.signature(RECIPES[name]).parameters
    for what, values in WRONG.items():
        for value in values if what in taken else ():
            needed = {"shape": (1, 8, 8), "features": 2, "symbols": 3, "mels": 2, "hop": 10}
            arguments = {**{name: needed[name] for name in needed if name in taken}, what: value}
            with pytest.raises(ValueError, match=f"{name}: {what}"):
                RECIPES[name](**arguments)


@pytest.mark.parametrize("make", BOUNDED)
@pytest.mark.parametrize("bound", [0, -1.0, math.nan, math.inf])
def test_bounds(make, bound):
    with pytest.raises(ValueError, match="bound"):
        make(bound=bound)


def test_a_permutation_is_of_whole_numbers():
    with pytest.raises(ValueError, match="permutation"):
        diffeo.Permute(torch.tensor([1.0, 0.0]))

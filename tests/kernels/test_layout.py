"""What compilers see written out, against what libraries find."""

import pytest
import torch

from diffeo.kernels.layout import TINY, multiply, solve_rows


def with_gradients(function, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    found = function(*leaves)
    return [found.detach(), *torch.autograd.grad(found.sin().sum(), leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("unitriangular", [False, True])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("n", [1, 2, TINY, TINY + 1])
def test_solves_and_products_of_few_columns(n, upper, unitriangular):
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randn(n, n, generator=generator, dtype=torch.float64) for _ in range(2))
    triangle = (a.triu(1) if upper else a.tril(-1)) + torch.diag(
        torch.ones(n) if unitriangular else 2 + a.diagonal().abs()
    )
    rows = torch.randn(3, 7, n, generator=generator, dtype=torch.float64)

    def solve(triangle, rows):
        return solve_rows(triangle, rows, upper, unitriangular)

    for function, tensors in ((solve, (triangle, rows)), (multiply, (a, b))):
        torch._dynamo.reset()
        compiled = torch.compile(function, backend="eager", fullgraph=True)
        expected = with_gradients(function, *tensors)
        expected[1:2] = [expected[1] * (triangle != 0)] if function is solve else expected[1:2]
        found = with_gradients(compiled, *tensors)
        found[1:2] = [found[1] * (triangle != 0)] if function is solve else found[1:2]
        for x, y in zip(found, expected, strict=True):
            assert torch.allclose(x, y, rtol=1e-12, atol=1e-12)

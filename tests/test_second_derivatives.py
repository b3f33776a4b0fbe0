"""Second derivatives of every transform, both ways and in three styles of PyTorch: right, or an error, never zeros."""

import pytest
import torch
from torch.func import hessian, vmap

import diffeo
from cases import TRANSFORMS
from diffeo.testing import perturbed

REFUSED = (
    "second|twice|first derivatives|differentiate|Double backward|not implemented|forward-mode|forward AD|"
    "data-dependent|vmap"
)
STEP = 1e-5


def at_a_row(name, direction):
    """A scalar function of one row, and the row."""
    case = TRANSFORMS[name]
    transform = perturbed(case.build(0), 0).double()
    x = case.x()[:1].double()
    context = None if case.context is None else case.context()
    if isinstance(context, dict):
        context = {k: v[:1].double() if v.is_floating_point() else v[:1] for k, v in context.items()}
    elif context is not None:
        context = context[:1].double()
    if direction == "inverse":
        with torch.no_grad():
            x = transform(x, context)[0]
    run = transform if direction == "forward" else transform.inverse
    weights = torch.linspace(0.5, 1.5, run(x, context)[0].numel(), dtype=torch.float64)

    def f(row):
        z, logdet = run(row.reshape(x.shape), context)
        return (z.flatten() * weights).sum() + logdet.sum()

    return f, x.flatten()


def by_differences(f, x):
    def gradient(row):
        row = row.detach().requires_grad_()
        return torch.autograd.grad(f(row), row)[0]

    eye = STEP * torch.eye(len(x), dtype=x.dtype)
    return torch.stack([(gradient(x + e) - gradient(x - e)) / (2 * STEP) for e in eye])


def graph(f, x):
    v = x.clone().requires_grad_()
    return torch.autograd.grad(f(v) + (v**3).sum(), v, create_graph=True)[0], v


def rows_of(f, x):
    """With a term beside that does have second derivatives, so that a graph is there in any case."""
    gradient, v = graph(f, x)
    return torch.stack([torch.autograd.grad(g, v, retain_graph=True)[0] for g in gradient]) - torch.diag(6 * x)


STYLES = {
    "autograd": torch.autograd.functional.hessian,
    "create_graph": rows_of,
    "func": lambda f, x: vmap(hessian(f))(torch.stack([x, x + 0.01, x + 0.02]))[0],
}


# of PyTorch's, from the second derivative of log_sigmoid under vmap
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_right_or_an_error(name, direction):
    f, x = at_a_row(name, direction)
    expected = by_differences(f, x)
    for style, way in STYLES.items():
        try:
            got = way(f, x)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            said = str(error)
        else:
            said = ""
        if said:
            assert any(word in said for word in REFUSED.split("|")), (style, said)
            continue
        scale = 1 + expected.abs().max()
        assert (got - expected).abs().max() < 1e-3 * scale, (style, float((got - expected).abs().max()), float(scale))


def test_memory_by_inverting_says_so():
    flow = diffeo.nsf(2).double().train()
    flow.transform.memory = "invert"
    x = torch.randn(2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="set memory = 'store'"):
        torch.autograd.functional.hessian(lambda v: flow(v[None])[0], x)

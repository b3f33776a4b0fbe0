"""Properties over the whole case table that a user meets at its edges: half precision, no rows, rows far out."""

import copy

import pytest
import torch

import diffeo
from cases import DENSITIES, TRANSFORMS
from diffeo.testing import perturbed

UNIVARIATES = [name for name, case in TRANSFORMS.items() if isinstance(case.build(0), diffeo.Univariate)]
LAYERS = [name for name in TRANSFORMS if name not in UNIVARIATES]


def some(context, rows):
    """The first rows of a context that has some."""
    if isinstance(context, dict):
        return {name: some(t, rows) for name, t in context.items()}
    return context if context is None or context.ndim == 0 else context[:rows]


def halved(context):
    if isinstance(context, dict):
        return {name: halved(t) for name, t in context.items()}
    return context.bfloat16() if context is not None and context.is_floating_point() else context


@pytest.mark.parametrize("name", LAYERS)
def test_logdets_of_half_precision_are_float32(name):
    case = TRANSFORMS[name]
    layer, x, context = case.build(0).bfloat16().eval(), case.x().bfloat16(), case.context and halved(case.context())
    with torch.no_grad():
        z, logdet = layer(x, context)
        assert z.dtype == torch.bfloat16
        assert logdet.dtype == torch.float32
        if layer.exact_inverse:
            x, logdet = layer.inverse(z, context)
            assert x.dtype == torch.bfloat16
            assert logdet.dtype == torch.float32


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_batch_may_be_empty(name):
    case = TRANSFORMS[name]
    layer, x, context = case.build(0).eval(), case.x()[:0], case.context and some(case.context(), 0)
    z, logdet = layer(x, context)
    assert len(z) == len(logdet) == 0
    back, logdet = layer.inverse(z, context)
    assert back.shape == x.shape
    assert len(logdet) == 0


@pytest.mark.parametrize("name", [name for name in UNIVARIATES if TRANSFORMS[name].build(0).n_params])
@pytest.mark.parametrize(
    "shapes", [((), (4,)), ((5, 1), (1, 4)), ((4,), (5, 4)), ((5, 4), (4,)), ((5, 4), ())], ids=str
)
def test_scalars_and_parameters_broadcast_against_each_other(name, shapes):
    u = TRANSFORMS[name].build(0)
    generator, both = torch.Generator().manual_seed(0), torch.broadcast_shapes(*shapes)
    x = 0.05 + 0.9 * torch.rand(shapes[0], generator=generator)
    params = 0.1 * torch.randn(*shapes[1], u.n_params, generator=generator)
    for run in (u, u.inverse):
        z, logdet = run(x, params)
        expected = run(x.expand(both).clone(), params.expand(*both, -1).clone())
        assert z.shape == logdet.shape == both
        torch.testing.assert_close((z, logdet), expected, atol=1e-5, rtol=1e-5)


CLOSED = {"mixed, bounds"}  # refuses what is outside its bounds as NaN


@pytest.mark.parametrize("name", [name for name in DENSITIES if name not in CLOSED])
def test_rows_far_out_have_density_zero_and_not_nan(name):
    case = DENSITIES[name]
    density = perturbed(case.build()).eval()
    x = density.sample((2,), case.context)
    if not x.is_floating_point():
        pytest.skip("its events are whole numbers")
    for far in (1e3, -1e6, 1e10, -1e20, 3e38):
        for row in (torch.full_like(x, far), torch.cat([x[:1], torch.full_like(x[:1], far)])):
            try:
                found = density(row, case.context)
            except diffeo.solvers.UnsolvedError:
                continue  # an error that says so
            assert not found.isnan().any()
            assert not found.isposinf().any()


def test_nan_near_by_is_not_taken_for_far_out():
    flow = diffeo.maf(2, layers=1)
    with torch.no_grad():
        next(flow.parameters()).fill_(torch.nan)
    assert flow(torch.ones(2)).isnan()
    assert diffeo.maf(2, layers=1)(torch.tensor([torch.nan, 3e38])).isnan()


EMPTY = [
    lambda n: diffeo.LULinear(n),
    lambda n: diffeo.TriangularLinear(n),
    lambda n: diffeo.ExpLinear(n),
    lambda n: diffeo.Householder(n),
    lambda n: diffeo.Conv1x1(n),
    lambda n: diffeo.ActNorm(n),
    lambda n: diffeo.Standardize(n),
    lambda n: diffeo.Whiten(n),
    lambda n: diffeo.Gaussianize(n),
    lambda n: diffeo.Regress(n, 1),
    lambda n: diffeo.Planar(n),
    lambda n: diffeo.Radial(n),
    lambda n: diffeo.Sylvester(n),
    lambda n: diffeo.BlockAutoregressive(n, 4),
    lambda n: diffeo.nets.LipschitzMLP(n),
    lambda n: diffeo.Elementwise(diffeo.Affine(), n),
    lambda n: diffeo.Normal(n),
    lambda n: diffeo.Logistic(n),
    lambda n: diffeo.StudentT(n),
    lambda n: diffeo.Repeated(diffeo.Normal(2), n),
    lambda n: diffeo.nets.MADE(n, 2),
    lambda n: diffeo.nets.MADE(2, n),
    lambda n: diffeo.glow((1, 8, 8), layers=n),
    lambda n: diffeo.realnvp_image((1, 8, 8), hidden=n),
]


@pytest.mark.parametrize("build", EMPTY)
@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_sizes_are_whole_and_positive(build, size):
    with pytest.raises(ValueError, match=r"expected|must"):
        build(size)


def test_bounds_that_are_loaded_count():
    """Two bounds for every column are a case of their own, whichever a layer was made with."""
    rows = torch.tensor([[0.5, 0.25], [3.0, 0.75]])
    half = diffeo.Unconstrain([0.0, 0.0], [None, 1.0])
    both = diffeo.Unconstrain([0.0, 0.0], [4.0, 1.0])
    for layer, given in ((both, half), (half, both)):
        copied = copy.deepcopy(layer)
        copied.load_state_dict(given.state_dict())
        for got, expected in zip(copied(rows), given(rows), strict=True):
            assert torch.equal(got, expected)
        z = given(rows)[0]
        assert torch.equal(copied.inverse(z)[0], given.inverse(z)[0])

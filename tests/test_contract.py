"""Every case of the table keeps every promise of the protocol."""

from __future__ import annotations

import inspect

import pytest
import torch

import diffeo
from cases import DENSITIES, TRANSFORMS
from diffeo.solvers import fixed_point, roots
from diffeo.testing import ContractError, check_density, check_transform


@pytest.fixture(autouse=True)
def _short_traces(monkeypatch):
    """Traced searches make all their evaluations; the maps of the table are solved long before, and trace faster so."""
    monkeypatch.setattr(roots, "TRACED", 9)
    monkeypatch.setattr(fixed_point, "TRACED", 12)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(name):
    case = TRANSFORMS[name]
    check_transform(case.build(0), case.x(), case.context and case.context(), other=case.build(1))


@pytest.mark.parametrize("name", DENSITIES)
def test_density(name):
    case = DENSITIES[name]
    check_density(case.build(), case.context)


def test_every_public_class_is_in_the_table():
    covered = {type(m) for case in TRANSFORMS.values() for m in case.build(0).modules()}
    covered |= {type(m) for case in DENSITIES.values() for m in case.build().modules()}
    public = [getattr(diffeo, name) for name in dir(diffeo)]
    wanted = {
        c
        for c in public
        if inspect.isclass(c) and issubclass(c, diffeo.Transform | diffeo.Density) and not inspect.isabstract(c)
    }
    assert {c for c in wanted if c.__module__.startswith("diffeo")} - covered == {diffeo.Univariate} & wanted


class WrongSign(diffeo.Exp):
    def inverse(self, z, context=None):
        x, logdet = super().inverse(z)
        return x, -logdet


class WrongLogdet(diffeo.Exp):
    def forward(self, x, context=None):
        return x.exp(), 2 * x

    def inverse(self, z, context=None):
        return z.log(), -2 * z.log()


class MeanLogdet(diffeo.Permute):
    def forward(self, x, context=None):
        z, _ = super().forward(x)
        return z, x.new_zeros(x.shape)


class Unused(diffeo.Exp):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))


class Forgetful(diffeo.Exp):
    def inverse(self, z, context=None):
        return z.clamp(max=1.5).log(), -z.log()


class DataDependent(diffeo.Exp):
    def forward(self, x, context=None):
        if x.sum() > 0:
            return x.exp(), x
        return x.exp(), x + 0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WrongSign(), "logdet"),
        (WrongLogdet(), "Jacobian"),
        (Unused(), "no gradient reaches weight"),
        (Forgetful(), "inverse"),
        (DataDependent(), "fullgraph"),
    ],
)
def test_broken_transforms_are_caught(broken, message):
    with pytest.raises(ContractError, match=message):
        check_transform(broken, torch.linspace(-2, 2, 6))


def test_a_logdet_of_wrong_shape_is_caught():
    with pytest.raises(ContractError, match="logdet has shape"):
        check_transform(MeanLogdet(torch.tensor([1, 0])), torch.randn(6, 2))


class OneWay(diffeo.Reshape):
    """Folds masks, and does not unfold them."""

    def unmap_context(self, context):
        return context


def test_masks_that_are_not_mapped_back_are_caught():
    with pytest.raises(ContractError, match="mask"):
        check_transform(OneWay((2, 3), (6,)), torch.randn(6, 2, 3))


class Unnormalised(diffeo.Normal):
    def forward(self, x, context=None):
        return super().forward(x) + 0.1


class Shifted(diffeo.Normal):
    def draw(self, shape, context, temperature, generator):
        return super().draw(shape, context, temperature, generator) + 0.5


@pytest.mark.parametrize(
    ("broken", "message"), [(Unnormalised(2), "integrates to 1.1"), (Unnormalised(5), "E_p"), (Shifted(3), "disagree")]
)
def test_broken_densities_are_caught(broken, message):
    with pytest.raises(ContractError, match=message):
        check_density(broken)


def test_bounded_splines_leave_the_outside_to_the_base():
    box = diffeo.testing.perturbed(diffeo.unit_box(2, layers=2, hidden=(8,)))
    assert torch.isinf(box(torch.tensor([[5.0, -3.0], [0.5, 1.1]]))).all()
    assert box(torch.tensor([[0.0, 1.0]])).isfinite().all()


def test_maps_keep_their_precision_under_autocast():
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    for t in [
        diffeo.Elementwise(diffeo.SumOfSquares(), 3),
        diffeo.Elementwise(diffeo.UnconstrainedMonotonic(4, (8,)), 3),
        diffeo.BlockAutoregressive(3, 4),
        diffeo.Sylvester(3, kind="householder"),
        diffeo.Residual(diffeo.nets.LipschitzMLP(3, hidden=(16,))),
        diffeo.Conv1x1(3),
    ]:
        t, rows = diffeo.testing.perturbed(t), x if t.event_ndim == 1 else torch.randn(4, 3, 4, 4)
        with torch.no_grad():
            expected = t(rows)
            with torch.autocast("cpu", torch.bfloat16):
                got = t(rows)
        assert torch.allclose(got[0], expected[0], atol=1e-5), type(t).__name__
        assert torch.allclose(got[1], expected[1], atol=1e-4), type(t).__name__


def test_sylvester_takes_contexts_with_more_rows():
    t = diffeo.testing.perturbed(diffeo.Sylvester(4, 2, context=2))
    context = torch.randn(5, 2)
    z, logdet = t(torch.ones(4), context)
    assert z.shape == (5, 4)
    assert torch.allclose(logdet, t(torch.ones(5, 4), context)[1])

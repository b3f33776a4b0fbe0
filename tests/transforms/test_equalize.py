import pytest
import torch

import diffeo

SHARES = torch.tensor([0.6, 0.02, 0.03, 0.02, 0.01, 0.02, 0.3])


@pytest.fixture
def values() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    levels = torch.multinomial(SHARES, 20_000, replacement=True, generator=generator)
    return (levels + torch.rand(20_000, generator=generator, dtype=torch.float64)).unsqueeze(1)


def test_peaks_keep_their_probability_and_the_others_have_equal_ones(values):
    layer = diffeo.Equalize(1, levels=7).double()
    layer.initialize(values)
    ends = layer(torch.arange(8, dtype=torch.float64).unsqueeze(1))[0].sigmoid()[:, 0]
    mass = ends.diff()
    found = torch.bincount(values[:, 0].long()) / len(values)
    assert torch.allclose(mass[6] / mass[0], (found[6] / found[0]).double(), atol=1e-6)
    assert torch.allclose(mass[1:6], mass[1], atol=1e-6)
    assert torch.allclose(ends[0], mass[1], atol=1e-6)  # a margin beside a peak has no more than another level


def test_the_whole_histogram_becomes_logistic(values):
    layer = diffeo.Equalize(1, levels=7, peak=0).double()
    layer.initialize(values)
    z, logdet = layer(values)
    shares = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert torch.allclose(z.quantile(shares), shares.logit(), atol=0.1)
    log_prob = logdet + torch.nn.functional.logsigmoid(z)[:, 0] + torch.nn.functional.logsigmoid(-z)[:, 0]
    entropy = -(SHARES * SHARES.log()).sum()
    assert abs(float(-log_prob.mean() - entropy)) < 0.03  # the margins have two hundredths


@pytest.mark.parametrize("levels", [2, 7, 40, 256])
def test_without_peaks_it_is_a_logit_with_margins(levels):
    layer = diffeo.Equalize(1, levels=levels, peak=None).double()
    layer.initialize(levels * torch.rand(50, 1, dtype=torch.float64).square())
    low, high = -0.05 * levels, 1.05 * levels
    x = torch.linspace(0.9 * low, high + 0.1 * low, 50, dtype=torch.float64).unsqueeze(1)
    logit, logdet = diffeo.Unconstrain([low], [high]).double()(x)
    z, same = layer(x)
    assert torch.allclose(z, logit, atol=1e-5)
    assert torch.allclose(same, logdet, atol=1e-5)


def test_the_bulk_of_photographs_and_chance_make_no_peaks():
    generator = torch.Generator().manual_seed(0)
    for spread, count in ((10.0, 100_000), (20.0, 100_000), (60.0, 500)):
        x = (128 + spread * torch.randn(count, 1, generator=generator)).clamp(0, 255.9)
        layer = diffeo.Equalize(1)
        layer.initialize(x)
        assert torch.equal(layer.share, diffeo.Equalize(1).share)
    layer.initialized.fill_(False)
    layer.initialize(torch.cat([x, torch.full((100, 1), 0.5)]))  # a black frame does
    assert layer.share[0, 1] > 0.1


@pytest.mark.parametrize("peak", [5.0, 0])
def test_rare_levels_come_back_in_float32(peak):
    levels = torch.cat([torch.full((10_000,), 0.5), torch.full((9_000,), 255.5), torch.tensor([30.5, 200.5, 200.5])])
    layer = diffeo.Equalize(1, peak=peak)
    layer.initialize(levels.unsqueeze(1))
    assert layer.share.min() > 1e-5
    x = torch.linspace(0, 256, 20_001)[:, None]
    z, logdet = layer(x)
    assert z.isfinite().all()
    assert logdet.isfinite().all()
    assert (z.diff(dim=0) > 0).all()
    assert (layer.inverse(z)[0] - x).abs().max() < 0.02  # of a level
    dark = torch.logspace(-7, -3, 20)[:, None]
    assert torch.allclose(layer(dark)[0].double(), layer.double()(dark.double())[0], rtol=1e-6, atol=1e-5)


def test_beyond_the_margins_there_is_nothing():
    layer = diffeo.Equalize(1)
    assert layer(torch.tensor([[-20.0], [280.0], [torch.nan]]))[0].isnan().all()
    assert layer(torch.tensor([[-12.8], [268.8]]))[0].isfinite().all()


def test_values_in_half_precision():
    layer = diffeo.Equalize(1, levels=4)
    layer.initialize(torch.cat([torch.full((90, 1), 0.5), torch.full((30, 1), 2.5)]))
    z, logdet = layer(torch.tensor([[0.5], [2.25]], dtype=torch.bfloat16))
    assert z.dtype == torch.bfloat16
    assert logdet.dtype == torch.float32
    expected = layer(torch.tensor([[0.5], [2.25]]))
    assert torch.allclose(z.float(), expected[0], rtol=0.01)
    assert torch.equal(logdet, expected[1])


def test_padding_is_not_counted(values):
    mask = torch.rand(len(values), 1) < 0.5
    layer, other = diffeo.Equalize(1, levels=7), diffeo.Equalize(1, levels=7)
    layer.initialize(torch.where(mask, values, 3.5), {"mask": mask})
    other.initialize(values[mask].unsqueeze(1))
    assert torch.equal(layer.share, other.share)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: diffeo.Equalize(1, levels=1), "at least 2 levels"),
        (lambda: diffeo.Equalize(0), "Equalize"),
        (lambda: diffeo.Equalize(1, peak=-1.0), "peak >= 0"),
        (lambda: diffeo.Equalize(1, levels=4).initialize(torch.tensor([[0.5], [4.5]])), r"in \[0, 4\], got 0.5 … 4.5"),
        (lambda: diffeo.Equalize(1).initialize(torch.tensor([[torch.nan]])), r"in \[0, 256\], got nan"),
        (lambda: diffeo.Equalize(1).initialize(torch.empty(0, 1)), "no rows"),
    ],
)
def test_what_it_refuses(ask, says):
    with pytest.raises(ValueError, match=says):
        ask()

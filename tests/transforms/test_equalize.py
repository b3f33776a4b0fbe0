import pytest
import torch

import diffeo

SHARES = torch.tensor([0.6, 0.02, 0.03, 0.02, 0.01, 0.02, 0.3])


@pytest.fixture
def values() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    levels = torch.multinomial(SHARES, 20_000, replacement=True, generator=generator)
    return (levels + torch.rand(20_000, generator=generator, dtype=torch.float64)).unsqueeze(1)


def test_peaks_keep_their_shares_and_the_others_have_equal_ones(values):
    layer = diffeo.Equalize(1, levels=7).double()
    layer.initialize(values)
    ends = layer(torch.arange(8, dtype=torch.float64).unsqueeze(1))[0].sigmoid()[:, 0]
    mass = ends.diff()
    found = torch.bincount(values[:, 0].long()) / len(values)
    assert torch.allclose(mass[[0, 6]] / mass[0], (found / found[0])[[0, 6]].double(), atol=1e-6)
    assert torch.allclose(mass[1:6], mass[1], atol=1e-6)
    assert torch.allclose(ends[0], mass[1], atol=1e-6)  # a margin beside a peak is as wide as another level


def test_the_whole_histogram_becomes_logistic(values):
    layer = diffeo.Equalize(1, levels=7, peak=0).double()
    layer.initialize(values)
    z, logdet = layer(values)
    ends = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert torch.allclose(z.quantile(ends), ends.logit(), atol=0.1)
    log_prob = logdet + torch.nn.functional.logsigmoid(z)[:, 0] + torch.nn.functional.logsigmoid(-z)[:, 0]
    entropy = -(SHARES * SHARES.log()).sum()
    assert abs(float(-log_prob.mean() - entropy)) < 0.03  # the margins have two hundredths


def test_without_peaks_it_is_a_logit_with_margins(values):
    layer = diffeo.Equalize(1, levels=40, peak=None).double()
    layer.initialize(values)
    x = torch.tensor([[-1.9], [0.0], [17.3], [40.0], [41.9]], dtype=torch.float64)
    logit, logdet = diffeo.Unconstrain([-2.0], [42.0]).double()(x)
    z, same = layer(x)
    assert torch.allclose(z, logit, atol=1e-5)
    assert torch.allclose(same, logdet, atol=1e-5)


def test_levels_that_were_never_seen_have_a_place(values):
    layer = diffeo.Equalize(1, levels=256, peak=0)
    layer.initialize(values.float())
    x = torch.linspace(0, 256, 20_001)[:, None]
    z, logdet = layer(x)
    assert z.isfinite().all()
    assert logdet.isfinite().all()
    assert (z.diff(dim=0) > 0).all()
    assert (layer.inverse(z)[0] - x).abs().max() < 0.02  # of a level that a float32 of the line can tell
    assert layer(torch.tensor([[-20.0], [280.0], [torch.nan]]))[0].isnan().all()


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: diffeo.Equalize(1, levels=1), "at least 2 levels"),
        (lambda: diffeo.Equalize(1, peak=-1.0), "peak >= 0"),
        (lambda: diffeo.Equalize(1, levels=4).initialize(torch.tensor([[0.5], [4.5]])), r"in \[0, 4\], got 0.5 … 4.5"),
        (lambda: diffeo.Equalize(1).initialize(torch.tensor([[torch.nan]])), r"in \[0, 256\], got nan"),
    ],
)
def test_what_it_refuses(ask, says):
    with pytest.raises(ValueError, match=says):
        ask()

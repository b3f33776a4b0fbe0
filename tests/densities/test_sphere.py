"""Densities on the sphere: mixtures fitted to rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import diffeo


def test_a_mixture_on_the_sphere_is_fitted_to_rows():
    """Planted directions and concentrations are found; held-out rows choose how many; densities are scipy's."""
    from scipy.stats import vonmises_fisher

    axes = np.eye(3)
    rng = np.random.default_rng(0)
    rows = [
        vonmises_fisher(axis, k).rvs(1500, random_state=rng) for axis, k in zip(axes, (5.0, 50.0, 500.0), strict=True)
    ]
    x = torch.from_numpy(np.concatenate(rows)).float()
    mixture = diffeo.VonMisesFisherMixture(16)
    mixture.initialize(x)
    used = mixture.logits > mixture.logits.min()
    assert 2 < used.sum() < 16
    expected = np.mean(
        [vonmises_fisher(axis, k).pdf(x.numpy()) for axis, k in zip(axes, (5.0, 50.0, 500.0), strict=True)], 0
    )
    with torch.no_grad():
        assert float(mixture(x).mean()) > float(np.log(expected).mean()) - 0.01
        one = diffeo.VonMisesFisherMixture(1).double()
        one.directions.copy_(torch.tensor([[2.0, 0.0, 0.0]]))
        reference = vonmises_fisher(axes[0], float(one.concentrations)).logpdf(x.double().numpy())
        x = x.double() / x.double().norm(dim=1, keepdim=True)
        torch.testing.assert_close(one(x), torch.from_numpy(reference), rtol=1e-5, atol=1e-5)


def test_unused_components_on_the_sphere_weigh_nothing():
    x = diffeo.VonMisesFisherMixture(100).sample(5000, generator=torch.Generator().manual_seed(0))
    mixture = diffeo.VonMisesFisherMixture(2048)
    mixture.initialize(x)
    unused = mixture.logits == mixture.logits.min()
    assert unused.sum() > 1000
    assert mixture.logits.softmax(0)[unused].sum() < 0.01


def test_weights_of_rows_do_not_make_needles_on_the_sphere():
    """`fit(weights=)` repeats rows; a row and its copies are held out together, so that few components are used."""
    torch.manual_seed(0)
    x = diffeo.VonMisesFisherMixture(10).sample(1000)
    mixture = diffeo.VonMisesFisherMixture(256)
    mixture.initialize(x[torch.multinomial(torch.rand(1000) ** 4, 3000, replacement=True)])
    assert (mixture.logits > mixture.logits.min()).sum() < 64


def test_concentrated_rows_on_the_sphere_keep_their_digits():
    one = diffeo.VonMisesFisherMixture(1)
    with torch.no_grad():
        one.raw_log_concentrations.fill_(9 * np.arctanh((np.log(1e5) - 5) / 9))
    x = one.sample(50_000, generator=torch.Generator().manual_seed(0))
    fitted = diffeo.VonMisesFisherMixture(1)
    fitted.initialize(x)
    assert 0.9 < float(fitted.concentrations.detach()) / 1e5 < 1.1
    wide = one.sample(2000, temperature=1e4)
    assert wide.mean(0).norm() < 0.2


def test_opposite_rows_have_no_mean():
    fitted = diffeo.VonMisesFisherMixture(1)
    fitted.initialize(torch.cat([torch.eye(3), -torch.eye(3)]).repeat(2, 1))  # too few different rows
    fitted.initialize(torch.nn.functional.normalize(torch.cat([y := torch.randn(100, 3), -y]), dim=1))
    assert fitted(torch.eye(3)).isfinite().all()
    with pytest.raises(ValueError, match="not finite"):
        diffeo.VonMisesFisherMixture(1).initialize(torch.full((20, 3), torch.nan))

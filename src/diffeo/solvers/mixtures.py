"""Mixtures of Gaussians by expectation–maximisation (scikit-learn), several at once: where one ends is partly luck."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

FEW = 5  # columns, at most, in which clusters are worth a longer search and several fits


def gaussian_mixture(rows: np.ndarray, k: int, seed: int, starts: int = 1) -> Any:
    """A mixture of k Gaussians with full covariances, the best of some starts, as scikit-learn gives it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # rough is enough: training goes on, or it is one of some
        return GaussianMixture(k, reg_covar=1e-4, n_init=starts, random_state=seed).fit(rows)


def average_log_prob(mixtures: list[Any], rows: np.ndarray) -> np.ndarray:
    """Log-density of each row under the average of the mixtures."""
    each = np.stack([mixture.score_samples(rows) for mixture in mixtures])
    return np.logaddexp.reduce(each, axis=0) - math.log(len(mixtures))

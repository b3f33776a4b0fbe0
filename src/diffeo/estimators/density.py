"""`FlowDensity`: a density estimator for scikit-learn."""

# pandas' and scikit-learn's annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from diffeo.estimators.base import FLOOR, FlowEstimator


class FlowDensity(DensityMixin, FlowEstimator):
    """The density of a table's rows by a normalizing flow: a `KernelDensity` that learns.

    Numeric input is an array or DataFrame (n, features), columns on a grid (integers, rounded values) dequantized: such
    a column counts with the mean density over the cell of its value. A DataFrame may also hold categories, text,
    booleans and dates (see `diffeo.fit_table`). A column without spread counts as a normal of standard deviation 1e-3.

    Args:
        recipe: which flow; "auto" is `nsf_ar`.
        layers, hidden: of the flow; None leaves them to the recipe.
        max_epochs: passes over the rows; None goes by their number.
        time_limit: seconds of training.
        batch_size, learning_rate: of the optimiser; None goes by the number of rows.
        validation_fraction: share of rows held out for early stopping, in (0, 1); 0 for none.
        unseen: what categories that training did not hold are: "error", or "level" to give each column of categories
            one more for all of them, as in `fit_table`.
        device: "auto", "cpu", "cuda", as in Lightning Fabric.
        verbose: show progress.
        random_state: seed, `RandomState` or None.

    Attributes:
        model_: the `TableDensity` of the columns that vary.
        result_: the `FitResult`.
        n_features_in_, feature_names_in_: of X.

    Cost: seconds to minutes of training; scoring is one pass in float64, eight where columns lie on a grid.

    >>> import numpy as np, diffeo
    >>> X = np.random.default_rng(0).normal(size=(300, 2))
    >>> density = diffeo.FlowDensity(recipe="maf", max_epochs=2, random_state=0).fit(X)
    >>> density.score_samples(X[:4]).shape, density.sample(3).shape
    ((4,), (3, 2))
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FlowDensity:
        """Learn the density of the rows of X; y is ignored, weights are ≥ 0."""
        self._fit_rows(X, sample_weight)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of each row in nats, in the units of X, shape (n,)."""
        return self._score_rows(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Total log-density of the rows of X, as `KernelDensity.score` gives it."""
        return float(self._score_rows(X).sum())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Rows drawn from the density: an array, or a DataFrame where `fit` saw one."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"FlowDensity: expected n_samples of at least 1, got {n_samples}")
        rng = check_random_state(random_state)
        drawn = {}
        if self.model_ is not None:
            drawn = dict(self.model_.sample(n_samples, seed=int(rng.randint(2**31 - 1))))
        names = getattr(self, "feature_names_in_", np.arange(self.n_features_in_))
        columns = {}
        for j, name in enumerate(names):
            if self.varying_[j]:
                columns[name] = drawn[name].to_numpy() if not self.mixed_ else drawn[name]
            else:
                value = self.constants_[j]
                noise = 0.0 if self.mixed_ else FLOOR * rng.normal(size=n_samples)
                columns[name] = np.full(n_samples, value) + noise if not self.mixed_ else [value] * n_samples
        table = pd.DataFrame(columns)
        return table if self.framed_ else table.to_numpy()

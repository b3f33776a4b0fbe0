"""`FlowOutlierDetector`: rows that stand out, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted

from diffeo.estimators.base import FlowEstimator, narrow


class FlowOutlierDetector(OutlierMixin, FlowEstimator):
    """Outliers as rows of low density under a normalizing flow; `explain` says which columns make a row one.

    The flow, a small `nsf_ar` on whitened rows, is trained on rows blurred by Gaussian noise: a density that is sharp
    at repeated values or thin directions is a good density, but a bad score. It is scored on the rows as they are.

    Args:
        contamination: share of training rows that `predict` calls outliers, in (0, 0.5].
        blur: standard deviation of the noise in whitened units, ≥ 0.
        max_samples: at most so many rows, drawn at random, are learnt from.
        recipe, layers, hidden, max_epochs, time_limit, batch_size, learning_rate, validation_fraction, device, verbose,
            random_state: as in `FlowDensity`.

    Attributes:
        offset_: log-density below which a row is an outlier.
        model_, result_, n_features_in_, feature_names_in_: as in `FlowDensity`.

    Cost: 600 training steps where `max_epochs` is open, scoring one pass in float64; `explain` takes about 100 density
    evaluations for each value.

    "Noise Regularization for Conditional Density Estimation" (Rothfuss et al., 2019), https://arxiv.org/abs/1907.08982

    >>> import numpy as np, diffeo
    >>> X = np.random.default_rng(0).normal(size=(300, 2))
    >>> detector = diffeo.FlowOutlierDetector(recipe="maf", max_epochs=2, random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0], [9.0, 9.0]])
    array([ 1, -1])
    """

    _kind = "continuous"

    def __init__(
        self,
        *,
        contamination: float = 0.05,
        blur: float = 0.1,
        max_samples: int = 20_000,
        recipe: str = "auto",
        layers: int | None = None,
        hidden: Sequence[int] | None = None,
        max_epochs: int | None = None,
        time_limit: float | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        validation_fraction: float = 0.1,
        device: str = "auto",
        verbose: bool = False,
        random_state: Any = None,
    ):
        super().__init__(
            recipe=recipe,
            layers=layers,
            hidden=hidden,
            max_epochs=max_epochs,
            time_limit=time_limit,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation_fraction=validation_fraction,
            device=device,
            verbose=verbose,
            random_state=random_state,
        )
        self.contamination = contamination
        self.blur = blur
        self.max_samples = max_samples

    def _options(self) -> dict[str, Any]:
        small = {"layers": 3, "hidden": (64, 64), "rotate": True} if self.recipe == "auto" else {}
        return {**small, **super()._options()}

    def _training(self) -> dict[str, Any]:
        short = {"steps": 600, "patience": 10} if self.max_epochs is None else {}
        return {**super()._training(), **short}

    def fit(self, X: Any, y: Any = None) -> FlowOutlierDetector:
        """Learn the density of X and the threshold; y is ignored."""
        if not 0 < self.contamination <= 0.5:
            raise ValueError(f"FlowOutlierDetector: expected contamination in (0, 0.5], got {self.contamination}")
        if not self.blur >= 0 or self.max_samples < 2:
            raise ValueError(
                f"FlowOutlierDetector: expected blur ≥ 0 and max_samples ≥ 2, got {self.blur} and {self.max_samples}"
            )
        self._fit_rows(X)
        self.offset_ = float(np.percentile(self.score_samples(X), 100 * self.contamination))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of each row in nats: the lower, the more unusual."""
        return self._score_rows(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Log-density above the threshold: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for inliers, −1 for outliers."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def explain(self, X: Any) -> Any:
        """Nats of surprise of every value given the rest of its row: 0 on average, large where it is unusual.

        sⱼ = E[log p(Xⱼ | x₋ⱼ)] − log p(xⱼ | x₋ⱼ), by quadrature along each column; for a column without spread, how far
        the value lies below the constant in log-density.

        Returns:
            An array of the shape of X, or a DataFrame like X where `fit` saw one.
        """
        check_is_fitted(self)
        table = self._table(X, reset=False)
        nats = pd.DataFrame(0.0, index=table.index, columns=table.columns)
        if self.model_ is not None:
            nats.loc[:, self.spread_] = self.model_.explain(table.loc[:, self.spread_])
        for j in np.flatnonzero(~self.spread_):
            nats.iloc[:, j] = -narrow(table.iloc[:, j], self.constants_[j])
        return nats if self.framed_ else nats.to_numpy()

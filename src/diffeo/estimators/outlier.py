"""`FlowOutlierDetector`: rows that stand out, and why."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import OutlierMixin
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from diffeo.estimators.base import PEAK, FlowEstimator, narrow
from diffeo.tables import TableDensity

FOLDS, MANY = 5, 2000  # of fewer rows than so many
STEPS = {False: 600, True: 150}  # of one flow, and of each of several
DRAWN = 400  # samples that say how far flows agree
WEIGHT = 4  # dims, at most, of the neighbours' density
SOME = 500  # training rows that say what a typical distance is
NEAREST = 1e-3  # of the typical distance: what counts as no distance at all
FARTHEST = 1e6


class Crowd:
    """Latents of training rows, and how near to them others are.

    Args:
        rows: (n, D), kept as float32.
    """

    def __init__(self, rows: np.ndarray):
        self.rows = np.ascontiguousarray(rows, dtype=np.float32)
        self.typical: dict[int, float] = {}  # r₀ for each number of neighbours

    @cached_property
    def tree(self) -> NearestNeighbors:
        """The rows, ready for searches."""
        return NearestNeighbors().fit(self.rows)

    def nearness(self, z: np.ndarray, neighbours: int) -> np.ndarray:
        """−log (r(z) / r₀) of each row."""
        if neighbours not in self.typical:
            own = self._distances(self.rows[:: max(1, len(self.rows) // SOME)], neighbours + 1)
            own = own[:, 1:].sum(1) / max(1, own.shape[1] - 1)  # the nearest is the row itself
            own = own[own > 0]  # copies of a row say nothing of distances
            self.typical[neighbours] = float(np.median(own)) if len(own) else 1.0
        far = self._distances(z, neighbours).mean(1) / self.typical[neighbours]
        return -np.log(np.maximum(far, NEAREST))

    def _distances(self, z: np.ndarray, neighbours: int) -> np.ndarray:
        """Distances from the nearest, in ascending order."""
        return self.tree.kneighbors(z, min(neighbours, len(self.rows)))[0]


class FlowOutlierDetector(OutlierMixin, FlowEstimator):
    """Outliers as rows of low density under a normalizing flow; `explain` says which columns make a row one.

    The flow, a small `nsf_ar` on whitened rows, is trained on rows blurred by Gaussian noise: a density that is sharp
    at repeated values or thin directions is a good density, but a bad score. It is scored on the rows as they are.

    The threshold comes from rows that the weights have not seen. Of many rows, a share is held out. Of fewer than
    2,000 no share would do, so there is a flow for each of five folds, fitted to the other four: the score is the mean
    of their scores, and the threshold comes from each row under the one flow that has not seen it. With n rows held out
    in either way, the share of alarms has a standard error of √(contamination (1 − contamination) / n).

    A flow's score of a row x that it maps to z, among the latents of the D numbers of its training rows, is

        log p(x) − min(D, 4) log (r(z) / r₀),

    with r the mean distance of z from the nearest of them, and r₀ the median of r among themselves: neighbours where
    the flow has taken out the shape of the data find gaps that it has smoothed over. As a density they would count D
    times, which is too much of many numbers, where all distances are alike.

    Args:
        contamination: share of rows like the training rows that `predict` calls outliers, in (0, 0.5].
        blur: standard deviation of the noise in whitened units, ≥ 0.
        max_samples: at most so many rows, drawn at random, are learnt from.
        neighbours: how many of the nearest latents count, whatever the weights of their rows, if these are not 0; 0 for
            the log-density alone.
        recipe, layers, hidden, max_epochs, time_limit, batch_size, learning_rate, validation_fraction, unseen, device,
            verbose, random_state: as in `FlowDensity`.

    Attributes:
        offset_: score below which a row is an outlier.
        models_: the flows, one or five; `model_` is the first.
        result_, n_features_in_, feature_names_in_: as in `FlowDensity`.

    Cost: 600 training steps of one flow, or 150 of each of five, where `max_epochs` is open. Scoring is a pass of each
    in float64 and a search among the latents of its training rows, which files keep; `explain` takes about 100 density
    evaluations of each for every value.

    "Noise Regularization for Conditional Density Estimation" (Rothfuss et al., 2019), https://arxiv.org/abs/1907.08982;
    "A nonparametric estimate of a multivariate density function" (Loftsgaarden and Quesenberry, 1965),
    https://doi.org/10.1214/aoms/1177700079

    >>> import numpy as np, diffeo
    >>> X = np.random.default_rng(0).normal(size=(300, 2))
    >>> detector = diffeo.FlowOutlierDetector(recipe="maf", max_epochs=2, random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0], [9.0, 9.0]])
    array([ 1, -1])
    """

    _kind = "continuous"
    _folded = False  # whether there is a flow for each fold

    def __init__(
        self,
        *,
        contamination: float = 0.05,
        blur: float = 0.1,
        max_samples: int = 20_000,
        neighbours: int = 5,
        recipe: str = "auto",
        layers: int | None = None,
        hidden: Sequence[int] | None = None,
        max_epochs: int | None = None,
        time_limit: float | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        validation_fraction: float = 0.2,
        unseen: str = "error",
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
            unseen=unseen,
            device=device,
            verbose=verbose,
            random_state=random_state,
        )
        self.contamination = contamination
        self.blur = blur
        self.max_samples = max_samples
        self.neighbours = neighbours

    def _options(self) -> dict[str, Any]:
        small = {"layers": 3, "hidden": (64, 64), "rotate": True} if self.recipe == "auto" else {}
        return {**small, **super()._options()}

    def _training(self) -> dict[str, Any]:
        short = {"steps": STEPS[self._folded], "patience": 10} if self.max_epochs is None else {}
        return {**super()._training(), **short}

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FlowOutlierDetector:
        """Learn the density of X and the threshold; y is ignored, weights are ≥ 0."""
        if isinstance(self.contamination, str) or not 0 < self.contamination <= 0.5:
            raise ValueError(f"FlowOutlierDetector: expected contamination in (0, 0.5], got {self.contamination}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"FlowOutlierDetector: expected validation_fraction in (0, 1), got {self.validation_fraction}; the "
                "threshold comes from held-out rows"
            )
        if not self.blur >= 0 or self.max_samples < 2:
            raise ValueError(
                f"FlowOutlierDetector: expected blur ≥ 0 and max_samples ≥ 2, got {self.blur} and {self.max_samples}"
            )
        if not isinstance(self.neighbours, Integral) or self.neighbours < 0:
            raise ValueError(
                f"FlowOutlierDetector: expected a whole number of neighbours, at least 0, got {self.neighbours}"
            )
        self.models_, self.crowds_, self.unseen_scores_ = [], [], np.zeros(1)
        self._fit_rows(X, sample_weight)
        # every score counts constant columns at their peak
        self.unseen_scores_ = self.unseen_scores_ + (0.0 if self.mixed_ else PEAK * float((~self.spread_).sum()))
        self.offset_ = float(np.percentile(self.unseen_scores_, 100 * self.contamination))
        return self

    def _fit_model(self, table: pd.DataFrame, weights: np.ndarray | None, seed: int) -> None:
        """One flow and held-out rows, or one for each fold; keeps the scores that rows have where they are not seen."""
        n = len(table)
        order = np.random.default_rng(seed).permutation(n)
        held = max(1, round(self.validation_fraction * n))
        folds = np.array_split(order, FOLDS) if FOLDS <= n < MANY else [order[:held]]
        self._folded = len(folds) > 1
        self.models_, self.crowds_, scores = [], [], np.empty((n, len(folds)))
        for fold in folds:
            rest = np.setdiff1d(order, fold)
            rest = rest if len(rest) > 1 else order
            here = None if weights is None else weights[rest]
            model = self._fit_table(table.iloc[rest], here, table.iloc[fold], seed)
            self.models_.append(model)
            counted = rest if here is None else rest[here > 0]
            self.crowds_.append(Crowd(_latents(model, table.iloc[counted])))
            scores[:, len(self.models_) - 1] = self._scores(len(self.models_) - 1, table)
        self.model_ = self.models_[0]
        self.unseen_scores_ = _unseen(scores, folds, self._agreement(seed)) if len(folds) > 1 else scores[folds[0], 0]

    def members(self) -> list[Any]:
        return [] if self.model_ is None else self.models_

    def set_members(self, members: list[Any], extras: dict[str, Tensor]) -> None:
        super().set_members(members, extras)
        self.models_ = members
        self.crowds_ = [Crowd(extras[f"latents{i}"].numpy()) for i in range(len(members))]

    def extras(self) -> dict[str, Tensor]:
        return {f"latents{i}": torch.from_numpy(crowd.rows) for i, crowd in enumerate(self.crowds_)}

    def _scores(self, member: int, varying: pd.DataFrame) -> np.ndarray:
        """Scores by one of the flows."""
        model, crowd = self.models_[member], self.crowds_[member]
        log_p = self._member_scores(model, varying)
        if not self.neighbours or not crowd.rows.shape[1]:
            return log_p
        weight = min(crowd.rows.shape[1], WEIGHT)
        return log_p + weight * crowd.nearness(_latents(model, varying), self.neighbours)

    def _agreement(self, seed: int) -> float:
        """The correlation of two flows' scores at rows that are new to both: samples of a third flow."""
        found = []
        for k, model in enumerate(self.models_):
            rows = model.sample(DRAWN, seed=seed + k)
            by_others = [self._scores(i, rows) for i in range(len(self.models_)) if i != k]
            matrix = np.corrcoef([np.nan_to_num(s, neginf=s[np.isfinite(s)].min(initial=0.0)) for s in by_others])
            found.append((matrix.sum() - len(matrix)) / (len(matrix) * (len(matrix) - 1)))
        return float(np.clip(np.nan_to_num(found, nan=1.0), 0.0, 1.0).mean())

    def _log_density(self, varying: pd.DataFrame) -> np.ndarray:
        return np.mean([self._scores(i, varying) for i in range(len(self.models_))], axis=0)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """1 for inliers, −1 for outliers among the training rows: each by the flow that has not seen it, if any."""
        self.fit(X, y, sample_weight)
        scores = self.unseen_scores_ if len(self.unseen_scores_) == len(self._table(X, reset=False)) else None
        return self.predict(X) if scores is None else np.where(scores >= self.offset_, 1, -1)

    def score_samples(self, X: Any) -> np.ndarray:
        """Score of each row in nats, the mean over the flows: the lower, the more unusual."""
        return self._score_rows(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Score above the threshold: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for inliers, −1 for outliers."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def explain(self, X: Any) -> Any:
        """Nats of surprise of every value given the rest of its row: 0 on average, large where it is unusual.

        Of the log-density alone, without the neighbours.

        sⱼ = E[log p(Xⱼ | x₋ⱼ)] − log p(xⱼ | x₋ⱼ), by quadrature along each column; for a column without spread, how far
        the value lies below the constant in log-density.

        Returns:
            An array of the shape of X, or a DataFrame like X where `fit` saw one.
        """
        check_is_fitted(self)
        table = self._table(X, reset=False)
        nats = pd.DataFrame(0.0, index=table.index, columns=table.columns)
        if self.model_ is not None:
            parts = [model.explain(table.loc[:, self.spread_]) for model in self.models_]
            nats.loc[:, self.spread_] = sum(parts) / len(parts)
        for j in np.flatnonzero(~self.spread_):
            nats.iloc[:, j] = -narrow(table.iloc[:, j], self.constants_[j])
        return nats if self.framed_ else nats.to_numpy()


def _latents(model: TableDensity, varying: pd.DataFrame) -> np.ndarray:
    """Latents of the numbers of each row, within what distances can be taken of."""
    return np.clip(np.nan_to_num(model.latents(varying, centred=True)), -FARTHEST, FARTHEST).astype(np.float32)


def _unseen(scores: np.ndarray, folds: list[np.ndarray], rho: float) -> np.ndarray:
    """Scores that rows would have by all flows if none had seen them, from those by each flow, shape (rows, flows).

    A row is unseen by one flow of K. The mean of K unseen scores has (1 + (K − 1) ρ) / K of the variance of one, with ρ
    the correlation of two flows at a row that is new to both.
    """
    own = np.empty(len(scores))
    for k, fold in enumerate(folds):
        own[fold] = scores[fold, k] - scores[fold, k].mean()
    level = np.mean([scores[fold, k].mean() for k, fold in enumerate(folds)])
    return level + own * ((1 + (len(folds) - 1) * rho) / len(folds)) ** 0.5

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

from diffeo.estimators.base import FlowEstimator, narrow
from diffeo.tables import TableDensity
from diffeo.tables.columns import is_text

FOLDS, MANY = 5, 2000  # of fewer rows than so many
STEPS = {False: 600, True: 150}  # of one flow, and of each of several
DRAWN = 400  # samples that say how far flows agree
SOME = 500  # training rows that say what a typical distance is
NEAREST = 1e-3  # of the typical distance: what counts as no distance at all
FARTHEST = 1e6
LOWER = 25  # percent of unseen rows that a view puts below minus one of its units
LEAST = 1e-3  # nats, below which the percentile of unseen rows is as good as their median


class Crowd:
    """Training rows, and how near to them others are.

    Args:
        rows: (n, D), counted from the mean of each column in units of its standard deviation; kept as float32.
        place: (2, D), these means and deviations.
    """

    def __init__(self, rows: np.ndarray, place: np.ndarray):
        self.rows, self.place = np.ascontiguousarray(rows, dtype=np.float32), place
        self.typical: dict[int, float] = {}  # distance among the rows, for each number of neighbours

    @classmethod
    def of(cls, rows: np.ndarray) -> Crowd:
        """From rows as they are, (n, D)."""
        mean, deviation = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
        varies = deviation > 1e-12 * np.abs(rows).max(0, initial=0.0)  # not by rounding alone
        place = np.stack([mean, np.where(varies, deviation, 1.0)])
        return cls(_placed(rows, place), place)

    @cached_property
    def tree(self) -> NearestNeighbors:
        """The rows, ready for searches."""
        return NearestNeighbors().fit(self.rows)

    def nearness(self, rows: np.ndarray, neighbours: int) -> np.ndarray:
        """−log (r(x) / r₀) of each row, r the mean distance from its nearest ones, r₀ the median of theirs."""
        if neighbours not in self.typical:
            own = self._distances(self.rows[:: max(1, len(self.rows) // SOME)], neighbours + 1)
            own = own[:, 1:].sum(1) / max(1, own.shape[1] - 1)  # the nearest is the row itself
            own = own[own > 0]  # copies of a row say nothing of distances
            self.typical[neighbours] = float(np.median(own)) if len(own) else 1.0
        far = self._distances(_placed(rows, self.place), neighbours).mean(1) / self.typical[neighbours]
        return -np.log(np.maximum(far, NEAREST))

    def _distances(self, rows: np.ndarray, neighbours: int) -> np.ndarray:
        """Distances from the nearest, in ascending order."""
        return self.tree.kneighbors(rows, min(neighbours, len(self.rows)))[0]


class FlowOutlierDetector(OutlierMixin, FlowEstimator):
    """Outliers as rows of low density under a normalizing flow; `explain` says which columns make a row one.

    The flow, a small `nsf_ar` on whitened rows, is trained on rows blurred by Gaussian noise: a density that is sharp
    at repeated values or thin directions is a good density, but a bad score. It is scored on the rows as they are.

    The threshold comes from rows that the weights have not seen. Of many rows, a share is held out. Of fewer than
    2,000 no share would do, so there is a flow for each of five folds, fitted to the other four: the score is the mean
    of their scores, and the threshold comes from each row under the one flow that has not seen it. With n rows held out
    in either way, the share of alarms has a standard error of √(contamination (1 − contamination) / n).

    There are three views of a row x that the flow maps to z: log p(x); −log r(z), with r the mean distance of z from
    the nearest latents of training rows; and −log r(x), the same among the rows themselves, their columns in units of
    standard deviations. Each view v counts from its median among rows that are new to the flows, in units of how far
    the lower quartile of these lies below it, and the score is the least of them:

        min_v (v(x) − median_v) / (median_v − quartile_v).

    Density finds what is unlikely altogether, neighbours of latents the gaps that a flow has smoothed over, neighbours
    of rows what it has bent to look like others. A typical row scores somewhat less than 0. A column that does not vary
    among the rows that one of the flows learns from is compared with its one value there.

    Args:
        contamination: share of rows like the training rows that `predict` calls outliers, in (0, 0.5].
        blur: standard deviation of the noise in whitened units, ≥ 0.
        max_samples: at most so many rows, drawn at random, are learnt from.
        neighbours: how many of the nearest count, whatever the weights of their rows, if these are not 0; 0 for the
            view of the log-density alone.
        recipe, layers, hidden, max_epochs, time_limit, batch_size, learning_rate, validation_fraction, unseen, device,
            verbose, random_state: as in `FlowDensity`.

    Attributes:
        offset_: score below which a row is an outlier.
        usual_: (views, 2), median and unit of each view, in nats.
        neighbours_: how many count.
        models_: the flows, one or five; `model_` is the first.
        result_, n_features_in_, feature_names_in_: as in `FlowDensity`.

    Cost: 600 training steps of one flow, or 150 of each of five, where `max_epochs` is open. Scoring is a pass of each
    in float64 and two searches among its training rows, which files keep; `explain` takes about 100 density evaluations
    of each for every value.

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
        blur: float = 0.05,
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
        small = {"layers": 5, "hidden": (64, 64), "rotate": True} if self.recipe == "auto" else {}
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
        self.models_, self.crowds_, self.usual_, self.unseen_scores_ = [], [], np.zeros((0, 2)), np.zeros(1)
        self.neighbours_ = int(self.neighbours)
        self._fit_rows(X, sample_weight)
        finite = self.unseen_scores_[np.isfinite(self.unseen_scores_)]
        floor = finite.min(initial=0.0) - 1  # an infinite score is below every threshold
        self.offset_ = float(np.percentile(np.maximum(self.unseen_scores_, floor), 100 * self.contamination))
        return self

    def _still(self, table: pd.DataFrame, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """A number has to vary for each of the flows; where it does not, its value there counts."""
        constants, varying = super()._still(table, seed)
        for rest in self._seen(len(table), seed):
            part = table.iloc[rest]
            for j in np.flatnonzero(varying & (part.nunique().to_numpy() <= 1)):
                dtype = table.dtypes.iloc[j]
                if not (is_text(dtype) or pd.api.types.is_bool_dtype(dtype)):  # of categories, one may be rare
                    constants[j], varying[j] = part.iloc[0, j], False
        return constants, varying

    def _fit_model(self, table: pd.DataFrame, weights: np.ndarray | None, seed: int) -> None:
        """One flow and held-out rows, or one for each fold; keeps the scores that rows have where they are not seen."""
        n, folds = len(table), self._folds(len(table), seed)
        self._folded = len(folds) > 1
        varying, views = table.loc[:, self.varying_], []
        self.models_, self.crowds_ = [], []
        for fold, rest in zip(folds, self._seen(n, seed), strict=True):
            here = None if weights is None else weights[rest]
            model = self._fit_table(varying.iloc[rest], here, varying.iloc[fold], seed)
            self.models_.append(model)
            counted = varying.iloc[rest if here is None else rest[here > 0]]
            self.crowds_.append((Crowd.of(_latents(model, counted)), Crowd.of(_numbers(model, counted))))
            views.append(self._views(len(views), varying))
        self.model_ = self.models_[0]
        # a view of so few rows that none else could say its spread takes all of them
        new = folds if sum(map(len, folds)) >= FOLDS else [np.arange(n)]
        self.usual_ = np.array(
            [
                _usual(np.concatenate([v[k][fold] for v, fold in zip(views, new, strict=True)]))
                for k in range(len(views[0]))
            ]
        )
        scores = np.stack([_least(each, self.usual_) for each in views], 1)
        still = self._off_constants(table)
        if self._folded:
            self.unseen_scores_ = _unseen(scores, folds, self._agreement(seed)) + still
        else:
            self.unseen_scores_ = (scores[:, 0] + still)[folds[0]]

    def _folds(self, n: int, seed: int) -> list[np.ndarray]:
        """The rows that each flow does not see."""
        order = np.random.default_rng(seed).permutation(n)
        held = min(n - 1, max(1, round(self.validation_fraction * n)))
        return np.array_split(order, FOLDS) if FOLDS <= n < MANY else [order[:held]]

    def _seen(self, n: int, seed: int) -> list[np.ndarray]:
        """The rows that each flow learns from: the others, or all of two."""
        rest = [np.setdiff1d(np.arange(n), fold) for fold in self._folds(n, seed)]
        return [rows if len(rows) > 1 else np.arange(n) for rows in rest]

    def members(self) -> list[Any]:
        return [] if self.model_ is None else self.models_

    def set_members(self, members: list[Any], extras: dict[str, Tensor]) -> None:
        super().set_members(members, extras)
        self.models_ = members
        kept = {name: tensor.numpy() for name, tensor in extras.items()}
        self.crowds_ = [
            (Crowd(kept[f"latents{i}"], kept[f"places{i}"][0]), Crowd(kept[f"numbers{i}"], kept[f"places{i}"][1]))
            for i in range(len(members))
        ]

    def extras(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, (latents, numbers) in enumerate(self.crowds_):
            found[f"latents{i}"], found[f"numbers{i}"] = map(torch.from_numpy, (latents.rows, numbers.rows))
            found[f"places{i}"] = torch.from_numpy(np.stack([latents.place, numbers.place]))
        return found

    def _views(self, member: int, varying: pd.DataFrame) -> list[np.ndarray]:
        """What one of the flows, and neighbours, say of each row, in nats."""
        model, (latents, numbers) = self.models_[member], self.crowds_[member]
        views = [self._member_scores(model, varying)]
        if self.neighbours_ and numbers.rows.shape[1]:
            views.append(latents.nearness(_latents(model, varying), self.neighbours_))
            views.append(numbers.nearness(_numbers(model, varying), self.neighbours_))
        return views

    def _scores(self, member: int, varying: pd.DataFrame) -> np.ndarray:
        """Scores by one of the flows."""
        return _least(self._views(member, varying), self.usual_)

    def _agreement(self, seed: int) -> float:
        """The correlation of two flows' scores at rows that are new to both: samples of a third flow."""
        found = []
        for k, model in enumerate(self.models_):
            rows = model.sample(DRAWN, seed=seed + k)
            by_others = [self._scores(i, rows) for i in range(len(self.models_)) if i != k]
            matrix = np.corrcoef([np.nan_to_num(s, neginf=s[np.isfinite(s)].min(initial=0.0)) for s in by_others])
            found.append((matrix.sum() - len(matrix)) / (len(matrix) * (len(matrix) - 1)))
        return float(np.clip(np.nan_to_num(found, nan=1.0), 0.0, 1.0).mean())

    def _score_rows(self, X: Any) -> np.ndarray:
        """The mean score by the flows, less the nats by which columns without spread lie below their peaks."""
        check_is_fitted(self)
        table = self._table(X, reset=False)
        out = np.zeros(len(table))
        if self.model_ is not None:
            varying = table.loc[:, self.varying_]
            out += np.mean([self._scores(i, varying) for i in range(len(self.models_))], axis=0)
        return out + self._off_constants(table)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """1 for inliers, −1 for outliers among the training rows: each by the flow that has not seen it, if any."""
        self.fit(X, y, sample_weight)
        scores = self.unseen_scores_
        whole = len(self.models_) > 1 and len(scores) == len(self._table(X, reset=False))
        return np.where(scores >= self.offset_, 1, -1) if whole else self.predict(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """Score of each row, the mean over the flows: about 0 where it is typical, the lower, the more unusual."""
        return self._score_rows(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Score above the threshold: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for inliers, −1 for outliers."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def explain(self, X: Any) -> Any:
        """Nats of surprise of every value given the rest of its row: 0 on average, large where it is unusual.

        Of the log-density alone, without neighbours.

        sⱼ = E[log p(Xⱼ | x₋ⱼ)] − log p(xⱼ | x₋ⱼ), by quadrature along each column; for a column without spread, how far
        the value lies below the constant in log-density.

        Returns:
            An array of the shape of X, or a DataFrame like X where `fit` saw one.
        """
        check_is_fitted(self)
        table = self._table(X, reset=False)
        nats = pd.DataFrame(0.0, index=table.index, columns=table.columns)
        if self.model_ is not None:
            parts = [model.explain(table.loc[:, self.varying_]) for model in self.models_]
            nats.loc[:, self.varying_] = sum(parts) / len(parts)
        for j in np.flatnonzero(~self.varying_):
            nats.iloc[:, j] = -narrow(table.iloc[:, j], self.constants_[j])
        return nats if self.framed_ else nats.to_numpy()


def _latents(model: TableDensity, varying: pd.DataFrame) -> np.ndarray:
    """Latents of the numbers of each row, (n, D)."""
    return np.clip(np.nan_to_num(model.latents(varying, centred=True)), -FARTHEST, FARTHEST)


def _numbers(model: TableDensity, varying: pd.DataFrame) -> np.ndarray:
    """The numbers of each row, (n, D)."""
    return model.schema.encode(varying)[:, len(model.schema.levels) :]


def _placed(rows: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Rows from their columns' means, in units of deviations, within what distances can be taken of."""
    return np.clip((rows - place[0]) / place[1], -FARTHEST, FARTHEST).astype(np.float32)


def _usual(view: np.ndarray, percent: float = LOWER) -> tuple[float, float]:
    """Median of a view of unseen rows, and its unit: how far that percentile lies below."""
    finite = view[np.isfinite(view)]
    if not len(finite):
        return 0.0, 1.0
    median = float(np.median(finite))
    unit = median - float(np.percentile(finite, percent))
    if unit < LEAST:  # most rows are alike: how far they lie below in the mean
        unit = float(np.maximum(median - finite, 0.0).mean())
    return median, unit if unit >= LEAST else 1.0


def _least(views: list[np.ndarray], usual: np.ndarray) -> np.ndarray:
    """The score of each row: its least view, from the median in its unit."""
    return np.min([(v - median) / unit for v, (median, unit) in zip(views, usual, strict=True)], axis=0)


def _unseen(scores: np.ndarray, folds: list[np.ndarray], rho: float) -> np.ndarray:
    """Scores that rows would have by all flows if none had seen them, from those by each flow, shape (rows, flows).

    A row is unseen by one flow of K. The mean of K unseen scores has (1 + (K − 1) ρ) / K of the variance of one, with ρ
    the correlation of two flows at a row that is new to both. Scores of −∞ stay so, and count in no mean.
    """
    own, levels = np.empty(len(scores)), []
    for k, fold in enumerate(folds):
        unseen = scores[fold, k]
        finite = unseen[np.isfinite(unseen)]
        levels.append(finite.mean() if len(finite) else 0.0)
        own[fold] = unseen - levels[-1]
    return np.mean(levels) + own * ((1 + (len(folds) - 1) * rho) / len(folds)) ** 0.5

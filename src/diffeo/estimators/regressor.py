"""`FlowRegressor`: the whole distribution of a target given the features."""

# pandas' and scikit-learn's annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, check_X_y, column_or_1d
from torch import Tensor

from diffeo.core import Chain, Flow
from diffeo.densities import Normal
from diffeo.estimators.base import FlowEstimator, is_mixed
from diffeo.recipes import find_recipe, recipes, with_normal_base
from diffeo.tables.columns import learn_column
from diffeo.tables.schema import Schema
from diffeo.training import fit
from diffeo.training.source import split
from diffeo.transforms import Gaussianize

BLOCK = 4096
LEVELS = 64  # quantiles whose mean is the prediction
FEWEST = 50  # held-out rows that can calibrate


class FlowRegressor(RegressorMixin, FlowEstimator):
    """Conditional density of a number: p(y | x), its mean, quantiles, intervals, samples, distribution function.

    One network sets location, scale and shape of y's distribution (`diffeo.regression`), trained by likelihood. Its
    probabilities are then calibrated on the held-out rows: a monotone map of the noise makes these rows normal.

    X is numeric, or a DataFrame with categories, text, booleans and dates among its columns.

    Args:
        recipe: of a scalar flow with a context and a standard normal base; "auto" is `regression`.
        layers, hidden: number of residual blocks, and their widths, of the network; None leaves them to the recipe.
        max_epochs, time_limit, batch_size, learning_rate, validation_fraction, unseen, device, verbose,
            random_state: as in `FlowDensity`; with fewer than 50 held-out rows nothing is calibrated.

    Attributes:
        flow_: the flow, in units of the standardised target.
        result_: the `FitResult`.
        n_features_in_, feature_names_in_: of X.

    Cost: up to 6,000 training steps where `max_epochs` is open; every prediction is one pass of the network in float64.

    "Distributional regression": "Conditional Density Estimation with Bayesian Normalising Flows" (Trippe and Turner,
    2018), https://arxiv.org/abs/1802.04908

    >>> import numpy as np, diffeo
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 2))
    >>> y = X[:, 0] + 0.1 * rng.normal(size=300)
    >>> model = diffeo.FlowRegressor(max_epochs=5, random_state=0).fit(X, y)
    >>> model.predict(X).shape, model.predict_interval(X, coverage=0.9).shape
    ((300,), (300, 2))
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> FlowRegressor:
        """Learn the distribution of y, shape (n,), given the rows of X; weights are ≥ 0."""
        table = self._table(X, reset=True)
        if self.mixed_:
            y = column_or_1d(y, dtype=np.float64, warn=True)
            if len(y) != len(table) or not np.isfinite(y).all():
                raise ValueError(f"FlowRegressor: expected {len(table)} finite targets, got shape {y.shape}")
        else:
            _, y = check_X_y(table.to_numpy(), y, y_numeric=True)
            y = y.astype(np.float64)
        seed = self._seed()
        kept, held = split(len(y), self.validation_fraction, seed)
        self._learn_scales(table, table.iloc[kept.numpy()])
        self.constant_ = bool(np.ptp(y[kept.numpy()]) == 0)
        self.y_mean_ = float(y[kept.numpy()].mean())
        self.y_scale_ = 1.0 if self.constant_ else float(y[kept.numpy()].std())
        context = torch.from_numpy(self._context(table))
        if self.mixed_:
            hidden = self.schema_.hide_some(table.iloc[kept.numpy()], seed)
            context[kept] = torch.from_numpy(self._context(hidden))
        target = torch.from_numpy((y - self.y_mean_) / self.y_scale_)[:, None]
        self.flow_ = self._build(context.shape[1], seed)
        if self.constant_:  # nothing to learn: all of the mass is at one point
            self.y_mean_ = float(y[kept.numpy()][0])
            self.result_, self.uncalibrated_ = None, self.flow_
            return self
        weights = self._weights(sample_weight, table)
        masses = [None if weights is None else weights[index.numpy()] for index in (kept, held)]
        training = self._training()
        large = {"batch_size": 256} if self.batch_size is None and len(kept) >= 4096 else {}
        self.result_ = fit(
            self.flow_,
            target[kept],
            context[kept],
            weights=masses[0],
            validation=(target[held], context[held], masses[1]) if len(held) else 0,
            weight_decay=0.1,
            seed=seed,
            **{**training, **large},
        )
        self.uncalibrated_ = self.flow_.double().eval()
        last = _calibration(self.uncalibrated_, target[held], context[held])
        self.flow_ = self.uncalibrated_ if last is None else _calibrated(self.uncalibrated_, last)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Mean of y given each row, shape (n,): over 64 evenly spaced quantiles."""
        return self._at(X, (np.arange(LEVELS) + 0.5) / LEVELS).mean(1)

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> np.ndarray:
        """Quantiles of y given each row, shape (n, len(quantiles)); levels in (0, 1)."""
        levels = np.asarray(quantiles, dtype=np.float64)
        if levels.ndim != 1 or not len(levels) or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"FlowRegressor: expected quantile levels in (0, 1), got {quantiles}")
        return self._at(X, levels)

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Central interval of y given each row, shape (n, 2): lower and upper end; coverage in (0, 1)."""
        if not 0 < coverage < 1:
            raise ValueError(f"FlowRegressor: expected coverage in (0, 1), got {coverage}")
        return self._at(X, np.array([(1 - coverage) / 2, (1 + coverage) / 2]))

    def sample(self, X: Any, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draws of y given each row, shape (n, n_samples)."""
        if n_samples < 1:
            raise ValueError(f"FlowRegressor: expected n_samples of at least 1, got {n_samples}")
        rng = check_random_state(random_state)
        context = self._conditions(X)
        return self._push(context, torch.from_numpy(rng.normal(size=(len(context), n_samples))))

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Log-density of y given each row, in nats and the units of y, shape (n,)."""
        return self._pull(X, y)[1]

    def cdf(self, X: Any, y: Any) -> np.ndarray:
        """P(Y ≤ y) given each row, shape (n,)."""
        return ndtr(self._pull(X, y)[0])

    def _build(self, context: int, seed: int) -> Flow:
        name = "regression" if self.recipe == "auto" else self.recipe
        build, known = find_recipe(name), [*recipes("numbers given a context"), *recipes("vectors")]
        if name not in known:
            raise ValueError(
                f"FlowRegressor: {name!r} is no density of numbers or vectors; there are {', '.join(known)}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            flow = build(1, context=context, **with_normal_base(name), **self._options())
        if not isinstance(flow, Flow) or not isinstance(flow.base, Normal):
            raise ValueError(f"FlowRegressor: the base of {name!r} is not the standard normal")
        return flow

    def members(self) -> list[Any]:
        return [self.uncalibrated_]

    def extras(self) -> dict[str, Tensor]:
        if self.flow_ is self.uncalibrated_:
            return {}
        last: Any = self.flow_.transform
        return last.parts[-1].state_dict()

    def set_members(self, members: list[Any], extras: dict[str, Tensor]) -> None:
        self.result_, self.uncalibrated_ = None, members[0].double().eval()
        self.flow_ = self.uncalibrated_
        if extras:
            last = Gaussianize(1).double()
            last.load_state_dict(extras)
            self.flow_ = _calibrated(self.uncalibrated_, last)

    def _options(self) -> dict[str, Any]:
        options = super()._options()
        if self.recipe == "auto" and "layers" in options:  # residual blocks of one width
            width = options.get("hidden", (128,))[0]
            options["hidden"] = (width,) * options.pop("layers")
        return options

    def _conditions(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return torch.from_numpy(self._context(self._table(X, reset=False)))

    def _learn_scales(self, table: Any, train: Any) -> None:
        """How columns are encoded, from the training rows; which categories there are, from all."""
        if self.mixed_:
            kinds = [None if is_mixed(dtype) else "number" for dtype in table.dtypes]
            columns = [
                learn_column(train[c], k, table[c], self.unseen == "level")
                for c, k in zip(table.columns, kinds, strict=True)
            ]
            self.schema_ = Schema(tuple(columns), tuple(table.columns))
            return
        rows = train.to_numpy()
        self.location_, self.scale_ = rows.mean(0), np.where(np.ptp(rows, axis=0) > 0, rows.std(0), 1.0)

    def _context(self, table: Any) -> np.ndarray:
        """What the network reads of each row."""
        if self.mixed_:
            context = self.schema_.encode_given(table)
            return np.zeros((len(table), 1)) if context is None else context
        return (table.to_numpy() - self.location_) / self.scale_

    def _at(self, X: Any, levels: np.ndarray) -> np.ndarray:
        """Quantiles at these levels, shape (n, levels)."""
        context = self._conditions(X)
        return self._push(context, torch.from_numpy(ndtri(levels)).expand(len(context), -1))

    def _push(self, context: Tensor, z: Tensor) -> np.ndarray:
        """Targets from noise of shape (n, m), in the units of y."""
        if self.constant_:
            return np.full(z.shape, self.y_mean_)
        out = []
        with torch.inference_mode():
            for c, noise in zip(context.split(BLOCK), z.split(BLOCK), strict=True):
                encoded = self.flow_.encode(c)
                y, _ = self.flow_.transform.inverse(noise[..., None], encoded[:, None])  # type: ignore[index]
                out.append(y[..., 0])
        return torch.cat(out).numpy() * self.y_scale_ + self.y_mean_

    def _pull(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Noise and log-density of targets."""
        context = self._conditions(X)
        y = column_or_1d(y, dtype=np.float64)
        if len(y) != len(context):
            raise ValueError(f"FlowRegressor: {len(context)} rows, but {len(y)} targets")
        target = torch.from_numpy((y - self.y_mean_) / self.y_scale_)[:, None]
        if self.constant_:
            z = np.where(y == self.y_mean_, 0.0, np.where(y > self.y_mean_, np.inf, -np.inf))
            return z, np.where(z == 0, np.inf, -np.inf)
        z, log_p = [], []
        with torch.inference_mode():
            for c, rows in zip(context.split(BLOCK), target.split(BLOCK), strict=True):
                noise, logdet = self.flow_.transform(rows, self.flow_.encode(c))
                z.append(noise[:, 0])
                log_p.append(self.flow_.base(noise) + logdet)
        return torch.cat(z).numpy(), torch.cat(log_p).numpy() - np.log(self.y_scale_)


def _calibration(flow: Flow, y: Tensor, context: Tensor) -> Gaussianize | None:
    """A map of the flow's noise after which held-out rows come out standard normal; None where they are too few."""
    if len(y) < FEWEST:
        return None
    with torch.inference_mode():
        z, _ = flow.transform(y, flow.encode(context))
    last = Gaussianize(1).double()
    if z.std() > 0:
        last.initialize(z.clone())
    return last


def _calibrated(flow: Flow, last: Gaussianize) -> Flow:
    """The flow with that map of its noise."""
    return copy.deepcopy(Flow(Chain(flow.transform, last), flow.base, flow.encoder)).eval()

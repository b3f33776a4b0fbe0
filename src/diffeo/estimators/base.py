"""What the scikit-learn estimators share: their parameters, checks of X, and the fit."""

# pandas' and scikit-learn's annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from diffeo.tables import TableDensity, fit_table
from diffeo.tables.columns import is_text
from diffeo.tables.schema import check_complete

FLOOR = (
    1e-3  # standard deviation that a column without any counts with, as reg_covar=1e-6 gives scikit-learn's mixtures
)
PEAK = float(-np.log(FLOOR) - 0.5 * np.log(2 * np.pi))  # log-density at its center


class FlowEstimator(BaseEstimator):
    """Parameters, checks and training of every estimator here."""

    _kind = "number"  # what the columns of a numeric table are taken for

    def __init__(
        self,
        *,
        recipe: str = "auto",
        layers: int | None = None,
        hidden: Sequence[int] | None = None,
        max_epochs: int | None = None,
        time_limit: float | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        validation_fraction: float = 0.1,
        unseen: str = "error",
        device: str = "auto",
        verbose: bool = False,
        random_state: Any = None,
    ):
        self.recipe = recipe
        self.layers = layers
        self.hidden = hidden
        self.max_epochs = max_epochs
        self.time_limit = time_limit
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.unseen = unseen
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def _options(self) -> dict[str, Any]:
        """Arguments of the recipe."""
        chosen = {"layers": self.layers, "hidden": None if self.hidden is None else tuple(self.hidden)}
        return {k: v for k, v in chosen.items() if v is not None}

    def _training(self) -> dict[str, Any]:
        """Arguments of `diffeo.fit`."""
        return {
            "epochs": self.max_epochs,
            "time_limit": self.time_limit,
            "batch_size": self.batch_size,
            "lr": self.learning_rate,
            "accelerator": self.device,
            "progress": self.verbose,
        }

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _fit_rows(self, X: Any, sample_weight: Any = None) -> None:
        """Fit the density of X, and keep it as `model_`."""
        table = self._table(X, reset=True)
        weights = self._weights(sample_weight, table)
        seed = self._seed()
        most = getattr(self, "max_samples", None)
        if most is not None and len(table) > most:
            chosen = np.sort(np.random.default_rng(seed).permutation(len(table))[:most])
            table, weights = table.iloc[chosen], None if weights is None else weights[chosen]
        self.constants_, self.varying_ = self._still(table, seed)
        if self.unseen == "level":  # a constant category is one of two
            self.varying_ |= [not pd.api.types.is_bool_dtype(d) and is_text(d) for d in table.dtypes]
        if not self.varying_.any():
            self.model_ = None
            return
        self._fit_model(table, weights, seed)
        self.result_ = self.model_.result  # pyright: ignore[reportOptionalMemberAccess] (just made)

    def _still(self, table: pd.DataFrame, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The value of each column that does not vary, and which columns do."""
        return table.iloc[0].to_numpy(copy=True), table.nunique().to_numpy() > 1

    def members(self) -> list[Any]:
        """What was fitted, as a file holds it: densities of tables or of tensors."""
        return [] if self.model_ is None else [self.model_]

    def extras(self) -> dict[str, Tensor]:
        """Further tensors of what was fitted."""
        return {}

    def set_members(self, members: list[Any], extras: dict[str, Tensor]) -> None:
        """Take what `members` and `extras` gave."""
        self.model_ = members[0] if members else None
        self.result_ = None

    def _weights(self, sample_weight: Any, table: pd.DataFrame) -> np.ndarray | None:
        """Weights of the rows, checked; None where all are the same."""
        if sample_weight is None:
            return None
        return _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)

    def _fit_model(self, table: pd.DataFrame, weights: np.ndarray | None, seed: int) -> None:
        """Fit the density of the columns that vary."""
        self.model_ = self._fit_table(table.loc[:, self.varying_], weights, self.validation_fraction, seed)

    def _fit_table(
        self, table: pd.DataFrame, weights: np.ndarray | None, validation: float | pd.DataFrame, seed: int
    ) -> TableDensity:
        with warnings.catch_warnings():
            if not self.mixed_:  # scikit-learn's users expect no remarks on arrays
                warnings.simplefilter("ignore", UserWarning)
            return fit_table(
                table,
                kinds=None if self.mixed_ else dict.fromkeys(table.columns, self._kind),
                unseen=self.unseen,
                recipe=self.recipe,
                options=self._options(),
                weights=weights,
                validation=validation,
                blur=getattr(self, "blur", 0.0),
                seed=seed,
                **self._training(),
            )

    def _table(self, X: Any, reset: bool) -> pd.DataFrame:
        """X as a table: a DataFrame with columns that are not numeric as it is, everything else as float64 columns."""
        if self.unseen not in ("error", "level"):
            raise ValueError(f"{type(self).__name__}: unseen must be 'error' or 'level', got {self.unseen!r}")
        if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):
            raise ValueError(f"{type(self).__name__}: masked values are missing; drop or fill those rows")
        if hasattr(X, "to_pandas"):  # polars, Arrow
            X = X.to_pandas()
        mixed = isinstance(X, pd.DataFrame) and any(is_mixed(dtype) for dtype in X.dtypes)
        if not reset and mixed != self.mixed_:
            expected = "a DataFrame with the training dtypes" if self.mixed_ else "numeric columns"
            raise ValueError(f"{type(self).__name__}: expected {expected}, as in fit")
        if mixed:
            validate_data(self, X, skip_check_array=True, reset=reset)
            if reset and len(X) < 2:
                raise ValueError(f"{type(self).__name__}: needs at least 2 rows, got {len(X)} (n_samples={len(X)})")
            check_complete(X, hint="drop or fill those rows first")
            table = X
        else:
            rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2 if reset else 1, reset=reset)
            names = getattr(self, "feature_names_in_", None)
            index = X.index if isinstance(X, pd.DataFrame) else None
            table = pd.DataFrame(rows, index=index, columns=range(rows.shape[1]) if names is None else names)
        if reset:
            self.mixed_ = mixed
            self.framed_ = isinstance(X, pd.DataFrame)
        return table

    def _score_rows(self, X: Any) -> np.ndarray:
        """Log-density of each row of X in nats."""
        check_is_fitted(self)
        table = self._table(X, reset=False)
        out = np.zeros(len(table))
        if self.model_ is not None:
            out += self._log_density(table.loc[:, self.varying_])
        peaks = 0.0 if self.mixed_ else PEAK * float((~self.varying_).sum())
        return out + self._off_constants(table) + peaks

    def _off_constants(self, table: pd.DataFrame) -> np.ndarray:
        """By how many nats the columns that do not vary lie below their peaks."""
        out = np.zeros(len(table))
        for j in np.flatnonzero(~self.varying_):
            out += narrow(table.iloc[:, j], self.constants_[j])
        return out

    def _log_density(self, varying: pd.DataFrame) -> np.ndarray:
        """Log-density of the columns that vary."""
        return self._member_scores(self.model_, varying)

    def _member_scores(self, model: TableDensity, varying: pd.DataFrame) -> np.ndarray:
        if self.mixed_:
            return model.log_prob(varying).to_numpy()
        # scikit-learn expects a finite score of any number: off a grid, that of the nearest step
        return model.score(torch.from_numpy(model.schema.encode(varying))).numpy()


def is_mixed(dtype: Any) -> bool:
    numeric = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)
    return not numeric or pd.api.types.is_bool_dtype(dtype)


def narrow(values: pd.Series, constant: Any) -> np.ndarray:
    """Log-density of a column without spread below its peak: a narrow normal, or −∞ for another category."""
    if is_mixed(values.dtype):
        return np.where(values.astype(object).to_numpy() == constant, 0.0, -np.inf)
    z = (values.to_numpy(dtype=np.float64) - float(constant)) / FLOOR
    return -0.5 * z * z

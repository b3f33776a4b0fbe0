"""`FlowTransformer`: data to Gaussian noise and back."""

# pandas' and scikit-learn's annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted

from diffeo.densities import Normal
from diffeo.estimators.base import FLOOR, FlowEstimator
from diffeo.recipes import with_normal_base
from diffeo.tables.fit import find_table_recipe

BLOCK = 8192


class FlowTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, FlowEstimator):
    """Numeric rows to independent standard normals and back: a `PowerTransformer` for all columns together.

    z = f(x), with f the transform of a flow trained so that z is N(0, I). A column without spread becomes
    (x − constant) / 1e-3.

    Args:
        recipe: a flow whose base is the standard normal; "auto" is `nsf_ar`.
        layers, hidden, max_epochs, time_limit, batch_size, learning_rate, validation_fraction, device, verbose,
            random_state: as in `FlowDensity`.

    Attributes:
        model_, result_, n_features_in_, feature_names_in_: as in `FlowDensity`.

    Cost: as `FlowDensity`; the inverse of "auto" takes a step for each column.

    >>> import numpy as np, diffeo
    >>> X = np.random.default_rng(0).exponential(size=(300, 2))
    >>> scaler = diffeo.FlowTransformer(recipe="maf", max_epochs=2, random_state=0).fit(X)
    >>> bool(np.allclose(scaler.inverse_transform(scaler.transform(X)), X))
    True
    """

    _kind = "continuous"

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), **with_normal_base(find_table_recipe(self.recipe))}

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FlowTransformer:
        """Learn the map from the rows of X; y is ignored, weights are ≥ 0."""
        self._table(X, reset=True)
        if self.mixed_:
            raise ValueError("FlowTransformer: expected numeric columns only")
        self._fit_rows(X, sample_weight)
        if self.model_ is not None and not isinstance(self.model_.density.base, Normal):
            raise ValueError(f"FlowTransformer: the base of {self.recipe!r} is not the standard normal")
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Noise of each row, shape (n, features)."""
        check_is_fitted(self)
        table = self._table(X, reset=False)
        x = table.to_numpy(dtype=np.float64)
        z = (x - self.constants_.astype(np.float64)) / FLOOR
        if self.model_ is not None:
            encoded = self.model_.schema.encode(table.loc[:, self.varying_])
            z[:, self.varying_] = _run(self.model_.exact_density.transform.forward, encoded)
        return z

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows from noise, shape (n, features)."""
        check_is_fitted(self)
        z = check_array(X, dtype=np.float64)
        if z.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {z.shape[1]} features, but FlowTransformer is expecting {self.n_features_in_}")
        x = z * FLOOR + self.constants_.astype(np.float64)
        if self.model_ is not None:
            numbers = self.model_.schema.numbers
            y = _run(self.model_.exact_density.transform.inverse, z[:, self.varying_])
            x[:, self.varying_] = y * [n.scale for n in numbers] + [n.shift for n in numbers]
        return x

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_


def _run(direction: Any, rows: np.ndarray) -> np.ndarray:
    """One direction of a transform, in blocks."""
    with torch.inference_mode():
        return torch.cat([direction(block)[0] for block in torch.from_numpy(rows).split(BLOCK)]).numpy()

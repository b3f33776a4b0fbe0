"""Layers set from data once: standardisation, activation normalisation, whitening."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import (
    Context,
    Event,
    MappedVector,
    Vector,
    as_fixed_event,
    check_event,
    full_precision,
    keep_scaled,
    quartiles,
    real_rows,
    sum_event,
)
from diffeo.kernels.layout import solve_rows
from diffeo.transforms.linear import Mixing, _rows_kept

NORMAL_QUARTILES = 1.3489795003921634  # from the first quartile of a standard normal to the third


class Standardize(Transform):
    """z = (x − mean) / scale, with mean and standard deviation of the training rows: the user's units end here.

    Args:
        features: D.
        robust: take the median, and the interquartile range over that of a standard normal, instead, which heavy tails
            do not move; the standard deviation where half of a column is one number.

    Raises:
        ValueError: from `initialize`, where a column is constant or not finite.

    Cost: elementwise. Before `initialize` it is the identity; afterwards a second call changes nothing.

    >>> import torch, diffeo
    >>> layer = diffeo.Standardize(1)
    >>> layer.initialize(torch.tensor([[1.0], [3.0]]))
    >>> layer(torch.tensor([3.0]))
    (tensor([1.]), tensor(0.))
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    mean: Tensor
    scale: Tensor
    initialized: Tensor

    def __init__(self, features: int, robust: bool = False):
        super().__init__()
        self.event = as_fixed_event(features, self)
        self.robust = robust
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Standardize")
        scale = self.scale.to(x.dtype)
        return keep_scaled(x, (x - self.mean.to(x.dtype)) / scale, -scale.log(), context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Standardize")
        scale = self.scale.to(z.dtype)
        return keep_scaled(z, z * scale + self.mean.to(z.dtype), scale.log(), context)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        if self.initialized:
            return
        rows = training_rows(x, context, self.event, "Standardize")
        center, scale = rows.mean(0), rows.std(0, correction=0)
        if self.robust:
            low, center, high = quartiles(rows)
            scale = torch.where(high > low, (high - low) / NORMAL_QUARTILES, scale)
        self.mean.copy_(center)
        self.scale.copy_(scale)
        self.initialized.fill_(True)


class ActNorm(Transform):
    """z = exp(s) (x + b): an affine map for each feature, set by the first batch to zero mean and unit variance.

    log|det| = Σ s. Unlike `Standardize` it goes on learning.

    Args:
        features: D.

    Raises:
        ValueError: from `initialize`, where a column is constant or not finite.

    Cost: elementwise. Whether it was initialised is a buffer, so loading a trained layer does not set it again.

    "Glow: Generative Flow with Invertible 1x1 Convolutions" (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039

    >>> import torch, diffeo
    >>> layer = diffeo.ActNorm(1)
    >>> layer.initialize(torch.tensor([[1.0], [3.0]]))
    >>> layer(torch.tensor([3.0]))[0]
    tensor([1.], grad_fn=<MulBackward0>)
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    initialized: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.event = as_fixed_event(features, self)
        self.bias = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "ActNorm")
        s = self.log_scale.to(x.dtype)
        return keep_scaled(x, (x + self.bias.to(x.dtype)) * s.exp(), s, context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "ActNorm")
        s = self.log_scale.to(z.dtype)
        return keep_scaled(z, z * (-s).exp() - self.bias.to(z.dtype), -s, context)

    def mixing(self, dtype: torch.dtype, inverse: bool) -> Mixing:
        s, bias = self.log_scale.to(dtype), self.bias.to(dtype)
        if inverse:
            return Mixing(None, -s, None, -bias, -s.sum())
        return Mixing(None, s, bias, None, s.sum())

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        if self.initialized:
            return
        rows = training_rows(x, context, self.event, "ActNorm")
        self.bias.copy_(-rows.mean(0))
        self.log_scale.copy_(-rows.std(0, correction=0).log())
        self.initialized.fill_(True)


class Whiten(Transform):
    """z = W (x − mean), WᵀW = Σ⁻¹, with Σ the Ledoit–Wolf covariance of the training rows.

    A flow that begins with it and is otherwise the identity already is the fitted Gaussian. Columns are standardised
    before the covariance is shrunk, so the result does not depend on their units. W is lower triangular: the first
    coordinate stays itself, later ones lose what the earlier ones explain linearly.

    Args:
        features: D.

    Raises:
        ValueError: from `initialize`, where a column is constant or not finite.

    Cost: O(D²) for each row in either direction (the forward direction solves a triangular system).

    "A well-conditioned estimator for large-dimensional covariance matrices" (Ledoit and Wolf, 2004),
    https://doi.org/10.1016/S0047-259X(03)00096-4

    >>> import torch, diffeo
    >>> layer = diffeo.Whiten(2)
    >>> layer.initialize(torch.randn(100, 2))
    >>> layer(torch.zeros(5, 2))[1].shape
    torch.Size([5])
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    mean: Tensor
    scale: Tensor
    factor: Tensor
    initialized: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.event = as_fixed_event(features, self)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("factor", torch.eye(features))  # Cholesky factor of the shrunk correlations
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Whiten")
        centered = (x - self.mean.to(x.dtype)) / self.scale.to(x.dtype)
        with full_precision(x):
            z = solve_rows(self.factor.to(x.dtype), centered, upper=False).to(x.dtype)
        return _rows_kept(x, z, -self._log_volume(x.dtype), context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Whiten")
        with full_precision(z):
            x = (z @ self.factor.to(z.dtype).T) * self.scale.to(z.dtype) + self.mean.to(z.dtype)
        return _rows_kept(z, x, self._log_volume(z.dtype), context)

    def _log_volume(self, dtype: torch.dtype) -> Tensor:
        scale, factor = self.scale.to(dtype), self.factor.to(dtype)
        return sum_event(scale.log() + factor.diagonal().log(), 1)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        if self.initialized:
            return
        from sklearn.covariance import ledoit_wolf

        rows = training_rows(x, context, self.event, "Whiten")
        mean, scale = rows.mean(0), rows.std(0, correction=0)
        covariance, _ = ledoit_wolf(((rows - mean) / scale).cpu().numpy(), assume_centered=True)
        covariance += 1e-6 * np.eye(len(covariance))  # the shrinkage itself may be zero for collinear columns
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.factor.copy_(torch.linalg.cholesky(torch.from_numpy(covariance)))
        self.initialized.fill_(True)


def training_rows(x: Tensor, context: Context, event: Event | None, who: str) -> Tensor:
    """The rows of a training batch in float64, refused where a column cannot be standardised."""
    check_event(x, event, who)
    rows = real_rows(x, context).double()
    finite = rows.isfinite().all(0)
    if not finite.all():
        raise ValueError(f"{who}: columns {(~finite).nonzero()[:, 0].tolist()} hold values that are not finite")
    varies = rows.std(0, correction=0) > 1e-12 * rows.abs().amax(0).clamp_min(1e-300)
    if not varies.all():
        columns = (~varies).nonzero()[:, 0].tolist()
        raise ValueError(f"{who}: columns {columns} are constant, so they have no density; drop them")
    return rows

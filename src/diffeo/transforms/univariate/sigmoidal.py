"""Monotone networks of sigmoids, the scalar maps of neural autoregressive flows."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from diffeo.core import Univariate
from diffeo.functional import Context, MappedScalars, Scalars, positive, soft_clip
from diffeo.solvers import invert_increasing
from diffeo.transforms.univariate.mixture import LOGISTIC, mix, offsets_of


class DeepSigmoidal(Univariate):
    """h ← σ⁻¹(Σₖ wₖ σ(aₖ h + bₖ)), layer after layer: the deep sigmoidal flow (DSF).

    w is a softmax, a = exp of a softly bounded number. Parameters, layers · 3·units: of each layer logits, a and b.
    With zero parameters the units' thresholds lie side by side between −1 and 1, and z is close to x.

    Args:
        units: sigmoids of each layer, at least 1.
        layers: at least 1.
        bound: largest |log a|, > 0.

    Raises:
        ValueError: no unit or no layer.
        diffeo.solvers.UnsolvedError: the inverse does not reach its tolerance.

    Cost: one pass; the inverse is a Newton search inside a bracket, a pass for each step.

    "Neural Autoregressive Flows" (Huang et al., 2018), https://arxiv.org/abs/1804.00779

    >>> import torch, diffeo
    >>> u = diffeo.DeepSigmoidal(units=1)
    >>> u(torch.tensor(2.0), torch.zeros(6))[0]
    tensor(2.)
    """

    exact_inverse = False
    offsets: Tensor

    def __init__(self, units: int = 16, layers: int = 2, bound: float = 4.0):
        super().__init__()
        _check_sizes("DeepSigmoidal", units, layers)
        self.units, self.layers, self.bound = units, layers, positive(bound, "bound", self)
        self.n_params = layers * 3 * units
        self.register_buffer("offsets", offsets_of(units), persistent=False)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return self._map(x, self.params(context))

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return invert_increasing(self._map, z, self.params(context), "DeepSigmoidal")

    def _map(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        total: Tensor | float = 0.0
        for layer in params.chunk(self.layers, -1):
            logits, raw, shift = layer.chunk(3, -1)
            log_rate = soft_clip(raw, self.bound)
            at = x.unsqueeze(-1) * log_rate.exp() + shift + self.offsets.to(x.dtype)
            x, log_slope = mix(at, log_rate, logits.log_softmax(-1), LOGISTIC)
            total = log_slope + total
        return x, total  # pyright: ignore[reportReturnType] (there is at least one layer)


class DenseSigmoidal(Univariate):
    """h ← σ⁻¹(W σ(a ⊙ U h + b)), h a vector between scalars: the deep dense sigmoidal flow (DDSF).

    Rows of W and U are softmaxes, a = exp of a softly bounded number. Parameters: of each layer U, W, a and b. With
    zero parameters the thresholds lie side by side between −1 and 1, and z is close to x.

    Args:
        units: sigmoids of each layer, at least 1.
        layers: at least 1.
        bound: largest |log a|, > 0.

    Raises:
        ValueError: no unit or no layer.
        diffeo.solvers.UnsolvedError: the inverse does not reach its tolerance.

    Cost: one pass, O(units²) for each inner layer; the inverse is a bracketed Newton search, a pass for each step.

    "Neural Autoregressive Flows" (Huang et al., 2018), https://arxiv.org/abs/1804.00779

    >>> import torch, diffeo
    >>> u = diffeo.DenseSigmoidal(units=1, layers=1)
    >>> u(torch.tensor(2.0), torch.zeros(4))[0]
    tensor(2.)
    """

    exact_inverse = False
    offsets: Tensor
    twist: Tensor

    def __init__(self, units: int = 8, layers: int = 2, bound: float = 4.0):
        super().__init__()
        _check_sizes("DenseSigmoidal", units, layers)
        self.units, self.layers, self.bound = units, layers, positive(bound, "bound", self)
        widths = [1, *[units] * (layers - 1), 1]  # of h before and after each layer
        self._widths = list(pairwise(widths))
        self._sizes = [(units * into, units * out, units, units) for into, out in self._widths]
        self.n_params = sum(map(sum, self._sizes))
        self.register_buffer("offsets", offsets_of(units), persistent=False)
        # rows of inner weights start apart, so that units between layers are not all alike
        self.register_buffer("twist", torch.outer(offsets_of(units), offsets_of(units)), persistent=False)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return self._map(x, self.params(context))

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return invert_increasing(self._map, z, self.params(context), "DenseSigmoidal")

    def _map(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        h, log_slope = x.unsqueeze(-1), x.new_zeros(*x.shape, 1)
        layers = params.split([sum(sizes) for sizes in self._sizes], -1)
        for (into, out), sizes, layer in zip(self._widths, self._sizes, layers, strict=True):
            into_logits, out_logits, raw, shift = layer.split(list(sizes), -1)
            u, w = self._log_rows(into_logits, self.units, into), self._log_rows(out_logits, out, self.units)
            log_rate = soft_clip(raw, self.bound)
            at = (u.exp() * h.unsqueeze(-2)).sum(-1) * log_rate.exp() + shift + self.offsets.to(x.dtype)
            inner = (u + log_slope.unsqueeze(-2)).logsumexp(-1) + log_rate  # log dat/dx
            h, log_slope = mix(at.unsqueeze(-2), inner.unsqueeze(-2), w, LOGISTIC)
        return h.squeeze(-1), log_slope.squeeze(-1)

    def _log_rows(self, logits: Tensor, rows: int, columns: int) -> Tensor:
        """Logarithms of a matrix whose rows are positive and sum to one."""
        matrix = logits.unflatten(-1, (rows, columns))
        if rows == columns:
            matrix = matrix + self.twist.to(logits.dtype)
        return matrix.log_softmax(-1)


def _check_sizes(who: str, units: int, layers: int) -> None:
    if units < 1 or layers < 1:
        raise ValueError(f"{who}: expected at least one unit and one layer, got {units} and {layers}")

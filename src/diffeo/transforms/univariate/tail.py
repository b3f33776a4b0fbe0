"""Maps between the tails of a normal and those of a power law."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffeo.core import Univariate
from diffeo.functional import Context, MappedScalars, Scalars, positive, quartiles, soft_clip
from diffeo.transforms.univariate.gaussian import normal_log_cdf, normal_log_hazard, normal_quantile

START = 0.1  # tail weight at zero parameters
UNIT = 0.5 * math.log(math.pi / 2)  # log σ that makes the slope at zero one
SPAN = 3.0  # largest |log| of a tail weight over START
EXTREMES = 0.02  # share of the rows, on each side, from which tails are estimated; at least 10 rows
END = 40.0  # log |λ x / σ| from which the map goes on as its tangent, so that nothing overflows


class TailTransform(Univariate):
    """x = m + σ s (erfc(|z|/√2)^{−λ} − 1) / λ, s the sign of z: a normal z gives x tails like those of |x|^{−1/λ−1}.

    λ = λ₊ where z > 0 and λ₋ elsewhere, each 0.1 exp of a softly bounded number: between 0.005 and 2 (a Student t with
    ν degrees of freedom has 1/ν). Parameters (m, log σ, λ₊, λ₋), raw. With zero parameters x ≈ z near zero, and λ is
    0.1 on both sides: this map is nowhere the identity far out.

    Args:
        bound: largest |log σ|, > 0.

    Cost: one pass in either direction; z comes from a Newton iteration of fixed length.

    "Flexible Tails for Normalizing Flows" (Hickling and Prangle, 2024), https://arxiv.org/abs/2406.16971; first tails
    from training rows: "A Moment Estimator for the Index of an Extreme-Value Distribution" (Dekkers et al., 1989),
    https://doi.org/10.1214/aos/1176347397

    >>> import torch, diffeo
    >>> diffeo.TailTransform().inverse(torch.tensor([0.0, 5.0]), torch.zeros(4))[0]
    tensor([ 0.0000, 40.2167])
    """

    n_params = 4

    def __init__(self, bound: float = 8.0):
        super().__init__()
        self.bound = positive(bound, "bound", self)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        location, log_scale, right, left = self.params(context).unbind(-1)
        log_scale = self._scale(log_scale)
        y = (x - location) * (-log_scale).exp()
        weight = self._weight(torch.where(y > 0, right, left))
        size = torch.where(y > 0, y, -y)  # not abs, whose gradient at zero is zero
        near = torch.minimum(size, math.expm1(END) / weight)
        z, log_slope = self._from_heavy(near, weight)
        z = z + (size - near) * log_slope.exp()
        return torch.where(y > 0, z, -z), log_slope - log_scale

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        location, log_scale, right, left = self.params(context).unbind(-1)
        log_scale = self._scale(log_scale)
        weight = self._weight(torch.where(z > 0, right, left))
        size = torch.where(z > 0, z, -z)
        near = torch.minimum(size, -normal_quantile(-END / weight - math.log(2)))
        log_tail = normal_log_cdf(-near) + math.log(2)  # log erfc(z/√2)
        log_slope = normal_log_hazard(-near) - weight * log_tail
        y = torch.expm1(-weight * log_tail) / weight + (size - near) * log_slope.exp()
        return location + log_scale.exp() * torch.where(z > 0, y, -y), log_slope + log_scale

    def initial_params(self, x: Tensor) -> Tensor | None:
        k = max(10, round(EXTREMES * len(x)))
        if len(x) < 4 * k:
            return None
        if not x.isfinite().all():
            raise ValueError("TailTransform: the training rows hold values that are not finite")
        low, center, high = quartiles(x)
        weights = torch.stack([_extreme_value_index((side * (x - center)).topk(k + 1, 0).values) for side in (1, -1)])
        raw = SPAN * torch.atanh(((weights.clamp_min(1e-9) / START).log() / SPAN).clamp(-0.9, 0.9))
        # quartiles to quartiles: layers that follow must not scale z, which would change the tails
        distances = torch.stack([high - center, center - low])
        weights = self._weight(raw)
        log_scale = (distances * weights / torch.expm1(weights * math.log(2))).clamp_min(1e-9).log().mean(0)
        log_scale = self.bound * torch.atanh(((log_scale - UNIT) / self.bound).clamp(-0.9, 0.9))
        return torch.cat([torch.stack([center, log_scale], 1), raw.T], 1)

    @staticmethod
    def _from_heavy(y: Scalars, weight: Scalars) -> MappedScalars:
        """z ≥ 0 and log dz/dy for y ≥ 0 of unit scale."""
        log_tail = -torch.log1p(weight * y) / weight
        z = normal_quantile(log_tail - math.log(2))
        return -z, weight * log_tail - normal_log_hazard(z)

    def _scale(self, raw: Scalars) -> Scalars:
        return soft_clip(raw, self.bound) + UNIT

    def _weight(self, raw: Scalars) -> Scalars:
        return START * soft_clip(raw, SPAN).exp()


def _extreme_value_index(largest: Tensor) -> Tensor:
    """1/ν of a tail like |x|^{−ν−1}, or what is ≤ 0 for a lighter one, from the k + 1 largest values, in order."""
    logs = largest[:-1].clamp_min(1e-300).log() - largest[-1].clamp_min(1e-300).log()
    first, second = logs.mean(0), logs.square().mean(0).clamp_min(1e-300)
    index = first + 1 - 0.5 / (1 - first.square() / second).clamp_min(1e-9)
    different = (largest.diff(dim=0) != 0).double().mean(0) > 0.5  # ties at the end are no tail
    return torch.where(different & (largest[-1] > 0), index, 0.0)

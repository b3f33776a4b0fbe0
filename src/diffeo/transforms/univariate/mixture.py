"""The distribution function of a mixture, taken back to the line by the quantile function of one component.

With S(x) = Σₖ wₖ F((x − mₖ) / σₖ) the map is z = F⁻¹(S(x)): a single component gives a line, several give steps. F is
symmetric, so z = −F⁻¹(1 − S(x)) too, and everything is computed on the side of the smaller probability, from
logarithms: far out, where S and 1 − S underflow, z and its slope stay exact. With the hazard h = F'/F and the
components' shares of S, rₖ = wₖ F(cₖ) / S, the slope is Σₖ rₖ h(cₖ) / σₖ / h(z).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Univariate
from diffeo.functional import Context, MappedScalars, Scalars, positive, soft_clip
from diffeo.solvers import invert_increasing
from diffeo.transforms.univariate.gaussian import normal_log_cdf, normal_log_hazard, normal_quantile


class Sigmoids(NamedTuple):
    """A standard distribution on the line, symmetric about zero."""

    log_cdf: Callable[[Tensor], Tensor]
    log_hazard: Callable[[Tensor], Tensor]  # log F'/F
    quantile: Callable[[Tensor, Tensor], Tensor]  # from log S and log(1 − S), where S ≤ ½


LOGISTIC = Sigmoids(F.logsigmoid, lambda x: F.logsigmoid(-x), lambda log_cdf, log_rest: log_cdf - log_rest)
GAUSSIAN = Sigmoids(normal_log_cdf, normal_log_hazard, lambda log_cdf, log_rest: normal_quantile(log_cdf))
KERNELS = {"logistic": LOGISTIC, "gaussian": GAUSSIAN}


def mix(at: Tensor, log_rate: Tensor, log_weight: Tensor, kernel: Sigmoids) -> tuple[Tensor, Tensor]:
    """z = F⁻¹(Σₖ wₖ F(cₖ)), and log dz/dx where log dcₖ/dx = log_rate; components come last."""
    below, above = log_weight + kernel.log_cdf(at), log_weight + kernel.log_cdf(-at)
    log_cdf, log_rest = below.logsumexp(-1), above.logsumexp(-1)
    left = log_cdf < log_rest
    sign = torch.where(left, 1.0, -1.0).to(at.dtype)
    total = torch.where(left, log_cdf, log_rest)
    z = kernel.quantile(total, torch.where(left, log_rest, log_cdf))
    share = torch.where(left.unsqueeze(-1), below, above) - total.unsqueeze(-1)
    log_slope = (share + log_rate + kernel.log_hazard(at * sign.unsqueeze(-1))).logsumexp(-1) - kernel.log_hazard(z)
    return z * sign, log_slope


class MixtureCDF(Univariate):
    """z = e^s F⁻¹(Σₖ wₖ F((x − mₖ) / σₖ)) + t: the distribution function of a mixture, straightened by one component's.

    Parameters, 3·components + 2: logits of the weights, locations, −log σ, t and s. All logarithms of scales are
    softly bounded. With zero parameters the components lie side by side between −1 and 1, and z is close to x.

    Args:
        components: K, at least 1.
        kernel: "logistic" (as in Flow++, with F the sigmoid) or "gaussian".
        bound: largest absolute log-scale, > 0.

    Raises:
        ValueError: an unknown kernel; no component.
        diffeo.solvers.UnsolvedError: the inverse does not reach its tolerance.

    Cost: one pass; the inverse is a Newton search inside a bracket, a pass for each step.

    "Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design" (Ho et al.,
    2019), https://arxiv.org/abs/1902.00275; "Gaussianization Flows" (Meng et al., 2020), https://arxiv.org/abs/2003.01941

    >>> import torch, diffeo
    >>> u = diffeo.MixtureCDF(components=1)
    >>> u(torch.tensor(2.0), torch.zeros(5))
    (tensor(2.), tensor(0.))
    """

    exact_inverse = False
    offsets: Tensor

    def __init__(self, components: int = 8, kernel: str = "logistic", bound: float = 4.0):
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"MixtureCDF: kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
        if components < 1:
            raise ValueError(f"MixtureCDF: expected at least one component, got {components}")
        self.components, self.kernel, self.bound = components, kernel, positive(bound, "bound", self)
        self.n_params = 3 * components + 2
        self.register_buffer("offsets", offsets_of(components), persistent=False)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return self._map(x, self.params(context))

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return invert_increasing(self._map, z, self.params(context), "MixtureCDF")

    def _map(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        k = self.components
        logits, shift, log_rate, ends = params.split([k, k, k, 2], -1)
        log_rate = soft_clip(log_rate, self.bound)
        at = (x.unsqueeze(-1) - shift - self.offsets.to(x.dtype)) * log_rate.exp()
        z, log_slope = mix(at, log_rate, logits.log_softmax(-1), KERNELS[self.kernel])
        t, s = ends.unbind(-1)
        s = soft_clip(s, self.bound)
        return z * s.exp() + t, log_slope + s


def offsets_of(n: int) -> Tensor:
    """n fixed distinct numbers from −1 to 1 that tell exchangeable components apart; zero for a single one."""
    return torch.linspace(-1, 1, n) if n > 1 else torch.zeros(n)

"""Densities of data with Gaussian noise, and samples that are freed of it."""

from __future__ import annotations

import math

import torch
from torch import Generator, Size, Tensor
from torch.distributions.constraints import Constraint

from diffeo.core import Density
from diffeo.densities.around import AroundFlow
from diffeo.densities.dequantized import check_levels
from diffeo.functional import Context, LogProb, context_batch, joined, visible
from diffeo.noise import Seeds, standard_normal


class Noisy(AroundFlow):
    """x = y + σ ε with y from a density and ε standard normal: p(x) = E_ε p_y(x − σ ε), estimated from below.

    Trained on data, the density becomes that of data with noise, which is smooth where the data is not. Its samples y
    are then noisy data; with `denoise` a sample is the mean of what y may have been, x = y + σ² ∇ log p_y(y).

    Args:
        density: of y.
        noise: σ, > 0, in the units of x.
        denoise: whether samples are freed of noise; without it they follow p.
        levels: of whole numbers 0 … levels − 1 that samples are rounded to; None for no rounding.

    Raises:
        ValueError: no positive noise; fewer than two levels.

    Cost: that of the density, and of its gradient for a sample that is freed of noise.

    "Normalizing Flows are Capable Generative Models" (Zhai et al., 2024), https://arxiv.org/abs/2412.06329; "Tweedie's
    Formula and Selection Bias" (Efron, 2011), https://doi.org/10.1198/jasa.2011.tm11181

    >>> import torch, diffeo
    >>> noisy = diffeo.Noisy(diffeo.Normal(2), noise=0.5)
    >>> noisy.sample(5).shape
    torch.Size([5, 2])
    """

    exact = False
    has_rsample = False

    def __init__(self, density: Density, noise: float, *, denoise: bool = True, levels: int | None = None):
        super().__init__()
        if not 0 < noise < math.inf or (levels is not None and levels < 2):
            raise ValueError(f"Noisy: expected noise > 0 and at least 2 levels, got {noise} and {levels}")
        self.density, self.noise, self.denoise, self.levels = density, noise, denoise, levels
        self.event_ndim, self.event = density.event_ndim, density.event

    @property
    def support(self) -> Constraint:
        return self.density.support

    def event_shape(self, context: Context = None) -> Size:
        return self.density.event_shape(context)

    def context_dims(self) -> dict[str, int]:
        return self.density.context_dims()

    def forward(
        self, x: Tensor, context: Context = None, samples: int = 1, generator: Generator | None = None
    ) -> LogProb:
        self.check_context(context)
        event, batch = self.event_shape(context), context_batch(context, self.context_dims())
        batch = joined(x.shape[: x.ndim - self.event_ndim], batch)
        y = self._with_noise(visible(x, context).expand(*batch, *event), samples, generator)
        return torch.logsumexp(self.density(y, context), 0) - math.log(samples)

    def log_prob(
        self, x: Tensor, context: Context = None, samples: int = 1, generator: Generator | None = None
    ) -> LogProb:
        """A lower bound on the log-density, in the mean over noise; more samples tighten it."""
        return self(x, context, samples, generator)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        y = self.density.draw(shape, context, temperature, generator)
        if not self.denoise:
            x = y + temperature * self.noise * standard_normal(y.shape, y, generator)
        else:
            with torch.inference_mode(False), torch.enable_grad():
                seen = y.detach().clone().requires_grad_()
                gradient = torch.autograd.grad(self.density(seen, context).sum(), seen)[0]
            x = y + self.noise**2 * gradient
        x = visible(x, context)
        return x if self.levels is None else x.round().clamp(0, self.levels - 1).long()

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Set the density from training rows with noise; refuses values that are none of the levels."""
        x = visible(x, context)
        check_levels(x, self.levels, "Noisy")
        self.density.initialize(self._with_noise(x, 1, torch.Generator(x.device).manual_seed(0))[0], context)

    def _with_noise(self, x: Tensor, samples: int, generator: Generator | None) -> Tensor:
        own = next(self.parameters(), None)
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype() if own is None else own.dtype)
        return x + self.noise * standard_normal(Size((samples, *x.shape)), x, generator)

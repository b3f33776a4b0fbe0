"""Densities on the unit sphere in three dimensions, against its surface."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor, nn
from torch.distributions.constraints import Constraint

from diffeo.core import Density
from diffeo.densities.mixture import UNUSED
from diffeo.functional import Context, LogProb, check_event, real_rows, soft_clip, visible
from diffeo.noise import Seeds, only, standard_normal, uniform
from diffeo.transforms import Sphere
from diffeo.transforms.masks import of_events

LOG_CENTER, LOG_SPAN = 5.0, 9.0  # log κ lies between −4 and 14: from nearly uniform to 0.05 degrees
FEWEST = 10  # distinct rows from which a mixture is fitted
HELD_OUT = 0.1  # share of the rows that choose the number of components
ITERATIONS = 60  # of expectation and maximisation, at most
EM_NUMBERS = 2**18  # of rows × components at a time, so that they stay in cache


class UniformSphere(Density):
    """Uniform on the unit sphere in three dimensions: log p(x) = −log 4π against its surface, −∞ off it.

    >>> import torch, diffeo
    >>> diffeo.UniformSphere()(torch.tensor([0.0, 0.0, 1.0]))
    tensor(-2.5310)
    """

    pole: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("pole", torch.tensor([0.0, 0.0, 1.0]), persistent=False)
        self.event = self.pole.shape

    @property
    def support(self) -> Constraint:
        return Sphere()

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "UniformSphere")
        x = visible(x, context)
        return of_events(_on_sphere(x, torch.full_like(x[..., 0], -math.log(4 * math.pi))), context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        noise = standard_normal(shape + self.event_shape(), self.pole, generator)
        if temperature == 0:
            return visible(self.pole.expand(noise.shape), context)
        if temperature != 1:
            raise ValueError(f"UniformSphere: a uniform density has no temperature but 0 and 1, got {temperature}")
        return visible(noise / noise.norm(dim=-1, keepdim=True), context)


class VonMisesFisherMixture(Density):
    """log p(x) = log Σₖ πₖ κₖ exp(κₖ (mₖᵀx − 1)) / (2π (1 − exp(−2κₖ))), for unit vectors x and mₖ; −∞ off the sphere.

    Weights, mean directions and concentrations κ, between 0.02 and 10⁶, are learned. `initialize` fits the mixture to
    training rows by expectation and maximisation, with 1, 2, 4, … components, as many as predict held-out rows best
    (the rest get a negligible weight, from which they may grow). Before that, and where there are fewer than 10
    different rows, the means lie all over the sphere.

    Samples carry no gradient (the component is a discrete choice). Temperature divides κ by its square; temperature 0
    gives the mean at which the mixture's density is highest.

    Args:
        components: K, at least 1.

    Raises:
        ValueError: fewer components; from `initialize`, values that are not finite.

    Cost: O(K) for each row.

    "Clustering on the Unit Hypersphere using von Mises-Fisher Distributions" (Banerjee et al., 2005),
    https://jmlr.org/papers/v6/banerjee05a.html

    >>> import torch, diffeo
    >>> diffeo.VonMisesFisherMixture(3)(torch.tensor([[0.0, 0.6, 0.8]])).shape
    torch.Size([1])
    """

    has_rsample = False
    initialized: Tensor

    def __init__(self, components: int):
        super().__init__()
        if components < 1:
            raise ValueError(f"VonMisesFisherMixture: expected at least one component, got {components}")
        height = 1 - (2 * torch.arange(components) + 1) / components  # Fibonacci's lattice
        turn = torch.arange(components) * math.pi * (3 - math.sqrt(5))
        around = (1 - height**2).sqrt()
        self.logits = nn.Parameter(torch.zeros(components))
        self.directions = nn.Parameter(torch.stack([around * turn.cos(), around * turn.sin(), height], 1))
        self.raw_log_concentrations = nn.Parameter(torch.full((components,), _raw(math.log(components))))
        self.register_buffer("initialized", torch.tensor(False))
        self.event = self.directions.shape[1:]

    @property
    def support(self) -> Constraint:
        return Sphere()

    @property
    def means(self) -> Tensor:
        """Mean directions, unit vectors of shape (K, 3)."""
        return self.directions / self.directions.norm(dim=-1, keepdim=True)

    @property
    def concentrations(self) -> Tensor:
        """κ, shape (K,)."""
        return (LOG_CENTER + soft_clip(self.raw_log_concentrations, LOG_SPAN)).exp()

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "VonMisesFisherMixture")
        x = visible(x, context)
        joint = _log_joint(x, self.logits.log_softmax(0), self.means, self.concentrations)
        return of_events(_on_sphere(x, joint.logsumexp(-1)), context)

    @torch.no_grad()
    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        if temperature == 0:
            return visible(self.means[self(self.means).argmax()].expand(*shape, 3), context)
        n = max(1, math.prod(shape))
        k = torch.multinomial(self.logits.softmax(0), n, replacement=True, generator=only(generator))
        concentration = self.concentrations[k] / temperature**2
        u = uniform(Size((n,)), concentration, generator)
        drop = -torch.log1p(u * torch.expm1(-2 * concentration)) / concentration  # 1 − mᵀx
        mean = self.means[k]
        noise = standard_normal(Size((n, 3)), mean, generator)
        across = noise - (noise * mean).sum(-1, keepdim=True) * mean
        across = across / across.norm(dim=-1, keepdim=True)
        drop = drop.clamp(0, 2).unsqueeze(-1)
        rows = (1 - drop) * mean + (drop * (2 - drop)).sqrt() * across
        rows = rows / rows.norm(dim=-1, keepdim=True)
        return visible(rows[: math.prod(shape)].reshape(*shape, 3), context)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Fit the mixture to training rows by expectation and maximisation, once."""
        if self.initialized:
            return
        check_event(x, self.event, "VonMisesFisherMixture")
        rows = real_rows(x, context).float()
        if not rows.isfinite().all():
            raise ValueError("VonMisesFisherMixture: the training rows hold values that are not finite")
        distinct, which = rows.unique(dim=0, return_inverse=True)
        if len(distinct) < FEWEST:
            return
        # a row and its copies are on one side
        apart = torch.rand(len(distinct), generator=torch.Generator().manual_seed(0)).argsort().argsort()
        out = (apart < HELD_OUT * len(distinct)).to(rows.device)[which]
        held_out, fitted = rows[out], rows[~out]
        most = min(len(self.logits), round((1 - HELD_OUT) * len(distinct)) // 4)
        chosen, best = 1, -math.inf
        for k in sorted({*(2**i for i in range(most.bit_length())), most}):
            score = _mean_log_prob(held_out, *_expectation_maximisation(fitted, k))
            if score <= best:
                break
            chosen, best = k, score
        weights, means, concentrations = _expectation_maximisation(rows, chosen)
        k = len(weights)
        self.logits.fill_(UNUSED)
        self.logits[:k] = (k * weights).log().clamp_min(UNUSED)  # against 1/k: the unused weigh little
        self.directions[:k] = means
        bent = ((concentrations.log() - LOG_CENTER) / LOG_SPAN).clamp(-0.999, 0.999)
        self.raw_log_concentrations[:k] = LOG_SPAN * torch.atanh(bent)
        self.initialized.fill_(True)


def _raw(log_concentration: float) -> float:
    return LOG_SPAN * math.atanh((log_concentration - LOG_CENTER) / LOG_SPAN)


def _on_sphere(x: Tensor, log_prob: Tensor) -> LogProb:
    """−∞ for x off the sphere; NaN stays."""
    length = x.norm(dim=-1)
    return torch.where(length.isnan(), length, torch.where((length - 1).abs() < 1e-3, log_prob, -math.inf))


def _log_joint(x: Tensor, log_weights: Tensor, means: Tensor, concentrations: Tensor) -> Tensor:
    """log πₖ p(x | k), shape (*batch, K)."""
    # 1 − mᵀx from differences, which keep their digits where κ is large
    squares = sum((x[..., i, None] - means[:, i]).square() for i in range(3))
    return log_weights + _log_norm(concentrations) - 0.5 * concentrations * squares


def _log_norm(concentrations: Tensor) -> Tensor:
    """log of κ / (2π (1 − exp(−2κ)))."""
    return concentrations.log() - math.log(2 * math.pi) - torch.log(-torch.expm1(-2 * concentrations))


def _mean_log_prob(x: Tensor, weights: Tensor, means: Tensor, concentrations: Tensor) -> float:
    blocks = x.split(max(1, EM_NUMBERS // len(weights)))
    scores = [_log_joint(b, weights.log(), means, concentrations).logsumexp(1) for b in blocks]
    return float(torch.cat(scores).double().mean())


def _expectation_maximisation(x: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, mean directions and concentrations of a mixture, from rows as the first means."""
    generator = torch.Generator().manual_seed(0)
    means = x[torch.randperm(len(x), generator=generator)[:components].to(x.device)]
    concentrations = torch.full_like(means[:, 0], 10.0)
    weights = torch.full_like(means[:, 0], 1 / components)
    ones = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    last = -math.inf
    for _ in range(ITERATIONS):
        moments, total = x.new_zeros(4, components, dtype=torch.float64), 0.0
        log_norm = weights.log() + _log_norm(concentrations) - concentrations
        pull = (concentrations.unsqueeze(1) * means).T
        for block in ones.split(max(1, EM_NUMBERS // max(components, 256))):
            joint = torch.addmm(log_norm, block[:, 1:], pull)  # loses digits at large κ, which a start can spare
            most = joint.amax(1, keepdim=True)
            share = joint.sub_(most).exp_()
            mass = share.sum(1, keepdim=True)
            moments += (block / mass).T.double() @ share.double()  # 1 − |Σ x| / n is small where κ is large
            total += float((most + mass.log()).sum())
        mass, sums = moments[0].clamp_min(1e-6), moments[1:].T
        length = sums.norm(dim=1)
        pointed = (length > 1e-6 * mass).unsqueeze(1)  # rows that cancel have no mean: the last one stays
        means = torch.where(pointed, sums / length.unsqueeze(1), means).to(x.dtype)
        weights = (mass / mass.sum()).to(x.dtype)
        concentrations = _concentration(length / mass).to(x.dtype)
        if total / len(x) - last < 1e-4:
            break
        last = total / len(x)
    return weights, means, concentrations


def _concentration(length: Tensor) -> Tensor:
    """κ with coth κ − 1/κ equal to the length of the mean vector, by Newton from Banerjee's approximation."""
    length = length.clamp(1e-6, 1 - 1e-6)
    k = length * (3 - length**2) / (1 - length**2)
    for _ in range(20):
        mean = 1 / torch.tanh(k) - 1 / k
        slope = 1 / k**2 - 1 / torch.sinh(k.clamp_max(300)) ** 2
        k = (k - (mean - length) / slope.clamp_min(1e-12)).clamp(0.02, 1e6)
    return k

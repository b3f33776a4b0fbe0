"""A learned mixture of Gaussians, as a base or by itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor, nn

from diffeo.core import Density
from diffeo.functional import Context, LogProb, check_event, full_precision, positive, real_rows, soft_clip, visible
from diffeo.kernels.layout import linear
from diffeo.noise import Seeds, only, standard_normal
from diffeo.solvers.mixtures import FEW, gaussian_mixture
from diffeo.transforms.masks import of_events

EM_ROWS = 20_000  # rows that expectation–maximisation sees at most
PATIENCE = 3  # of few columns, so many numbers of components in a row that are no better before the search stops
FITS = 4  # mixtures of few columns that are averaged, as far as there are components for them
UNUSED = -12.0  # log-weight, not normalised, of components that it did not need


class GaussianMixture(Density):
    """log p(x) = log Σₖ πₖ N(x; mₖ, Σₖ), with full covariances Σₖ⁻¹ = AₖᵀAₖ, A lower triangular.

    Weights, means and precision factors are learned; the log-diagonals of A are bounded by `bound`. `initialize` fits
    the mixture to training rows by expectation–maximisation, with as many of the components as the BIC asks for (the
    rest get a negligible weight, from which they may grow); before that the means stand on a small fixed spiral, so
    that no two components are alike. Along curves no number of clusters is right, and the best fit is partly luck: of
    up to five columns, where the AIC asks for more components than the BIC, the start is the average of up to four
    fits with k, k + 1, … components, as far as there are so many.

    Samples carry no gradient (the component is a discrete choice). Temperature scales each component; temperature 0
    gives the mean at which the mixture's density is highest.

    Args:
        features: D.
        components: K, at least 1.
        bound: largest |log-diagonal| of A, > 0.

    Cost: O(K D²) for each row.

    >>> import torch, diffeo
    >>> diffeo.GaussianMixture(2, components=3)(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    has_rsample = False
    center: Tensor
    scale: Tensor
    initialized: Tensor

    def __init__(self, features: int, components: int, bound: float = 8.0):
        super().__init__()
        if components < 1:
            raise ValueError(f"GaussianMixture: expected at least one component, got {components}")
        self.bound = positive(bound, "bound", self)
        k = torch.arange(components).unsqueeze(1) + 1.0
        means = 0.5 * torch.cos(k * (torch.arange(features) + 1.0) * (math.sqrt(5) - 1)) if components > 1 else 0 * k
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(means.expand(components, features).clone())
        self.factors = nn.Parameter(torch.zeros(components, features, features))  # A; its diagonal holds logarithms
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("initialized", torch.tensor(False))
        self.event = self.means.shape[1:]

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "GaussianMixture")
        x = visible(x, context)
        factors, log_diagonal = self._factors()
        u = (x - self.center) / self.scale
        # A (u − m) as A u − A m: one product for all components, whose error is that of rounding u
        shift = (factors * self.means.unsqueeze(-2)).sum(-1)
        with full_precision(x):
            z = linear(u, factors.flatten(0, 1), -shift.flatten())
        z = z.movedim(-1, 0).unflatten(0, self.means.shape)  # rows innermost, as a compiled product lays them out
        log_norm = log_diagonal.sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi) - self.scale.log().sum()
        log_weight = self.logits.log_softmax(0) + log_norm
        log_p = torch.logsumexp(log_weight.view(-1, *[1] * (x.ndim - 1)) - 0.5 * (z * z).sum(1), 0)
        return of_events(log_p, context)

    @torch.no_grad()
    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        features = self.means.shape[1]
        if temperature == 0:
            means = self.means * self.scale + self.center
            return visible(means[self(means).argmax()].expand(*shape, features), context)
        n = max(1, math.prod(shape))
        k = torch.multinomial(self.logits.softmax(0), n, replacement=True, generator=only(generator))
        noise = standard_normal(Size((n, features, 1)), self.means, generator) * temperature
        offset = torch.linalg.solve_triangular(self._factors()[0][k], noise, upper=False).squeeze(-1)
        rows = (self.means[k] + offset) * self.scale + self.center
        return visible(rows[: math.prod(shape)].reshape(*shape, features), context)

    def _factors(self) -> tuple[Tensor, Tensor]:
        log_diagonal = soft_clip(self.factors.diagonal(dim1=-2, dim2=-1), self.bound)
        return self.factors.tril(-1) + torch.diag_embed(log_diagonal.exp()), log_diagonal

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Fit the mixture to training rows by expectation–maximisation (scikit-learn), once."""
        if self.initialized:
            return
        check_event(x, self.event, "GaussianMixture")
        rows = real_rows(x, context).double().cpu()
        if len(rows) > EM_ROWS:
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:EM_ROWS]]
        self.center.copy_(rows.mean(0))
        self.scale.copy_(rows.std(0, correction=0).clamp_min(1e-12))
        # standardised, so that the result does not depend on units
        rows = (rows - rows.mean(0)) / rows.std(0, correction=0).clamp_min(1e-12)
        weights, means, factors = _expectation_maximisation(rows.numpy(), len(self.logits))
        k = len(weights)
        log_diagonal = factors.diagonal(dim1=-2, dim2=-1).log()
        raw = self.bound * torch.atanh((log_diagonal / self.bound).clamp(-0.999, 0.999))
        self.logits.fill_(UNUSED)
        self.logits[:k] = weights.log().to(self.logits)
        self.means[:k] = means.to(self.means)
        self.factors[:k] = (factors.tril(-1) + torch.diag_embed(raw)).to(self.factors)
        self.initialized.fill_(True)


def _expectation_maximisation(rows: np.ndarray, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and lower-triangular precision factors of the mixture with the best BIC, or of an average of such.

    At most `most` components in all.
    """
    few = rows.shape[1] <= FEW
    best: Any = None
    best_bic, worse = math.inf, 0
    for k in range(1, min(most, max(1, len(rows) // (2 * rows.shape[1]))) + 1):
        model = gaussian_mixture(rows, k, seed=0, starts=2 if few else 1)
        bic = model.bic(rows)
        if bic < best_bic:
            best, best_bic, worse = model, bic, 0
        else:
            worse += 1
        if worse == (PATIENCE if few else 1):
            break
    found = [best]
    k = best.n_components
    while few and k > 1 and len(found) < FITS and sum(m.n_components for m in found) + k < most:
        k += 1
        found.append(gaussian_mixture(rows, k, seed=len(found)))
    # Where the AIC, which asks for less, sees no use of more components, the clusters are found. Else no number is
    # right, as along curves: there are many optima, and an average is better than each.
    if min(m.aic(rows) for m in found) == best.aic(rows):
        found = [best]
    # scikit-learn's factors are upper triangular, P = C Cᵀ; ours act as A = Cᵀ
    return (
        torch.from_numpy(np.concatenate([m.weights_ for m in found]) / len(found)),
        torch.from_numpy(np.concatenate([m.means_ for m in found])),
        torch.from_numpy(np.concatenate([m.precisions_cholesky_ for m in found])).transpose(-2, -1),
    )

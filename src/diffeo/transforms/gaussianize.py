"""Marginal Gaussianization: every column mapped towards a standard normal by its own spline, set from data."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import Context, MappedVector, Vector, as_fixed_event, check_event, keep_masked, sum_event
from diffeo.solvers.mixtures import FEW, average_log_prob, gaussian_mixture
from diffeo.transforms.norm import training_rows
from diffeo.transforms.univariate import RationalQuadraticSpline

ANCHORS = (4, 6, 10, 16, 31)  # numbers of quantiles to choose from
CHOICE_ROWS = 20_000  # rows that choose among them
COMPONENTS, FITS = (1, 2, 4, 8, 16), 3  # numbers of Gaussians to try behind the curves, so often each
FEWEST, MIXTURE_ROWS = 50, 2_000  # rows that they need, and get at most


class Gaussianize(Transform):
    """zᵢ = sᵢ((xᵢ − cᵢ) / rᵢ): a spline for each column, set so that training columns come out standard normal.

    `initialize` draws each spline through quantiles of the column against those of the normal, as many as predict
    held-out rows best; a column that is close to normal is only standardised, and so are all of them where bending the
    axes would cost more of what the columns share than it gains. Afterwards the splines go on learning.
    Outside the range of the data the map is affine. Skewed, heavy-tailed and clustered columns thereby stop being hard,
    while their axes stay apart. Before `initialize` it is the identity.

    Args:
        features: D.
        bins: pieces of each spline, at least 4.

    Raises:
        ValueError: from `initialize`, where a column is constant or not finite.

    Cost: elementwise.

    "Gaussianization Flows" (Meng et al., 2020), https://arxiv.org/abs/2003.01941

    >>> import torch, diffeo
    >>> layer = diffeo.Gaussianize(1)
    >>> x = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0)).log()
    >>> layer.initialize(x)
    >>> z, _ = layer(x)
    >>> bool(abs(z.mean()) < 0.05), bool(abs(z.std() - 1) < 0.05)
    (True, True)
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    center: Tensor
    scale: Tensor
    initialized: Tensor

    bound = 6.0  # of the spline on both axes: six standard deviations of z

    def __init__(self, features: int, bins: int = 32):
        super().__init__()
        if bins < 4:
            raise ValueError(f"Gaussianize: expected at least 4 bins, got {bins}")
        self.event = as_fixed_event(features, self)
        self.spline = RationalQuadraticSpline(bins, self.bound, min_width=1e-5, min_height=1e-4, min_slope=1e-4)
        self.theta = nn.Parameter(torch.zeros(features, self.spline.n_params))
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Gaussianize")
        scale = self.scale.to(x.dtype)
        z, logdet = self.spline((x - self.center.to(x.dtype)) / scale, self.theta.to(x.dtype))
        z, logdet = keep_masked(x, z, logdet - scale.log(), context)
        return z, sum_event(logdet, 1)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Gaussianize")
        scale = self.scale.to(z.dtype)
        x, logdet = self.spline.inverse(z, self.theta.to(z.dtype))
        x, logdet = keep_masked(z, x * scale + self.center.to(z.dtype), logdet + scale.log(), context)
        return x, sum_event(logdet, 1)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        if self.initialized:
            return
        rows = training_rows(x, context, self.event, "Gaussianize").cpu()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:CHOICE_ROWS]
        some = rows[order]
        anchors = [self._choose_anchors(column) for column in some.unbind(1)]
        if not self._bending_pays(some, anchors):
            anchors = [0] * len(anchors)
        for i, column in enumerate(rows.unbind(1)):
            center, scale, theta = self._through_quantiles(column, anchors[i])
            self.center[i], self.scale[i], self.theta[i] = center, scale, theta.to(self.theta)
        self.initialized.fill_(True)

    def _bending_pays(self, rows: Tensor, anchors: list[int]) -> bool:
        """Whether curves of so many quantiles and a simple density behind them, both from one half of the rows, predict
        the other half better than straight axes do.

        Bending every axis for its own sake may blur what the columns have in common; it must pay for all together, and
        on rows that have drawn no curve: what lies beyond the quantiles of heavy tails is dear.
        """
        if not any(anchors):
            return False
        gain = 0.0
        for learnt, unseen in ((rows[::2], rows[1::2]), (rows[1::2], rows[::2])):
            columns = learnt.unbind(1)
            straight = [self._through_quantiles(column, 0) for column in columns]
            bent = [self._through_quantiles(column, n) for column, n in zip(columns, anchors, strict=True)]
            gain += self._held_out(bent, learnt, unseen) - self._held_out(straight, learnt, unseen)
        return gain > 0

    def _held_out(self, curves: list[tuple[float, float, Tensor]], learnt: Tensor, unseen: Tensor) -> float:
        """Mean log-density of the unseen rows under these curves and what a base can be behind them.

        That is a Gaussian; of few columns, where clusters and curves are seen as such, the best mixture of Gaussians.
        """
        sides: list[np.ndarray] = []
        volume = 0.0
        for rows in (learnt, unseen):
            columns = [
                self.spline((column - center) / scale, theta)
                for column, (center, scale, theta) in zip(rows.unbind(1), curves, strict=True)
            ]
            sides.append(torch.stack([z for z, _ in columns], 1).numpy())
            volume = sum(float(logdet.mean()) for _, logdet in columns) - sum(math.log(scale) for _, scale, _ in curves)
        few = 1 < learnt.shape[1] <= FEW and len(learnt) >= FEWEST
        return volume + (_under_mixtures if few else _under_gaussian)(*sides)

    def _choose_anchors(self, column: Tensor) -> int:
        """The number of quantiles that predicts the other half of the rows best; 0, an affine map, if none does
        clearly: a bent axis must earn its place, since it bends what the column has in common with the others."""
        halves = column[::2], column[1::2]
        if min(len(half.unique()) for half in halves) < 3:
            return 0
        scores: dict[int, Tensor] = {}
        for anchors in (0, *(m for m in ANCHORS if m < min(self.spline.bins, len(column) / 20))):
            folds = [(halves[0], halves[1]), (halves[1], halves[0])]
            scores[anchors] = torch.cat(
                [self._log_prob(test, *self._through_quantiles(fit, anchors)) for fit, test in folds]
            )
        best = max(scores, key=lambda anchors: float(scores[anchors].mean()))
        gain = scores[best] - scores[0]
        return best if gain.mean() > 0.01 + 2 * gain.std() / len(gain) ** 0.5 else 0

    def _log_prob(self, column: Tensor, center: float, scale: float, theta: Tensor) -> Tensor:
        z, logdet = self.spline((column - center) / scale, theta)
        return logdet - 0.5 * z * z - math.log(scale)

    def _through_quantiles(self, column: Tensor, anchors: int) -> tuple[float, float, Tensor]:
        """Center, scale and spline parameters that map this many quantiles of the column to the normal's."""
        from scipy.interpolate import PchipInterpolator
        from scipy.stats import norm

        n, bins, bound = len(column), self.spline.bins, self.bound
        if anchors == 0:
            return float(column.mean()), float(column.std(correction=0)), column.new_zeros(self.spline.n_params)
        reach = min(float(norm.ppf(1 - min(0.25, 5 / n))), 3.5)
        z = np.linspace(-reach, reach, anchors)
        x = np.quantile(column.numpy(), norm.cdf(z))
        low, high = float(column.min()), float(column.max())
        # Beyond the outer anchors the curve goes on as a normal of the same spread would, but at least past the data.
        margin = (bound - reach) * (x[-1] - x[0]) / (2 * reach)
        start, end = min(x[0] - margin, low - 0.05 * (high - low)), max(x[-1] + margin, high + 0.05 * (high - low))
        center, scale = (start + end) / 2, (end - start) / (2 * bound)
        u = (np.array([start, *x, end]) - center) / scale
        least = 3 * self.spline.limits.min_width * 2 * bound
        for k in range(1, len(u)):  # repeated values give equal quantiles: keep the anchors apart
            u[k] = max(u[k], u[k - 1] + least)
        u = (u + bound) * (2 * bound / (u[-1] + bound)) - bound
        curve = PchipInterpolator([-bound, *z, bound], u)
        knots = np.linspace(-reach, reach, bins - 1)
        widths = np.diff([-bound, *curve(knots), bound])
        heights = np.diff([-bound, *knots, bound])
        slopes = 1 / np.maximum(curve.derivative()(knots), 1e-3)
        return center, scale, self.spline.params_for(*(torch.from_numpy(a) for a in (widths, heights, slopes)))


def _under_gaussian(learnt: np.ndarray, unseen: np.ndarray) -> float:
    from sklearn.covariance import LedoitWolf

    return float(LedoitWolf().fit(learnt).score(unseen))


def _under_mixtures(learnt: np.ndarray, unseen: np.ndarray) -> float:
    """Under the average of some mixtures, of as many Gaussians as do best."""
    learnt, unseen = learnt[:MIXTURE_ROWS], unseen[:MIXTURE_ROWS]
    scores: list[float] = []
    for k in COMPONENTS:
        fits = [gaussian_mixture(learnt, k, seed) for seed in range(1 if k == 1 else FITS)]
        scores.append(float(average_log_prob(fits, unseen).mean()))
        if k > 2 and scores[-1] < scores[-2]:
            break
    return max(scores)

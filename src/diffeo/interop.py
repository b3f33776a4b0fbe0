"""Bridges to other libraries; each imports its library when it is used."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributions import Distribution


def pyro(distribution: Distribution) -> Any:
    """A distribution of `torch.distributions`, such as `flow.given(context)`, as one that Pyro's models accept.

    The result has the same batch and event shapes, samples, log-probabilities and support; nothing is patched or
    registered.

    Args:
        distribution: any distribution of `torch.distributions`.

    Raises:
        ImportError: Pyro is not installed.

    >>> import diffeo
    >>> d = diffeo.interop.pyro(diffeo.Normal(2).given())  # doctest: +SKIP
    """
    from pyro.distributions import TorchDistribution

    class Wrapped(TorchDistribution):
        """A `torch.distributions.Distribution` behind Pyro's interface."""

        arg_constraints = {}  # noqa: RUF012 # pyright: ignore (the name is torch's)

        def __init__(self, inner: Distribution):
            self.inner = inner
            super().__init__(inner.batch_shape, inner.event_shape, validate_args=False)

        @property
        def has_rsample(self) -> bool:
            return self.inner.has_rsample

        @property
        def support(self):
            return self.inner.support

        def log_prob(self, value):
            return self.inner.log_prob(value)

        def rsample(self, sample_shape=torch.Size()):
            return self.inner.rsample(sample_shape)

        def sample(self, sample_shape=torch.Size()):
            return self.inner.sample(sample_shape)

        def expand(self, batch_shape, _instance=None):
            return Wrapped(self.inner.expand(batch_shape))

    return Wrapped(distribution)

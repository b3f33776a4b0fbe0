# %% [markdown]
# # Coming from zuko, nflows, sbi, scikit-learn
#
# Their call, and ours beside it. All of them run here, on the same 2,000 rows.

# %%
import warnings

import numpy as np
import torch

import diffeo

warnings.simplefilter("ignore")  # remarks of the other libraries
torch.manual_seed(0)
x = torch.randn(2000, 3)
x[:, 2] = x[:, 0] ** 2 + 0.3 * x[:, 2]
context = x[:, :1] + 0.1 * torch.randn(2000, 1)

# %% [markdown]
# ## zuko
#
# A zuko flow is called with a context and gives a distribution. In diffeo calling a flow *is* its log-density;
# `flow.given(context)` is the distribution. Standardisation is part of our flows, so densities stay in the units of x,
# and `diffeo.fit` is the training loop.

# %%
import zuko

theirs = zuko.flows.NSF(features=3, context=1, transforms=3, hidden_features=(64, 64))
print(theirs(context).log_prob(x).shape, theirs(context[0]).sample((5,)).shape)
print(theirs(context).rsample((4,)).shape)

# %%
ours = diffeo.nsf_ar(features=3, context=1, layers=3, hidden=(64, 64))  # zuko's NSF is autoregressive
print(ours(x, context).shape, ours.given(context[0]).sample((5,)).shape)
result = diffeo.fit(ours, x, context, steps=200, progress=False)  # zuko leaves the loop to its users
print(ours.sample((4, 2000), context).shape)

# %% [markdown]
# ## nflows
#
# Transforms, a base and a `Flow` are the same idea. nflows' `sample(n, context)` gives n samples for each context row;
# ours takes the whole shape, as NumPy's `size=` does. `transform.forward` runs from data to noise in both.

# %%
from nflows.distributions.normal import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform, ReversePermutation

parts = [MaskedAffineAutoregressiveTransform(3, 32), ReversePermutation(3), MaskedAffineAutoregressiveTransform(3, 32)]
theirs = Flow(CompositeTransform(parts), StandardNormal([3]))
print(theirs.log_prob(x).shape, theirs.sample(5).shape)

# %%
from diffeo.nets import MADE

affine = diffeo.Affine()
ours = diffeo.Flow(
    diffeo.Chain(
        diffeo.Autoregressive(MADE(3, affine.n_params, hidden=(32,)), affine),
        diffeo.Permute(torch.tensor([2, 1, 0])),
        diffeo.Autoregressive(MADE(3, affine.n_params, hidden=(32,)), affine),
    ),
    diffeo.Normal(3),
)
print(ours(x).shape, ours.sample(5).shape)

# %% [markdown]
# ## sbi
#
# Neural posterior estimation is a conditional density of parameters given data: the simulations are the rows, what was
# observed is the context. For one round that is all there is to it.

# %%
from sbi.inference import NPE
from sbi.utils import BoxUniform

theta = 4 * torch.rand(2000, 2) - 2
data = theta + 0.3 * torch.randn(2000, 2)
observed = torch.tensor([0.5, -0.5])
inference = NPE(prior=BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2)), show_progress_bars=False)
inference.append_simulations(theta, data).train(max_num_epochs=20, show_train_summary=False)
posterior = inference.build_posterior()
print(posterior.sample((1000,), x=observed, show_progress_bars=False).mean(0))

# %%
estimator = diffeo.nsf_ar(features=2, context=2, components=0, layers=3, hidden=(64, 64))
diffeo.fit(estimator, theta, data, steps=400, progress=False)
posterior = estimator.given(observed)  # a torch.distributions.Distribution
print(posterior.sample((1000,)).mean(0), posterior.log_prob(torch.zeros(2)))

# %% [markdown]
# ## scikit-learn
#
# | scikit-learn | diffeo |
# |---|---|
# | `KernelDensity`, `GaussianMixture` | `FlowDensity` |
# | `IsolationForest`, `LocalOutlierFactor(novelty=True)` | `FlowOutlierDetector` |
# | `PowerTransformer`, `QuantileTransformer` | `FlowTransformer` |
# | `RandomForestRegressor`, `QuantileRegressor` | `FlowRegressor` |

# %%
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import PowerTransformer

train, test = train_test_split(x.numpy(), random_state=0)
for density in (GaussianMixture(8, random_state=0), diffeo.FlowDensity(random_state=0)):
    print(f"{type(density).__name__:<18}{density.fit(train).score_samples(test).mean():.3f} nats")
for scaler in (PowerTransformer(), diffeo.FlowTransformer(random_state=0)):
    z = scaler.fit(train).transform(test)
    print(f"{type(scaler).__name__:<18}dependence left, corr(z₁², z₃): {np.corrcoef(z[:, 0] ** 2, z[:, 2])[0, 1]:+.2f}")

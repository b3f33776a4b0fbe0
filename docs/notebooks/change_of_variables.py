# %% [markdown]
# # Change of variables, in one and two dimensions
#
# A normalizing flow is a density made of a simple one and an invertible map. Everything follows from one line: where
# $z = f(x)$ carries data to noise,
#
# $$\log p(x) = \log p_Z(f(x)) + \log\left|\det \tfrac{\partial f}{\partial x}\right|.$$
#
# The second term is what keeps the total probability at one: where $f$ stretches space, the same probability lies on
# less of it.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import diffeo

# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]

torch.manual_seed(0)
blue, orange = "#3d5a80", "#ee6c4d"

# %% [markdown]
# ## One dimension
#
# Take $f(x) = \log x$, from the positive numbers to the line, before a standard normal. In `diffeo` a transform's call
# runs from data to noise and gives the value together with $\log|f'|$; `Inverse` swaps the directions of `Exp`.

# %%
log = diffeo.Inverse(diffeo.Exp())
x = torch.linspace(0.05, 6, 400)
z, logdet = log(x)
by_hand = diffeo.Normal(())(z) + logdet
reference = torch.distributions.LogNormal(0.0, 1.0).log_prob(x)
print(f"largest difference from the log-normal density: {(by_hand - reference).abs().max():.1e}")

# %% [markdown]
# Without the second term it would be no density: its integral is off.

# %%
step = x[1] - x[0]
print(f"with the log-det    {float(by_hand.exp().sum() * step):.3f} between 0.05 and 6")
print(f"without             {float(diffeo.Normal(())(z).exp().sum() * step):.3f}")
print(f"the log-normal has  {float(torch.distributions.LogNormal(0.0, 1.0).cdf(x[[0, -1]]).diff()):.3f}")

# %% [markdown]
# A `Flow` does the sum, and samples by running noise backwards through the map.

# %%
flow = diffeo.Flow(log, diffeo.Normal(()))
samples = flow.sample(5000)
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
ax.hist(samples[samples < 6].numpy(), bins=80, density=True, color=blue, alpha=0.4, label="samples")
ax.plot(x, flow(x).exp(), color=orange, label="density")
ax.set(xlabel="x")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## Learning the map
#
# Maps with parameters are `Univariate`: their context holds the parameters. `Elementwise` makes these learned numbers, and
# `fit` raises the likelihood. A monotone spline bends the line until the data looks normal.

# %%
data = torch.cat([torch.randn(1500) * 0.4 - 2, torch.randn(1500) * 0.8 + 1.5]).unsqueeze(1)
spline = diffeo.RationalQuadraticSpline(bins=16, bound=6.0)
flow = diffeo.Flow(diffeo.Chain(diffeo.Standardize(1), diffeo.Elementwise(spline, 1)), diffeo.Normal(1))
print(diffeo.fit(flow, data, steps=1000, lr=2e-2, progress=False))

# %%
x = torch.linspace(-5, 5, 400).unsqueeze(1)
with torch.no_grad():
    z, _ = flow.transform(x)
    density = flow(x).exp()
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
axes[0].hist(data.squeeze().numpy(), bins=80, density=True, color=blue, alpha=0.4)
axes[0].plot(x, density, color=orange)
axes[0].set(title="data and density", xlabel="x")
axes[1].plot(x, z, color=orange)
axes[1].set(title="the map: steep where the data is", xlabel="x", ylabel="z")
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## Two dimensions
#
# Now the determinant of the Jacobian is the factor by which small areas grow. It is cheap when the Jacobian is
# triangular: a *coupling* leaves some coordinates as they are and lets them set the map of the others, an
# *autoregressive* layer lets every coordinate depend on those before it. Chains of such layers bend the plane.

# %%
angle = torch.rand(4000) * np.pi
upper = torch.arange(4000) % 2 == 0
moons = torch.where(
    upper.unsqueeze(1),
    torch.stack([angle.cos(), angle.sin()], 1),
    torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1),
)
moons = moons + 0.06 * torch.randn(4000, 2)
flow = diffeo.nsf(2, components=0, layers=6, hidden=(64, 64))
print(diffeo.fit(flow, moons, steps=1500, progress=False))

# %% [markdown]
# The chain rule for the chain: log-dets of layers add up, and the sum is that of the whole Jacobian, as autograd finds it.

# %%
point = torch.tensor([0.5, 0.6])
parts, here = [], point
for part in flow.transform.parts:
    here, logdet = part(here)
    parts.append(float(logdet.detach()))
jacobian = torch.autograd.functional.jacobian(lambda x: flow.transform(x)[0], point)
print(f"sum over {len(parts)} layers {sum(parts):.5f}, determinant by autograd {jacobian.det().abs().log():.5f}")

# %% [markdown]
# Noise on its way to data: a grid over the normal, layer by layer, from the base (left) to the moons (right).

# %%
with torch.no_grad():
    states = [flow.base.sample(3000)]
    for part in reversed(flow.transform.parts):
        states.append(part.inverse(states[-1])[0])
    axis = torch.linspace(-2, 3, 200)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    density = flow(grid).exp()
shown = [0, 4, 8, len(states) - 1]
colour = torch.atan2(states[0][:, 1], states[0][:, 0])
fig, axes = plt.subplots(1, 5, figsize=(12, 2.6), layout="constrained")
for ax, i in zip(axes, shown, strict=False):
    ax.scatter(*states[i].T, s=1, c=colour, cmap="twilight", rasterized=True)
    ax.set(title="noise" if i == 0 else f"after {i} of {len(states) - 1} layers")
axes[-1].imshow(density, origin="lower", extent=(-2, 3, -2, 3), cmap="magma")
axes[-1].set(title="density")
for ax in axes:
    ax.set(xticks=[], yticks=[])

# %% [markdown]
# What can go wrong is checked by a program: `diffeo.testing.check_transform` compares both log-dets with autograd, runs
# the inverse both ways, and more. It takes your own transforms too.

# %%
diffeo.testing.check_transform(flow.transform, moons[:6], trace=False)
print("inverse, log-dets, shapes, gradients, extremes: as promised")

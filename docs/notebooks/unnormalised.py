# %% [markdown]
# # A density known up to a constant
#
# Sometimes there is no data but a formula: an energy of physics, or likelihood times prior. It gives
# $\tilde p(x) = Z\,p(x)$ with an unknown $Z$. A flow $q$ can be made close to $p$ without a single sample of it, by
# minimising
#
# $$\mathrm{KL}(q \,\|\, p) - \log Z = \mathbb E_{x\sim q}\left[\log q(x) - \log \tilde p(x)\right],$$
#
# over its own samples. Afterwards it is a sampler, and importance weights say how far to trust it.

# %%
import matplotlib.pyplot as plt
import torch

import diffeo

# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]

# %% [markdown]
# ## The target
#
# Any function of rows that gives one number each will do. Here: measurements of a decaying signal
# $y = a e^{-b t}$ + noise, and the posterior of $(\log a, \log b)$ under a broad normal prior.

# %%
torch.manual_seed(0)
t = torch.linspace(0, 4, 12)
y = 2.0 * torch.exp(-0.8 * t) + 0.3 * torch.randn(12)


def log_posterior(x):
    """Log-likelihood plus log-prior, up to a constant; x has shape (*batch, 2)."""
    a, b = x.exp().unbind(-1)
    mean = a.unsqueeze(-1) * torch.exp(-b.unsqueeze(-1) * t)
    return -0.5 * ((y - mean) / 0.3).square().sum(-1) - 0.5 * x.square().sum(-1)


# %% [markdown]
# ## Fitting
#
# `ReverseKL` is the objective; `fit` takes the number of samples of a step where it would take rows. The flow needs
# reparameterised samples, so `nsf` goes without its mixture base (`components=0`).

# %%
torch.manual_seed(0)
flow = diffeo.nsf(2, components=0, layers=4, hidden=(64, 64))
objective = diffeo.ReverseKL(flow, log_posterior)
result = diffeo.fit(objective, 256, steps=2000, progress=False)
print(result)

# %% [markdown]
# The effective sample size is the share of samples that remains once they are weighted by $\tilde p / q$; the Pareto $k$
# says whether these weights have a mean to speak of (below 0.7). Both judge the fit without knowing the answer, and the
# mean weight estimates $Z$. In two dimensions a grid can check them.

# %%
axis_a, axis_b = torch.linspace(-1, 2, 300), torch.linspace(-3, 2, 300)
grid = torch.stack(torch.meshgrid(axis_a, axis_b, indexing="ij"), -1)
cell = float((axis_a[1] - axis_a[0]) * (axis_b[1] - axis_b[0]))
log_p = log_posterior(grid)
log_z = float(log_p.flatten().double().logsumexp(0)) + torch.tensor(cell).log().item()
with torch.no_grad():
    log_q = flow(grid)
kl = float((log_q.exp() * (log_q - log_p + log_z)).sum() * cell)
print(
    f"log Z: {log_z:.4f} on the grid, {result.log_normalizer:.4f} from importance weights; KL(q || p) = {kl:.4f} nats"
)

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
extent = (-1, 2, -3, 2)
for ax, values, title in zip(axes, [(log_p - log_z).exp(), log_q.exp()], ["posterior", "flow"], strict=True):
    ax.imshow(values.T, origin="lower", extent=extent, aspect="auto", cmap="magma")
    ax.set(title=title, xlabel="log a")
axes[0].set_ylabel("log b")

# %% [markdown]
# ## Answers, with their errors
#
# `diffeo.importance` weighs samples, so that expectations under $p$ are right even where the flow is not quite.

# %%
weighted = diffeo.importance(flow, log_posterior, samples=20_000)
print(weighted)
w = weighted.log_weights.softmax(0)
rate = weighted.x[:, 1].exp().double()
mean = (w * rate).sum()
error = ((w * (rate - mean)) ** 2).sum().sqrt()
exact = (grid[..., 1].exp() * (log_p - log_z).exp()).sum() * cell
print(f"E[b] = {mean:.4f} ± {error:.4f}; on the grid {exact:.4f}")

# %% [markdown]
# ## Modes
#
# Reverse KL is content with part of the target: where $q$ has no samples, it learns nothing of $p$. Two distant modes
# show it. The effective sample size does not: it only sees what $q$ covers.

# %%
target = diffeo.targets.Mixture(torch.tensor([[-4.0, 0.0], [4.0, 0.0]]), 0.5)


def show(flows):
    """Densities side by side."""
    axis = torch.linspace(-7, 7, 200)
    square = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    _, axes = plt.subplots(1, len(flows), figsize=(3 * len(flows), 2.8), layout="constrained")
    for ax, (title, density) in zip(axes, flows.items(), strict=True):
        with torch.no_grad():
            ax.imshow(density(square).exp(), origin="lower", extent=(-7, 7, -7, 7), cmap="magma")
        ax.set(title=title, xticks=[], yticks=[])


def fitted(build, steps=1500):
    """A flow trained with an objective on this target."""
    torch.manual_seed(0)
    flow = diffeo.nsf(2, components=0, layers=4, hidden=(64, 64))
    result = diffeo.fit(build(flow), 256, steps=steps, progress=False)
    print(f"{build(flow).__class__.__name__}: log Z {result.log_normalizer:+.3f}, truth 0; {result}")
    return flow


reverse = fitted(lambda flow: diffeo.ReverseKL(flow, target))
wide = diffeo.targets.Mixture(torch.zeros(1, 2), 4.0)
forward = fitted(lambda flow: diffeo.ForwardKL(flow, target, proposal=wide))
show({"target": target, "reverse KL": reverse, "forward KL": forward})

# %% [markdown]
# `ForwardKL` weighs samples of a wide proposal instead, and covers what the proposal covers. Between the two lie
# `diffeo.RenyiBound` and `diffeo.importance_weighted_bound`; `ReverseKL(path_gradient=True)` has less noise near the end.
# The four energies of Rezende and Mohamed, planar flows and splines: [docs/benchmarks.md](../benchmarks.md).

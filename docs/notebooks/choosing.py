# %% [markdown]
# # Choosing a family
#
# There are over twenty recipes in `diffeo`. Most questions are settled by what the data are and by which direction has
# to be fast; the rest by trying two or three.
#
# | what you have or need | take | why |
# |---|---|---|
# | a table, and the best density | `nsf_ar`, `nsf` | splines bend where an affine map cannot; try both |
# | many samples, or a density in many dimensions at once | `nsf`, `realnvp` | couplings cost one pass in both directions |
# | densities only, many dimensions, little time | `maf` | one cheap pass; samples take D steps |
# | samples and their density, as in reverse KL | `nsf(components=0)`, `iaf` | the sampling direction is the fast one |
# | extremes that follow a power law | `ttf` | its tails are learned; those of the other recipes for tables are the base's |
# | columns with limits, categories, whole numbers | `mixed`, or `diffeo.fit_table` | exact limits, no mass outside |
# | the unit box, angles, unit vectors | `unit_box`, `torus`, `sphere` | densities on that domain, against its own measure |
# | one number given many | `regression` | a conditional spline |
# | a fit before any training | `gaussianization(layerwise=True)`, `gaussian` | built from the rows alone |
# | no structure imposed on the map | `residual_flow`, `ffjord` | any Lipschitz network, any vector field; slower |
#
# The cells below show the differences that matter on small examples. The [gallery](../gallery/index.md) has every family
# of the plane on eight densities, the [benchmarks](../benchmarks.md) real tables.

# %%
import time

import matplotlib.pyplot as plt
import torch

import diffeo

# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]

torch.manual_seed(0)
torch.set_num_threads(1)
blue, orange, grey = "#3d5a80", "#ee6c4d", "#8d99a6"


def fit(flow, x, steps=800, **options):
    """Train, and say how long it took."""
    result = diffeo.fit(flow, x, steps=steps, batch_size=256, seed=0, compile=False, progress=False, **options)
    return flow.eval(), result.seconds


# %% [markdown]
# ## Try a few, and look at rows that were held out
#
# Here the truth is known: eight Gaussians on a circle. Nats on test rows, less those of the density itself, are an
# estimate of the divergence from it; on your own data only differences between families mean something.

# %%
angle = torch.arange(8) * torch.pi / 4
target = diffeo.targets.Mixture(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.2)
x, test = target.sample(8000), target.sample(4000)
small = {"hidden": (64, 64)}
diffeo.gaussian(2).initialize(x)  # the first call imports scikit-learn
families = {
    "gaussian": diffeo.gaussian(2),
    "realnvp": diffeo.realnvp(2, **small),
    "maf": diffeo.maf(2, **small),
    "nsf, components=0": diffeo.nsf(2, components=0, **small),
    "nsf": diffeo.nsf(2, **small),
    "gaussianization, layerwise": diffeo.gaussianization(2, layers=30, layerwise=True),
}
print(f"{'family':28}{'nats short':>12}{'fit, s':>9}{'1,000 densities, ms':>22}{'1,000 samples, ms':>20}")
for name, flow in families.items():
    if name in ("gaussian", "gaussianization, layerwise"):
        began = time.perf_counter()
        flow.initialize(x)  # these need no training
        seconds = time.perf_counter() - began
    else:
        flow, seconds = fit(flow, x)
    with torch.no_grad():
        gap = (target(test) - flow(test)).mean()
        began = time.perf_counter()
        flow(test[:1000])
        density = time.perf_counter() - began
        flow.sample(1000)
        sampling = time.perf_counter() - began - density
    print(f"{name:28}{gap:12.3f}{seconds:9.1f}{1e3 * density:22.1f}{1e3 * sampling:20.1f}")

# %% [markdown]
# ## Separate clusters
#
# An invertible map cannot tear a normal apart: between clusters it leaves thin bridges. Where clusters matter, give the
# base components of its own, as `nsf` and `nsf_ar` do unless told otherwise.

# %%
axis = torch.linspace(-3, 3, 150)
y_, x_ = torch.meshgrid(axis, axis, indexing="ij")
grid = torch.stack([x_, y_], -1)
fig, axes = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
shown = {"the density": target, **{name: families[name] for name in ("realnvp", "nsf, components=0", "nsf")}}
for ax, (name, density) in zip(axes, shown.items(), strict=True):
    with torch.no_grad():
        ax.imshow(density(grid).exp() ** 0.4, origin="lower", extent=(-3, 3, -3, 3), cmap="magma")
    ax.set(title=name, xticks=[], yticks=[])

# %% [markdown]
# ## Which direction is fast
#
# `maf` and `iaf` are the same layers with the directions swapped. In 32 dimensions, 2,000 rows:

# %%
rows = torch.randn(2000, 32)
for name in ("maf", "iaf", "realnvp"):
    flow = getattr(diffeo, name)(32)
    flow.initialize(rows)
    with torch.no_grad():
        flow(rows), flow.sample(2000)
        began = time.perf_counter()
        flow(rows)
        density = time.perf_counter() - began
        flow.sample(2000)
        print(
            f"{name:8} density {1e3 * density:6.0f} ms, samples {1e3 * (time.perf_counter() - began - density):6.0f} ms"
        )

# %% [markdown]
# ## Tails
#
# Far out, the tails of a spline flow are those of its base: a normal's. That does not show in a mean log-density, and it
# does where the extremes are what you need. `ttf` learns how heavy each tail is, and starts from the most extreme of the
# training rows. Here the data are a Student t with two degrees of freedom, for which P(|x| > t) is known.

# %%
student = torch.distributions.StudentT(2.0)
x = student.sample((10_000, 1))
models = {name: fit(getattr(diffeo, name)(1, layers=2, **small), x, 500)[0] for name in ("nsf_ar", "ttf")}
samples = {name: flow.sample(200_000).abs() for name, flow in models.items()}
levels = torch.logspace(0, 2.5, 60)
exact = 1 - levels / (levels**2 + 2).sqrt()
fig, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
ax.loglog(levels, exact, color=grey, lw=4, alpha=0.5, label="Student t, two degrees of freedom")
for (name, drawn), colour in zip(samples.items(), (blue, orange), strict=True):
    ax.loglog(levels, [(drawn > level).float().mean() for level in levels], color=colour, label=name)
ax.set(xlabel="t", ylabel="P(|x| > t)", ylim=(1e-5, 1))
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
for name, drawn in samples.items():
    print(f"{name:7} P(|x| > 100) = {(drawn > 100).float().mean():.1e}, exact {1 - 100 / (100**2 + 2) ** 0.5:.1e}")

# %% [markdown]
# ## Limits
#
# A density on the line puts some of its mass where no data can be. Tell `mixed` where a column ends, and the mass ends
# there; `diffeo.fit_table` and the program do so for columns whose values show a limit.

# %%
x = torch.distributions.Beta(1.0, 3.0).sample((8000, 1))
line, _ = fit(diffeo.nsf(1, layers=2, **small), x, 500)
ends, _ = fit(diffeo.mixed(1, low=[0.0], high=[1.0], flow="nsf", options={"layers": 2, "hidden": [64, 64]}), x, 500)
test = torch.distributions.Beta(1.0, 3.0).sample((8000, 1))
with torch.no_grad():
    for name, flow in {"nsf": line, "mixed, low=0, high=1": ends}.items():
        drawn = flow.sample(20_000)
        outside = ((drawn < 0) | (drawn > 1)).float().mean()
        print(f"{name:22} nats {flow(test).mean():.3f}, mass outside {outside:.2%}")

# %% [markdown]
# ## What decides in the end
#
# Fit two or three on the same split and compare nats of held-out rows with their standard error (`diffeo fit --recipe`
# prints both for a file, on the same held-out rows for the same seed). When two are equal, take the one whose slow
# direction you do not need.

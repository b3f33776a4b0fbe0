# %% [markdown]
# # Conditional densities and prediction intervals
#
# A regression usually predicts a mean. `FlowRegressor` predicts the whole distribution of the target given the features:
# quantiles, intervals that hold what they promise, densities, samples. Here the truth is known: two branches whose
# distance and spread depend on x.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import cross_val_score, train_test_split

import diffeo

# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]


def draw(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, n)
    branch = rng.choice([-1, 1], n)
    return x[:, None], np.sin(2 * x) + branch * np.clip(x, 0, None) + (0.1 + 0.1 * np.abs(x)) * rng.normal(size=n)


X, y = draw(4000, 0)
model = diffeo.FlowRegressor(random_state=0).fit(X, y)

# %%
grid = np.linspace(-2, 2, 200)[:, None]
levels = np.linspace(-3.5, 3.5, 300)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
axes[0].plot(X[:1500], y[:1500], ".", ms=2, color="#3d5a80", alpha=0.5)
quantiles = model.predict_quantiles(grid, [0.05, 0.25, 0.5, 0.75, 0.95])
axes[0].plot(grid, quantiles, color="#ee6c4d", lw=1)
axes[0].set(title="quantiles 5, 25, 50, 75, 95 %", xlabel="x", ylabel="y")
pairs = np.repeat(grid, len(levels), 0), np.tile(levels, len(grid))
density = np.exp(model.log_prob(*pairs)).reshape(len(grid), len(levels))
axes[1].pcolormesh(grid[:, 0], levels, density.T, cmap="Blues", vmax=np.quantile(density, 0.99), rasterized=True)
axes[1].set(title="density of y given x", xlabel="x")
plt.show()
# %% [markdown]
# ## Do intervals hold what they promise?
#
# The last step of `fit` calibrates the probabilities on the held-out rows. On fresh data:

# %%
fresh, target = draw(5000, 1)
for coverage in (0.5, 0.8, 0.9, 0.95):
    low, high = model.predict_interval(fresh, coverage).T
    print(f"{coverage:.0%} intervals hold {((target >= low) & (target <= high)).mean():.1%}")
position = model.cdf(fresh, target)  # uniform if the distribution is right
print("share of targets in each tenth of their distribution:", np.histogram(position, 10, (0, 1))[0] / len(position))

# %% [markdown]
# ## In scikit-learn's world
#
# It is a regressor like every other: `predict` is the mean, `score` is R². A real table of 442 patients:

# %%
X, y = load_diabetes(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
patients = diffeo.FlowRegressor(random_state=0).fit(X_train, y_train)
low, high = patients.predict_interval(X_test, 0.9).T
print(f"R² {patients.score(X_test, y_test):.2f}, mean log-density {patients.log_prob(X_test, y_test).mean():.2f} nats,")
print(f"90 % intervals hold {((y_test >= low) & (y_test <= high)).mean():.0%} of {len(y_test)} targets")
print("cross-validated R²:", cross_val_score(diffeo.FlowRegressor(random_state=0), X, y, cv=3).round(2))

# %% [markdown]
# With fewer than 50 held-out rows, as here (a tenth of 331), nothing is calibrated: intervals of small tables are those of
# the likelihood alone. Several targets at once are a conditional table: `diffeo.fit_table(table, given=[...])`.

# %% [markdown]
# # A table, from file to report
#
# The Palmer penguins: 344 birds with a species, an island, a sex, a year and four measurements. Nothing is prepared;
# the columns go in as they are.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from palmerpenguins import load_penguins

import diffeo

# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]
warnings.simplefilter("ignore", FutureWarning)  # of the package that ships the penguins

penguins = load_penguins()
penguins.sample(4, random_state=0)

# %% [markdown]
# ## Fit
#
# Missing values are an error that counts them; here the eleven birds that have some are left out. `fit_table` looks at
# dtypes and values: what repeats on a grid is dequantized, what is positive stays positive, what has few values is a
# category.

# %%
try:
    diffeo.fit_table(penguins)
except ValueError as error:
    print(error)

# %%
order = np.random.default_rng(0).permutation(len(penguins))
test, train = penguins.iloc[order[:60]].dropna(), penguins.iloc[order[60:]]
model = diffeo.fit_table(train, missing="drop", seed=0, progress=False)
for column in model.schema.columns:
    print(f"{column.name:<20}{column.describe()}")
print(model.result)

# %%
model.result.plot()
plt.show()
# %% [markdown]
# ## Score
#
# `log_prob` gives one value per row, in nats and in the units of the table, with the index of the table. Measurements are
# whole or rounded, so it is a bound (`model.exact` is `False`), though always the same for the same row.

# %%
log_p = model.log_prob(test)
print(f"{log_p.mean():.2f} nats per row on {len(test)} birds that the model has not seen")
pd.DataFrame({"log_density": log_p, "percentile": model.percentile(log_p)}).head(3)

# %% [markdown]
# ## Sample
#
# Samples have the columns, dtypes, categories, ranges and rounding of the table.

# %%
samples = model.sample(300, seed=1)
samples.head(4)

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharex=True, sharey=True, layout="constrained")
for ax, (name, rows) in zip(axes, {"data": train.dropna(), "samples": samples}.items()):
    for species, color in zip(["Adelie", "Chinstrap", "Gentoo"], ["#3d5a80", "#ee6c4d", "#8a9a5b"]):
        some = rows[rows["species"] == species]
        ax.plot(some["bill_length_mm"], some["bill_depth_mm"], ".", ms=4, color=color, alpha=0.7, label=species)
    ax.set(title=name, xlabel="bill length (mm)")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("bill depth (mm)")
axes[1].legend(frameon=False)
plt.show()
# %% [markdown]
# ## What is unusual, and why
#
# A bird with an Adelie's bill depth and a Gentoo's flippers. `explain` says how surprising each value is given the rest
# of its row: 0 is ordinary, 5 nats are a factor of 150.

# %%
odd = test.iloc[[0]].assign(species="Adelie", island="Dream", flipper_length_mm=222)
print(f"log-density {model.log_prob(odd).iloc[0]:.1f}, percentile {model.percentile(model.log_prob(odd))[0]:.1f}")
model.explain(odd).T.set_axis(["nats of surprise"], axis=1).round(1)

# %% [markdown]
# ## Some columns given others
#
# `given=` makes the rest conditional.

# %%
by_species = diffeo.fit_table(train, given=["species", "sex"], missing="drop", seed=0, progress=False)
for species in ("Adelie", "Gentoo"):
    mass = by_species.sample(500, {"species": species, "sex": "female"}, seed=0)["body_mass_g"]
    print(f"female {species}: {mass.mean():.0f} g ± {mass.std():.0f}")

# %% [markdown]
# ## Keep it, and report
#
# A model file is a safetensors file: opening it runs no code. The report is one HTML page; `diffeo report` writes it from
# the shell.

# %%
import tempfile
from pathlib import Path

from diffeo.report import write_report

folder = Path(tempfile.mkdtemp())
diffeo.save(model, folder / "penguins.safetensors")
again = diffeo.load(folder / "penguins.safetensors")
print(np.array_equal(again.log_prob(test), log_p))
write_report(again, test, folder / "penguins.html", title="penguins")
print(f"{(folder / 'penguins.html').stat().st_size / 1024:.0f} kB")

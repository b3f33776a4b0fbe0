# %% [markdown]
# # Anomaly detection
#
# `FlowOutlierDetector` learns the density of ordinary rows. What is unlikely under it, or far from its neighbours, as
# rows are or where the flow has taken out the shape of the data, stands out, and `explain` says which columns make it
# so. The table: 569 tumours with 30 measurements each; the detector sees benign ones only.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import diffeo
from diffeo.plotting import plot_scores

# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]

data = load_breast_cancer(as_frame=True)
benign, malignant = data.data[data.target == 1], data.data[data.target == 0]
order = np.random.default_rng(0).permutation(len(benign))
train, held = benign.iloc[order[:290]], benign.iloc[order[290:]]

# %%
detector = diffeo.FlowOutlierDetector(random_state=0).fit(train)

# %% [markdown]
# `predict` calls the share `contamination` of ordinary rows outliers, 5 % where nothing is said. Any model fits the rows
# that it has seen better than fresh ones, so the threshold comes from rows under a flow that has not seen them: with few
# rows there is a flow for each of five folds.

# %%
print(f"{(detector.predict(held) == -1).mean():.0%} of {len(held)} held-out benign tumours are called outliers,")
print(f"{(detector.predict(malignant) == -1).mean():.0%} of the malignant ones")

# %%
scores = {"benign, held out": -detector.score_samples(held), "malignant": -detector.score_samples(malignant)}
plot_scores(scores, "surprise: minus score")
plt.show()
# %% [markdown]
# ## Beside other detectors
#
# One table proves nothing: [the benchmark](../benchmarks.md) has thirteen, three seeds each, wins and losses.

# %%
tested = pd.concat([held, malignant])
truth = np.r_[np.zeros(len(held)), np.ones(len(malignant))]
others = {
    "FlowOutlierDetector": detector,
    "IsolationForest": IsolationForest(random_state=0).fit(train),
    "LOF": make_pipeline(StandardScaler(), LocalOutlierFactor(novelty=True)).fit(train),
}
for name, other in others.items():
    print(f"{name:<20} AUROC {roc_auc_score(truth, -other.score_samples(tested)):.3f}")

# %% [markdown]
# ## Why?
#
# For every value, how surprising it is given all other values of its row, in nats.

# %%
typical = malignant.iloc[[int(np.argsort(detector.score_samples(malignant))[len(malignant) // 2])]]
detector.explain(typical).T.set_axis(["nats of surprise"], axis=1).sort_values("nats of surprise").iloc[::-1].head(
    5
).round(1)

# %% [markdown]
# ## Tables with categories and dates
#
# The detector takes such DataFrames as they are.

# %%
rng = np.random.default_rng(0)
n = 2000
orders = pd.DataFrame(
    {
        "shop": rng.choice(["Rome", "Oslo", "Lima"], n, p=[0.5, 0.3, 0.2]),
        "day": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 300, n), "D"),
        "items": 1 + rng.poisson(2, n),
    }
)
orders["price"] = np.round(orders["items"] * rng.lognormal(2.5, 0.3, n) * np.where(orders["shop"] == "Oslo", 2, 1), 2)
watch = diffeo.FlowOutlierDetector(random_state=0).fit(orders)
odd = pd.DataFrame({"shop": ["Lima"], "day": [pd.Timestamp("2026-03-01")], "items": [2], "price": [190.0]})
print("outlier" if watch.predict(odd)[0] == -1 else "inlier")
watch.explain(odd).round(1)

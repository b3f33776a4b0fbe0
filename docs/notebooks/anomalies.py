# %% [markdown]
# # Anomaly detection
#
# `FlowOutlierDetector` learns the density of ordinary rows. What is unlikely under it stands out, and `explain` says
# which columns make it so. The table: 569 tumours with 30 measurements each; the detector sees benign ones only.

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
train, tuning, held = (benign.iloc[i] for i in np.split(order, [230, 290]))

# %%
detector = diffeo.FlowOutlierDetector(random_state=0).fit(train)

# %% [markdown]
# `predict` calls the share `contamination` of the *training* rows outliers. With 230 rows of 30 columns any model fits the
# rows that it has seen better than fresh ones, so here the threshold comes from benign rows that it has not seen.

# %%
threshold = np.quantile(detector.score_samples(tuning), 0.05)
print(f"{(detector.score_samples(held) < threshold).mean():.0%} of held-out benign tumours are called outliers,")
print(f"{(detector.score_samples(malignant) < threshold).mean():.0%} of the malignant ones")

# %%
scores = {"benign, held out": -detector.score_samples(held), "malignant": -detector.score_samples(malignant)}
plot_scores(scores, "surprise: minus log-density (nats)")
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

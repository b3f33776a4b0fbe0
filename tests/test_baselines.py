"""Baselines: what they score is right, also where columns are given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import diffeo
from diffeo.baselines import score_baselines, table_baselines


def test_a_gaussian_is_scored_in_the_units_of_the_data():
    rows = np.random.default_rng(0).normal(5.0, 20.0, size=(4000, 2))
    found = {b.name: b.nats for b in score_baselines(rows[:3000], rows[3000:3500], rows[3500:])}
    truth = norm(5.0, 20.0).logpdf(rows[3500:]).sum(1).mean()
    assert found["Gaussian"] == pytest.approx(truth, abs=0.01)
    assert all(abs(nats - truth) < 0.15 for nats in found.values())


def test_given_columns_count():
    rng = np.random.default_rng(0)
    n = 4000
    side = rng.integers(0, 2, n)
    x = rng.normal(size=n)
    y = 2 * x + 6 * side + 0.5 * rng.normal(size=n)
    label = np.where(rng.random(n) < 1 / (1 + np.exp(-3 * x)), "high", "low")
    frame = pd.DataFrame({"x": x, "side": np.where(side, "b", "a"), "y": y, "label": label})
    parts = frame[:3000], frame[3000:3500], frame[3500:]
    model = diffeo.fit_table(parts[0], given=["x", "side"], recipe="gaussian", steps=1, progress=False)
    found = {b.name: b.nats for b in table_baselines(model, *parts)}
    test = parts[2]
    of_y = norm(2 * test["x"] + 6 * (test["side"] == "b"), 0.5).logpdf(test["y"]).mean()
    p = 1 / (1 + np.exp(-3 * test["x"]))
    of_label = np.log(np.where(test["label"] == "high", p, 1 - p)).mean()
    assert found["Gaussian"] == pytest.approx(of_y + of_label, abs=0.03)
    assert found["Gaussian mixture"] == pytest.approx(of_y + of_label, abs=0.06)
    assert found["KDE"] < of_y + of_label

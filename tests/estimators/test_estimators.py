"""The scikit-learn estimators: the whole of `check_estimator`, and what each promises beyond it."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import trapezoid
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import diffeo
from diffeo.estimators import outlier
from diffeo.estimators.outlier import Crowd, _least, _usual

SMALL = {"max_epochs": 2, "layers": 1, "hidden": (8,)}
ESTIMATORS = {
    "density": diffeo.FlowDensity(**SMALL),
    "outlier": diffeo.FlowOutlierDetector(recipe="maf", **SMALL),
    "transformer": diffeo.FlowTransformer(**SMALL),
    "regressor": diffeo.FlowRegressor(**{**SMALL, "max_epochs": 20}),
}


# what cannot hold, and why
WEIGHTS = {
    "check_sample_weight_equivalence_on_dense_data": "splits and batches are drawn from rows, however often they count",
    "check_sample_weight_equivalence_on_sparse_data": "the same",
}
THRESHOLD = "thresholds come from rows that the weights have not seen, so the share of training rows is not exact"
UNLIKE = {
    "density": WEIGHTS,
    "outlier": {**WEIGHTS, "check_outliers_train": THRESHOLD, "check_outliers_fit_predict": THRESHOLD},
    "transformer": WEIGHTS,
    "regressor": WEIGHTS,
}


@pytest.fixture
def few_folds(monkeypatch):
    """Three flows instead of five in a detector of few rows, where the number does not matter."""
    monkeypatch.setattr(outlier, "FOLDS", 3)


@pytest.mark.usefixtures("few_folds")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_check_estimator(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's own remarks about what it feeds
        results = check_estimator(ESTIMATORS[name], on_fail=None, on_skip=None)
    wrong = {r["check_name"]: r["exception"] for r in results if r["status"] in ("failed", "xfail")}
    assert wrong.keys() <= UNLIKE[name].keys(), wrong
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    # PyTorch arrays as input: not declared, so not checked (scikit-learn 1.6 does not list it)
    assert skipped <= {"check_array_api_input"}
    assert sum(r["status"] == "passed" for r in results) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FlowDensity", "FlowOutlierDetector", "FlowTransformer", "FlowRegressor"])
def test_check_estimator_with_the_defaults(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unlike = UNLIKE[name.removeprefix("Flow").removesuffix("Detector").lower()]
        check_estimator(getattr(diffeo, name)(), on_skip=None, expected_failed_checks=unlike)


def _rows(n: int = 400, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    x[:, 2] = x[:, 0] ** 2 + 0.3 * x[:, 2]
    return x


def _mixed(n: int = 300, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    return pd.DataFrame(
        {
            "kind": np.array(["a", "b"])[kind],
            "size": rng.exponential(1.0 + kind),
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 90, n), "D"),
        }
    )


def test_density_in_pipelines_searches_and_files():
    X = _rows()
    density = diffeo.FlowDensity(recipe="maf", layers=1, max_epochs=3, random_state=0)
    assert np.isfinite(cross_val_score(density, X, cv=3)).all()
    search = GridSearchCV(density, {"layers": [1, 2]}, cv=2).fit(X)
    assert search.best_params_["layers"] in (1, 2)
    pipe = make_pipeline(StandardScaler(), clone(density)).fit(X)
    assert pipe.score_samples(X).shape == (400,)
    fitted = density.fit(X)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).score_samples(X), fitted.score_samples(X))
    assert fitted.score(X) == pytest.approx(fitted.score_samples(X).sum())
    assert np.array_equal(fitted.sample(5, random_state=1), fitted.sample(5, random_state=1))
    assert clone(fitted).fit(X).score(X) == fitted.score(X)  # the seed decides


def test_the_density_is_in_the_units_of_the_data():
    X = _rows(1500)
    a = diffeo.FlowDensity(recipe="gaussian", random_state=0).fit(X).score_samples(X)
    b = diffeo.FlowDensity(recipe="gaussian", random_state=0).fit(1000 * X).score_samples(1000 * X)
    assert np.allclose(a - b, 3 * np.log(1000), atol=1e-3)


@pytest.mark.usefixtures("few_folds")
def test_one_row_alone_scores_as_among_others():
    X = np.round(_rows(), 1)  # on a grid: dequantized
    for estimator in (diffeo.FlowDensity(**SMALL), diffeo.FlowOutlierDetector(**SMALL)):
        fitted = estimator.fit(X)
        every = fitted.score_samples(X)
        assert abs(fitted.score_samples(X[[11]])[0] - every[11]) < 1e-9
        assert np.isfinite(fitted.score_samples(X + 100)).all()  # off the grid and far away, yet a score


@pytest.mark.usefixtures("few_folds")
def test_columns_without_spread():
    X = np.column_stack([_rows(), np.full(400, 5.0)])
    fitted = diffeo.FlowDensity(**SMALL).fit(X)
    other = X[:3].copy()
    other[:, 3] += 1
    assert (fitted.score_samples(other) < fitted.score_samples(X[:3]) - 1e5).all()
    assert np.abs(fitted.sample(50, random_state=0)[:, 3] - 5).max() < 0.01
    detector = diffeo.FlowOutlierDetector(**SMALL).fit(X)
    assert (detector.explain(other).argmax(1) == 3).all()
    z = diffeo.FlowTransformer(**SMALL).fit(X).transform(X)
    assert np.allclose(z[:, 3], 0)
    alone = diffeo.FlowDensity().fit(np.ones((5, 2)))
    assert np.isfinite(alone.score_samples(np.ones((2, 2)))).all()


@pytest.mark.usefixtures("few_folds")
def test_data_frames_of_every_kind():
    table = _mixed()
    density = diffeo.FlowDensity(**SMALL).fit(table)
    assert list(density.feature_names_in_) == ["kind", "size", "when"]
    drawn = density.sample(20, random_state=0)
    assert drawn.dtypes.equals(table.dtypes)
    assert np.isfinite(density.score_samples(table)).all()
    with pytest.raises(ValueError, match="training dtypes"):
        density.score_samples(np.zeros((3, 3)))
    detector = diffeo.FlowOutlierDetector(**SMALL).fit(table)
    assert list(detector.explain(table.iloc[:2]).columns) == ["kind", "size", "when"]
    with pytest.raises(ValueError, match="numeric columns only"):
        diffeo.FlowTransformer(**SMALL).fit(table)
    y = table["size"] + (table["kind"] == "a")
    regressor = diffeo.FlowRegressor(max_epochs=20, hidden=(16,), random_state=0).fit(table[["kind", "when"]], y)
    assert regressor.predict(table[["kind", "when"]]).shape == (300,)


@pytest.mark.usefixtures("few_folds")
def test_the_detector_finds_and_explains():
    X = _rows(1000)
    detector = diffeo.FlowOutlierDetector(
        contamination=0.02, max_epochs=10, layers=1, hidden=(16, 16), random_state=0
    ).fit(X)
    assert abs((detector.predict(_rows(3000, seed=1)) == -1).mean() - 0.02) < 0.015
    assert np.allclose(detector.decision_function(X), detector.score_samples(X) - detector.offset_)
    odd = np.array([[2.0, 0.0, -0.5], [0.0, 6.0, 0.0]])  # the third coordinate of the first row should be near 4
    assert (detector.predict(odd) == -1).all()
    nats = detector.explain(odd)
    assert nats[0, 1] < 1 < min(nats[0, 0], nats[0, 2])  # first and third do not go together
    assert nats[1].argmax() == 1
    framed = diffeo.FlowOutlierDetector(**SMALL).fit(pd.DataFrame(X[:200], columns=["a", "b", "c"]))
    assert list(framed.explain(pd.DataFrame(odd, columns=["a", "b", "c"])).columns) == ["a", "b", "c"]
    for bad in ({"contamination": 0.0}, {"contamination": 0.6}, {"blur": -1.0}, {"max_samples": 1}):
        with pytest.raises(ValueError, match="expected"):
            diffeo.FlowOutlierDetector(**bad).fit(X)


def test_a_regressor_takes_recipes_of_numbers_and_vectors_only():
    X, y = _rows(60)[:, :2], _rows(60)[:, 2]
    for name in ("glow", "glow_tts", "sphere", "mixed"):
        with pytest.raises(ValueError, match="there are regression, "):
            diffeo.FlowRegressor(recipe=name).fit(X, y)
    assert diffeo.FlowRegressor(recipe="nsf", max_epochs=1, layers=1, hidden=(8,)).fit(X, y).predict(X).shape == (60,)


@diffeo.recipe(events="vectors")
def student_flow(features: int, *, context: int = 0) -> diffeo.Flow:
    """A flow without a normal base."""
    return diffeo.Flow(diffeo.Standardize(features), diffeo.StudentT(features))


def test_the_transformer_makes_independent_normals_and_inverts():
    X = _rows(1000)
    fitted = diffeo.FlowTransformer(layers=2, hidden=(16, 16), max_epochs=15, random_state=0).fit(X)
    z = fitted.transform(X)
    assert np.allclose(fitted.inverse_transform(z), X, atol=1e-6)
    assert np.abs(z.mean(0)).max() < 0.15
    assert np.abs(np.cov(z.T) - np.eye(3)).max() < 0.15
    assert abs(np.corrcoef(z[:, 0] ** 2, z[:, 2])[0, 1]) < 0.1 < abs(np.corrcoef(X[:, 0] ** 2, X[:, 2])[0, 1])
    fitted.set_output(transform="pandas")
    assert list(fitted.transform(X).columns) == [f"flowtransformer{i}" for i in range(3)]
    assert list(fitted.get_feature_names_out()) == [f"flowtransformer{i}" for i in range(3)]
    with pytest.raises(ValueError, match="not the standard normal"):
        diffeo.FlowTransformer(recipe="student_flow").fit(X)


@pytest.fixture(scope="module")
def regression():
    """y | x normal with mean sin(2x) and a spread that grows with x: everything about it is known."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, size=(4000, 2))
    mean, spread = np.sin(2 * X[:, 0]), 0.1 + 0.1 * (X[:, 1] + 2)
    y = mean + spread * rng.normal(size=4000)
    model = diffeo.FlowRegressor(max_epochs=40, hidden=(64, 64), random_state=0).fit(X[:3000], y[:3000])
    return model, X[3000:], y[3000:], mean[3000:], spread[3000:]


def test_the_regressor_against_a_known_conditional(regression):
    from scipy.stats import norm

    model, X, y, mean, spread = regression
    assert np.abs(model.predict(X) - mean).mean() < 0.06
    truth = norm(mean, spread)
    excess = truth.logpdf(y) - model.log_prob(X, y)
    assert -0.02 < excess.mean() < 0.08
    quantiles = model.predict_quantiles(X, [0.05, 0.5, 0.95])
    assert (np.diff(quantiles, axis=1) > 0).all()
    assert np.abs(quantiles[:, 2] - truth.ppf(0.95)).mean() < 0.12
    assert np.allclose(model.cdf(X, quantiles[:, 0]), 0.05, atol=1e-6)
    interval = model.predict_interval(X, coverage=0.9)
    assert 0.86 < ((y >= interval[:, 0]) & (y <= interval[:, 1])).mean() < 0.94
    draws = model.sample(X[:200], 300, random_state=0)
    assert draws.shape == (200, 300)
    assert np.abs(draws.mean(1) - model.predict(X[:200])).max() < 0.15
    assert model.score(X, y) > 0.7


def test_the_regressors_density_integrates_to_one(regression):
    model, X, _, _, _ = regression
    grid = np.linspace(-4, 4, 2001)
    p = np.exp(model.log_prob(np.repeat(X[:1], len(grid), 0), grid))
    assert abs(trapezoid(p, grid) - 1) < 1e-3
    assert np.allclose(np.gradient(model.cdf(np.repeat(X[:1], len(grid), 0), grid), grid), p, atol=0.02)


def test_one_prediction_alone_is_what_it_is_among_others(regression):
    model, X, y, _, _ = regression
    assert np.allclose(model.predict(X[[5]]), model.predict(X)[5], atol=1e-10)
    assert np.allclose(model.log_prob(X[[5]], y[[5]]), model.log_prob(X, y)[5], atol=1e-10)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(X), model.predict(X))


def test_bad_requests_of_the_regressor(regression):
    model, X, y, _, _ = regression
    for call, message in (
        (lambda: model.predict_quantiles(X, [0.0]), "quantile levels"),
        (lambda: model.predict_interval(X, 1.0), "coverage"),
        (lambda: model.sample(X, 0), "n_samples"),
        (lambda: model.log_prob(X, y[:-1]), "1000 rows, but 999 targets"),
        (lambda: diffeo.FlowRegressor(recipe="glow2").fit(X, y), "unknown recipe"),
        (lambda: diffeo.FlowRegressor(recipe="student_flow").fit(X, y), "not the standard normal"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    constant = diffeo.FlowRegressor().fit(X, np.full(len(X), 3.0))
    assert (constant.predict(X) == 3.0).all()


@pytest.mark.usefixtures("few_folds")
@pytest.mark.parametrize("name", ["FlowDensity", "FlowOutlierDetector", "FlowTransformer"])
@pytest.mark.parametrize("mixed", [False, True])
def test_estimators_are_kept_without_pickle(tmp_path, name, mixed):
    X = pd.DataFrame(_rows(200), columns=["a", "b", "c"]).assign(fixed=1.0)
    if mixed and name == "FlowTransformer":
        return  # it takes numbers only
    X = X.assign(kind=["p", "q"] * 100) if mixed else X
    fitted = getattr(diffeo, name)(max_epochs=2, layers=1, hidden=(8,), random_state=0).fit(X)
    diffeo.save(fitted, tmp_path / "e.safetensors")
    again = diffeo.load(tmp_path / "e.safetensors")
    for use in ("score_samples", "predict", "transform"):
        if hasattr(fitted, use):
            assert np.array_equal(getattr(fitted, use)(X), getattr(again, use)(X))
    assert again.get_params() == fitted.get_params()
    with pytest.raises(ValueError, match="not fitted"):
        diffeo.save(getattr(diffeo, name)(), tmp_path / "no.safetensors")


@pytest.mark.parametrize("target", ["normal", "constant"])
def test_a_regressor_is_kept_with_its_calibration(tmp_path, target):
    X = _rows(400)
    y = X[:, 0] ** 3 if target == "normal" else np.full(len(X), 3.0)
    fitted = diffeo.FlowRegressor(max_epochs=5, hidden=(16,), validation_fraction=0.3, random_state=0).fit(X, y)
    assert (fitted.flow_ is fitted.uncalibrated_) == (target == "constant")
    diffeo.save(fitted, tmp_path / "r.safetensors")
    again = diffeo.load(tmp_path / "r.safetensors")
    assert np.array_equal(again.predict(X), fitted.predict(X))
    assert np.array_equal(again.log_prob(X, y), fitted.log_prob(X, y))


def test_sample_weights_count():
    side = np.repeat([-2.0, 2.0], 150)
    X = (side + 0.5 * np.random.default_rng(0).normal(size=300))[:, None]
    w = np.where(side > 0, 1.0, 0.01)
    density = diffeo.FlowDensity(recipe="gaussian", max_epochs=5, random_state=0).fit(X, sample_weight=w)
    assert density.sample(500, random_state=0).mean() > 1
    with pytest.raises(ValueError, match="masked"):
        diffeo.FlowDensity().fit(np.ma.masked_array(X, mask=X > 2))


@pytest.mark.parametrize("shape", [(300, 6), (200, 40)])
def test_the_share_of_alarms_among_fresh_rows(shape):
    rng = np.random.default_rng(1)
    detector = diffeo.FlowOutlierDetector(contamination=0.1, max_epochs=5, layers=1, hidden=(8,), random_state=0)
    labels = detector.fit_predict(rng.normal(size=shape))
    assert abs((labels == -1).mean() - 0.1) < 0.01  # of the training rows, each by the flow that has not seen it
    assert 0.04 < (detector.predict(rng.normal(size=(3000, shape[1]))) == -1).mean() < 0.18


@pytest.mark.usefixtures("few_folds")
def test_constant_columns_leave_the_share_of_alarms_as_it_is():
    rng = np.random.default_rng(1)
    make = lambda n: np.c_[rng.normal(size=(n, 3)), np.full((n, 2), 7.0)]  # noqa: E731
    detector = diffeo.FlowOutlierDetector(contamination=0.1, max_epochs=5, layers=1, hidden=(8,), random_state=0)
    detector.fit(make(300))
    assert 0.04 < (detector.predict(make(3000)) == -1).mean() < 0.18
    still = diffeo.FlowOutlierDetector(random_state=0).fit(np.full((30, 2), 7.0))
    assert still.predict([[7.0, 7.0], [7.0, 9.0]]).tolist() == [1, -1]


def test_neighbours_of_latents_count():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 3))
    crowd = Crowd.of(rows)
    near, far = crowd.nearness(rows[:50], 5), crowd.nearness(rows[:50] + 10.0, 5)
    assert abs(np.median(crowd.nearness(rng.normal(size=(2000, 3)), 5))) < 1.0
    assert near.min() > far.max()
    # copies say nothing of distances, and rows far from all of them are still far
    few = rng.normal(size=(5, 2))
    copies = Crowd.of(np.repeat(few, 100, 0))
    assert copies.nearness(np.full((1, 2), 50.0), 5)[0] < copies.nearness(few[:1], 5)[0] - 2
    # units do not count, however large, and a column may be far from 0
    large = Crowd.of(rows * np.array([1.0, 1e9, 1e-9]) + np.array([0.0, 1e15, 0.0]))
    moved = rows[:50] * np.array([1.0, 1e9, 1e-9]) + np.array([0.0, 1e15, 0.0])
    assert np.allclose(large.nearness(moved, 5), crowd.nearness(rows[:50], 5), atol=1e-3)


def test_the_most_alarmed_view_decides_in_units_of_unseen_rows():
    views = [np.array([0.0, 1.0, 2.0, -np.inf]), np.array([50.0, 10.0, 30.0, 50.0])]
    usual = np.array([[1.0, 0.5], [30.0, 10.0]])
    assert _least(views, usual).tolist() == [-2.0, -2.0, 0.0, -np.inf]
    assert _usual(np.r_[np.arange(101.0), -np.inf]) == (50.0, 25.0)
    assert _usual(np.r_[np.zeros(95), -np.full(5, 20.0)]) == (0.0, 1.0)  # most are alike
    assert _usual(np.zeros(9)) == _usual(np.full(9, -np.inf)) == (0.0, 1.0)
    rng = np.random.default_rng(0)
    make = lambda n: np.c_[rng.normal(size=(n, 2)) @ [[1.0, 0.9], [0.0, 0.4]], rng.exponential(size=n)]  # noqa: E731
    detector = diffeo.FlowOutlierDetector(recipe="maf", max_epochs=10, random_state=0).fit(make(2500))
    fresh = detector.score_samples(make(4000))
    assert -0.9 < np.median(fresh) < 0.1
    assert 0.25 < (fresh < -1).mean() < 0.5
    alone = diffeo.FlowOutlierDetector(recipe="maf", max_epochs=10, neighbours=0, random_state=0).fit(make(2500))
    fresh = alone.score_samples(make(4000))
    assert abs(np.median(fresh)) < 0.15
    assert 0.21 < (fresh < -1).mean() < 0.29
    detector.set_params(neighbours=0)  # counts from the next fit on
    assert np.isfinite(detector.score_samples(make(5))).all()


@pytest.mark.parametrize("n", [3, 5, 30])
def test_few_rows_do_not_alarm_all_others(n):
    flagged = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        detector = diffeo.FlowOutlierDetector(recipe="maf", max_epochs=2, random_state=0).fit(rng.normal(size=(n, 2)))
        flagged.append((detector.predict(rng.normal(size=(500, 2))) == -1).mean())
        assert np.isfinite(detector.offset_)
    assert np.mean(flagged) < (0.8 if n < 5 else 0.45 if n < 30 else 0.25)


def test_an_impossible_row_does_not_alarm_all_others():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.choice(["x", "y"], 300), "v": 5 * rng.integers(0, 4, 300)})
    table.loc[7, "v"] = 3  # off the grid of all others
    detector = diffeo.FlowOutlierDetector(recipe="maf", max_epochs=2, random_state=0)
    labels = detector.fit_predict(table)
    assert np.isfinite(detector.offset_)
    assert labels[7] == -1
    assert (labels == -1).mean() < 0.15
    assert np.isnan(detector.decision_function(table)).sum() == 0


@pytest.mark.filterwarnings("ignore:column .c. holds")
@pytest.mark.parametrize("n", [40, 2100])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_column_may_vary_in_one_row_alone(n, mixed):
    rng = np.random.default_rng(0)
    rows = np.c_[rng.normal(size=(n, 2)), np.full(n, 0.1)]
    rows[3, 2] = 1.5
    table = pd.DataFrame(rows, columns=["a", "b", "c"])
    table = table.assign(town=rng.choice(["Rome", "Oslo"], n)) if mixed else rows
    for seed in range(2):  # the row is in any fold, or held out, or not
        detector = diffeo.FlowOutlierDetector(recipe="maf", max_epochs=2, random_state=seed)
        labels = detector.fit_predict(table)
        assert labels[3] == -1
        assert (labels == -1).mean() < 0.3
        assert detector.predict(table)[3] == -1


def test_rows_without_weight_are_no_neighbours():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(200, 2)), 4 + 0.1 * rng.normal(size=(100, 2))])
    weight = np.r_[np.ones(200), np.zeros(100)]
    kept = diffeo.FlowOutlierDetector(recipe="maf", max_epochs=2, random_state=0).fit(rows, sample_weight=weight)
    assert sum(len(crowd.rows) for pair in kept.crowds_ for crowd in pair) == 2 * 4 * 200


def test_unseen_categories_in_estimators():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"town": "Rome", "size": rng.normal(size=200)})
    other = table.head(3).assign(town="Oslo")
    found = diffeo.FlowDensity(unseen="level", recipe="maf", max_epochs=1, random_state=0).fit(table)
    assert np.isfinite(found.score_samples(other)).all()
    assert found.score_samples(other).mean() < found.score_samples(table).mean()
    for estimator in (diffeo.FlowDensity, diffeo.FlowOutlierDetector):
        with pytest.raises(ValueError, match="unseen must be"):
            estimator(unseen="maybe").fit(table)
    with pytest.raises(ValueError, match="unseen must be"):
        diffeo.FlowRegressor(unseen="maybe").fit(table, np.arange(200.0))
    with pytest.raises(ValueError, match="whole number of neighbours"):
        diffeo.FlowOutlierDetector(neighbours=2.5).fit(table)


def test_a_hundred_and_eighty_rows_on_a_line_are_not_answered_by_their_mean():
    """Their best weights lie between the first and the tenth epoch, after which they are learnt by heart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 10))
    y = x[:, 3] + 0.45 * rng.normal(size=200)
    model = diffeo.FlowRegressor(random_state=0).fit(x, y)
    fresh = rng.normal(size=(2000, 10))
    assert 1 - np.mean((model.predict(fresh) - fresh[:, 3]) ** 2) > 0.3

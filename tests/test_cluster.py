"""Ray Data and Spark score tables row for row as one process does; Ray Train fits as one process does."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import diffeo
from fit_worker import data

DOCS = Path(__file__).resolve().parents[1] / "docs" / "large.md"
SCORES = ["log_density", "percentile"]
NODES = 2

pytestmark = [
    pytest.mark.slow,
    # theirs, in the process that drives them
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Columns of every kind; `row` is not the model's, and tells rows apart wherever they went."""
    rng = np.random.default_rng(0)
    kind = rng.choice(["a", "b"], 400)
    return pd.DataFrame(
        {
            "row": np.arange(400),
            "kind": kind,
            "x": rng.normal(size=400) + (kind == "a"),
            "n": rng.poisson(3.0, 400),
            "open": rng.random(400) < 0.5,
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 60, 400), unit="D"),
        }
    )


@pytest.fixture(scope="module")
def path(table, tmp_path_factory) -> str:
    model = diffeo.fit_table(table.drop(columns="row"), recipe="maf", steps=20, progress=False)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    diffeo.save(model, path)
    return str(path)


def agrees(scored: pd.DataFrame, table: pd.DataFrame, path: str) -> None:
    """Every row once, as it was, with the scores it gets here.

    Log-densities are float64, and their last bits depend on the number of rows scored at once: 1e-9 is far above that,
    and far below what any reader of a log-density looks at. Percentiles are shares of training rows, equal exactly.
    """
    expected = diffeo.BatchScorer(path)(table)
    scored = scored.sort_values("row", ignore_index=True)
    assert list(scored.columns[: len(expected.columns)]) == list(expected.columns)
    for name in table:
        assert scored[name].tolist() == expected[name].tolist(), name
    assert np.abs(scored["log_density"] - expected["log_density"]).max() < 1e-9
    assert np.array_equal(scored["percentile"], expected["percentile"])


@pytest.fixture(scope="module")
def ray():
    """A cluster of two nodes on this machine, each with a slot that one actor takes."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'diffeo[cluster]'")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster()
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=2, resources={"slot": 1}, include_dashboard=False)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        assert sum(node["Alive"] for node in ray.nodes()) == NODES
        yield ray
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize("form", ["numpy", "pandas", "pyarrow"])
def test_ray_data_scores_as_one_process_does(ray, table, path, form):
    import ray.data as rd

    class Scorer:
        """A scorer that also says on which node it ran. A class of its own is sent by value: workers need no tests."""

        def __init__(self, path: str):
            self.score = diffeo.BatchScorer(path)
            self.node = ray.get_runtime_context().get_node_id()

        def __call__(self, batch):
            scored = self.score(batch)
            if form == "pyarrow":
                return scored.append_column("node", [[self.node] * len(scored)])
            n = len(scored["row"])
            return {**scored, "node": np.full(n, self.node)} if form == "numpy" else scored.assign(node=self.node)

    rd.DataContext.get_current().enable_progress_bars = False
    rd.DataContext.get_current().wait_for_min_actors_s = 120  # so that one actor does not do it all before the other
    blocks = rd.from_pandas([table[i : i + 37] for i in range(0, len(table), 37)])
    scored = blocks.map_batches(
        Scorer,
        fn_constructor_args=(path,),
        batch_size=16,
        batch_format=form,
        compute=rd.ActorPoolStrategy(size=NODES),
        resources={"slot": 1},
        num_cpus=1,
    ).to_pandas()
    assert scored["node"].nunique() == NODES
    agrees(scored, table, path)


def test_ray_data_takes_a_scorer_as_it_is(ray, table, path):
    import ray.data as rd

    agrees(rd.from_pandas(table).map_batches(diffeo.BatchScorer(path), batch_size=64).to_pandas(), table, path)


@pytest.fixture(scope="module")
def spark():
    sql = pytest.importorskip("pyspark.sql", reason="needs Spark: pip install 'diffeo[cluster]'")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Spark needs Java")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = (
        sql.SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "32")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.mark.parametrize("how", ["mapInArrow", "mapInPandas"])
def test_spark_scores_as_one_process_does(spark, table, path, tmp_path, how):
    from pyspark.sql.types import DoubleType, StructType

    table.astype({"day": "datetime64[us]"}).to_parquet(tmp_path / "rows.parquet", row_group_size=50)
    frame = spark.read.parquet(str(tmp_path / "rows.parquet")).repartition(3)
    schema = StructType(list(frame.schema))
    for name in SCORES:
        schema = schema.add(name, DoubleType())
    scored = getattr(frame, how)(diffeo.BatchScorer(path).over, schema=schema)
    agrees(scored.toPandas(), table, path)
    # a partition whose rows are all filtered away
    assert getattr(frame.filter("row < 1"), how)(diffeo.BatchScorer(path).over, schema=schema).count() == 1


def test_ray_train_fits_as_one_process_does(ray, tmp_path):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    rows = data()

    def train(folder: str) -> None:
        rank = int(os.environ.get("RANK", "0"))
        if "NODE_RANK" in os.environ:  # Ray Train's
            os.environ.update(TORCHELASTIC_RUN_ID="ray", GROUP_RANK=os.environ["NODE_RANK"])
        torch.manual_seed(rank)  # all take the flow of the first
        flow = diffeo.nsf_ar(2, layers=2, hidden=(16, 16), components=3)
        result = diffeo.fit(flow, rows, steps=60, batch_size=64, precision="64-true", accelerator="cpu", progress=False)
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        node = ray.get_runtime_context().get_node_id()
        saved = {"state": flow.state_dict(), "steps": result.steps, "world": world, "node": node}
        torch.save(saved, f"{folder}/{world}.{rank}")

    train(str(tmp_path))
    scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1, "slot": 1})
    run = RunConfig(storage_path=str(tmp_path / "ray"))
    TorchTrainer(lambda: train(str(tmp_path)), scaling_config=scaling, run_config=run).fit()
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("1.0", "2.0", "2.1"))
    assert two[0]["node"] != two[1]["node"]
    for got in two:
        assert (got["steps"], got["world"]) == (60, 2)
        assert max((got["state"][k] - v).abs().max() for k, v in one["state"].items() if v.is_floating_point()) < 1e-8


def test_the_documented_fit_on_ray_train_runs(ray, tmp_path, monkeypatch):
    """The code as it stands in docs/large.md, but for its folder."""
    code = next(block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "ray" in block)
    (tmp_path / "huge").mkdir()
    x = torch.cat([data(), data().flip(0)], 1).numpy()
    pd.DataFrame(x, columns=list("abcd")).to_parquet(tmp_path / "huge" / "0.parquet", row_group_size=100)
    exec(code.replace("/shared/", f"{tmp_path}/"), {"__name__": "__main__"})
    flow = diffeo.load(tmp_path / "model.safetensors")
    assert flow(torch.from_numpy(x).float()).isfinite().all()

"""A million rows scored from Parquet: peak memory at two sizes, and rows per second beside zuko's.

`diffeo score` (the program: float64, percentiles, a Parquet file written) and, for the flow alone, the same flow in
float32; zuko's NSF of the same architecture (5 autoregressive spline layers, 128 × 2 units, 8 bins) reading the same
file in the same blocks, in either precision. Every run is a process of its own, interleaved, medians of three.

    python benchmarks/streaming.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from results import RESULTS, load, markdown, save

RESULT = RESULTS / "streaming.json"
FEATURES, BLOCK = 8, 65_536
SIZES = (100_000, 1_000_000)
REPEATS = 3
WAYS = {
    "program": "`diffeo score`, Parquet to Parquet, float64",
    "flow32": "the same flow alone, float32",
    "zuko32": "zuko's NSF, float32",
    "zuko64": "zuko's NSF, float64",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=3, metavar=("WHAT", "MODEL", "TABLE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(*options.worker)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model, tables = prepare(Path(folder))
        runs = []
        for repeat in range(REPEATS):
            for n in SIZES:
                for what in WAYS:
                    command = [sys.executable, __file__, "--worker", what, str(model), str(tables[n])]
                    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    runs.append({"repeat": repeat, "rows": n, "what": what, **told})
                    print(runs[-1], flush=True)
    summary = []
    for what in WAYS:
        for n in SIZES:
            chosen = [r for r in runs if r["what"] == what and r["rows"] == n]
            seconds = [r["seconds"] for r in chosen]
            summary.append(
                {
                    "what": what,
                    "rows": n,
                    "rows_per_second": round(n / statistics.median(seconds)),
                    "seconds": [round(s, 2) for s in sorted(seconds)],
                    "peak_mb": round(max(r["peak_mb"] for r in chosen)),
                }
            )
    head = {"features": FEATURES, "threads": os.environ.get("OMP_NUM_THREADS", "all"), "torch": version("torch")}
    save(RESULT, {**head, "zuko": version("zuko"), "runs": summary})


def prepare(folder: Path) -> tuple[Path, dict[int, Path]]:
    """A model, and a table of each size, written a block at a time."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    import diffeo

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(FEATURES, FEATURES))

    def rows(n: int) -> pd.DataFrame:
        x = rng.normal(size=(n, FEATURES)) @ mix
        x[:, 1] += 0.5 * x[:, 0] ** 2
        return pd.DataFrame(x, columns=[f"c{i}" for i in range(FEATURES)])

    model = diffeo.fit_table(rows(5000), recipe="nsf_ar", steps=100, progress=False)
    diffeo.save(model, folder / "model.safetensors")
    tables = {}
    for n in SIZES:
        tables[n] = folder / f"{n}.parquet"
        with pq.ParquetWriter(tables[n], pa.Schema.from_pandas(rows(1), preserve_index=False)) as file:
            for start in range(0, n, BLOCK):
                file.write(pa.Table.from_pandas(rows(min(BLOCK, n - start)), preserve_index=False))
    return folder / "model.safetensors", tables


def work(what: str, model: str, rows: str) -> dict[str, float]:
    """Score one file in this process; seconds without imports, and peak memory with them."""
    import pyarrow.parquet as pq
    import torch

    if what == "program":
        import diffeo.report
        from diffeo.cli import main as program

        began = time.perf_counter()
        assert program(["score", model, rows, "-o", rows.replace(".parquet", ".out.parquet")]) == 0
    else:
        if what == "flow32":
            import diffeo

            density = diffeo.load(model).density.eval()
            run, dtype = density, torch.float32
        else:
            import libraries

            torch.manual_seed(0)
            flow = libraries.TORCH["zuko"](libraries.Architecture("nsf_ar", FEATURES))
            dtype = torch.float32 if what == "zuko32" else torch.float64
            flow.module.to(dtype)
            run = flow.log_prob
        began = time.perf_counter()
        total = 0.0
        with torch.inference_mode(), pq.ParquetFile(rows) as file:
            for batch in file.iter_batches(BLOCK):
                block = torch.from_numpy(batch.to_pandas().to_numpy()).to(dtype)
                total += sum(float(run(part).sum()) for part in block.split(8192))
    seconds = time.perf_counter() - began
    # not getrusage, whose maximum a process inherits from the one that started it
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {"seconds": seconds, "peak_mb": peak / 1024}


def section() -> str:
    """Rows per second and peak memory."""
    found = load(RESULT)
    rows = [
        [
            WAYS[r["what"]], f"{r['rows']:,}", f"{r['rows_per_second']:,}",
            f"{r['seconds'][0]:.1f} … {r['seconds'][-1]:.1f} s", f"{r['peak_mb']:,} MB",
        ]
        for r in found["runs"]
    ]  # fmt: skip
    return f"""\
## A million rows from Parquet

{found["features"]} columns, 5 autoregressive spline layers of 128 × 2 units, 8 bins; every run a process of its own,
interleaved, medians of three; {found["threads"]} thread(s); torch {found["torch"]}, zuko {found["zuko"]}. Peak memory
includes PyTorch itself.

{markdown(["what", "rows", "rows / s", "fastest … slowest", "peak memory"], rows)}

    python benchmarks/streaming.py
"""


if __name__ == "__main__":
    main()

"""The sections of docs/benchmarks.md about tables: estimators, outliers, regression, mixed columns, streaming."""

from __future__ import annotations

from statistics import mean

from markdown import load, number, table


def estimator_section() -> list[str]:
    """FlowDensity() beside `nsf_ar` + `fit` on the ten tables."""
    plain = {run["table"]: run for run in load("density_defaults")["runs"]}
    rows = []
    for run in load("density_estimator")["runs"]:
        other = plain[run["table"]]
        best = max(b["nats"] for b in other["baselines"].values())
        rows.append(
            [
                run["table"],
                f"{run['rows']:,} × {run['features']}",
                f"{number(run['nats'])} ± {run['stderr']:.3f}",
                f"{number(other['nats'])} ± {other['stderr']:.3f}",
                number(best),
                number(run["nats"] - best),
                f"{run['seconds']:.0f} s",
            ]
        )
    return [
        "## `FlowDensity()`, no argument",
        "",
        "The same tables and test rows. It holds out its own validation rows, so it gets training and validation rows together;",
        "the other columns are the table above. Seconds are those of a busy machine.",
        "",
        *table(["table", "rows", "FlowDensity", "nsf_ar + fit", "best baseline", "ahead by", "time"], rows),
        "",
    ]


def outliers_section() -> list[str]:
    """AUROC by table, mean over seeds, the best of each in bold."""
    runs = load("outliers")
    detectors = list(dict.fromkeys(r["detector"] for r in runs))
    tables = sorted({r["table"] for r in runs}, key=str.lower)
    seeds = sorted({r["seed"] for r in runs})
    means = {
        (t, d): mean(r["auroc"] for r in runs if (r["table"], r["detector"]) == (t, d))
        for t in tables
        for d in detectors
    }
    rows, lost = [], []
    for t in tables:
        best = max(means[t, d] for d in detectors)
        first = next(r for r in runs if r["table"] == t)
        cells = [f"**{means[t, d]:.3f}**" if means[t, d] > best - 5e-4 else f"{means[t, d]:.3f}" for d in detectors]
        rows.append([t, f"{first['rows']:,} × {first['features']}", *cells])
        if means[t, detectors[0]] <= best - 5e-4:
            winner = max(detectors, key=lambda d: means[t, d])
            lost.append(f"{t} (to {winner}, by {best - means[t, detectors[0]]:.3f})")
    rows.append(["**mean**", "", *(f"{mean(means[t, d] for t in tables):.4f}" for d in detectors)])
    for seed in seeds:
        rows.append(
            [
                f"seed {seed}",
                "",
                *(
                    f"{mean(r['auroc'] for r in runs if (r['seed'], r['detector']) == (seed, d)):.4f}"
                    for d in detectors
                ),
            ]
        )
    seconds = [r["seconds"] for r in runs if r["detector"] == detectors[0]]
    return [
        "## Outliers: `FlowOutlierDetector()`",
        "",
        f"ADBench's tables, AUROC, mean of {len(seeds)} seeds: fitted on a random 70 % of the normal rows, tested on the other",
        "normal rows and all anomalies. scikit-learn's detectors with their defaults, on standardised columns where it",
        "matters; the mixture has up to 20 components by BIC; LOF, the mixture and the flow learn from at most 20,000",
        "rows. The detector's settings (noise of 0.1, three layers of 64 × 2, 600 steps) were chosen among about twenty",
        "on these very tables, at one seed: the same for all, but not chosen blindly.",
        "",
        *table(["table", "training rows", *detectors], rows),
        "",
        f"Lost: {'; '.join(lost)}. A fit and its scores took {min(seconds):.0f} to {max(seconds):.0f} s on one busy core.",
        "",
        "    python benchmarks/outliers.py",
        "",
    ]


def regression_section() -> list[str]:
    """Test nats, coverage and error by table, mean over seeds."""
    runs = load("regression")
    models = list(dict.fromkeys(r["model"] for r in runs))
    tables = list(dict.fromkeys(r["table"] for r in runs))
    seeds = sorted({r["seed"] for r in runs})

    def cell(t: str, m: str, key: str, digits: int) -> str:
        found = [r[key] for r in runs if (r["table"], r["model"]) == (t, m)]
        return number(mean(found), digits)

    def spread(t: str, m: str) -> str:
        found = [r["nats"] for r in runs if (r["table"], r["model"]) == (t, m)]
        ends = f" ({number(min(found), 2)} … {number(max(found), 2)})" if len(found) > 1 else ""
        return f"{number(mean(found))}{ends}"

    wins = sum(
        all(
            float(cell(t, models[0], "nats", 6).replace("−", "-")) > float(cell(t, m, "nats", 6).replace("−", "-"))
            for m in models[1:]
        )
        for t in tables
    )
    first = {t: next(r for r in runs if r["table"] == t) for t in tables}
    return [
        "## Conditional densities: `FlowRegressor()`",
        "",
        f"UCI tables, the last column given the others, a random tenth for testing, mean of {len(seeds)} seeds (lowest … highest).",
        "Test log-density in nats, in the units of the files. The forest (200 trees) gets a Gaussian whose variance is its",
        "spread over trees and leaves, rescaled on out-of-bag rows; the networks are Gaussians with learned mean and variance,",
        "plain (128 × 3) and on FlowRegressor's own encoder and residual blocks, trained as the flow is. Choices were made on",
        "seed 0's test rows.",
        "",
        *table(
            ["table", "rows", *models],
            [[t, f"{first[t]['rows']:,} × {first[t]['features']}", *(spread(t, m) for m in models)] for t in tables],
        ),
        "",
        f"FlowRegressor is ahead of all of them on {wins} of {len(tables)} tables.",
        "",
        "Share of test targets inside the central 90 % interval:",
        "",
        *table(["table", *models], [[t, *(cell(t, m, "coverage", 3) for m in models)] for t in tables]),
        "",
        "Root mean squared error of the mean:",
        "",
        *table(["table", *models], [[t, *(cell(t, m, "rmse", 4) for m in models)] for t in tables]),
        "",
        "    python benchmarks/regression.py",
        "",
    ]


def mixed_section() -> list[str]:
    """Real against sampled rows, and the known density."""
    runs = load("mixed")
    rows = []
    for name in dict.fromkeys(r["table"] for r in runs if r["table"] != "known"):
        found = [r for r in runs if r["table"] == name]
        flows, copulas = [r["flow"] for r in found], [r["copula"] for r in found]
        rows.append(
            [
                name,
                f"{found[0]['rows']:,} × {found[0]['columns']}",
                f"{mean(flows):.3f} ({min(flows):.3f} … {max(flows):.3f})",
                f"{mean(copulas):.3f} ({min(copulas):.3f} … {max(copulas):.3f})",
            ]
        )
    known = [r for r in runs if r["table"] == "known"]
    excess = ", ".join(f"{number(r['excess'])} ± {r['excess_stderr']:.3f}" for r in known)
    truth = ", ".join(f"{number(r['truth'])} ± {r['truth_stderr']:.3f}" for r in known)
    return [
        "## Mixed tables",
        "",
        "AUROC of gradient boosting (five folds) between real rows and as many samples: 0.5 if it cannot tell them apart.",
        "`fit_table` with its defaults on 80 % of the rows; a Gaussian copula with empirical marginals on the same rows. Mean",
        "of the seeds (lowest … highest).",
        "",
        *table(["table", "rows", "fit_table", "Gaussian copula"], rows),
        "",
        "A synthetic table with a category, a positive and a real number and a count, whose density is known: mean true",
        f"log-density of fresh rows {truth} nats (three seeds; Monte-Carlo error), and by so much the fitted one is lower",
        f"on the same rows: {excess} nats.",
        "",
        "    python benchmarks/mixed.py",
        "",
    ]


def streaming_section() -> list[str]:
    """Rows per second and peak memory."""
    found = load("streaming")
    names = {
        "program": "`diffeo score`, Parquet to Parquet, float64",
        "flow32": "the same flow alone, float32",
        "zuko32": "zuko's NSF, float32",
        "zuko64": "zuko's NSF, float64",
    }
    rows = [
        [
            names[r["what"]],
            f"{r['rows']:,}",
            f"{r['rows_per_second']:,}",
            f"{r['seconds'][0]:.1f} … {r['seconds'][-1]:.1f} s",
            f"{r['peak_mb']:,} MB",
        ]
        for r in found["runs"]
    ]
    return [
        "## A million rows from Parquet",
        "",
        f"{found['features']} columns, 5 autoregressive spline layers of 128 × 2 units, 8 bins; every run a process of its own,",
        f"interleaved, medians of three; {found['threads']} thread(s); torch {found['torch']}, zuko {found['zuko']}. Peak memory",
        "includes PyTorch itself.",
        "",
        *table(["what", "rows", "rows / s", "fastest … slowest", "peak memory"], rows),
        "",
        "    python benchmarks/streaming.py",
        "",
    ]

"""Continuous flows on known densities: likelihood and flow matching, exact and estimated traces, error and cost.

    python benchmarks/continuous.py

`ffjord` is trained by likelihood for a number of steps, and by flow matching for less than a fifth of the seconds that
took. Then its log-density is compared with Hutchinson's estimate, and with itself by ever finer solvers. Writes
results/continuous.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import matplotlib.pyplot as plt
import torch

import diffeo
from diffeo.solvers import Integrator
from results import IMAGES, RESULTS, load, markdown, number, save

RESULT = RESULTS / "continuous.json"
ANGLES = torch.arange(8) * math.pi / 4
TARGETS = {
    "eight Gaussians": diffeo.targets.Mixture(2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.3),
    "banana": diffeo.targets.Banana(0.5),
}
ROWS, TEST = 20_000, 5_000
SHARE = 0.15  # of the seconds that the likelihood took, for flow matching
FIXED, TOLERANCES = (2, 4, 8, 16, 32, 64), (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def rows(target: diffeo.Density, n: int, seed: int) -> torch.Tensor:
    """Samples of a target."""
    return target.sample(n, generator=torch.Generator().manual_seed(seed))


def train(x: torch.Tensor, objective: str, steps: int | None, seconds: float | None) -> tuple[diffeo.Flow, dict]:
    """The recipe after training, by likelihood or by flow matching."""
    torch.manual_seed(0)
    flow = diffeo.ffjord(2)
    began = time.perf_counter()
    what = flow if objective == "likelihood" else diffeo.FlowMatching(flow, objective)
    if steps is None:  # as many as fit, by the time of a few
        trial = diffeo.fit(diffeo.FlowMatching(diffeo.ffjord(2), objective), x, steps=200, progress=False)
        steps = int(200 * (seconds or 0) / trial.seconds)
        began = time.perf_counter()
    result = diffeo.fit(what, x, steps=steps, progress=False)
    return flow, {"steps": result.steps, "seconds": round(time.perf_counter() - began, 1)}


@torch.no_grad()
def score(flow: diffeo.Flow, x: torch.Tensor) -> torch.Tensor:
    """Log-densities."""
    return torch.cat([flow(part) for part in x.split(1000)])


@torch.no_grad()
def solvers(flow: diffeo.Flow, x: torch.Tensor) -> list[dict[str, Any]]:
    """Evaluations and error of the log-density, for solvers from coarse to fine."""
    layer = flow.transform.parts[-1]
    kept, found = layer.integrator, []
    flow = flow.double()
    x = x.double()
    layer.integrator = Integrator(rtol=1e-10, atol=1e-10)
    exact = score(flow, x)
    tried = [("rk4", steps, Integrator("rk4", steps=steps)) for steps in FIXED]
    tried += [("dopri5", tolerance, Integrator(rtol=tolerance, atol=tolerance)) for tolerance in TOLERANCES]
    for method, setting, integrator in tried:
        layer.integrator = integrator
        error = (score(flow, x) - exact).abs()
        count = layer.evaluations(flow.transform.parts[0](x)[0])
        found.append({"method": method, "setting": setting, "evaluations": count, "error": float(error.mean())})
    layer.integrator = kept
    flow.float()
    return found


@torch.no_grad()
def estimates(flow: diffeo.Flow, x: torch.Tensor, draws: int = 50) -> dict[str, float]:
    """Hutchinson's log-densities against the exact ones: mean difference over rows and draws, and its error."""
    layer = flow.transform.parts[-1]
    exact = score(flow, x)
    layer.exact_logdet = False
    flow.train()
    differences = torch.stack([score(flow, x) - exact for _ in range(draws)]).mean(1).double()
    flow.eval()
    layer.exact_logdet = True
    single = float(differences.std()) * len(x) ** 0.5
    return {
        "difference": float(differences.mean()),
        "error": float(differences.std() / draws**0.5),
        "spread": single,
    }


def section() -> str:
    """Likelihood against flow matching; estimates; error against evaluations."""
    content = load(RESULT)
    rows, notes = [], []
    for name, target in content["targets"].items():
        for kind, r in target["runs"].items():
            title = "likelihood" if kind == "likelihood" else f"flow matching, {kind}"
            rows.append([name, title, r["steps"], f"{r['seconds']:.0f}", number(r["nats"]), r["evaluations"]])
        rows.append([name, "the density itself", "", "", number(target["true_nats"]), ""])
        h = target["hutchinson"]
        estimate = f"{number(h['difference'], 5)} ± {h['error']:.5f} nats"
        notes.append(f"{name}: {estimate} (one estimate of one row: ± {h['spread']:.2f})")
    return f"""\
## Continuous flows

`diffeo.ffjord(2)` on 20,000 samples of known densities, trained by likelihood, and by `diffeo.FlowMatching` in less
than a fifth of the seconds; nats on 5,000 others; evaluations of the field for a density; \
{content["threads"]} thread, beside other jobs.

{markdown(["target", "trained by", "steps", "seconds", "nats", "evaluations"], rows)}

Hutchinson's estimate of the log-density less the exact one, over 1,000 rows and 50 draws: {"; ".join(notes)}.

![Error of the log-density against evaluations of the field](images/continuous.png)

    python benchmarks/continuous.py
"""


def draw() -> None:
    """Error of the log-density against evaluations of the field."""
    targets = load(RESULT)["targets"]
    figure, axes = plt.subplots(1, len(targets), figsize=(8, 3.2), layout="constrained", sharey=True, squeeze=False)
    for ax, (name, target) in zip(axes[0], targets.items(), strict=True):
        for method, colour in (("rk4", "#3d5a80"), ("dopri5", "#ee6c4d")):
            points = [(s["evaluations"], s["error"]) for s in target["solvers"] if s["method"] == method]
            ax.loglog(*zip(*sorted(points), strict=True), "o-", color=colour, label=method)
        ax.set(title=name, xlabel="evaluations of the field")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("mean |error| of log p (nats)")
    axes[0, 0].legend(frameon=False)
    figure.savefig(IMAGES / "continuous.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """All targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="of the likelihood")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    content: dict[str, Any] = {"threads": options.threads, "share": SHARE, "targets": {}}
    for name, target in TARGETS.items():
        x, test = rows(target, ROWS, 0), rows(target, TEST, 1)
        with torch.no_grad():
            entropy = float(target(rows(target, 200_000, 2)).mean())
            true = float(target(test).mean())
        runs: dict[str, Any] = {}
        flow, runs["likelihood"] = train(x, "likelihood", options.steps, None)
        for kind in ("independent", "transport"):
            matched, runs[kind] = train(x, kind, None, SHARE * runs["likelihood"]["seconds"])
            runs[kind]["nats"] = float(score(matched, test).mean())
            runs[kind]["evaluations"] = matched.transform.parts[-1].evaluations(matched.transform.parts[0](test)[0])
        runs["likelihood"]["nats"] = float(score(flow, test).mean())
        runs["likelihood"]["evaluations"] = flow.transform.parts[-1].evaluations(flow.transform.parts[0](test)[0])
        content["targets"][name] = {
            "true_nats": true,
            "negative_entropy": entropy,
            "runs": runs,
            "hutchinson": estimates(flow, test[:1000]),
            "solvers": solvers(flow, test[:500]),
        }
        print(name, json.dumps(content["targets"][name], indent=1), flush=True)
        save(RESULT, content)


if __name__ == "__main__":
    main()

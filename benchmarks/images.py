"""Flows of MNIST digits: bits per dimension of the exact test split against minutes of training.

    python benchmarks/images.py [--models glow flowpp tarflow …] [--minutes 15] [--threads 2] [--lr 0.004] [--batch 64]
    python benchmarks/images.py --round-trips [--models …] [--minutes 15] [--threads 2]

Each model trains for that long on 58,000 training digits; 2,000 more decide which weights are kept. The curve is of
these; the figure is of all 10,000 test digits. Noise is uniform, but for flowpp, which learns it. normflows' Glow has
the size of ours and a logit in front, as glow+logit has. Finished runs are kept in results/images.json. A run of ours
that is interrupted goes on where it stopped (`--folder`, default build/images).
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffeo
from diffeo.apps.images import decode, encode, gaussian_bits, histogram_bits
from libraries import normflows_glow
from results import RESULTS, load, markdown, save
from tables import data_root

RESULT = RESULTS / "images.json"
SPLINES = {"univariate": "RationalQuadraticSpline", "univariate_options": {"bins": 4, "bound": 4.0}}
MODELS: dict[str, dict] = {  # options of the recipe before the +; conditioners of splines have as many weights
    "glow": {"preset": "small"},
    "glow+logit": {"preset": "small", "peak": None},
    "glow+splines": {"preset": "small", "hidden": 26, **SPLINES},
    "realnvp_image": {"preset": "tiny", "hidden": 32},
    "realnvp_image+splines": {"preset": "tiny", "hidden": 24, **SPLINES},
    "flowpp": {"preset": "tiny", "attention": False},
    "flowpp+attention": {"preset": "tiny"},
    "tarflow": {"patch": 4, "width": 64, "blocks": 4, "layers": 1, "heads": 2, "components": 4},
    "normflows": {},
}
HELD, SHOWN = 2_000, 100  # digits that choose the weights, and that go to noise and back
DIMS = 28 * 28
CURVES = RESULTS.parents[1] / "docs" / "images" / "mnist.png"
LR, BATCH = 4e-3, 64
WAYS = ("float32", "z_in_float32", "float64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--folder", type=Path, default=Path("build/images"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with np.load(data_root() / "images" / "mnist.npz") as file:
        images, test = (torch.from_numpy(file[name]).unsqueeze(1) for name in ("x_train", "x_test"))
    content = load(RESULT, {"baselines": {}, "runs": []})
    if not content["baselines"]:
        train = images[HELD:]
        content["baselines"] = {
            "Gaussian": gaussian_bits(train, test),
            "histogram of each pixel": histogram_bits(train, test, 256),
        }
        save(RESULT, content)
    for model in options.models:
        job = {"model": model, "options": MODELS[model], "minutes": options.minutes}
        job = {**job, "threads": options.threads, "lr": options.lr, "batch": options.batch}
        folder = options.folder / f"{model}, {options.minutes:g} minutes, {options.lr:g}, {options.batch}"
        if any(job.items() <= done.items() for done in content["runs"]):
            continue
        if model == "normflows":
            found = run_normflows(images, test, job)
        else:
            found = run(images, test, folder, model, job)
        content = load(RESULT)  # another process may have added to it
        content["runs"].append({**job, **found})
        save(RESULT, content)
        print({k: v for k, v in content["runs"][-1].items() if k != "curve"}, flush=True)


@torch.no_grad()
def round_trip(model: diffeo.Dequantized, x: torch.Tensor) -> dict[str, float]:
    """The largest error of noise and back, in levels, of pictures and noise that are carried in three ways."""
    exact, flow = x.double() + 0.5, model.transform

    def error(z: torch.Tensor) -> float:
        return float((flow.inverse(z)[0] - exact).abs().max())

    wide = encode(model, x)
    return {
        "pictures": len(x),
        "float32": error(flow(exact.float())[0]),
        "z_in_float32": error(wide.float().double()),
        "float64": error(wide),
        "lost_levels": int((decode(model, wide) - x.long()).abs().max()),
    }


def run(images: torch.Tensor, test: torch.Tensor, folder: Path, name: str, job: dict[str, Any]) -> dict:
    """Train one recipe and measure it."""
    torch.manual_seed(0)
    model = getattr(diffeo, name.partition("+")[0])((1, 28, 28), **MODELS[name])
    result = diffeo.fit(
        model, images[HELD:], validation=images[:HELD], batch_size=job["batch"], lr=job["lr"], epochs=100,
        time_limit=60 * job["minutes"], checkpoint=folder, resume=True,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    bits = diffeo.bits_per_dim(model, test, generator=torch.Generator().manual_seed(0))
    return {
        **round_trip(model, test[:SHOWN]),
        "bits_per_dim": float(bits.mean()),
        "stderr": float(bits.std() / len(bits) ** 0.5),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "cores": os.cpu_count(),
        "curve": [
            [round(e["seconds"] / 60, 2), e["validation_loss"] / (DIMS * math.log(2))]
            for e in result.history
            if e["validation_loss"] is not None
        ],
    }


def run_normflows(images: torch.Tensor, test: torch.Tensor, job: dict[str, Any]) -> dict:
    """normflows' Glow of the size of our `small`, by Adam with a cosine of the time; the average of its weights."""
    torch.manual_seed(0)
    minutes, lr, batch = job["minutes"], job["lr"], job["batch"]
    model = normflows_glow((1, 28, 28))
    low, high = -0.05 * 256, 1.05 * 256

    def nats(x: torch.Tensor) -> torch.Tensor:
        share = (x + torch.rand(x.shape) - low) / (high - low)
        return model.log_prob(share.logit(), None) - (share * (1 - share) * (high - low)).log().sum((1, 2, 3))

    train, held = images[HELD:], images[:HELD]
    with torch.no_grad():
        nats(train[:256])  # its activation norms start from the first batch
    optimizer = torch.optim.Adam(model.parameters(), lr)
    ema = torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema)
    generator = torch.Generator().manual_seed(0)
    began, limit, steps, spent, curve = time.monotonic(), 60 * minutes, 0, 0.0, []
    while spent < limit:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * spent / limit))
        optimizer.zero_grad()
        loss = -nats(train[torch.randint(len(train), (batch,), generator=generator)]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        average.update_parameters(model)
        steps, spent = steps + 1, time.monotonic() - began
        if steps % 500 == 0:
            with torch.no_grad():
                curve.append([round(spent / 60, 2), float(-nats(held).mean()) / (DIMS * math.log(2))])
    model.load_state_dict(average.module.state_dict())
    with torch.no_grad():
        bits = torch.cat([-nats(x) for x in test.split(500)]) / (DIMS * math.log(2))
    return {
        "bits_per_dim": float(bits.mean()),
        "stderr": float(bits.std() / len(bits) ** 0.5),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seconds": round(spent, 1),
        "curve": curve,
        "cores": os.cpu_count(),
    }


def draw() -> None:
    """Held-out bits per dimension of stored runs against minutes of training."""
    import matplotlib.pyplot as plt

    runs = load(RESULT)["runs"]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for r in runs:
        minutes, bits = zip(*r["curve"], strict=True)
        label = f"{r['model']}, {r['minutes']:g} minutes, rate {r['lr']:g}, batch {r['batch']}"
        axes.plot(minutes, bits, "--" if r["model"] == "normflows" else "-", marker=".", markersize=4, label=label)
    axes.set(xlabel="minutes of training", ylabel="bits per dimension, held out", xscale="log", ylim=(1.05, 2.0))
    axes.set_xticks([1, 2, 5, 10, 15, 30, 60], ["1", "2", "5", "10", "15", "30", "60"])
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(CURVES, dpi=110)


def section() -> str:
    """MNIST: bits per dimension and the way there."""
    content = load(RESULT, {"baselines": {}, "runs": []})
    if not content["runs"]:
        return ""
    rows = [
        [
            r["model"] + ("' Glow" if r["model"] == "normflows" else ""),
            ", ".join(f"{k}={v}" for k, v in r["options"].items()),
            f"{r['parameters']:,}",
            f"{r['lr']:g}",
            f"{r['batch']}",
            f"{r['seconds'] / 60:.0f}",
            f"{r['steps']:,}",
            f"{r['bits_per_dim']:.3f} ± {r['stderr']:.3f}",
        ]
        for r in content["runs"]
    ]
    rows += [[name, "", "", "", "", "", "", f"{bits:.3f}"] for name, bits in content["baselines"].items()]
    header = ["model", "options", "parameters", "rate", "batch", "minutes", "steps", "bits per dimension"]
    longest = max(r["seconds"] for r in content["runs"]) / 60
    times = [t for t in (1, 2, 5, 10, 15, 30, 60) if t < longest + 0.5]
    reached = []
    for r in content["runs"]:
        cells = [[bits for minute, bits in r["curve"] if 0.8 * t <= minute <= t + 0.1] for t in times]
        late = [t > r["seconds"] / 60 + 0.5 for t in times]
        reached.append(
            [
                f"{r['model']}, of {r['seconds'] / 60:.0f} min, rate {r['lr']:g}, batch {r['batch']}",
                *("" if not c or no else f"{c[-1]:.3f}" for c, no in zip(cells, late, strict=True)),
            ]
        )
    threads = content["runs"][0]["threads"]
    way = ""
    if any(any(cells[1:]) for cells in reached):
        table = markdown(["model", *(f"{t} min" for t in times)], reached)
        way = f"On {HELD:,} held-out digits, after so many minutes of a run of so many:\n\n{table}\n\n"
        way += "![Held-out bits per dimension against minutes](images/mnist.png)\n\n"
    return f"""\
## Pictures: MNIST

Bits per dimension of the 10,000 test digits, one sample of the noise (an upper bound; lower is better), after training
with {threads} thread{"s" * (threads > 1)} on a shared machine. Noise is uniform, but for flowpp, which learns it; rate
is that of learning. With `peak=None`, glow+logit does without the room that [`Equalize`](api/transforms.md) gives to
black and white, as normflows' Glow does: between its row and that of glow lies the work of the preprocessing, not of
the couplings. The baselines are a Gaussian with shrunk covariance and independent pixels.

{markdown(header, rows)}

{way}    python benchmarks/images.py

{_told_round_trips([r for r in content["runs"] if "float32" in r])}"""


def _told_round_trips(found: list[dict]) -> str:
    header = ["model", "minutes", "all in float32", "pictures in float64, z kept in float32", "z in float64"]
    rows = [[r["model"], f"{r['minutes']:.0f}", *(f"{r[k]:.1e}" for k in WAYS)] for r in found]
    return f"""\
**Noise and back**, the same models, of float32: the largest error in levels of 256 over {found[0]["pictures"]:,} test
digits, of which 0.256 would be a thousandth of the range. Pictures in float64 are what `encode` and `decode` carry
through them.

{markdown(header, rows)}
"""


if __name__ == "__main__":
    main()

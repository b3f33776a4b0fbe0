"""What flows of pictures are used for: super-resolution, sampling, classes, edits, anomalies; and their speed.

    python benchmarks/image_uses.py [--parts speed sampling srflow ablation classifier classes editing anomalies]

Parts that are done are kept in results/image_uses.json, so that an interrupted run goes on; a part named is done anew.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import diffeo
import image_cost
import image_resolution
from diffeo.apps.images import attribute_direction, edit, grid, guided, typicality
from image_cost import timed
from results import IMAGES, RESULTS, load, markdown, run_parts, short
from tables import data_root

RESULT = RESULTS / "image_uses.json"
TARFLOW = {"patch": 4, "width": 96, "blocks": 4, "layers": 2, "heads": 4}
PICTURED = ("tarflow, guidance 2", "glow, temperature 0.8")
NOISE = 0.3  # that flows of classes are trained with, as a share of half the range of values
SEEDS = (0, 1, 2)
ABLATED, ABLATED_STEPS = {"preset": "tiny", "blocks": 2, "dropout": 0.1, "levels": 17, "peak": None}, 500
SHOWN = 12  # pictures in a row


def main() -> None:
    run_parts(__doc__, RESULT, PARTS, minutes=10.0)


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with np.load(data_root() / "images" / "mnist.npz") as file:
        x, test = (torch.from_numpy(file[name]).unsqueeze(1) for name in ("x_train", "x_test"))
        return x, torch.from_numpy(file["y_train"]).long(), test, torch.from_numpy(file["y_test"]).long()


# tarflow -------------------------------------------------------------------------------------------------------------


def train_classes(recipe: str, frame: int, seconds: float, lr: float, **options: Any) -> Any:
    """A class-conditional flow of MNIST in so wide a frame."""
    x, y, *_ = mnist()
    torch.manual_seed(0)
    side = 28 + 2 * frame
    model = getattr(diffeo, recipe)((1, side, side), classes=10, **options)
    x = F.pad(x, (frame,) * 4)
    diffeo.fit(
        model, x[2000:], y[2000:], validation=(x[:500], y[:500]), batch_size=64, lr=lr, time_limit=seconds,
        epochs=1000, progress=False,
    )  # fmt: skip
    return model.eval()


@torch.no_grad()
def naive_inverse(layer: Any, z: Tensor, context: Any) -> Tensor:
    """The inverse of an autoregressive layer without a cache: a whole pass of the net for every position."""
    x = torch.zeros_like(z)
    for position in layer.net.order.tolist():
        params = layer.net(x, context)
        step = layer.net.rank[position]
        x[..., position, :] = layer.univariate.inverse(z[..., position, :], params[..., step, :, :])[0]
    return x


@torch.no_grad()
def sampling(seconds: float) -> dict[str, Any]:
    """Cache and Jacobi sweeps against the naive loop, on 8×8 grids of patches; the same noise, the same pictures."""
    with torch.enable_grad():
        model = train_classes("tarflow", 2, seconds / 2, 1.5e-3, **TARFLOW)  # 8×8 patches
    flow, count = model.flow, 16
    context = flow.encode(torch.arange(count) % 10)
    z = flow.base.sample(count, generator=torch.Generator().manual_seed(0))
    layers = [part for part in flow.transform.modules() if isinstance(part, diffeo.Autoregressive)]

    def naive() -> Tensor:
        x = z
        for part in reversed(list(flow.transform.parts)):
            x = naive_inverse(part, x, context) if part in layers else part.inverse(x, context)[0]
        return x

    def swept(sweeps: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for layer in layers:
                layer.sweeps, layer.tolerance = sweeps, 1e-6
            return flow.transform.inverse(z, context)[0]

        return run

    calls = {"naive": naive, "cache": swept(0), "Jacobi": swept(64)}
    images = {name: call() for name, call in calls.items()}
    apart = {name: float((images[name] - images["naive"]).abs().max()) / 256 for name in ("cache", "Jacobi")}
    return {"pictures": count, "ms": timed(calls, 3), "largest_difference": apart}


# classes -------------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A small convolutional classifier; its last hidden layer are the features of the Fréchet distance."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.float() / 255))


def train_classifier(x: Tensor, y: Tensor, epochs: int = 4) -> Classifier:
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    total = epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(128)[: total // epochs]:
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def classifier(seconds: float) -> dict[str, Any]:
    """How much of the test digits, which it has not seen, the classifier of the next part recognises."""
    x, y, test, wanted = mnist()
    model = train_classifier(x, y)
    with torch.no_grad():
        hits = model(test).argmax(1) == wanted
    return {"recognised": float(hits.double().mean()), "digits": len(test)}


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features."""
    from scipy.linalg import sqrtm

    (m, s), (n, t) = ((v.double().mean(0).numpy(), np.cov(v.double().numpy().T)) for v in (a, b))
    root = sqrtm(s @ t)
    return float(np.square(m - n).sum() + np.trace(s + t - 2 * root.real))


@torch.no_grad()
def classes(seconds: float) -> dict[str, Any]:
    """How often a classifier of real digits recognises the wanted class, and Fréchet distances in its features."""
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    x, y, test, _ = mnist()
    with torch.enable_grad():
        judge = train_classifier(x, y)
        tarflow = train_classes("tarflow", 0, seconds, 1.5e-3, noise=NOISE, **TARFLOW)
        glow = train_classes("glow", 0, seconds, 2e-3, noise=NOISE)
    label = torch.arange(1000) % 10
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "real digits": x[:1000],
        **{
            f"tarflow, guidance {w:g}": guided(tarflow, w).sample(1000, label, generator=generator)
            for w in (0.0, 1.0, 2.0, 3.0)
        },
        **{f"glow, temperature {t}": glow.sample(1000, label, temperature=t, generator=generator) for t in (0.8, 1.0)},
    }
    rows = PCA(50, random_state=0).fit(x[:10000].flatten(1).numpy())
    low = rows.transform(x[:10000].flatten(1).numpy())
    mixed = GaussianMixture(30, random_state=0, reg_covar=1.0).fit(low).sample(1000)[0]
    drawn["Gaussian mixture of 30 in 50 components"] = torch.from_numpy(
        rows.inverse_transform(mixed).round().clip(0, 255)
    ).reshape(-1, 1, 28, 28)
    shown = [drawn[name][:20] for name in PICTURED]
    grid(torch.cat(shown), 10, scale=2).save(IMAGES / "classes.webp", lossless=True)
    real = judge.features(test.float() / 255)
    found = {}
    for name, images in drawn.items():
        want = y[:1000] if name == "real digits" else label
        hits = (judge(images).argmax(1) == want).double().mean()
        told = name != "Gaussian mixture of 30 in 50 components"
        found[name] = {
            "recognised": float(hits) if told else None,
            "frechet": frechet(judge.features(images.float() / 255), real),
        }
    return {"samples": found, "seconds": seconds}


# ablation ------------------------------------------------------------------------------------------------------------


def ablation(seconds: float) -> dict[str, Any]:
    """Flow++ on 8×8 digits behind a plain logit, each novelty switched off in turn: the same steps, three seeds."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images).to(torch.uint8).unsqueeze(1)
    rows = {}
    for name in ("whole", "mixture", "attention", "variational"):
        bits = []
        for seed in SEEDS:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
            test, held, train = order.split([300, 150, len(order) - 450])
            torch.manual_seed(seed)
            off = {} if name == "whole" else {name: False}
            model = diffeo.flowpp((1, 8, 8), **ABLATED, **off)
            diffeo.fit(
                model, images[train], validation=images[held], batch_size=64, steps=ABLATED_STEPS, lr=3e-3,
                seed=seed, progress=False,
            )  # fmt: skip
            generator = torch.Generator().manual_seed(0)
            bits.append(float(diffeo.bits_per_dim(model, images[test], samples=8, generator=generator).mean()))
        rows[name if name == "whole" else f"without {name}"] = bits
        print(name, bits, flush=True)
    return {"bits_per_dim": rows}


# editing -------------------------------------------------------------------------------------------------------------


def inked(images: Tensor, thickness: Tensor, slant: Tensor) -> Tensor:
    """Digits with strokes made thicker or thinner and slanted, (n, 1, 28, 28) of uint8."""
    x = images.float() / 255
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0
    theta[:, 0, 1] = slant
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    blurred = F.avg_pool2d(x, 3, 1, 1)
    shifted = blurred + 0.25 * thickness[:, None, None, None]
    return (255 * ((shifted - 0.35) * 4).sigmoid() * (blurred > 0.02)).round().clamp(0, 255).to(torch.uint8)


class Reader(nn.Module):
    """A regressor that reads thickness and slant off a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Classifier()
        self.net.head = nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def editing(seconds: float) -> dict[str, Any]:
    """Moves along an attribute's direction, as read by a regressor: what is wanted, and how much the other leaks."""
    from scipy.stats import spearmanr

    x, *_ = mnist()
    x = x[:12000]
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(len(x), 2, generator=generator) * 2 - 1
    images = inked(x, truth[:, 0], 0.5 * truth[:, 1])
    torch.manual_seed(0)
    reader = Reader()
    optimizer = torch.optim.Adam(reader.parameters(), 1e-3)
    for _ in range(4):
        for index in torch.randperm(10000).split(128):
            optimizer.zero_grad()
            F.mse_loss(reader(images[index]), truth[index]).backward()
            optimizer.step()
    reader.eval()
    model = diffeo.glow((1, 28, 28), preset="tiny")
    diffeo.fit(
        model, images[:11000], validation=images[11000:11500], batch_size=64, lr=2e-3, time_limit=seconds, epochs=1000,
        progress=False,
    )  # fmt: skip
    fresh, amounts = images[11500:11700], torch.linspace(-1, 1, 9)
    found: dict[str, Any] = {}
    shown: list[Tensor] = []
    with torch.no_grad():
        error = (reader(images[11500:]) - truth[11500:]).square().mean(0).sqrt()
        known = truth[:10000]
        for k, name in enumerate(("thickness", "slant")):
            direction = attribute_direction(model, images[:10000], known[:, k])
            edited = [edit(model, fresh, direction, float(a)) for a in amounts]
            shown.append(torch.stack(edited, 1)[:3].flatten(0, 1))
            read = torch.stack([reader(pictures) for pictures in edited])  # (9, n, 2)
            mean = read.mean(1)
            slope = ((amounts[:, None] * (mean - mean.mean(0))).sum(0)) / amounts.square().sum()
            each = [float(spearmanr(amounts, read[:, i, k])[0]) for i in range(len(fresh))]
            found[name] = {
                "rank_correlation": float(spearmanr(amounts, mean[:, k])[0]),
                "rank_correlation_of_each_median": statistics.median(each),
                "slope": float(slope[k]),
                "leak": float((slope[1 - k] / slope[k]).abs()),
                "reader_rmse": float(error[k]),
            }
    grid(torch.cat(shown), len(amounts), scale=2).save(IMAGES / "edits.webp", lossless=True)
    return found


# anomalies -----------------------------------------------------------------------------------------------------------


def anomalies(seconds: float) -> dict[str, Any]:
    """AUROC of likelihood, typicality and likelihood ratio: MNIST against Frey faces, inverted and shuffled digits."""
    import zlib

    from sklearn.metrics import roc_auc_score

    inner = slice(4, 24)
    x, _, test, _ = mnist()
    x, test = x[..., inner, inner], test[:2000, :, inner, inner]
    with np.load(data_root() / "images" / "freyfaces.npz") as file:
        faces = torch.from_numpy(file["x"])[:, None, 4:24]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.argsort(torch.rand(len(test), 400, generator=generator), 1)
    strange = {
        "Frey faces": faces,
        "inverted digits": 255 - test,
        "shuffled digits": test.flatten(1).gather(1, pixels).reshape(test.shape),
    }
    torch.manual_seed(0)
    model = diffeo.glow((1, 20, 20), preset="tiny")
    diffeo.fit(
        model, x[4000:], validation=x[:500], batch_size=64, lr=2e-3, time_limit=seconds, epochs=1000, progress=False
    )

    def bits(images: Tensor) -> Tensor:
        with torch.no_grad():
            return diffeo.bits_per_dim(model, images, generator=torch.Generator().manual_seed(0))

    def packed(images: Tensor) -> Tensor:
        """Bits per number of a general compressor: the complexity that a ratio takes out."""
        return torch.tensor([8 * len(zlib.compress(i.numpy().tobytes(), 9)) / i.numel() for i in images])

    held, ordinary = bits(x[:2000]), bits(test)
    ordinary_ratio = ordinary - packed(test)
    found = {}
    least = typicality(ordinary, held).typicality.argsort()
    shown = [test[:SHOWN], test[least[:SHOWN]]]
    for name, images in strange.items():
        theirs = bits(images)
        shown.append(images[torch.linspace(0, len(images) - 1, SHOWN).long()])
        label = np.r_[np.zeros(len(test)), np.ones(len(images))]
        scores = {
            "likelihood": torch.cat([ordinary, theirs]),
            "typicality": -typicality(torch.cat([ordinary, theirs]), held).typicality,
            "likelihood ratio": torch.cat([ordinary_ratio, theirs - packed(images)]),
        }
        found[name] = {what: float(roc_auc_score(label, s)) for what, s in scores.items()}
    grid(torch.cat(shown), SHOWN, scale=2).save(IMAGES / "unusual.webp", lossless=True)
    return {"auroc": found, "bits_of_digits": float(ordinary.mean())}


def section() -> str:
    """Each part that was measured."""
    content = load(RESULT, {})
    told = {
        "speed": image_cost.told_speed, "sampling": _told_sampling, "srflow": image_resolution.told,
        "ablation": _told_ablation, "classifier": _told_classifier, "classes": _told_classes, "editing": _told_editing,
        "anomalies": _told_anomalies,
    }  # fmt: skip
    parts = [tell(content[name]) for name, tell in told.items() if name in content]
    if not parts:
        return ""
    text = "\n\n".join(parts)
    return f"## Pictures: what they are used for\n\n{text}\n\n    python benchmarks/image_uses.py\n"


def _told_sampling(r: dict[str, Any]) -> str:
    naive = r["ms"]["naive"]["median"]
    rows = [
        [
            name,
            short(t["median"]),
            f"{naive / t['median']:.1f}×",
            "" if name == "naive" else f"{r['largest_difference'][name]:.0e}",
        ]
        for name, t in r["ms"].items()
    ]
    return f"""\
**TarFlow's samples**, {r["pictures"]} pictures of 8×8 patches, a trained model: in ms, by how much faster than a whole
pass of the net for every patch, and the largest difference from it, as a share of the range of values.

{markdown(["", "ms", "faster", "difference"], rows)}"""


def _told_ablation(r: dict[str, Any]) -> str:
    rows = [
        [name, *(f"{b:.3f}" for b in bits), f"{statistics.mean(bits):.3f}"] for name, bits in r["bits_per_dim"].items()
    ]
    return f"""\
**Flow++ on 8×8 digits** behind a plain logit (`peak=None`), as in the paper, each novelty switched off in turn,
{ABLATED_STEPS} steps, two blocks in each conditioner; bits per dimension of 300 test digits with eight samples of the
noise:

{markdown(["", *(f"seed {s}" for s in SEEDS), "mean"], rows)}"""


def _told_classifier(r: dict[str, Any]) -> str:
    return f"""\
**A classifier** of digits, trained on MNIST's 60,000, recognises {100 * r["recognised"]:.2f} % of the
{r["digits"]:,} test digits."""


def _told_classes(r: dict[str, Any]) -> str:
    rows = [
        [name, "" if v["recognised"] is None else f"{100 * v['recognised']:.1f} %", f"{v['frechet']:.1f}"]
        for name, v in r["samples"].items()
    ]
    return f"""\
**Samples of classes**, MNIST, {r["seconds"] / 60:.0f} minutes of training each, with Gaussian noise of {NOISE} of half
the range of values: how often a classifier trained like that sees the wanted class, and the Fréchet distance of 1,000
from the 10,000 test digits in its features; real digits are 1,000 of training, which the classifier knows.

{markdown(["", "recognised", "Fréchet distance"], rows)}

![Two rows of tarflow with guidance 2, two of glow at temperature 0.8](images/classes.webp)"""


def _told_editing(r: dict[str, Any]) -> str:
    rows = [
        [name, f"{v['rank_correlation']:.3f}", f"{v['rank_correlation_of_each_median']:.3f}", f"{v['leak']:.2f}"]
        for name, v in r.items()
        if name != "cores"
    ]
    return f"""\
**Edits**, digits with thickness and slant made by hand, as read by a regressor: rank correlation of the move with the
attribute, in the mean of 200 digits and for the median digit, and how much the other attribute changes, as a share.

{markdown(["", "in the mean", "median digit", "leak"], rows)}

![Three digits with thinner and thicker strokes, and three with less and more slant](images/edits.webp)

Three digits each, from a move of −1 to one of 1: of thickness, and of slant."""


def _told_anomalies(r: dict[str, Any]) -> str:
    names = ["likelihood", "typicality", "likelihood ratio"]
    rows = [[what, *(f"{scores[name]:.3f}" for name in names)] for what, scores in r["auroc"].items()]
    return f"""\
**Anomalies**, a model of MNIST cropped to 20×20 ({r["bits_of_digits"]:.2f} bits per dimension): AUROC. The ratio is
against zlib's length of the picture.

{markdown(["against test digits", *names], rows)}

![Test digits, the least typical ones, faces, inverted and shuffled digits](images/unusual.webp)

Test digits as they come, the least typical of them, and then what they are told from."""


PARTS: dict[str, Callable[[float], dict[str, Any]]] = {
    "speed": image_cost.speed,
    "sampling": sampling,
    "srflow": image_resolution.measure,
    "ablation": ablation,
    "classifier": classifier,
    "classes": classes,
    "editing": editing,
    "anomalies": anomalies,
}


if __name__ == "__main__":
    main()

"""Samples of every recipe of pictures, trained for the same time on the 8×8 digits of scikit-learn.

    python benchmarks/image_gallery.py [--minutes 1.5]

Writes docs/gallery/pictures.md and its pictures; finished recipes are kept in results/image_gallery.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits

import diffeo
from diffeo.apps.images import decode, encode, gaussian_bits, grid, histogram_bits, shrink, upscale
from results import RESULTS, load, markdown, save

RESULT = RESULTS / "image_gallery.json"
GALLERY = Path(__file__).resolve().parent.parent / "docs" / "gallery"
LEVELS, CLASSES, HELD = 17, 10, 200
SHOWN, SCALE = 4, 5  # samples of each class, and how many times as large a pixel is drawn
TEMPERATURE = 0.8
RECIPES: dict[str, dict[str, Any]] = {
    "nice_image": {"preset": "tiny", "classes": CLASSES},
    "realnvp_image": {"preset": "tiny", "classes": CLASSES},
    "glow": {"preset": "tiny", "layers": 6, "classes": CLASSES},
    "flowpp": {"preset": "tiny", "classes": CLASSES},
    "residual_image": {"preset": "tiny"},
    "tarflow": {"preset": "tiny", "classes": CLASSES},
    "srflow": {"preset": "tiny", "scale": 2},
}


def digits() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Pictures and labels of training, validation and test."""
    found: Any = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    parts = dict(zip(("test", "held", "train"), order.split([HELD, HELD, len(order) - 2 * HELD]), strict=True))
    images = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(found.target)
    return {k: images[i] for k, i in parts.items()}, {k: labels[i] for k, i in parts.items()}


def measure(name: str, options: dict[str, Any], minutes: float) -> dict[str, Any]:
    """Train, score, and draw samples of each class, if the recipe knows any."""
    images, labels = digits()
    known, scale = options.get("classes", 0) > 0, options.get("scale", 0)

    def given(part: str) -> Any:
        """What the recipe reads: labels, small pictures, or nothing."""
        return labels[part] if known else shrink(images[part], scale, LEVELS) if scale else None

    torch.manual_seed(0)
    model = getattr(diffeo, name)((1, 8, 8), levels=LEVELS, **options)
    held = images["held"] if given("held") is None else (images["held"], given("held"))
    result = diffeo.fit(
        model, images["train"], given("train"), validation=held, batch_size=64, epochs=1000, time_limit=60 * minutes,
        progress=False,
    )  # fmt: skip
    model.eval()
    test, context = images["test"], given("test")
    generator = torch.Generator().manual_seed(0)
    bits = diffeo.bits_per_dim(model, test, context, samples=4, generator=generator)
    generator = torch.Generator().manual_seed(1)
    if scale:  # the digits themselves, what is left of them, and draws of what they may have been
        few = context[:CLASSES]
        drawn = upscale(model, few, SHOWN - 1, temperature=TEMPERATURE, generator=generator)
        coarse = few.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        samples = torch.cat([test[:CLASSES], coarse, *drawn])
    else:
        each = torch.arange(CLASSES).repeat(SHOWN)
        samples = model.sample(len(each), each if known else None, temperature=TEMPERATURE, generator=generator)
    back = decode(model, encode(model, test, context), context)
    grid(samples, CLASSES, LEVELS, scale=SCALE).save(GALLERY / f"{name}.webp", lossless=True)
    return {
        "recipe": name,
        "options": options,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": result.steps,
        "minutes": minutes,
        "bits_per_dim": float(bits.mean()),
        "stderr": float(bits.std() / len(bits) ** 0.5),
        "lost_levels": int((back - images["test"].long()).abs().max()),
    }


def page() -> str:
    """docs/gallery/pictures.md."""
    content = load(RESULT)
    rows = [
        [
            f"[{r['recipe']}](#{r['recipe']})",
            f"{r['parameters']:,}",
            f"{r['steps']:,}",
            f"{r['bits_per_dim']:.3f} ± {r['stderr']:.3f}",
            r["lost_levels"],
        ]
        for r in content["runs"]
    ]
    rows += [[name, "", "", f"{bits:.3f}", ""] for name, bits in content["baselines"].items()]
    seconds = " or ".join(f"{60 * m:g}" for m in sorted({r["minutes"] for r in content["runs"]}))
    shown = "\n\n".join(
        f"## {r['recipe']}\n\n`diffeo.{r['recipe']}((1, 8, 8), levels={LEVELS}, "
        + ", ".join(f"{k}={v!r}" for k, v in r["options"].items())
        + f")`\n\n![Digits drawn from {r['recipe']}]({r['recipe']}.webp)"
        for r in content["runs"]
    )
    return f"""\
# Gallery of pictures

Every recipe of pictures on the 8×8 digits that scikit-learn ships, {seconds} seconds of training each with one thread
beside other work: bits per dimension of {HELD} digits that were not trained on (lower is better, four samples of the
noise), and the most that a value changes to noise and back, in shades of {LEVELS}. Then samples at the temperature
{TEMPERATURE}, a column for each digit where the recipe was told which digit it is; of `srflow`, test digits, half-sized
ones, and what it makes of these. Made by `python benchmarks/image_gallery.py`.

{markdown(["recipe", "parameters", "steps", "bits per dimension", "lost"], rows)}

{shown}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.5)
    options = parser.parse_args()
    images, _ = digits()
    content = load(RESULT, {"runs": []})
    content["baselines"] = {
        "Gaussian": gaussian_bits(images["train"], images["test"]),
        "histogram of each pixel": histogram_bits(images["train"], images["test"], LEVELS),
    }
    for name, chosen in RECIPES.items():
        if any(r["recipe"] == name for r in content["runs"]):
            continue
        content["runs"].append(measure(name, chosen, options.minutes))
        save(RESULT, content)
        print(content["runs"][-1], flush=True)
    (GALLERY / "pictures.md").write_text(page())


if __name__ == "__main__":
    main()

"""`make demo-images`: a class-conditional flow of the digits that scikit-learn ships, and a page that shows it.

python -m diffeo.apps.images.demo FOLDER [SECONDS]
"""

from __future__ import annotations

import base64
import html
import io
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

import diffeo
from diffeo.apps.cards import write_card
from diffeo.apps.images import (
    attribute_direction,
    edit,
    gaussian_bits,
    grid,
    histogram_bits,
    interpolate,
    picture_bits,
    typicality,
)
from diffeo.storage import replacing

LEVELS, CLASSES, HELD = 17, 10, 200
SECONDS = 90.0


def main(folder: Path, seconds: float = SECONDS) -> None:
    """Train, measure, and write `index.html` and the model."""
    folder.mkdir(parents=True, exist_ok=True)
    found: Any = load_digits()
    images = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, validation, train = order.split([HELD, HELD, len(order) - 2 * HELD])
    torch.manual_seed(0)
    model = diffeo.glow((1, 8, 8), preset="tiny", layers=6, levels=LEVELS, classes=CLASSES)
    began = time.monotonic()
    result = diffeo.fit(
        model, images[train], labels[train], validation=(images[validation], labels[validation]), batch_size=64,
        epochs=400, time_limit=seconds,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    bits, held = (
        diffeo.bits_per_dim(model, images[i], labels[i], samples=4, generator=generator) for i in (test, validation)
    )
    rows = [
        ("glow, class-conditional", float(bits.mean())),
        ("Gaussian with full covariance", gaussian_bits(images[train], images[test])),
        ("histogram of each pixel", histogram_bits(images[train], images[test], LEVELS)),
    ]
    each = torch.arange(CLASSES).repeat(6)
    samples = model.sample(len(each), each, temperature=0.8, generator=torch.Generator().manual_seed(1))
    ones, sevens = (images[train][labels[train] == k] for k in (1, 7))
    threes = images[train][labels[train] == 3]  # of one class, so that it says nothing of the class
    thickness = _thickness(threes)
    direction = attribute_direction(model, threes, thickness, torch.full((len(threes),), 3))
    amounts = torch.linspace(-3, 3, 9) * thickness.std()
    one = threes[:1].expand(9, -1, -1, -1)
    edited = edit(model, one, direction, amounts, torch.full((9,), 3))
    ranked = typicality(bits, held)
    odd = test[ranked.typicality.argsort()[:20]]
    sections = [
        ("Drawn from the model, a column for each class (temperature 0.8)", samples, 10),
        ("Between a one and a seven, along an arc of the noise", _between(model, ones[0], sevens[0]), 9),
        ("One three with thinner and thicker strokes: its noise moved along one direction", edited, 9),
        ("The twenty held-out digits that are least typical", images[odd], 10),
    ]
    page = _page(rows, sections, len(train), result.steps, time.monotonic() - began)
    with replacing(folder / "index.html") as path:
        path.write_text(page)
    notes = {  # as `diffeo images` reads them: pictures of 256 shades, and what held-out ones score
        "classes": [str(k) for k in range(CLASSES)],
        "coarse": True,
        "held_out": picture_bits(model, images[torch.cat([test, validation])]).tolist(),
    }
    diffeo.save(model, folder / "digits.safetensors", notes=notes)
    write_card(
        folder / "digits.md",
        title="Digits of 8×8 pixels: a class-conditional Glow",
        what="A `glow`, preset `tiny` with six steps at each scale, of digits given which digit it is.",
        data=f"{len(train):,} of the 1,797 digits that scikit-learn ships, of 13 writers: the test set of the UCI "
        "data set Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998; CC BY 4.0); "
        f"{HELD} choose the weights and {HELD} test.",
        training=f"{result.steps} steps of 64 digits in {result.seconds:.0f} seconds, by maximum likelihood with "
        "uniform dequantization.",
        scores={f"{name}, bits per dimension of {HELD} test digits": f"{value:.3f}" for name, value in rows},
        uses="Trying what `diffeo images` does, and for tests.",
        limits=[
            "It is a density: a classifier reads digits better.",
            "It knows these 8×8 digits alone: larger ones, other shades and other hands score as unusual.",
            "Its samples are blurred at a temperature below one and noisy at one; published models trained for days.",
        ],
        model=model,
    )
    for name, value in rows:
        print(f"  {name:<32}{value:7.3f} bits per dimension")
    print(f"Wrote {folder / 'index.html'}.")


def _thickness(images: torch.Tensor) -> torch.Tensor:
    """Width of the strokes in pixels: twice the area of the ink over the length of its outline."""
    ink = functional.pad(images.float(), (1, 1, 1, 1))
    across, down = ink.diff(dim=-1)[..., 1:, :], ink.diff(dim=-2)[..., 1:]
    outline = (across.square() + down.square()).sqrt().sum((1, 2, 3))
    return 2 * ink.sum((1, 2, 3)) / outline.clamp_min(1.0)


def _between(model: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pictures between a one and a seven: by the model of ones up to the middle, then by that of sevens."""
    by_class = [interpolate(model, a, b, 9, torch.tensor(k)) for k in (1, 7)]
    return torch.cat([by_class[0][:5], by_class[1][5:]])


def _page(rows: list[tuple[str, float]], sections: list[tuple[str, Any, int]], n: int, steps: int, took: float) -> str:
    table = "".join(f"<tr><td>{html.escape(name)}</td><td>{value:.3f}</td></tr>" for name, value in rows)
    pictures = []
    for title, images, columns in sections:
        buffer = io.BytesIO()
        grid(images, columns, LEVELS, scale=6).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        pictures.append(
            f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
        )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>A flow of digits</title>
<style>body{{font:16px/1.5 system-ui;max-width:44rem;margin:2rem auto;padding:0 1rem}}img{{max-width:100%;
image-rendering:pixelated;background:#fff}}td{{padding:.1rem 1rem .1rem 0}}td+td{{text-align:right}}</style>
<h1>A flow of digits</h1>
<p>A class-conditional Glow, trained for {steps} steps on {n:,} digits of 8×8 pixels and {LEVELS} shades; all of this
page took {took:.0f} seconds. Bits per dimension of {HELD} digits that it has not seen (lower is better):</p>
<table>{table}</table>
{"".join(pictures)}
</html>
"""


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(float(s) for s in sys.argv[2:3]))

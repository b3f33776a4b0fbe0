"""Model cards of what benchmarks train and the docs show, from the JSON in benchmarks/results.

    python benchmarks/cards.py

Writes docs/cards/mnist.md, classes.md, photographs.md and speakers.md. The models themselves are not shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffeo
from diffeo.apps.cards import card
from image_resolution import CROP, CROPS, SCALE, TEST_PHOTOS, TRAIN_PHOTOS
from image_uses import NOISE, TARFLOW
from images import HELD, MODELS
from results import RESULTS, load

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "cards"
MNIST = (
    "MNIST (LeCun, Cortes and Burges, 1998; CC BY-SA 3.0), 28×28 pixels of 256 shades by American census "
    "workers and students"
)


def told(options: dict[str, Any]) -> str:
    """Options in words."""
    parts = [f"{k} {told(v) if isinstance(v, dict) else v}".replace("_", " ") for k, v in options.items()]
    return ", ".join(parts)


def parameters(model: Any) -> int:
    """How many a model has."""
    return sum(p.numel() for p in model.parameters())


def mnist() -> str:
    """The likeliest of the flows of MNIST."""
    content = load(RESULTS / "images.json")
    ours = [run for run in content["runs"] if run["model"] in MODELS and run["model"] != "normflows"]
    best = min(ours, key=lambda run: run["bits_per_dim"])
    others = {
        f"{run['model']}, {run['minutes']:.0f} minutes, bits per dimension of the same": f"{run['bits_per_dim']:.3f}"
        for run in sorted(content["runs"], key=lambda run: run["bits_per_dim"])
        if run is not best
    }
    return card(
        title="Digits of 28×28 pixels: the likeliest flow",
        what=f"A `{best['model'].split('+')[0]}` with {told(best['options'])}.",
        parameters=best["parameters"],
        made="by `benchmarks/images.py`",
        data=f"The 60,000 training digits of {MNIST}, of which {HELD:,} choose the weights; the 10,000 others test.",
        training=f"{best['steps']:,} steps of {best['batch']} digits in {best['seconds'] / 60:.0f} minutes on "
        f"{best['threads']} thread{'s' * (best['threads'] > 1)}, by maximum likelihood with uniform dequantization.",
        scores={
            "bits per dimension of the test digits": f"{best['bits_per_dim']:.3f} ± {best['stderr']:.3f}",
            "noise and back in float32, largest error in levels": f"{best['float32']:.1e}",
            **others,
        },
        uses="Comparing flows. Another one of the same data, cropped, is tried on "
        "[pictures that do not belong](../benchmarks.md#pictures-what-they-are-used-for).",
        limits=[
            "Likelihood is not quality: fewer bits do not make better samples.",
            "Pictures that are smoother than digits, such as a blank one, are likelier than digits.",
        ],
    )


def classes() -> str:
    """TarFlow of MNIST given the digit."""
    found = load(RESULTS / "image_uses.json")["classes"]
    return card(
        title="Digits of 28×28 pixels by class: a TarFlow",
        what=f"A `tarflow` with {told(TARFLOW)}, given which digit it is, and trained with Gaussian noise.",
        parameters=parameters(diffeo.tarflow((1, 28, 28), classes=10, **TARFLOW)),  # pyright: ignore[reportArgumentType]
        made="by `benchmarks/image_uses.py --parts classes`",
        data=f"The 60,000 training digits of {MNIST}.",
        training=f"At most {found['seconds'] / 60:.0f} minutes, by maximum likelihood, with noise of {NOISE:g} of half "
        "the range, of which samples are freed.",
        scores={
            f"{name}: recognised by a classifier of real digits; Fréchet distance in its features": (
                f"{'—' if of['recognised'] is None else format(of['recognised'], '.1%')}; {of['frechet']:.0f}"
            )
            for name, of in found["samples"].items()
        },
        uses="Samples of a wanted digit, sharper with more guidance.",
        limits=[
            "Guidance makes samples easier to read and less varied, as the Fréchet distance shows.",
            "It is a density of digits with noise: it gives no bits per dimension of clean ones.",
        ],
    )


def photographs() -> str:
    """SRFlow of photographs."""
    found = load(RESULTS / "image_uses.json")["srflow"]
    return card(
        title=f"Photographs {SCALE} times as large: an SRFlow",
        what=f"A `srflow`, preset `small`, of {CROP}×{CROP} crops given ones of {CROP // SCALE}×{CROP // SCALE}.",
        parameters=parameters(diffeo.srflow((3, CROP, CROP), scale=SCALE)),
        made="by `benchmarks/image_uses.py --parts srflow`",
        data=f"{CROPS:,} crops of each of {len(TRAIN_PHOTOS)} photographs that come with scikit-image and scikit-learn "
        f"({', '.join(TRAIN_PHOTOS)}), by chance turned and mirrored, with other colours and less contrast; "
        f"{' and '.join(TEST_PHOTOS)} test. Their licences are those that the two libraries name.",
        training="The encoder by absolute error, then all by maximum likelihood, at most "
        f"{found['seconds'] / 60:.0f} minutes each.",
        scores={
            **{f"{name}, PSNR in dB": f"{value:.2f}" for name, value in found["psnr"].items()},
            "bits per dimension": f"{found['bits_per_dim']:.2f}",
        },
        uses="Trying what `diffeo images upscale` does.",
        limits=[
            f"It has seen {len(TRAIN_PHOTOS)} photographs: textures that are not in them, and print, come out smooth.",
            "Small pictures must be made by bicubic interpolation with antialiasing: it enlarges what that leaves.",
            "What it adds is likely, not true: nothing may be read off it that the small picture does not show.",
        ],
    )


def speakers() -> str:
    """Voices of spoken digits."""
    found = load(RESULTS / "speech.json")["digits"]
    names = list(found["steps"])
    return card(
        title="Spoken digits by six speakers: three voices",
        what=f"{', '.join(f'`{name}`' for name in names)}, preset `tiny`, given phonemes, speaker and prosody.",
        parameters=None,
        made="by `benchmarks/speech.py --parts digits`",
        data="The training split of the Free Spoken Digit Dataset (Jackson and others; CC BY-SA 4.0), 8 kHz; takes 0 to"
        " 4 of each word test.",
        training=f"At most {found['seconds'] / 60:.0f} minutes each ("
        + ", ".join(f"{name} {steps:,} steps" for name, steps in found["steps"].items())
        + "), by maximum likelihood, with durations by forced alignment.",
        scores={
            f"{name}: word heard, speaker heard, by listeners trained on natural clips": (
                f"{of['word']:.1%}, {of['speaker']:.1%}"
            )
            for name, of in found["heard"].items()
        }
        | {
            f"{name}: held-out nats a number": f"{of['nats']:.3f}".replace("-", "−")
            for name, of in found["nats"].items()
        },
        uses="Comparing systems; [to listen to](../listening.md).",
        limits=[
            "They say the ten digits and nothing else.",
            "Words and speakers can be told apart, but nobody would take them for people.",
            "Six people recorded themselves for research: don't use their voices as anyone's.",
        ],
    )


CARDS: dict[str, Callable[[], str]] = {
    "mnist": mnist, "classes": classes, "photographs": photographs, "speakers": speakers,
}  # fmt: skip


def main() -> None:
    for name, of in CARDS.items():
        (FOLDER / f"{name}.md").write_text(of())


if __name__ == "__main__":
    main()

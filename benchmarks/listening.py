"""Sounds for the docs: what benchmarks/speech.py made, to listen to beside the originals, with pitch and energy.

    python benchmarks/listening.py

Writes docs/listening.md and draws its pictures; its sounds are kept by the parts of benchmarks/speech.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffeo.apps import speech as tools
from distortion import log_pitch
from results import RESULTS, load, markdown, save

RESULT = RESULTS / "listening.json"
DOCS = Path(__file__).resolve().parent.parent / "docs"
TOLD = {
    "digits": """\
## Spoken digits

Words of the test split by six speakers: as recorded, through Griffin-Lim from the recording's own mel spectrogram, and
as the voices say them, through Griffin-Lim too. The voices are `tiny` ones after minutes of training.""",
    "style": """\
## Style

Words of a `flowtron` that heard espeak-ng at all pitches and paces, in the style of its lowest clips, halfway, and in
that of its highest ones.""",
    "vocoder": """\
## From spectrograms to sound

The same spectrograms of recordings by Griffin-Lim, by `waveglow` alone, by `waveglow` with rounds of phase retrieval
after it, and by these rounds alone.""",
}


def keep(part: str, clips: dict[str, dict[str, Tensor]], settings: tools.Mel) -> None:
    """Write sounds, by what is said and by what made them: the same makers for each."""
    folder = DOCS / "sounds"
    folder.mkdir(exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    for i, (said, by) in enumerate(clips.items()):
        rows[said] = {}
        for j, (maker, sound) in enumerate(by.items()):
            file = f"{part}-{i}-{j}.wav"
            tools.write_audio(sound, folder / file, settings.rate)
            logs = log_pitch(sound, settings, len(sound) // settings.hop)
            rows[said][maker] = {
                "file": file,
                "hertz": None if np.isnan(logs).all() else float(np.exp(np.nanmean(logs))),
                "decibels": float(10 * sound.double().square().mean().clamp_min(1e-12).log10()),
                "seconds": len(sound) / settings.rate,
            }
    save(RESULT, {**load(RESULT, {}), part: rows})


def draw(part: str, rows: dict[str, dict[str, Any]]) -> None:
    """The picture of a part: the wave of each sound above its spectrogram."""
    import matplotlib.pyplot as plt

    columns = list(next(iter(rows.values())))
    figure, axes = plt.subplots(
        2 * len(rows), len(columns), squeeze=False, figsize=(2.2 * len(columns), 2.0 * len(rows)), layout="constrained",
        height_ratios=[1, 3] * len(rows), gridspec_kw={"hspace": 0.02},
    )  # fmt: skip
    for i, (said, by) in enumerate(rows.items()):
        sounds = {maker: tools.read_audio(DOCS / "sounds" / clip["file"])[:2] for maker, clip in by.items()}
        loudest = max(float(sound.abs().max()) for sound, _ in sounds.values())  # so waves of a line have one scale
        for j, (maker, (sound, rate)) in enumerate(sounds.items()):
            wave, spectrum = axes[2 * i, j], axes[2 * i + 1, j]
            wave.plot(sound, lw=0.3, color="black")
            wave.set(xlim=(0, len(sound)), ylim=(-loudest, loudest), title=maker if i == 0 else "")
            spectrum.imshow(tools.to_mel(sound, tools.Mel.of(rate)).T, origin="lower", aspect="auto", cmap="magma")
            spectrum.set(ylabel=said if j == 0 else "")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.title.set_fontsize(8)
        axis.yaxis.label.set_fontsize(7)
    figure.savefig(DOCS / "sounds" / f"{part}.webp", dpi=80)
    plt.close(figure)


def page() -> str:
    """docs/listening.md."""
    parts = [
        told + "\n\n" + _table(part, load(RESULT)[part]) for part, told in TOLD.items() if part in load(RESULT, {})
    ]
    text = "\n\n".join(parts)
    return f"""\
# Listening

What the systems of speech make in the [benchmarks](benchmarks.md#speech), beside recordings. Under each clip its mean
pitch in Hz, its energy in dB of full scale, and its length. These are small models after minutes of training: their
words can be told apart, and speakers too, but nobody would take them for people; consonants are blurred, and `waveglow`
alone whispers.

{text}
"""


def _table(part: str, rows: dict[str, dict[str, Any]]) -> str:
    def player(clip: dict[str, Any]) -> str:
        pitch = "no pitch" if clip["hertz"] is None or math.isnan(clip["hertz"]) else f"{clip['hertz']:.0f} Hz"
        energy = f"{clip['decibels']:.0f} dB".replace("-", "−")
        sound = f'<audio controls preload="none" style="width: 6rem" src="../sounds/{clip["file"]}"></audio>'
        return f"{sound}<br>{pitch}, {energy}, {clip['seconds']:.2f} s"

    makers = list(next(iter(rows.values())))
    table = markdown(["", *makers], [[said, *(player(by[m]) for m in makers)] for said, by in rows.items()])
    return f"![Waves and spectrograms](sounds/{part}.webp)\n\n{table}"


def main() -> None:
    for part, rows in load(RESULT, {}).items():
        draw(part, rows)
    (DOCS / "listening.md").write_text(page())


if __name__ == "__main__":
    main()

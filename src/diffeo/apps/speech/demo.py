"""`make demo-speech`: a voice and a vocoder of words that espeak-ng speaks, and a page that one can listen to.

python -m diffeo.apps.speech.demo FOLDER [SECONDS]
"""

from __future__ import annotations

import base64
import html
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffeo
from diffeo.apps.cards import write_card
from diffeo.apps.speech.alignment import forced_alignment
from diffeo.apps.speech.audio import Mel, from_mel, to_mel, write_audio
from diffeo.apps.speech.clips import Spoken, join
from diffeo.apps.speech.espeak import speak
from diffeo.apps.speech.pictures import spectrogram_png
from diffeo.apps.speech.speaking import say
from diffeo.apps.speech.text import encode_text, symbols_of, units_of
from diffeo.apps.speech.vocoder import Sounds, Vocoder, multiple_of, prediction, vocode
from diffeo.apps.speech.voice import Voice, align, sharpness
from diffeo.storage import replacing

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "river", "teacher", "garden"),
    *("window", "mountain", "summer", "apple", "doctor", "winter", "market", "bottle", "number", "letter", "music"),
)
PITCHES, PACES = (30, 50, 70), (150, 175, 200)
HELD = 12
SECONDS = 240.0
VOICE_SHARE = 0.55  # of the time, for the voice; the rest for the vocoder
RECORDED = "words.npz"  # what is heard where espeak-ng is missing


def main(folder: Path, seconds: float = SECONDS) -> None:
    """Train, speak, and write `index.html`, the sounds and both models."""
    folder.mkdir(parents=True, exist_ok=True)
    began, settings = time.monotonic(), Mel.of(8000)
    sounds, texts, pitches, source = corpus(settings)
    mels = [to_mel(sound, settings) for sound in sounds]
    symbols = symbols_of([units_of(text) for text in texts])
    codes = [encode_text(text, symbols) for text in texts]
    who = [PITCHES.index(pitch) for pitch in pitches]  # each pitch is a speaker of its own
    durations = forced_alignment(mels, codes, who)
    order = torch.randperm(len(sounds), generator=torch.Generator().manual_seed(0)).tolist()

    def of(index: list[int]) -> Spoken:
        chosen = [[values[i] for i in index] for values in (mels, codes, durations)]
        return Spoken(chosen[0], chosen[1], [who[i] for i in index], durations=chosen[2])

    torch.manual_seed(0)
    flow = diffeo.glow_tts(settings.mels, len(symbols), preset="tiny", speakers=len(PITCHES))
    print(f"A voice, from {len(sounds)} words ({source}).", flush=True)
    voice = diffeo.fit(
        Voice(flow), of(order[HELD:]), validation=of(order[:HELD]), collate=join, batch_size=16, epochs=1000, lr=2e-3,
        time_limit=VOICE_SHARE * seconds,
    )  # fmt: skip
    vocoder = diffeo.waveglow(settings.mels, settings.hop, preset="tiny", **prediction(settings))
    print("A vocoder, from their sound.", flush=True)
    multiple = multiple_of(vocoder)
    trained = diffeo.fit(
        Vocoder(vocoder), Sounds([sounds[i] for i in order[HELD:]], settings, multiple=multiple),
        validation=Sounds([sounds[i] for i in order[:HELD]], settings, multiple=multiple), batch_size=8, epochs=1000,
        lr=2e-3, time_limit=(1 - VOICE_SHARE) * seconds,
    )  # fmt: skip
    flow.eval()
    vocoder.eval()

    def heard(mel: Tensor, name: str) -> tuple[str, str]:
        """A sound of a spectrogram by rounds from chance, written, and its player."""
        return _written(folder, from_mel(mel, settings), name, settings)

    def spoken(word: str, name: str, speaker: int = 1, **how: Any) -> tuple[str, str]:
        generator = torch.Generator().manual_seed(1)
        return heard(say(flow, encode_text(word, symbols), speaker=speaker, generator=generator, **how), name)

    shown = order[:3]
    generator = torch.Generator().manual_seed(0)
    sections = [
        ("Held-out words: recorded, from their spectrogram, by the vocoder alone, and by the voice", [
            player for i in shown for player in (
                _written(folder, sounds[i], f"{texts[i]}, recorded", settings),
                heard(mels[i], f"{texts[i]}, from its spectrogram"),
                _written(
                    folder, vocode(vocoder, mels[i], settings, generator=generator),
                    f"{texts[i]}, vocoder",
                    settings,
                ),
                spoken(texts[i], f"{texts[i]}, spoken", who[i]),
            )
        ]),
        ("Tempo", [spoken("summer", f"summer, tempo {t:g}", tempo=t) for t in (0.6, 0.8, 1.0, 1.4, 2.0)]),
        ("Temperature", [spoken("river", f"river, temperature {t:g}", temperature=t) for t in (0.0, 0.3, 0.667, 1.0)]),
        ("Three speakers, who are espeak-ng at three pitches", [
            spoken("window", f"window, {name}", k) for k, name in enumerate(("low", "middle", "high"))
        ]),
    ]  # fmt: skip
    pictures = [
        (
            texts[i],
            base64.b64encode(
                spectrogram_png(mels[i], align(flow, mels[i], codes[i], who[i]), units_of(texts[i]))
            ).decode(),
        )
        for i in shown
    ]
    took = time.monotonic() - began
    page = _page(sections, pictures, len(order) - HELD, voice.steps, trained.steps, took, source)
    with replacing(folder / "index.html") as path:
        path.write_text(page, encoding="utf-8")
    notes = {"symbols": symbols, "reading": "letters", "speakers": ["low", "middle", "high"], "mel": list(settings)}
    diffeo.save(flow, folder / "voice.safetensors", notes=notes)
    diffeo.save(vocoder, folder / "vocoder.safetensors", notes={"vocoder": "waveglow", "mel": list(settings)})
    known = f"{len(order) - HELD} clips of {len(WORDS)} English words, {source} (GPL v3), at three pitches and three "
    known += f"paces, 8 kHz; {HELD} more chose the weights."
    limits = [
        "It has heard single words of one synthetic voice: no sentences, and nothing that passes for a person.",
        "Its three speakers are one voice at three pitches.",
    ]
    write_card(
        folder / "voice.md",
        title="Words: a Glow-TTS of three pitches",
        what="A `glow_tts`, preset `tiny`, of mel spectrograms given letters and a speaker.",
        data=known,
        training=f"{voice.steps} steps of 16 clips in {voice.seconds:.0f} seconds, with durations by forced alignment.",
        scores={
            "loss on the validation clips, nats per mel number and error of durations": f"{voice.validation_loss:.3f}",
            "sharpness of alignment on them": f"{sharpness(flow, of(order[:HELD])):.2f}",
        },
        uses="Trying what `diffeo speech` does, and for tests.",
        limits=limits,
        model=flow,
    )
    write_card(
        folder / "vocoder.md",
        title="Words: a WaveGlow",
        what="A `waveglow`, preset `tiny`, of sound given its mel spectrogram.",
        data=known,
        training=f"{trained.steps} steps of 8 segments in {trained.seconds:.0f} seconds, after a linear prediction "
        "from the spectrogram.",
        scores={"nats a sample of the validation clips": f"{trained.validation_loss:.3f}"},
        uses="Trying what `diffeo speech` does, and for tests.",
        limits=[
            *limits,
            "After so little training it whispers; use it with rounds that follow, which then do the most.",
        ],
        model=vocoder,
    )
    print(f"Held-out loss of the voice {voice.validation_loss:.3f}; nats a sample of the vocoder "
          f"{trained.validation_loss:.3f}.")  # fmt: skip
    print(f"Wrote {folder / 'index.html'}.")


def corpus(settings: Mel) -> tuple[list[Tensor], list[str], list[int], str]:
    """Words at several pitches and paces, by espeak-ng; or as they were recorded of it, where it is missing."""
    try:
        return *spoken_words(settings.rate), "spoken by espeak-ng"
    except ImportError:
        with np.load(str(files("diffeo.apps.speech") / RECORDED)) as file:
            sound, ends = file["sound"].astype(np.float32) / 127, file["ends"]
            texts, pitches = file["texts"].tolist(), file["pitches"].tolist()
        return [torch.from_numpy(s) for s in np.split(sound, ends[:-1])], texts, pitches, "recorded of espeak-ng"


def spoken_words(rate: int) -> tuple[list[Tensor], list[str], list[int]]:
    """The words of the demo at three pitches and three paces, their texts and pitches."""
    import soxr

    sounds, texts, pitches = [], [], []
    for word in WORDS:
        for pitch in PITCHES:
            for pace in PACES:
                said = speak(word, pitch=pitch, words_per_minute=pace)
                sounds.append(torch.from_numpy(soxr.resample(said.audio.numpy(), said.rate, rate)))
                texts.append(word)
                pitches.append(pitch)
    return sounds, texts, pitches


def _written(folder: Path, sound: Tensor, name: str, settings: Mel) -> tuple[str, str]:
    path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.wav"
    write_audio(sound, path, settings.rate)
    return name, base64.b64encode(path.read_bytes()).decode()


def _page(
    sections: list[tuple[str, list[tuple[str, str]]]],
    pictures: list[tuple[str, str]],
    clips: int,
    voice: int,
    vocoder: int,
    took: float,
    source: str,
) -> str:
    parts = []
    for title, players in sections:
        rows = "".join(
            f'<tr><td>{html.escape(name)}</td><td><audio controls src="data:audio/wav;base64,{data}"></audio></td></tr>'
            for name, data in players
        )
        parts.append(f"<h2>{html.escape(title)}</h2><table>{rows}</table>")
    parts.append("<h2>Where each letter begins, by the voice's own search</h2>")
    parts += [
        f'<p>{html.escape(" · ".join(word))}</p><img alt="{html.escape(word)}" src="data:image/png;base64,{data}">'
        for word, data in pictures
    ]
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>A voice</title>
<style>body{{font:16px/1.5 system-ui;max-width:44rem;margin:2rem auto;padding:0 1rem}}img{{max-width:100%}}
td{{padding:.1rem 1rem .1rem 0}}audio{{height:2rem}}</style>
<h1>A voice</h1>
<p>A Glow-TTS of {voice} steps and a WaveGlow of {vocoder} steps, trained on {clips} words at three pitches and three
paces ({source}); all of this page took {took:.0f} seconds. Spoken words are made sound by an algorithm that needs no
training, Griffin and Lim's with magnitudes that are free within a band. Minutes of training give words that one can
tell apart; a vocoder of so few steps whispers.</p>
{"".join(parts)}
</html>
"""


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(float(s) for s in sys.argv[2:3]))

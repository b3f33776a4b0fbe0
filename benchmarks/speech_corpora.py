"""What the benchmark of speech trains on: sentences of espeak-ng, whose times are known, and spoken digits."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.apps import speech as tools
from tables import data_root

WORDS = {
    "articles": "a the my your our this that every some no",
    "adjectives": "quick small brown lazy happy old new green bright silent heavy warm strange little yellow",
    "nouns": "fox dog house river teacher garden window mountain bird child book engine summer apple table doctor "
    "winter market bottle king",
    "verbs": "jumps sees finds opens follows loves wants takes brings keeps hears watches paints sells moves",
    "prepositions": "over under near behind through without above beside",
}
SENTENCES, HELD = 360, 60
LANGUAGE = "en-us"  # of espeak-ng, whose phonemes the voices of recordings read


def sentences(count: int) -> list[str]:
    """Sentences of a small grammar, each different, the same every time."""
    rng = random.Random(0)
    words = {kind: text.split() for kind, text in WORDS.items()}
    found: dict[str, None] = {}
    while len(found) < count:
        chosen = [rng.choice(words["articles"]), rng.choice(words["adjectives"]), rng.choice(words["nouns"])]
        chosen += [rng.choice(words["verbs"]), rng.choice(words["articles"]), rng.choice(words["nouns"])]
        if rng.random() < 0.5:
            chosen += [rng.choice(words["prepositions"]), rng.choice(words["articles"]), rng.choice(words["nouns"])]
        found[" ".join(chosen)] = None
    return list(found)


def espeak_corpus(count: int = SENTENCES) -> tuple[tools.Mel, list[Tensor], list[Tensor], list[Tensor], int]:
    """Spectrograms, texts as phonemes, and the true times in seconds at which phonemes begin, all but the first."""
    import soxr

    settings, mels, names, begins = tools.Mel.of(16000), [], [], []
    for text in sentences(count):
        said = tools.speak(text)
        audio = torch.from_numpy(soxr.resample(said.audio.numpy(), said.rate, settings.rate))
        mels.append(tools.to_mel(audio, settings))
        names.append(said.phonemes)
        begins.append(torch.tensor(said.begins[1:], dtype=torch.float64))
    symbols = {name: i for i, name in enumerate(tools.symbols_of(names), 1)}
    return settings, mels, [torch.tensor([symbols[p] for p in n]) for n in names], begins, len(symbols)


def digits() -> dict[str, Any]:
    """The spoken digits: sound, texts, speakers, and which clips are of the test split."""
    with np.load(data_root() / "speech" / "fsdd_8k.npz") as file:
        audio, offset = file["audio"].astype(np.float32) / 32768, file["offset"]
        text, speaker, name = file["text"].tolist(), file["speaker"].tolist(), file["id"].tolist()
    settings = tools.Mel.of(8000)
    sounds = [torch.from_numpy(audio[a:b].copy()) for a, b in pairwise(offset)]
    shortest = settings.window  # some clips are a seventh of a second
    sounds = [F.pad(s, (0, max(0, shortest - len(s)))) for s in sounds]
    words, who = sorted(set(text)), sorted(set(speaker))
    return {
        "settings": settings,
        "sounds": sounds,
        "mels": [tools.to_mel(sound, settings) for sound in sounds],
        "text": text,
        "word": torch.tensor([words.index(t) for t in text]),
        "words": words,
        "speaker": torch.tensor([who.index(s) for s in speaker]),
        "speakers": who,
        "test": [int(n.rsplit("_", 1)[1]) < 5 for n in name],
    }


def griffin_lim(mel: Tensor, settings: tools.Mel, rounds: int = 60, momentum: float = 0.99) -> Tensor:
    """Sound of a spectrogram as others make it: magnitudes held at those of least squares."""
    return tools.from_mel(mel, settings, rounds=rounds, momentum=momentum, fixed=True)

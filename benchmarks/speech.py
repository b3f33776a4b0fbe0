"""Voices and vocoders: alignment, likelihood, intelligibility, distortion, sound, speed, memory, distillation.

    python benchmarks/speech.py [--parts digits style …] [--minutes 5]

`alignment`, `attention`, `ablations`, `prompts`, `digits` and `style` need espeak-ng, `digits`, `style` and `vocoder`
praat-parselmouth, `peer` the files of another library (see speech_cost.py). Parts that are done are kept in
results/speech.json, so that an interrupted run goes on; a part named is done anew.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffeo
import listening
import speech_cost
import speech_sound
from diffeo.apps import speech as tools
from diffeo.apps.speech.corpus import LONGEST
from diffeo.apps.speech.demo import WORDS as SINGLE
from diffeo.apps.speech.voice import align_clip
from distortion import distortion, mean_hertz
from listeners import error_rate, listen, train_listener, train_recogniser
from results import RESULTS, load, markdown, number, run_parts
from speech_corpora import HELD, LANGUAGE, SENTENCES, digits, espeak_corpus, griffin_lim
from tables import data_root

RESULT = RESULTS / "speech.json"
SYSTEMS = ("glow_tts", "flow_tts", "flowtron")
GUIDED = 1560  # sentences from which attention learns to align by itself, which 300 are too few for
TAKES = 16  # of each word, each at a pitch and a pace of its own
PITCH, PACE = (45, 99), (110, 260)  # as espeak-ng counts them, and words a minute
STYLED = 4  # the clips of one style are a quarter of all
GUIDES = {  # of attention: strength of the prior, weight of the loss over all alignments
    "prior and loss": (1.0, 3.0),
    "loss alone": (0.0, 3.0),
    "prior alone": (1.0, 0.0),
    "neither": (0.0, 0.0),
}
ABLATIONS = {  # of Flow-TTS
    "whole": {},
    "no channel leaves early": {"stages": 1},
    "attention read by the last layer alone": {"listens": False},
    "attention without its prior": {"strength": 0.0},
}
ABLATED_STEPS = 400
WATCHED = 10  # held-out sentences whose attention is looked at during training
ASTRAY = 0.05  # of their phonemes


def main() -> None:
    run_parts(__doc__, RESULT, PARTS, minutes=5.0)


# training ------------------------------------------------------------------------------------------------------------


def train_voice(
    system: str, settings: tools.Mel, data: tools.Spoken, symbols: int, seconds: float, speakers: int = 0
) -> tuple[Any, int]:
    """A voice of these clips, a tenth of which choose its weights."""
    torch.manual_seed(0)
    prosody = 0 if data.prosody is None else len(tools.PROSODY)
    flow = getattr(diffeo, system)(settings.mels, symbols, preset="tiny", speakers=speakers, prosody=prosody)
    if prosody:
        tools.learn_prosody(flow, data)
    result = diffeo.fit(
        tools.Voice(flow), data, collate=tools.join, batch_size=16, time_limit=seconds, epochs=1000, lr=2e-3, seed=0,
        progress=False,
    )  # fmt: skip
    print(f"{system}: {result.steps} steps in {result.seconds:.0f} s", flush=True)
    return flow.eval(), result.steps


@torch.no_grad()
def nats(flow: Any, data: tools.Spoken, shuffled: bool = False) -> float:
    """−log p of a number of a spectrogram, given its text, or that of the next clip of another text that fits in."""
    total, numbers = 0.0, 0
    for i in range(len(data)):
        mel, context = data[i]
        if shuffled:
            steps = len(mel) // 2
            others = [data.texts[j % len(data)] for j in range(i + 1, i + len(data))]
            text = next(t for t in others if 1 < len(t) <= steps and not torch.equal(t, data.texts[i]))
            context = {**context, "text": text}
        x, c = tools.join([(mel, {k: v for k, v in context.items() if k != "durations"})])
        total -= float(flow(x, c).sum())
        numbers += mel.numel()
    return total / numbers


def gaussian_nats(train: tools.Spoken, held: tools.Spoken) -> float:
    """−log p of a number by a diagonal Gaussian for each phoneme, with the durations of forced alignment."""

    def heard(data: tools.Spoken) -> list[Tensor]:
        return [t.repeat_interleave(2 * d) for t, d in zip(data.texts, data.durations or [], strict=True)]

    return gaussians(train.mels, heard(train), held.mels, heard(held))


def gaussians(mels: list[Tensor], heard: list[Tensor], others: list[Tensor], other: list[Tensor]) -> float:
    """−log p of a number of other spectrograms by a diagonal Gaussian for each phoneme, known of every frame."""
    x, letter = torch.cat(mels).double(), torch.cat(heard)
    y, other = torch.cat(others).double(), torch.cat(other)
    total = 0.0
    for symbol in other.unique():
        mine = x[letter == symbol] if (letter == symbol).sum() > 10 else x
        normal = torch.distributions.Normal(mine.mean(0), mine.std(0).clamp_min(1e-3))
        total -= float(normal.log_prob(y[other == symbol]).sum())
    return total / y.numel()


# parts ---------------------------------------------------------------------------------------------------------------


def alignment(seconds: float) -> dict[str, Any]:
    """How far boundaries of phonemes are from their true times, on held-out sentences; and held-out nats."""
    settings, mels, texts, begins, symbols = espeak_corpus()
    frame = settings.hop / settings.rate
    began = time.monotonic()
    durations = tools.forced_alignment(mels, texts)
    took = time.monotonic() - began
    train, held = list(range(HELD, SENTENCES)), list(range(HELD))

    def of(index: list[int]) -> tools.Spoken:
        chosen = [[values[i] for i in index] for values in (mels, texts, durations)]
        return tools.Spoken(chosen[0], chosen[1], durations=chosen[2])

    def error(found: list[Tensor]) -> dict[str, float]:
        """In ms, of frames that each phoneme of a held-out sentence lasts."""
        apart = [(settings.ends(f, len(mels[i]))[:-1] - begins[i]).abs() for f, i in zip(found, held, strict=True)]
        every = 1000 * torch.cat(apart)
        return {"mean": float(every.mean()), "median": float(every.median())}

    def of_true_times() -> float:
        """Nats a number by Gaussians, where each frame is of the phoneme that espeak-ng speaks in its middle."""

        def heard(i: int) -> Tensor:
            times = torch.arange(len(mels[i]), dtype=torch.float64) * frame
            return texts[i][torch.searchsorted(begins[i], times, right=True)]

        sides = [([mels[i] for i in index], [heard(i) for i in index]) for index in (train, held)]
        return gaussians(*sides[0], *sides[1])

    uniform = [torch.full((len(texts[i]),), len(mels[i]) / len(texts[i])) for i in held]
    rows = {"equal shares": error(uniform), "forced alignment": error([2 * durations[i] for i in held])}
    likelihood = {
        "Gaussian of each phoneme, true times": {"nats": of_true_times()},
        "Gaussian of each phoneme": {"nats": gaussian_nats(of(train), of(held))},
    }
    steps, spoken = {}, [texts[i] for i in held]
    recogniser = train_recogniser([mels[i] for i in train], [texts[i] for i in train], symbols)

    def misheard(made: list[Tensor]) -> float:
        """Share of phonemes, of spectrograms through Griffin-Lim."""
        return error_rate(recogniser, [tools.to_mel(griffin_lim(mel, settings), settings) for mel in made], spoken)

    natural = [mels[i] for i in held]
    phonemes = {"natural": error_rate(recogniser, natural, spoken), "natural, Griffin-Lim": misheard(natural)}
    for system in SYSTEMS:
        flow, steps[system] = train_voice(system, settings, of(train), symbols, seconds)
        phonemes[system] = misheard(
            [tools.say(flow, text, generator=torch.Generator().manual_seed(n)) for n, text in enumerate(spoken)]
        )
        rows[system] = error([tools.align(flow, mels[i], texts[i]) for i in held])
        likelihood[system] = {"nats": nats(flow, of(held)), "shuffled": nats(flow, of(held), shuffled=True)}

        def off(lengths: list[int]) -> float:
            """Error of the lengths of held-out sentences, as a share."""
            return statistics.mean(abs(n - len(mels[i])) / len(mels[i]) for n, i in zip(lengths, held, strict=True))

        likelihood[system]["length_error"] = off([2 * int(tools.durations_of(flow, texts[i]).sum()) for i in held])
        if system == "flowtron":
            draws = (torch.Generator().manual_seed(n) for n in held)
            made = [tools.say(flow, texts[i], gate=True, generator=draw) for i, draw in zip(held, draws, strict=True)]
            likelihood[system]["gate_error"] = off([len(mel) for mel in made])
    return {
        "error_ms": rows, "nats": likelihood, "phonemes": phonemes, "steps": steps, "seconds": seconds,
        "alignment_seconds": took, "minutes_of_sound": sum(map(len, mels)) * frame / 60,
    }  # fmt: skip


def attention(seconds: float) -> dict[str, Any]:
    """At which step Flowtron's attention is a diagonal, with and without its prior and the loss of alignments.

    No alignment is given. It is a diagonal where at most `ASTRAY` of the phonemes of held-out sentences are never the
    likeliest of a frame, or are gone back to. How well it follows the sound, boundaries tell: how far they lie from the
    truth by the likeliest path through the attention, less what they lead by in the mean.
    """
    settings, mels, texts, begins, symbols = espeak_corpus(GUIDED)
    held, train = list(range(WATCHED)), list(range(HELD, GUIDED))

    def of(index: list[int]) -> tools.Spoken:
        return tools.Spoken([mels[i] for i in index], [texts[i] for i in index])

    def error(durations: list[Tensor]) -> tuple[float, float]:
        """How far boundaries are from the truth but for their lead, and that, in ms."""
        pairs = zip(durations, held, strict=True)
        late = 1000 * torch.cat([settings.ends(d, len(mels[i]))[:-1] - begins[i] for d, i in pairs])
        return float((late - late.mean()).abs().mean()), -float(late.mean())

    equal, _ = error([torch.full((len(texts[i]),), len(mels[i]) / len(texts[i])) for i in held])

    def astray(attention: list[Tensor]) -> int:
        """Phonemes that attention misses, and steps back."""
        path = torch.stack(attention).exp().mean(0).argmax(-1)
        return attention[0].shape[-1] - len(path.unique()) + int((path.diff() < 0).sum())

    runs: dict[str, Any] = {}
    for name, (strength, weight) in GUIDES.items():
        torch.manual_seed(0)
        flow, curve = diffeo.flowtron(settings.mels, symbols, preset="tiny", strength=strength), []

        def look(result: Any, flow: Any = flow, curve: list = curve) -> None:
            found = [align_clip(flow, mels[i], texts[i], None) for i in held]
            lost = sum(astray(f.attention) for f in found) / sum(len(texts[i]) for i in held)
            curve.append([result.steps, *error([2 * f.durations for f in found]), lost])

        diffeo.fit(
            tools.Voice(flow, attention=weight), of(train), collate=tools.join, batch_size=16, time_limit=seconds,
            epochs=1000, lr=2e-3, seed=0, progress=False, on_evaluation=look,
        )  # fmt: skip
        runs[name] = {"curve": curve, "diagonal": next((step for step, *_, lost in curve if lost <= ASTRAY), None)}
        print(name, runs[name], flush=True)
    return {"equal": equal, "runs": runs, "seconds": seconds}


def ablations(_: float) -> dict[str, Any]:
    """Held-out nats of Flow-TTS after as many steps each, without one of its novelties."""
    settings, mels, texts, _, symbols = espeak_corpus()
    durations = tools.forced_alignment(mels, texts)

    def of(index: range) -> tools.Spoken:
        chosen = [[values[i] for i in index] for values in (mels, texts, durations)]
        return tools.Spoken(chosen[0], chosen[1], durations=chosen[2])

    train, held = of(range(HELD, SENTENCES)), of(range(HELD))
    found = {}
    for name, options in ABLATIONS.items():
        torch.manual_seed(0)
        flow = diffeo.flow_tts(settings.mels, symbols, preset="tiny", **options)
        diffeo.fit(
            tools.Voice(flow), train, collate=tools.join, batch_size=16, steps=ABLATED_STEPS, lr=2e-3, seed=0,
            progress=False,
        )  # fmt: skip
        found[name] = nats(flow.eval(), held)
        print(name, found[name], flush=True)
    return {"nats": found, "steps": ABLATED_STEPS}


def prompts(seconds: float) -> dict[str, Any]:
    """Held-out nats of voices of one speaker, who reads prompts of a telephone."""
    with np.load(data_root() / "speech" / "asterisk_allison_16k.npz") as file:
        audio, offset, written = file["audio"].astype(np.float32) / 32768, file["offset"], file["text"].tolist()
    settings = tools.Mel.of(16000)
    units = [tools.units_of(text, LANGUAGE) for text in written]
    symbols = tools.symbols_of(units)
    texts = [tools.encode_text(text, symbols, LANGUAGE) for text in written]
    mels = [tools.to_mel(torch.from_numpy(audio[a:b].copy()), settings) for a, b in pairwise(offset)]
    longest = LONGEST * settings.rate / settings.hop  # frames, beyond which `diffeo speech check` names a clip
    pairs = enumerate(zip(mels, texts, strict=True))
    fits = [i for i, (mel, text) in pairs if (len(mel) + 1) // 2 >= len(text) > 0 and len(mel) <= longest]
    durations = tools.forced_alignment([mels[i] for i in fits], [texts[i] for i in fits])

    def of(index: list[int]) -> tools.Spoken:
        """Of the clips that fit, by their place."""
        return tools.Spoken([mels[fits[k]] for k in index], [texts[fits[k]] for k in index],
                            durations=[durations[k] for k in index])  # fmt: skip

    held = list(range(0, len(fits), 10))
    train = of([k for k in range(len(fits)) if k % 10])
    likelihood, steps = {"Gaussian of each phoneme": {"nats": gaussian_nats(train, of(held))}}, {}
    for system in SYSTEMS:
        flow, steps[system] = train_voice(system, settings, train, len(symbols), seconds)
        likelihood[system] = {"nats": nats(flow, of(held)), "shuffled": nats(flow, of(held), shuffled=True)}
        print(system, likelihood[system], flush=True)
    return {"nats": likelihood, "steps": steps, "seconds": seconds, "clips": len(fits), "held": len(held)}


def spoken_digits(seconds: float) -> dict[str, Any]:
    """Whether listeners that know only natural clips recognise digits and speakers of voices; and their controls."""
    from scipy.stats import spearmanr

    data = digits()
    settings, mels = data["settings"], data["mels"]
    symbols = tools.symbols_of([tools.units_of(word, LANGUAGE) for word in data["words"]])
    train = [i for i, test in enumerate(data["test"]) if not test]
    test = [i for i, test in enumerate(data["test"]) if test]
    natural = [mels[i] for i in train]
    words = train_listener(natural, data["word"][train], 10)
    voices = train_listener(natural, data["speaker"][train], len(data["speakers"]))
    texts = [tools.encode_text(text, symbols, LANGUAGE) for text in data["text"]]
    fits = [i for i in range(len(mels)) if (len(mels[i]) + 1) // 2 >= len(texts[i])]
    train, test = [i for i in train if i in set(fits)], [i for i in test if i in set(fits)]
    who = data["speaker"].tolist()
    durations = tools.forced_alignment([mels[i] for i in fits], [texts[i] for i in fits], [who[i] for i in fits])
    at = dict(zip(fits, durations, strict=True))

    def of(index: list[int]) -> tools.Spoken:
        return tools.Spoken([mels[i] for i in index], [texts[i] for i in index], [who[i] for i in index],
                            durations=[at[i] for i in index])  # fmt: skip

    def heard(made: list[Tensor], index: list[int]) -> dict[str, float]:
        return {
            "word": listen(words, made, data["word"][index])[0],
            "speaker": listen(voices, made, data["speaker"][index])[0],
        }

    def sounded(made: list[Tensor]) -> list[Tensor]:
        return [tools.to_mel(griffin_lim(mel, settings), settings) for mel in made]

    def far(made: list[Tensor]) -> dict[str, float]:
        clips = [griffin_lim(mel, settings) for mel in made[::6]]
        return distortion(clips, [data["sounds"][i] for i in test[::6]], settings)

    rows = {
        "natural": heard([mels[i] for i in test], test),
        "natural, Griffin-Lim": heard(sounded([mels[i] for i in test]), test),
    }
    middle = torch.cat(natural).mean(0)
    apart = {
        "natural, Griffin-Lim": far([mels[i] for i in test]),
        "mean of all frames": far([middle.expand(len(mels[i]), -1).clone() for i in test]),
    }
    controls: dict[str, dict[str, float]] = {}
    likelihood, steps = {"Gaussian of each phoneme": {"nats": gaussian_nats(of(train), of(test))}}, {}
    shown = {
        f"{data['text'][i]}, {data['speakers'][who[i]]}": n
        for n, i in enumerate(test)
        if int(data["word"][i]) == 3 * who[i] % 10
    }  # one digit of each speaker
    clips = {
        said: {"recorded": data["sounds"][test[n]], "Griffin-Lim": griffin_lim(mels[test[n]], settings)}
        for said, n in shown.items()
    }
    for system in SYSTEMS:
        flow, steps[system] = train_voice(system, settings, of(train), len(symbols), seconds, 6)
        generator = torch.Generator().manual_seed(0)
        made = [tools.say(flow, texts[i], speaker=who[i], temperature=0.667, generator=generator) for i in test]
        rows[system], apart[system] = heard(sounded(made), test), far(made)
        for said, n in shown.items():
            clips[said][system] = griffin_lim(made[n], settings)
        likelihood[system] = {"nats": nats(flow, of(test)), "shuffled": nats(flow, of(test), shuffled=True)}
        first = [texts[test[i]] for i in range(0, len(test), 15)]
        tempi = [0.6, 0.8, 1.0, 1.25, 1.6, 2.0]
        length = [sum(len(tools.say(flow, t, speaker=0, tempo=tempo)) for t in first) for tempo in tempi]
        heats = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]

        def variance(heat: float, flow: Any = flow, first: list[Tensor] = first) -> float:
            generator = torch.Generator().manual_seed(0)
            draws = [
                torch.stack([tools.say(flow, t, speaker=0, temperature=heat, generator=generator) for _ in range(4)])
                for t in first[:6]
            ]
            return statistics.mean(float(d.var(0).mean()) for d in draws)

        controls[system] = {
            "length_scale": float(spearmanr([1 / t for t in tempi], length).statistic),
            "temperature": float(spearmanr(heats, [variance(heat) for heat in heats]).statistic),
        }
    listening.keep("digits", clips, settings)
    return {
        "heard": rows,
        "distortion": apart,
        "controls": controls,
        "nats": likelihood,
        "steps": steps,
        "seconds": seconds,
    }


def style(seconds: float) -> dict[str, Any]:
    """Words of a voice that heard them at all pitches and paces, in the style of some clips or others."""
    import soxr
    from scipy.stats import spearmanr

    settings, rng = tools.Mel.of(8000), random.Random(0)
    texts = [word for word in SINGLE for _ in range(TAKES)]
    pitches, paces = ([rng.randint(*ends) for _ in texts] for ends in (PITCH, PACE))
    sounds = []
    for text, pitch, pace in zip(texts, pitches, paces, strict=True):
        said = tools.speak(text, voice="en-us+f3", pitch=pitch, words_per_minute=pace)
        sounds.append(torch.from_numpy(soxr.resample(said.audio.numpy(), said.rate, settings.rate)))
    symbols = tools.symbols_of([tools.units_of(text) for text in texts])
    mels = [tools.to_mel(sound, settings) for sound in sounds]
    codes = [tools.encode_text(text, symbols) for text in texts]
    held = list(range(0, len(texts), TAKES))  # one take of each word
    durations = tools.forced_alignment(mels, codes)
    prosody = [tools.prosody_of(sound, settings.rate, len(code)) for sound, code in zip(sounds, codes, strict=True)]

    def of(index: list[int]) -> tools.Spoken:
        parts = [[values[i] for i in index] for values in (mels, codes, durations, prosody)]
        return tools.Spoken(parts[0], parts[1], durations=parts[2], prosody=parts[3])

    train = [i for i in range(len(sounds)) if i not in set(held)]
    flow, steps = train_voice("flowtron", settings, of(train), len(symbols), seconds)
    said = [codes[i] for i in held]

    def manner(index: list[int]) -> tuple[Tensor, Tensor]:
        """How clips are said: the mean of their noise, and of their prosody."""
        data = of(index)
        return tools.style_of(flow, data), torch.stack(prosody)[index].nanmean(0)

    def spoken(style: Tensor, prosody: Tensor) -> list[Tensor]:
        return [tools.say(flow, text, style=style, prosody=prosody, temperature=0.3,
                          generator=torch.Generator().manual_seed(n)) for n, text in enumerate(said)]  # fmt: skip

    def hertz(made: list[Tensor]) -> float:
        return mean_hertz([griffin_lim(mel, settings) for mel in made], settings)

    def seconds_of(made: list[Tensor]) -> float:
        return statistics.mean(len(mel) for mel in made) * settings.hop / settings.rate

    def move(first: list[int], second: list[int], measure: Callable[[list[Tensor]], float]) -> dict[str, Any]:
        """From the manner of some clips to that of others: how far words move, as a share of how far the clips lie."""
        ends = [manner(index) for index in (first, second)]
        weights = [0.0, 0.25, 0.5, 0.75, 1.0]
        between = [measure(spoken(*(torch.lerp(*pair, w) for pair in zip(*ends, strict=True)))) for w in weights]
        natural = [measure([mels[i] for i in index]) for index in (first, second)]
        return {
            "natural": natural, "between": between, "weights": weights,
            "moved": (between[-1] - between[0]) / (natural[1] - natural[0]),
            "correlation": abs(float(spearmanr(weights, between).statistic)),
        }  # fmt: skip

    def ends(values: list[int]) -> tuple[list[int], list[int]]:
        """The clips of the least and of the greatest values."""
        ordered = sorted(train, key=lambda i: values[i])
        return ordered[: len(train) // STYLED], ordered[-(len(train) // STYLED) :]

    pitch, pace = move(*ends(pitches), hertz), move(*ends(paces), seconds_of)
    low, high = (manner(index) for index in ends(pitches))
    styles = {"lowest": 0.0, "halfway": 0.5, "highest": 1.0}
    made = {name: spoken(*(torch.lerp(*pair, w) for pair in zip(low, high, strict=True))) for name, w in styles.items()}
    few = range(0, len(held), len(held) // 3)
    clips = {texts[held[n]]: {name: griffin_lim(mels[n], settings) for name, mels in made.items()} for n in few}
    listening.keep("style", clips, settings)
    return {"pitch": pitch, "pace": pace, "steps": steps, "seconds": seconds}


PARTS = {
    "alignment": alignment, "attention": attention, "ablations": ablations, "prompts": prompts,
    "digits": spoken_digits, "style": style, "vocoder": speech_sound.vocoder, "speed": speech_cost.speed,
    "stepwise": speech_cost.stepwise, "peer": speech_cost.peer, "memory": speech_cost.memory,
    "distillation": speech_sound.distillation,
}  # fmt: skip


# docs ----------------------------------------------------------------------------------------------------------------


def section() -> str:
    """Each part that was measured."""
    content = load(RESULT, {})
    told = {
        "alignment": _told_alignment, "attention": _told_attention, "ablations": _told_ablations,
        "prompts": _told_prompts, "digits": _told_digits, "style": _told_style, "vocoder": speech_sound.told_vocoder,
        "speed": speech_cost.told_speed, "stepwise": speech_cost.told_stepwise,
        "peer": speech_cost.told_peer, "memory": speech_cost.told_memory,
        "distillation": speech_sound.told_distillation,
    }  # fmt: skip
    parts = [tell(content[name]) for name, tell in told.items() if name in content]
    if not parts:
        return ""
    text = "\n\n".join(parts)
    return f"## Speech\n\n{text}\n\n    python benchmarks/speech.py\n"


def _told_alignment(r: dict[str, Any]) -> str:
    equal = r["error_ms"]["equal shares"]["mean"]
    rows = [
        [name, f"{e['mean']:.1f}", f"{e['median']:.1f}", f"{e['mean'] / equal:.2f}"]
        for name, e in r["error_ms"].items()
    ]
    nat = [
        [name, number(n["nats"]), number(n["shuffled"]) if "shuffled" in n else "",
         f"{100 * n['length_error']:.0f} %" if "length_error" in n else ""]
        for name, n in r["nats"].items()
    ]  # fmt: skip
    heard = [[name, f"{100 * share:.1f} %"] for name, share in r.get("phonemes", {}).items()]
    gate = r["nats"]["flowtron"].get("gate_error")
    gated = "" if gate is None else f"\nBy its gate, the length of `flowtron` is off by {100 * gate:.0f} %."
    return f"""\
**Alignment.** {r["minutes_of_sound"]:.0f} minutes of sentences spoken by espeak-ng, whose times of phonemes are known;
{HELD} sentences held out, presets `tiny` after at most {r["seconds"] / 60:.0f} minutes of training on a shared machine
({", ".join(f"{s}: {n:,} steps" for s, n in r["steps"].items())}). Distance of boundaries from the truth, and as a share
of that of equal shares; forced alignment took {r["alignment_seconds"]:.0f} s.

{markdown(["boundaries by", "mean, ms", "median, ms", "of equal shares"], rows)}

Held-out nats a number of the spectrogram (lower is better), with the texts of other sentences, and the error of the
predicted length. `glow_tts`, without durations, gives the density of the likeliest alignment.{gated}

{markdown(["model", "nats", "texts of others", "length"], nat)}

Phonemes that a recogniser mishears in these sentences, as voices say them at temperature 0.667, through Griffin-Lim
(insertions, omissions and changes; the recogniser was trained on the natural training clips alone, by CTC):

{markdown(["clips", "phoneme error rate"], heard)}"""


def _told_attention(r: dict[str, Any]) -> str:
    rows = []
    for name, run in r["runs"].items():
        last, far, lead, lost = run["curve"][-1]
        diagonal = "not" if run["diagonal"] is None else f"{run['diagonal']:,}"
        rows.append([name, diagonal, f"{last:,}", f"{100 * lost:.1f} %", f"{far:.0f}", number(round(lead), 0)])
    return f"""\
**Attention without alignments.** A `flowtron`, `tiny`, on {GUIDED - HELD:,} sentences made like those,
at most {r["seconds"] / 60:g} minutes each, that is given no alignment:
the prior keeps attention near the diagonal, the loss (`ctc_alignment_loss`) asks that letters be heard in order. It
is a diagonal where at most {100 * ASTRAY:.0f} % of the letters of {WATCHED} held-out sentences are missed (never the
likeliest of a frame) or gone back to; looked at after each epoch. Boundaries are counted but for what they lead by in
the mean; those of equal shares are {r["equal"]:.0f} ms from the truth, so that a diagonal says order more than time.
`diffeo speech fit` gives every system the durations of forced alignment, which are far nearer.

{markdown(["taught by", "diagonal at step", "steps", "letters astray", "ms from the truth", "lead, ms"], rows)}"""


def _told_ablations(r: dict[str, Any]) -> str:
    rows = [[name, number(value)] for name, value in r["nats"].items()]
    return f"""\
**Flow-TTS without one of its novelties**, `tiny`, on the same sentences, after {r["steps"]:,} steps each:

{markdown(["", "held-out nats a number"], rows)}"""


def _told_prompts(r: dict[str, Any]) -> str:
    rows = [
        [name, number(n["nats"]), number(n["shuffled"]) if "shuffled" in n else ""] for name, n in r["nats"].items()
    ]
    return f"""\
**Prompts.** {r["clips"]:,} prompts of at most {LONGEST:.0f} seconds by one speaker, read as phonemes by espeak-ng,
{r["held"]} of them held out; presets `tiny` after at most {r["seconds"] / 60:.0f} minutes
({", ".join(f"{s}: {n:,} steps" for s, n in r["steps"].items())}).

{markdown(["model", "held-out nats a number", "texts of others"], rows)}"""


def _told_digits(r: dict[str, Any]) -> str:
    ceiling = r["heard"]["natural"]["word"]
    rows = [
        [name, f"{100 * h['word']:.1f} %", f"{h['word'] / ceiling:.2f}", f"{100 * h['speaker']:.1f} %"]
        for name, h in r["heard"].items()
    ]
    nat = [[name, number(n["nats"]), number(n["shuffled"]) if "shuffled" in n else ""] for name, n in r["nats"].items()]
    apart = [
        [
            name,
            f"{d['mcd']:.1f}",
            "" if math.isnan(d["cents"]) else f"{d['cents']:.0f}",
            f"{100 * d['voicing']:.0f} %",
            f"{d['energy']:.1f}" if "energy" in d else "",
        ]
        for name, d in r.get("distortion", {}).items()
    ]
    control = [[name, f"{c['length_scale']:.2f}", f"{c['temperature']:.2f}"] for name, c in r["controls"].items()]
    return f"""\
**Spoken digits.** Six speakers, texts as phonemes; listeners trained on natural clips alone hear the words and speakers
of the test split (takes 0 to 4), natural and as voices say them, through Griffin-Lim. Presets `tiny` after at most
{r["seconds"] / 60:.0f} minutes
({", ".join(f"{s}: {n:,} steps" for s, n in r["steps"].items())}), temperature 0.667.

{markdown(["clips", "word", "of natural", "speaker"], rows)}

{markdown(["model", "held-out nats a number", "texts of others"], nat)}

Distance of every sixth clip, through Griffin-Lim, from the recording of the same word by the same speaker, along the
best path in time: mel-cepstral distortion, log-F0 error, frames voiced in one of them alone, and the root mean square
error of the energy of frames, of at least −60 dB.

{markdown(["clips", "MCD, dB", "log-F0, cents", "voicing", "energy, dB"], apart)}

Rank correlation of the length that is asked for with that of the sound, and of temperature with variance:

{markdown(["model", "length", "temperature"], control)}"""


def _told_style(r: dict[str, Any]) -> str:
    pitch, pace = r["pitch"], r["pace"]
    low, high = pitch["natural"]
    told = ", ".join(f"{hertz:.0f}" for hertz in pitch["between"])
    long = ", ".join(f"{seconds:.2f}" for seconds in pace["between"])
    return f"""\
**Style.** A `flowtron`, `tiny`, after at most {r["seconds"] / 60:.0f} minutes ({r["steps"]:,} steps)
on {len(SINGLE)} words of espeak-ng, {TAKES} times each, every time at another pitch and pace, with the prosody of each
clip. A style is a quarter of the clips: the lowest have {low:.0f} Hz in the mean, the highest {high:.0f}, by Griffin
and Lim's algorithm as the rest. The words in the style of those, of these and of three mixtures between: {told} Hz,
{100 * pitch["moved"]:.0f} % of the distance; rank correlation of weight and pitch {pitch["correlation"]:.2f}. From the
style of the slowest clips ({pace["natural"][0]:.2f} s in the mean) to that of the fastest ({pace["natural"][1]:.2f} s):
{long} s, {100 * pace["moved"]:.0f} % of the distance, rank correlation {pace["correlation"]:.2f}."""


if __name__ == "__main__":
    main()

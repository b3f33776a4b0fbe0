"""`diffeo speech check` and `fit`: voices from recordings."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from diffeo.cli.app import MODEL, app, checkpoint_of, parse_duration
from diffeo.cli.clips import (
    PRESETS,
    Corpus,
    Hearing,
    Rate,
    Seed,
    SkipBad,
    check_letters,
    choice,
    first_rate,
    kept,
    named,
)

speech = typer.Typer(
    rich_markup_mode=None,
    name="speech",
    help="Voices: check a corpus, fit, say, interpolate, align; vocoders.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(speech)

FEWEST, HELD = 20, 200  # clips of a corpus; clips at most that validate
WATCHED, MEASURED = 8, 32  # of these, how many show how sharp the alignment is, and how likely clips are, on the way
APART, SHARE = 60.0, 20.0  # seconds between samples, at least; and at least so many times what one takes
Reading = Annotated[
    str | None,
    typer.Option(
        help="How texts are read: letters, or phonemes of a language of espeak-ng, such as en-us.",
        show_default="en-us where espeak-ng is installed and texts look English, or else letters",
    ),
]


@speech.command()
def check(corpus: Corpus, reading: Reading = None) -> None:
    """List what is wrong with recordings and texts. The exit status is 1 if anything is."""
    from diffeo.apps.speech import check_corpus, read_corpus

    clips = read_corpus(corpus)
    problems = check_corpus(clips, reading=_reading(clips, reading))
    for line in problems:
        print(line)
    print(f"{len(clips)} clip{'s' * (len(clips) != 1)}, {len(problems)} remark{'s' * (len(problems) != 1)}.")
    if problems:
        raise typer.Exit(1)


@speech.command(epilog="Example:  diffeo speech fit LJSpeech-1.1/ -o voice.safetensors --time-limit 2h")
def fit(
    corpus: Corpus,
    output: Annotated[Path, typer.Option("-o", "--output", help="Voice file to write.")] = Path("voice.safetensors"),
    system: Annotated[str, typer.Option(help="Which flow: glow_tts, flow_tts or flowtron.")] = "glow_tts",
    preset: Annotated[str, typer.Option(help="Size of the flow: tiny, small or paper.")] = "small",
    reading: Reading = None,
    rate: Rate = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.", show_default="by size", min=1)] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Training time, as 90s, 5m or 1h.", show_default="none")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Clips in a step.", min=1)] = 32,
    samples_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a sentence, spoken as training goes, and a picture of its alignment.",
            show_default="beside the voice file",
        ),
    ] = None,
    no_samples: Annotated[bool, typer.Option("--no-samples", help="Write no sentence and picture on the way.")] = False,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted fit.")] = False,
) -> None:
    """Train a voice. Prints its nats per mel number on held-out clips."""
    import shutil

    import torch

    import diffeo
    from diffeo.apps import speech as tools
    from diffeo.cli.files import check_output
    from diffeo.recipes import recipes

    check_output(output, (MODEL,), corpus)
    system, preset = choice("--system", system, tuple(recipes("spectrograms"))), choice("--preset", preset, PRESETS)
    seconds = None if time_limit is None else parse_duration(time_limit)
    folder = checkpoint_of(output, resume)
    if no_samples and samples_dir is not None:
        raise ValueError("--samples-dir and --no-samples exclude each other")
    samples = None if no_samples else samples_dir or output.with_name(f"{output.stem}-samples")
    if samples is not None and find_spec("PIL") is None:
        raise ValueError('samples are pictures, too, which need Pillow: pip install "diffeo[speech]", or --no-samples')
    if samples is not None:
        _check_folder(samples)
    clips = tools.read_corpus(corpus)
    settings = tools.Mel.of(rate or first_rate(clips, skip_bad))
    reading = _reading(clips, reading)
    _name_unspelled(clips, reading)
    usable, heard = _usable(clips, settings, skip_bad, reading)
    mels, prosody = ([each[i] for each in heard] for i in range(2))
    if len(usable) < FEWEST:
        raise ValueError(f"{corpus}: {len(usable)} clips; a voice needs at least {FEWEST}")
    symbols = tools.symbols_of([tools.units_of(clip.text, reading) for clip in usable])
    speakers = sorted({clip.speaker for clip in usable})
    texts = [tools.encode_text(clip.text, symbols, reading) for clip in usable]
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed)).tolist()
    tenth = min(HELD, max(1, len(order) // 10))
    several = len(speakers) > 1
    voices = [speakers.index(clip.speaker) for clip in usable] if several else None
    print("Aligning letters and recordings.", flush=True)
    durations = tools.forced_alignment(mels, texts, voices)

    def of(index: list[int]) -> Any:
        who = None if voices is None else [voices[i] for i in index]
        parts = [[values[i] for i in index] for values in (mels, texts, durations, prosody)]
        return tools.Spoken(parts[0], parts[1], who, durations=parts[2], prosody=parts[3])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = getattr(diffeo, system)(
            settings.mels, len(symbols), preset=preset, speakers=len(speakers) if several else 0,
            prosody=len(tools.PROSODY),
        )  # fmt: skip
    minutes = sum(len(mel) for mel in mels) * settings.hop / settings.rate / 60
    count = sum(p.numel() for p in flow.parameters())
    print(
        f"{len(usable)} clips, {minutes:.1f} minutes at {settings.rate} Hz, {len(speakers)} speaker"
        f"{'s' * several}, {len(symbols)} signs; {system}, {preset}: {count:,} parameters.",
        flush=True,
    )
    notes = {"symbols": symbols, "reading": reading, "speakers": speakers, "mel": list(settings)}
    shown = usable[order[0]]

    due = -math.inf  # when a sample is to be written again

    def write_sample(steps: int) -> None:
        nonlocal due
        if samples is None:
            return
        began = time.monotonic()
        who = speakers.index(shown.speaker) if several else None
        mel = tools.say(flow, tools.encode_text(shown.text, symbols, reading), speaker=who)
        tools.write_audio(tools.from_mel(mel, settings), samples / f"{steps:08d}.wav", settings.rate)
        clip, letters = mels[order[0]], texts[order[0]]
        frames = tools.align(flow, clip, letters, who, prosody[order[0]])
        picture = tools.spectrogram_png(clip, frames, tools.units_of(shown.text, reading))
        (samples / f"{steps:08d}.png").write_bytes(picture)
        due = time.monotonic() + max(APART, SHARE * (time.monotonic() - began))

    def speak(result: Any) -> None:
        if time.monotonic() >= due:
            write_sample(result.steps)
        now = result.history[-1]["validation_loss"] if result.history else result.validation_loss
        line = f"step {result.steps}: held-out loss {now:.3f}, nats per mel number "
        line += f"{tools.nats(flow, of(order[: min(tenth, MEASURED)])):.3f}"
        if system != "flow_tts":  # whose attention does not look at sound
            line += f", alignment sharpness {tools.sharpness(flow, of(order[: min(tenth, WATCHED)])):.2f}"
        print(line, flush=True)

    tools.learn_prosody(flow, of(order[tenth:]))
    training: dict[str, Any] = {} if steps is None else {"steps": steps}
    if samples is not None:
        _make_room(samples, resume)
    result = diffeo.fit(
        tools.Voice(flow), of(order[tenth:]), validation=of(order[:tenth]), collate=tools.join, batch_size=batch_size,
        time_limit=seconds, seed=seed, lr=4e-3, checkpoint=folder, resume=resume, on_evaluation=speak,
        **training,
    )  # fmt: skip
    diffeo.save(flow, output, notes=notes)
    shutil.rmtree(folder, ignore_errors=True)
    write_sample(result.steps)  # by the weights that are kept
    print(f"{result.steps} steps on {len(order) - tenth} clips in {result.seconds:.0f} s.")
    print(
        f"Held-out clips: {tools.nats(flow, of(order[:tenth])):.3f} nats per mel number; with what else the voice "
        f"learns, such as durations, a loss of {result.validation_loss:.3f}"
    )
    print(f"Wrote {output}. Say something:  diffeo speech say {output} {shown.text!r} -o out.wav")


def _check_folder(samples: Path) -> None:
    """Refuse a place where no folder for samples can be made."""
    there = next(place for place in (samples.absolute(), *samples.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{samples}: no folder for samples can be made there")


def _make_room(samples: Path, resume: bool) -> None:
    """Make the folder for samples, and delete those of an earlier fit: sounds beside pictures of the same name."""
    samples.mkdir(parents=True, exist_ok=True)
    for sound in () if resume else list(samples.glob("*.wav")):
        picture = sound.with_suffix(".png")
        if re.fullmatch(r"\d{8}", sound.stem) and picture.exists():
            sound.unlink()
            picture.unlink()


def _reading(clips: list[Any], asked: str | None) -> str:
    """How the texts of a corpus are read; what nobody asked for is said."""
    from diffeo.apps.speech.text import LETTERS, units_of, usual_reading

    if asked is not None:
        units_of("a", asked)  # an unknown language is an error of its own, not of the first clip
        return asked
    found = usual_reading([clip.text for clip in clips])
    what = "letter by letter" if found == LETTERS else f"as phonemes of {found}, by espeak-ng"
    print(f"Texts are read {what}; --reading chooses letters, or a language of espeak-ng, such as de.", flush=True)
    return found


def _name_unspelled(clips: list[Any], reading: str) -> None:
    """Say which words of a corpus that is read letter by letter are not spelled."""
    from diffeo.apps.speech.text import LETTERS, unspelled

    found = list(dict.fromkeys(word for clip in clips for word in unspelled(clip.text)))
    if reading == LETTERS and found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        named = ", ".join(map(repr, found[:3]))
        print(f"diffeo: {named}{more}: letters do not say how these are read; write them out", file=sys.stderr)


def _usable(clips: list[Any], settings: Any, skip_bad: bool, reading: str) -> tuple[list[Any], list[Any]]:
    """Clips that a voice can be trained on, with their spectrograms and prosody."""
    from diffeo.apps import speech as tools

    def heard(clip: Any) -> tuple[Any, Any]:
        mel, prosody = hearing.clip(clip, length := len(tools.units_of(clip.text, reading)))
        with named(clip):
            check_letters(length, len(mel), 2)
        return mel, prosody

    with Hearing(settings) as hearing:
        return kept(clips, heard, skip_bad)

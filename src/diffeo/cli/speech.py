"""`diffeo speech`: voices from recordings, what they say, and where each letter is said."""

from __future__ import annotations

import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from diffeo.cli.app import MODEL, app, checkpoint_of, parse_duration
from diffeo.cli.clips import (
    PRESETS,
    SOUND,
    Corpus,
    Hearing,
    Rate,
    Rounds,
    Seed,
    SkipBad,
    check_letters,
    choice,
    first_rate,
    kept,
    load_vocoder,
    named,
    ready,
)

speech = typer.Typer(
    rich_markup_mode=None,
    name="speech",
    help="Voices: check a corpus, fit, say, interpolate, align; vocoders.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(speech)

VOICES = ("glow_tts", "flow_tts", "flowtron")
FEWEST, HELD = 20, 200  # clips of a corpus; clips at most that validate
WATCHED, MEASURED = 8, 32  # of these, how many show how sharp the alignment is, and how likely clips are, on the way
PAUSE = 0.25  # seconds between two versions of a sentence
Voice = Annotated[Path, typer.Argument(help="Voice file, as `diffeo speech fit` writes.", show_default=False)]
Reading = Annotated[
    str | None,
    typer.Option(
        help="How texts are read: letters, or phonemes of a language of espeak-ng, such as en-us.",
        show_default="en-us where espeak-ng is installed and texts look English, or else letters",
    ),
]
VocoderFile = Annotated[
    Path | None,
    typer.Option("--vocoder", help="Vocoder file that makes the sound.", show_default="rounds from noise"),
]
Speaker = Annotated[str | None, typer.Option(help="Who speaks.", show_default="the first")]


@speech.command()
def check(corpus: Corpus, reading: Reading = None) -> None:
    """List what is wrong with recordings and texts."""
    from diffeo.apps.speech import check_corpus, read_corpus

    clips = read_corpus(corpus)
    problems = check_corpus(clips, reading=_reading(clips, reading))
    for line in problems:
        print(line)
    print(f"{len(clips)} clips, {len(problems)} remark{'s' * (len(problems) != 1)}.")


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
            help="Folder for a sentence, spoken as training goes, and a picture of its alignment.", show_default="none"
        ),
    ] = None,
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

    check_output(output, (MODEL,), corpus)
    system, preset = choice("--system", system, VOICES), choice("--preset", preset, PRESETS)
    seconds = None if time_limit is None else parse_duration(time_limit)
    folder = checkpoint_of(output, resume)
    if samples_dir is not None:
        if find_spec("PIL") is None:
            raise ValueError('--samples-dir draws pictures, which need Pillow: pip install "diffeo[speech]"')
        samples_dir.mkdir(parents=True, exist_ok=True)
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

    def speak(result: Any) -> None:
        if samples_dir is not None:
            who = speakers.index(shown.speaker) if several else None
            mel = tools.say(flow, tools.encode_text(shown.text, symbols, reading), speaker=who)
            tools.write_audio(tools.from_mel(mel, settings), samples_dir / f"{result.steps:08d}.wav", settings.rate)
            clip, letters = mels[order[0]], texts[order[0]]
            picture = tools.spectrogram_png(clip, tools.align(flow, clip, letters, who, prosody[order[0]]))
            (samples_dir / f"{result.steps:08d}.png").write_bytes(picture)
        now = result.history[-1]["validation_loss"] if result.history else result.validation_loss
        line = f"step {result.steps}: held-out loss {now:.3f}, nats per mel number "
        line += f"{tools.nats(flow, of(order[: min(tenth, MEASURED)])):.3f}"
        if system != "flow_tts":  # whose attention does not look at sound
            line += f", alignment sharpness {tools.sharpness(flow, of(order[: min(tenth, WATCHED)])):.2f}"
        print(line, flush=True)

    tools.learn_prosody(flow, of(order[tenth:]))
    training: dict[str, Any] = {} if steps is None else {"steps": steps}
    result = diffeo.fit(
        tools.Voice(flow), of(order[tenth:]), validation=of(order[:tenth]), collate=tools.join, batch_size=batch_size,
        time_limit=seconds, seed=seed, lr=4e-3, checkpoint=folder, resume=resume, on_evaluation=speak,
        **training,
    )  # fmt: skip
    diffeo.save(flow, output, notes=notes)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{result.steps} steps on {len(order) - tenth} clips in {result.seconds:.0f} s.")
    print(
        f"Held-out clips: {tools.nats(flow, of(order[:tenth])):.3f} nats per mel number; with what else the voice "
        f"learns, such as durations, a loss of {result.validation_loss:.3f}"
    )
    print(f"Wrote {output}. Say something:  diffeo speech say {output} {shown.text!r} -o out.wav")


@speech.command()
def say(
    voice: Voice,
    text: Annotated[str, typer.Argument(help="What to say.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Sound file to write.")] = Path("out.wav"),
    tempo: Annotated[float, typer.Option(help="Above 1 for faster speech.", min=0.1, max=10)] = 1.0,
    temperature: Annotated[float, typer.Option(help="Scales the noise; 0 for the plainest way.", min=0)] = 0.667,
    speaker: Speaker = None,
    vocoder: VocoderFile = None,
    rounds: Rounds = 60,
    style: Annotated[
        list[Path] | None,
        typer.Option(
            help="Recording in whose manner it is said, its text beside it as .txt; or a corpus of them. Repeatable.",
            show_default="none",
        ),
    ] = None,
    style_weight: Annotated[float, typer.Option(help="How much of it; 0 for none.", min=-5, max=5)] = 1.0,
    gate: Annotated[bool, typer.Option("--gate", help="End where a flowtron's gate says, not when predicted.")] = False,
    pitch: Annotated[float, typer.Option(help="Times the voice's own; above 1 for higher.", min=0.25, max=4)] = 1.0,
    loudness: Annotated[float, typer.Option(help="Times the voice's own.", min=0.1, max=10)] = 1.0,
    seed: Seed = 0,
) -> None:
    """Speak a text."""
    import torch

    from diffeo.apps import speech as tools
    from diffeo.cli.files import check_output

    check_output(output, SOUND, voice)
    flow, notes, settings = _load(voice)
    sounding = None if vocoder is None else load_vocoder(vocoder, settings)[0]
    # older versions of Typer let these through a range, since nothing compares with them
    for option, value in (("--style-weight", style_weight), ("--pitch", pitch), ("--loudness", loudness)):
        if math.isnan(value):
            raise ValueError(f"{option}: expected a number, got {value}")
    symbols = tools.encode_text(text, notes["symbols"], notes["reading"])
    who = _asked(notes, speaker)
    generator = torch.Generator().manual_seed(seed)
    clips = None if not style else _as_data(style, speaker, flow, notes, settings)
    manner = None if clips is None else style_weight * tools.style_of(flow, clips)
    prosody = _prosody(flow, who, clips, style_weight, pitch, loudness)
    mel = tools.say(
        flow, symbols, speaker=who, tempo=tempo, temperature=temperature, style=manner, prosody=prosody, gate=gate,
        generator=generator,
    )  # fmt: skip
    audio = _sound(mel, settings, sounding, rounds, generator)
    tools.write_audio(audio, output, settings.rate)
    print(f"Wrote {output}, {len(audio) / settings.rate:.2f} s.")


@speech.command()
def align(
    voice: Voice,
    corpus: Corpus,
    output: Annotated[Path, typer.Option("-o", "--output", help="CSV to write.")] = Path("alignment.csv"),
    grids: Annotated[
        Path | None, typer.Option("--textgrids", help="Folder for a TextGrid of each clip.", show_default="none")
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Write when each letter of each clip begins and ends."""
    import csv

    from diffeo.apps import speech as tools
    from diffeo.cli.files import check_output
    from diffeo.storage import replacing

    check_output(output, (".csv",), voice, corpus)
    flow, notes, settings = _load(voice)
    clips, reads = tools.read_corpus(corpus), tools.usual_prosody(flow) is not None
    rows = []
    root = None  # of clips in several folders, some of one name
    if len({clip.path.stem for clip in clips}) < len(clips):
        root = os.path.commonpath([clip.path.parent.absolute() for clip in clips])

    def spans_of(clip: Any) -> list[tuple[str, float, float]]:
        mel, symbols, prosody = _heard(clip, hearing, notes, tools.together_of(flow))
        frames = tools.align(flow, mel, symbols, _who(notes, clip.speaker or None), prosody if reads else None)
        ends = settings.ends(frames, len(mel)).tolist()
        letters = [notes["symbols"][i - 1] for i in symbols.tolist()]
        return list(zip(letters, [0.0, *ends[:-1]], ends, strict=True))

    with Hearing(settings) as hearing:
        clips, found = kept(clips, spans_of, skip_bad)
    for clip, spans in zip(clips, found, strict=True):
        name = Path(clip.path.name if root is None else os.path.relpath(clip.path.absolute(), root))
        rows += [[name.as_posix(), letter, f"{a:.4f}", f"{b:.4f}"] for letter, a, b in spans]
        if grids is not None:
            grid = (grids / name).with_suffix(".TextGrid")
            grid.parent.mkdir(parents=True, exist_ok=True)
            with replacing(grid) as path:
                path.write_text(_text_grid(spans), encoding="utf-8")
    with replacing(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["clip", "letter", "begin", "end"], *rows])
    print(f"Wrote {output}, {len(clips)} clips.")


@speech.command(epilog='Example:  diffeo speech interpolate voice.safetensors calm.wav angry.wav "go away" -o both.wav')
def interpolate(
    voice: Voice,
    first: Annotated[Path, typer.Argument(help="Recording.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another one of the same text.", show_default=False)],
    text: Annotated[str, typer.Argument(help="What both say.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Sound file to write.")] = Path("out.wav"),
    steps: Annotated[int, typer.Option("-n", help="Versions, both ends counted in.", min=2)] = 5,
    speaker: Speaker = None,
    vocoder: VocoderFile = None,
    rounds: Rounds = 60,
    seed: Seed = 0,
) -> None:
    """Speak a text between two ways to say it. One version after the other, from the first recording to the second."""
    import torch

    from diffeo.apps import speech as tools
    from diffeo.cli.files import check_output

    check_output(output, SOUND, voice, first, second)
    flow, notes, settings = _load(voice)
    sounding = None if vocoder is None else load_vocoder(vocoder, settings)[0]
    symbols = tools.encode_text(text, notes["symbols"], notes["reading"])
    who, together = _asked(notes, speaker), tools.together_of(flow)
    mels, manners = [], []
    with Hearing(settings) as hearing:
        for path in (first, second):
            clip = tools.Clip(path, text, speaker or "")
            with named(clip):
                mel, manner = hearing.clip(clip, len(symbols))
                check_letters(len(symbols), len(mel), together)
            mels.append(mel)
            manners.append(manner)
    prosody = None if tools.usual_prosody(flow) is None else (manners[0], manners[1])
    weights, generator = torch.linspace(0, 1, steps).tolist(), torch.Generator().manual_seed(seed)
    pause, sounds = torch.zeros(int(PAUSE * settings.rate)), []
    for mel in tools.interpolate(flow, mels[0], mels[1], symbols, weights, speaker=who, prosody=prosody):
        sounds += [_sound(mel, settings, sounding, rounds, generator), pause]
    audio = torch.cat(sounds[:-1])
    tools.write_audio(audio, output, settings.rate)
    print(f"Wrote {output}, {steps} versions, {len(audio) / settings.rate:.2f} s.")


def _prosody(flow: Any, speaker: int | None, clips: Any, weight: float, pitch: float, loudness: float) -> Any:
    """The prosody to say something with: the speaker's own, moved towards that of clips, at another pitch."""
    import torch

    from diffeo.apps.speech import PROSODY, usual_prosody, within_reach

    usual = usual_prosody(flow, speaker)
    if usual is None:
        if pitch != 1 or loudness != 1:
            raise ValueError("--pitch and --loudness need a voice that reads prosody, as `diffeo speech fit` makes")
        return None
    found = usual.clone()
    if clips is not None:
        away = torch.stack(list(clips.prosody)).nanmean(0).to(usual) - usual
        found += weight * torch.where(away.isfinite(), away, 0.0)
    found[PROSODY.index("pitch")] += math.log(pitch)
    found[PROSODY.index("loudness")] += math.log(loudness)
    reached = within_reach(flow, found, speaker)
    for name, wanted, near in zip(PROSODY, found.exp().tolist(), reached.exp().tolist(), strict=True):
        if not math.isclose(wanted, near, rel_tol=1e-3):
            print(f"diffeo: {name}: {near / wanted:.2f} times what was asked, which no clip came near", file=sys.stderr)
    return found


def _sound(mel: Any, settings: Any, vocoder: Any, rounds: int, generator: Any) -> Any:
    """The sound of a spectrogram by a vocoder, or by rounds from phases of chance."""
    from diffeo.apps import speech as tools

    if vocoder is None:
        return tools.from_mel(mel, settings, rounds=rounds, seed=generator.initial_seed())
    return tools.vocode(vocoder, mel, settings, rounds=rounds, generator=generator)


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


def _load(path: Path) -> tuple[Any, dict[str, Any], Any]:
    """A voice, its notes and how it hears, or an error that says what the file is instead."""
    import diffeo
    from diffeo.apps.speech import Mel
    from diffeo.recipes import read_notes

    flow, notes = diffeo.load(path), read_notes(path)
    if "symbols" not in notes or "mel" not in notes:
        raise ValueError(f"{path}: no voice, as `diffeo speech fit` writes")
    return ready(flow, path), notes, Mel(*notes["mel"])


def _heard(clip: Any, hearing: Hearing, notes: dict[str, Any], together: int) -> tuple[Any, Any, Any]:
    """The spectrogram, symbols and prosody of a clip, for a voice that makes so many frames together."""
    from diffeo.apps import speech as tools

    with named(clip):
        symbols = tools.encode_text(clip.text, notes["symbols"], notes["reading"])
        mel, prosody = hearing.clip(clip, len(symbols))
        check_letters(len(symbols), len(mel), together)
    return mel, symbols, prosody


def _as_data(given: list[Path], speaker: str | None, flow: Any, notes: dict[str, Any], settings: Any) -> Any:
    """Clips as a voice takes them: those of corpora, and recordings of this speaker whose texts lie beside them."""
    from diffeo.apps import speech as tools

    clips, together = [clip for path in given for clip in _clips_at(path, speaker)], tools.together_of(flow)
    with Hearing(settings) as hearing:
        mels, texts, prosody = zip(*(_heard(clip, hearing, notes, together) for clip in clips), strict=True)
    who = []
    for clip in clips:
        with named(clip):
            who.append(_who(notes, clip.speaker or None))
    several = len(notes["speakers"]) > 1
    reads = tools.usual_prosody(flow) is not None
    return tools.Spoken(
        mels,
        texts,
        who if several else None,
        together=together,
        prosody=prosody if reads else None,
    )


def _clips_at(path: Path, speaker: str | None) -> list[Any]:
    """The clips of a corpus; or one recording of a speaker, its text in a file beside it that ends in .txt or .lab."""
    from diffeo.apps import speech as tools

    if path.is_dir() or path.suffix.lower() == ".csv":
        return tools.read_corpus(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    text = next((t for t in (path.with_suffix(".txt"), path.with_suffix(".lab")) if t.is_file()), None)
    if text is None:
        raise ValueError(f"{path}: what does it say? Write its text to {path.with_suffix('.txt')}")
    try:
        said = text.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{text}: no text in UTF-8") from None
    return [tools.Clip(path, said, speaker or "")]


def _who(notes: dict[str, Any], name: str | None) -> int | None:
    """The number of a speaker; None for one voice."""
    speakers = notes["speakers"]
    if name is not None and name not in speakers:
        known = ", ".join(filter(None, speakers)) or "one speaker without a name"
        raise ValueError(f"the voice knows {known}, got {name!r}")
    if len(speakers) == 1:
        return None
    return 0 if name is None else speakers.index(name)


def _asked(notes: dict[str, Any], speaker: str | None) -> int | None:
    """The number of the speaker that the option names."""
    try:
        return _who(notes, speaker)
    except ValueError as error:
        raise ValueError(f"--speaker: {error}") from None


def _text_grid(spans: list[tuple[str, float, float]]) -> str:
    """An interval tier, as Praat reads it."""
    end = spans[-1][2]
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end:.4f}"]
    lines += ["tiers? <exists>", "size = 1", "item []:", "    item [1]:", '        class = "IntervalTier"']
    lines += ['        name = "letters"', "        xmin = 0", f"        xmax = {end:.4f}"]
    lines.append(f"        intervals: size = {len(spans)}")
    for i, (letter, a, b) in enumerate(spans, 1):
        text = letter.replace('"', '""')
        lines += [f"        intervals [{i}]:", f"            xmin = {a:.4f}", f"            xmax = {b:.4f}"]
        lines.append(f'            text = "{text}"')
    return "\n".join(lines) + "\n"

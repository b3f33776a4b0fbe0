"""`diffeo speech say`, `interpolate` and `align`: what voices say, and where each letter is said."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from diffeo.cli.clips import (
    SOUND,
    Corpus,
    Hearing,
    Rounds,
    Seed,
    SkipBad,
    check_letters,
    kept,
    load_vocoder,
    named,
    ready,
)
from diffeo.cli.speech import speech

PAUSE = 0.25  # seconds between two versions of a sentence
USUAL = 0.8  # temperature of a vocoder
Voice = Annotated[Path, typer.Argument(help="Voice file, as `diffeo speech fit` writes.", show_default=False)]
VocoderFile = Annotated[
    Path | None,
    typer.Option("--vocoder", help="Vocoder file that makes the sound.", show_default="rounds from noise"),
]
Speaker = Annotated[str | None, typer.Option(help="Who speaks.", show_default="the first")]


@speech.command()
def say(
    voice: Voice,
    text: Annotated[str, typer.Argument(help="What to say.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Sound file to write.")] = Path("out.wav"),
    tempo: Annotated[float, typer.Option(help="Above 1 for faster speech.", min=0.1, max=10)] = 1.0,
    temperature: Annotated[float, typer.Option(help="Scales the noise; 0 for the plainest way.", min=0)] = 0.667,
    speaker: Speaker = None,
    vocoder: VocoderFile = None,
    vocoder_temperature: Annotated[
        float | None,
        typer.Option(help="Scales the vocoder's noise.", min=0, show_default="0.8, or 0 with --temperature 0"),
    ] = None,
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
    if vocoder is None and vocoder_temperature is not None:
        raise ValueError("--vocoder-temperature: there is no --vocoder")
    sounding = None if vocoder is None else load_vocoder(vocoder, settings)[0]
    if vocoder_temperature is None:
        vocoder_temperature = 0.0 if temperature == 0 else USUAL
    # older versions of Typer let these through a range, since nothing compares with them
    numbers = {"--style-weight": style_weight, "--pitch": pitch, "--loudness": loudness}
    for option, value in {**numbers, "--vocoder-temperature": vocoder_temperature}.items():
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
    audio = _sound(mel, settings, sounding, rounds, generator, vocoder_temperature)
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
    if grids is not None and grids.exists() and not grids.is_dir():
        raise ValueError(f"{grids}: a file, expected a folder for TextGrids")
    flow, notes, settings = _load(voice)
    clips, reads = tools.read_corpus(corpus), tools.usual_prosody(flow) is not None
    nameless = [clip for clip in clips if not clip.speaker]
    if len(notes["speakers"]) > 1 and nameless and "" not in notes["speakers"]:
        print(
            f"diffeo: {len(nameless)} clips name no speaker, and are taken for {notes['speakers'][0]!r}",
            file=sys.stderr,
        )
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


def _sound(mel: Any, settings: Any, vocoder: Any, rounds: int, generator: Any, temperature: float = USUAL) -> Any:
    """The sound of a spectrogram by a vocoder, or by rounds from phases of chance."""
    from diffeo.apps import speech as tools

    if vocoder is None:
        return tools.from_mel(mel, settings, rounds=rounds, seed=generator.initial_seed())
    return tools.vocode(vocoder, mel, settings, temperature=temperature, rounds=rounds, generator=generator)


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

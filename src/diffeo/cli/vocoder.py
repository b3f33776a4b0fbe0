"""`diffeo speech vocoder` and `resynthesize`: sound of spectrograms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffeo.cli.app import MODEL, checkpoint_of, parse_duration
from diffeo.cli.clips import (
    PRESETS,
    SOUND,
    Corpus,
    Hearing,
    Rate,
    Rounds,
    Seed,
    SkipBad,
    choice,
    first_rate,
    kept,
    load_vocoder,
)
from diffeo.cli.speech import speech

VOCODERS = ("waveglow", "waveflow")
HELD = 200  # clips at most that validate
Vocoder = Annotated[Path, typer.Argument(help="Vocoder file, as `diffeo speech vocoder` writes.", show_default=False)]


@speech.command(epilog="Example:  diffeo speech vocoder LJSpeech-1.1/ -o vocoder.safetensors --time-limit 2h")
def vocoder(
    corpus: Corpus,
    output: Annotated[Path, typer.Option("-o", "--output", help="Vocoder file to write.")] = Path(
        "vocoder.safetensors"
    ),
    system: Annotated[str, typer.Option(help="Which flow: waveglow or waveflow.")] = "waveglow",
    preset: Annotated[str, typer.Option(help="Size of the flow: tiny, small or paper.")] = "tiny",
    rate: Rate = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.", show_default="by size", min=1)] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Training time, as 90s, 5m or 1h.", show_default="none")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Segments in a step.", min=1)] = 8,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted fit.")] = False,
) -> None:
    """Train a vocoder, which makes sound of spectrograms. Prints its nats a sample on held-out clips."""
    import shutil

    import torch

    import diffeo
    from diffeo.apps import speech as tools
    from diffeo.cli.files import check_output

    check_output(output, (MODEL,), corpus)
    system, preset = choice("--system", system, VOCODERS), choice("--preset", preset, PRESETS)
    seconds = None if time_limit is None else parse_duration(time_limit)
    folder = checkpoint_of(output, resume)
    clips = tools.read_corpus(corpus)
    settings = tools.Mel.of(rate or first_rate(clips, skip_bad))
    with Hearing(settings) as hearing:
        clips, sounds = kept(clips, lambda clip: hearing.sound(clip.path), skip_bad)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = getattr(diffeo, system)(settings.mels, settings.hop, preset=preset, **tools.prediction(settings))
    order = torch.randperm(len(sounds), generator=torch.Generator().manual_seed(seed)).tolist()
    tenth = min(HELD, max(1, len(order) // 10))
    if len(order) < 2:
        raise ValueError(f"{corpus}: a vocoder needs at least 2 clips, one of them to validate")

    def of(index: list[int]) -> Any:
        return tools.Sounds([sounds[i] for i in index], settings, multiple=tools.multiple_of(flow), seed=seed)

    train, held = of(order[tenth:]), of(order[:tenth])
    count = sum(p.numel() for p in flow.parameters())
    print(f"{len(clips)} clips at {settings.rate} Hz, {len(train)} segments; {system}, {preset}: {count:,} parameters.")
    training: dict[str, Any] = {} if steps is None else {"steps": steps}
    result = diffeo.fit(
        tools.Vocoder(flow), train, validation=held, batch_size=batch_size, time_limit=seconds, seed=seed, lr=2e-3,
        checkpoint=folder, resume=resume, **training,
    )  # fmt: skip
    diffeo.save(flow, output, notes={"vocoder": system, "mel": list(settings)})
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{result.steps} steps in {result.seconds:.0f} s. Held-out nats a sample: {result.validation_loss:.3f}")
    print(f"Wrote {output}. Hear a recording through it:  diffeo speech resynthesize {output} {clips[0].path}")


@speech.command()
def resynthesize(
    vocoder: Vocoder,
    sound: Annotated[Path, typer.Argument(help="Recording.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Sound file to write.")] = Path("out.wav"),
    temperature: Annotated[float, typer.Option(help="Scales the noise.", min=0)] = 0.8,
    rounds: Rounds = 60,
    seed: Seed = 0,
) -> None:
    """Make a recording's sound anew from its spectrogram."""
    import torch

    from diffeo.apps import speech as tools
    from diffeo.cli.files import check_output

    check_output(output, SOUND, vocoder, sound)
    flow, settings = load_vocoder(vocoder)
    with Hearing(settings) as hearing:
        audio = hearing.sound(sound)
    try:
        mel = tools.to_mel(audio, settings)
    except ValueError as error:
        raise ValueError(f"{sound}: {error}") from None
    generator = torch.Generator().manual_seed(seed)
    made = tools.vocode(flow, mel, settings, temperature=temperature, rounds=rounds, generator=generator)
    tools.write_audio(made, output, settings.rate)
    print(f"Wrote {output}, {len(made) / settings.rate:.2f} s.")

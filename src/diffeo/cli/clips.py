"""Options and steps that the commands of `diffeo speech` share: reading clips, and vocoders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

PRESETS = ("tiny", "small", "paper")
SOUND = (".wav", ".flac", ".ogg")
Corpus = Annotated[
    Path, typer.Argument(help="Folder with metadata.csv and wavs/, or a .csv of path,text,speaker.", show_default=False)
]
Rate = Annotated[int | None, typer.Option(help="Samples in a second.", show_default="of the first clip", min=1000)]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out clips that cannot be used.")]
Seed = Annotated[int, typer.Option(help="Seed.", min=0, max=2**32 - 1)]
Rounds = Annotated[
    int,
    typer.Option(help="Rounds that pull the sound towards its spectrogram; 0 for a vocoder's alone.", min=0),
]


def choice(option: str, given: str, known: tuple[str, ...]) -> str:
    """One of the names that are known, which may be written with hyphens."""
    plain = {name.replace("_", ""): name for name in known}
    name = plain.get(given.replace("_", "").replace("-", ""))
    if name is None:
        raise ValueError(f"{option}: expected one of {', '.join(known)}, got {given!r}")
    return name


def first_rate(clips: list[Any], skip_bad: bool) -> int:
    """The rate of the first clip; with `skip_bad`, of the first that can be read."""
    from diffeo.apps.speech import read_audio

    for clip in clips:
        try:
            return read_audio(clip.path)[1]
        except ValueError:
            if not skip_bad:
                raise
    raise ValueError(f"{clips[0].path}: neither this recording nor any other can be read")


class Hearing:
    """Reads recordings at one rate, and says at the end, once for each kind, what was changed in them."""

    def __init__(self, settings: Any):
        self.settings = settings
        self._changed: dict[str, list[Path]] = {}

    def __enter__(self) -> Hearing:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:  # which is to stand in a line alone
            return
        for note, paths in self._changed.items():
            more = f", and {len(paths) - 1} more recordings" if len(paths) > 1 else ""
            print(f"diffeo: {paths[0]}{more}: {note}", file=sys.stderr)

    def sound(self, path: Path) -> Any:
        """The sound of a recording, which must not be silence."""
        from diffeo.apps.speech import read_audio
        from diffeo.apps.speech.corpus import SILENT

        audio, _, notes = read_audio(path, self.settings.rate)
        if not len(audio):
            raise ValueError(f"{path}: it holds no sound")
        if len(audio) <= self.settings.window // 2:
            raise ValueError(f"{path}: {len(audio)} samples, expected more than {self.settings.window // 2}")
        if float(audio.max() - audio.min()) < SILENT:  # also of a number that is not zero
            raise ValueError(f"{path}: silence")
        for note in notes:
            self._changed.setdefault(note, []).append(path)
        return audio

    def clip(self, clip: Any, letters: int) -> tuple[Any, Any]:
        """The spectrogram and the prosody of a clip."""
        from diffeo.apps import speech as tools

        audio = self.sound(clip.path)
        return tools.to_mel(audio, self.settings), tools.prosody_of(audio, self.settings.rate, letters)


def check_letters(letters: int, frames: int, together: int) -> None:
    """Refuse a text that is empty, or longer than its sound, of which so many frames together are a step."""
    if not letters:
        raise ValueError("the text is empty")
    if letters > -(-frames // together):
        raise ValueError(f"{letters} letters in {-(-frames // together)} steps of sound: is this the text?")


def kept(clips: list[Any], read: Callable[[Any], Any], skip_bad: bool) -> tuple[list[Any], list[Any]]:
    """Clips that can be read, and what was read; an error that names the first that cannot, or a line for each."""
    found, contents = [], []
    for clip in clips:
        try:
            content = read(clip)
        except ValueError as error:
            message = str(error) if str(clip.path) in str(error) else f"{clip.path}: {error}"
            if not skip_bad:
                raise ValueError(f"{message} (--skip-bad leaves such clips out)") from None
            print(f"diffeo: left out: {message}", file=sys.stderr)
            continue
        found.append(clip)
        contents.append(content)
    if len(found) < len(clips):
        print(f"diffeo: {len(clips) - len(found)} clips left out, {len(found)} used", file=sys.stderr)
    return found, contents


@contextmanager
def named(clip: Any) -> Iterator[None]:
    """Errors about a clip say which."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(clip.path) in str(error) else f"{clip.path}: {error}") from None


def load_vocoder(path: Path, settings: Any = None) -> tuple[Any, Any]:
    """A vocoder, ready to make sound, and how it hears, which must be as a voice does; or what the file is instead."""
    import diffeo
    from diffeo.apps.speech import Mel
    from diffeo.recipes import read_notes

    flow, notes = diffeo.load(path), read_notes(path)
    if "vocoder" not in notes:
        raise ValueError(f"{path}: no vocoder, as `diffeo speech vocoder` writes")
    own = Mel(*notes["mel"])
    if settings is not None and own != settings:
        raise ValueError(f"{path}: it makes sound of {own}, the voice gives {settings}; train one at the voice's rate")
    return ready(flow, path), own


def ready(flow: Any, path: Path) -> Any:
    """A copy for inference; or an error that names the file of a flow that was never trained."""
    from diffeo import prepare_inference

    try:
        return prepare_inference(flow)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

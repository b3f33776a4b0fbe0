"""Recordings and their texts: reading a corpus, and what is wrong with it."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from torch import Tensor

from diffeo.apps.speech.audio import Mel, read_audio, to_mel
from diffeo.apps.speech.text import LETTERS, units_of, unspelled

SHORTEST, LONGEST = 0.1, 20.0  # seconds of a clip
SILENT, CLIPPED = 1e-3, 0.002  # loudest sample of a silent clip; share of samples at the ends of a clipped one
FEWEST, FAR = 10, 3.0  # clips that show a usual pace, and from how many times that pace on one is doubtful


class Clip(NamedTuple):
    """A recording, what is said in it, and by whom."""

    path: Path
    text: str
    speaker: str = ""


def read_corpus(path: str | os.PathLike[str]) -> list[Clip]:
    """The clips of a folder in the LJSpeech convention, or of a table.

    A folder holds `metadata.csv` with lines id|text or id|text|normalised text, and `wavs/id.wav`. A table (.csv) has
    the columns path, text and perhaps speaker; paths are relative to the table.

    Raises:
        ValueError: neither; lines that cannot be read; no clip. Missing recordings are found by `check_corpus`.
    """
    path = Path(path)
    if path.is_dir():
        table = path / "metadata.csv"
        if not table.is_file():
            raise ValueError(f"{path}: expected metadata.csv and wavs/, or a .csv with the columns path and text")
        clips = []
        for number, line in enumerate(_text(table).split("\n"), 1):  # what else may end a line is part of a text
            if not line.strip():
                continue
            fields = line.split("|")
            if len(fields) not in (2, 3):
                raise ValueError(f"{table}: line {number} has {len(fields)} fields, expected id|text|normalised")
            said = fields[-1].strip() or fields[1].strip()  # the normalised text may be missing
            clips.append(Clip(path / "wavs" / f"{fields[0]}.wav", said))
    elif path.is_file():
        with io.StringIO(_text(path), newline="") as file:
            rows = csv.DictReader(file)
            if not {"path", "text"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{path}: expected the columns path and text, got {', '.join(rows.fieldnames or ())}")
            rows = list(rows)
            long = next((i for i, row in enumerate(rows, 2) if None in row), None)
            if long is not None:
                raise ValueError(
                    f"{path}: line {long} has more fields than the header; put texts with commas in quotes"
                )
            nowhere = next((i for i, row in enumerate(rows, 2) if not row["path"]), None)
            if nowhere is not None:
                raise ValueError(f"{path}: line {nowhere} names no recording")
            clips = [
                Clip(path.parent / row["path"], (row["text"] or "").strip(), row.get("speaker") or "") for row in rows
            ]
    else:
        raise ValueError(f"{path}: no such file or folder")
    if not clips:
        raise ValueError(f"{path}: no clips")
    return clips


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: no text in UTF-8") from None


def check_corpus(
    clips: Sequence[Clip], settings: Mel | None = None, together: int = 2, reading: str = LETTERS
) -> list[str]:
    """What is wrong with a corpus, or doubtful, a line each.

    Recordings that are missing, unreadable, silent, clipped, too short or too long; texts that are empty, longer than
    their recordings, or read far faster or slower than others; figures and abbreviations that letters do not spell
    out; signs that occur once or twice; sounds at several rates.
    """
    found: list[str] = []
    rates: defaultdict[int, list[Path]] = defaultdict(list)
    signs: Counter[str] = Counter()
    paces: dict[Path, float] = {}
    for clip in clips:
        try:
            audio, rate, notes = read_audio(clip.path)
        except ValueError as error:
            found.append(str(error))
            continue
        rates[rate].append(clip.path)
        text = units_of(clip.text, reading)
        signs.update(text)
        mel = settings or Mel.of(rate)
        seconds = len(audio) / rate
        frames = -(-(1 + len(audio) * mel.rate // rate // mel.hop) // together)
        if text and seconds >= SHORTEST:
            paces[clip.path] = len(text) / seconds
        unclear = dict.fromkeys(unspelled(clip.text))
        problems = [
            (not text, "no text"),
            (seconds < SHORTEST, f"{seconds:.2f} seconds, expected at least {SHORTEST}"),
            (seconds > LONGEST, f"{seconds:.1f} seconds, expected at most {LONGEST:.0f}"),
            (seconds >= SHORTEST and float(audio.max() - audio.min()) < SILENT, "silence"),
            (float((audio.abs() > 0.999).float().mean()) > CLIPPED if len(audio) else False, "clipped"),
            (len(text) > frames, f"{len(text)} letters in {frames} steps of sound: is this the text?"),
            *((reading == LETTERS, f"{word!r}: letters do not say how it is read") for word in unclear),
        ]
        found += [f"{clip.path}: {what}" for wrong, what in problems if wrong]
        found += [f"{clip.path}: {note}" for note in notes]
    if len(paces) >= FEWEST:
        usual = median(paces.values())
        found += [
            f"{path}: {pace:.1f} signs a second, others {usual:.1f}: is this the text?"
            for path, pace in paces.items()
            if not usual / FAR < pace < usual * FAR
        ]
    if len(rates) > 1:
        commonest, *others = sorted(rates, key=lambda rate: -len(rates[rate]))
        found += [f"{path}: {rate} Hz, others have {commonest}" for rate in others for path in rates[rate]]
    rare = sorted(sign for sign, n in signs.items() if n < 3)
    if rare:
        found.append(f"signs that occur once or twice: {' '.join(map(repr, rare))}")
    return found


def mels_of(clips: Sequence[Clip], settings: Mel) -> list[Tensor]:
    """The mel spectrograms (T, mels) of clips."""
    return [to_mel(read_audio(clip.path, settings.rate)[0], settings) for clip in clips]

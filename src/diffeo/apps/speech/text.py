"""Texts as symbols: the letters as they are written, or the phonemes that espeak-ng reads in them."""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

LETTERS = "letters"  # how a text is read, if not by the phonemes of a language
ENGLISH = "en-us"  # of espeak-ng
FOREIGN = 0.002  # share of letters beyond a to z, from which texts are hardly English


def units_of(text: str, reading: str = LETTERS) -> list[str]:
    """What a text is made of, in order.

    Args:
        text: any; an empty one gives an empty list.
        reading: "letters", in lower case, accents kept, with single spaces; or a language of espeak-ng, such as
            "en-us": its phonemes, in which numbers and abbreviations are spoken out.

    Raises:
        ValueError: a language that espeak-ng does not have.
        ImportError: espeak-ng is not installed.

    >>> units_of("Two  Owls")
    ['t', 'w', 'o', ' ', 'o', 'w', 'l', 's']
    """
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    if reading == LETTERS:
        return list(plain.lower())
    return list(_phonemes(plain, reading)) if plain else []


def usual_reading(texts: Sequence[str]) -> str:
    """How to read texts where nobody says: as English phonemes where espeak-ng is installed, but letter by letter where
    more than FOREIGN of the letters have accents or are of another script.

    >>> usual_reading(["мост", "река"])
    'letters'
    """
    letters = [c for text in texts for c in text if c.isalpha()]
    foreign = sum(not c.isascii() for c in letters) > FOREIGN * len(letters)
    return LETTERS if foreign or shutil.which("espeak-ng") is None else ENGLISH


def unspelled(text: str) -> list[str]:
    """Words whose letters do not say how they are read: figures, signs such as %, and common English abbreviations.

    >>> unspelled("Dr. Owl ate 12 % of it, e.g. no. 3")
    ['Dr.', '12', '%', 'e.g.', 'no.', '3']
    """
    return _UNSPELLED.findall(text)


def symbols_of(texts: Sequence[Sequence[str]]) -> list[str]:
    """The letters and signs, or phonemes, of all texts as `units_of` gives them, in order."""
    return sorted({unit for text in texts for unit in text})


def encode_text(text: str, symbols: Sequence[str], reading: str = LETTERS) -> Tensor:
    """Numbers 1, 2, … of what a text is made of.

    Raises:
        ValueError: an empty text, or letters that the voice does not know, named.
    """
    units = units_of(text, reading)
    if not units:
        raise ValueError("the text is empty")
    unknown = sorted(set(units) - set(symbols))
    if unknown:
        hints = ["write numbers as words"] if any(c.isdigit() for c in unknown) and reading == LETTERS else []
        hints += ["'|' is the gap between words: it learned from single ones"] if "|" in unknown else []
        hints += ["it learned from single words"] if " " in unknown else []
        hint = f" ({'; '.join(hints)})" if hints else ""
        what = ", ".join(map(repr, unknown)) if reading == LETTERS else "the sounds " + ", ".join(map(repr, unknown))
        raise ValueError(f"the voice does not know {what}, which its corpus never shows{hint}")
    number = {unit: i for i, unit in enumerate(symbols, 1)}
    return torch.tensor([number[unit] for unit in units])


@lru_cache(maxsize=65536)
def _phonemes(text: str, language: str) -> tuple[str, ...]:
    """Phonemes without pauses, marks of stress and of other languages, "|" between words."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise ImportError(
            f"phonemes of {language!r} need the program espeak-ng (apt install espeak-ng, brew install espeak-ng)"
        )
    done = subprocess.run(
        [program, "-q", "-x", "--sep=_", "-v", language, "--stdin"], input=text, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"espeak-ng cannot read {language!r}: {done.stderr.strip()}")
    units: list[str] = []
    for word in _LANGUAGE.sub("_", done.stdout).split():
        sounds = [sound for sound in _PAUSE.sub("", word).translate(_STRESS).split("_") if sound]
        units += ["|", *sounds] if sounds else []
    return tuple(units[1:])


_UNSPELLED = re.compile(
    r"\b(?:(?:[^\W\d_]\.){2,}|(?:Mrs?|Ms|Dr|Prof|St|Jr|Sr|Rev|Gen|Col|Capt|Lt|Ltd|Mt|Nr|vs|etc)\.|[Nn]o\.(?=\s*\d))"
    r"|\d+(?:[.,:]\d+)*|[%&@#$€£¥¢№§½¼¾²³°+=/]"
)
_LANGUAGE = re.compile(r"_?\([a-z][\w-]*\)_?")  # whose sounds follow, as "(en)" in German with an English word
_PAUSE = re.compile(r"(?:^|_)_[:!|]+(?=_|$)")  # "_:", "_!" and "_|", an underscore before each but a word's first sound
_STRESS = str.maketrans("", "", "',%=")

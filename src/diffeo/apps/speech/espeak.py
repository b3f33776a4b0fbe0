"""Speech of espeak-ng with the true time of every phoneme: corpora on which alignments can be measured."""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# names of espeak-ng's C interface, speak_lib.h
_SYNCHRONOUS, _PHONEME_EVENTS, _PHONEME, _CHARS_UTF8 = 2, 1, 7, 1
_RATE, _PITCH = 1, 3


class Utterance(NamedTuple):
    """What was said.

    Attributes:
        audio: (N,) in [−1, 1].
        rate: samples in a second.
        phonemes: in order, pauses of the speaker among them.
        begins: second at which each begins.
    """

    audio: Tensor
    rate: int
    phonemes: list[str]
    begins: list[float]


def speak(text: str, *, voice: str = "en-us", words_per_minute: int = 175, pitch: int = 50) -> Utterance:
    """A text as espeak-ng says it, with the time of each phoneme.

    Args:
        text: any that is not empty.
        voice: of espeak-ng, a language and perhaps a variant: "en-us+f3".
        words_per_minute: 80 to 450.
        pitch: 0 to 99.

    Raises:
        ValueError: a voice that is not there; numbers outside these; a text in which there is nothing to say.
        ImportError: the library of espeak-ng is not installed.

    Cost: some hundred times faster than real time. The library has one state for a process: one thread at a time.
    """
    if not 80 <= words_per_minute <= 450 or not 0 <= pitch <= 99:
        raise ValueError(f"speak: expected 80 to 450 words a minute and pitch 0 to 99; got {words_per_minute}, {pitch}")
    engine = _engine()
    if engine.library.espeak_SetVoiceByName(voice.encode()):
        raise ValueError(f"speak: espeak-ng has no voice {voice!r}")
    engine.library.espeak_SetParameter(_RATE, words_per_minute, 0)
    engine.library.espeak_SetParameter(_PITCH, pitch, 0)
    engine.sound.clear()
    engine.events.clear()
    plain = text.encode() + b"\0"
    engine.library.espeak_Synth(plain, len(plain), 0, 1, 0, _CHARS_UTF8, None, None)
    engine.library.espeak_Synchronize()
    if all(name.startswith("_") for name, _ in engine.events):  # pauses
        raise ValueError(f"speak: nothing to say in {text!r}")
    audio = torch.from_numpy(np.concatenate(engine.sound).astype(np.float32) / 32768)
    named = [(name, sample / engine.rate) for name, sample in engine.events if name]
    return Utterance(audio, engine.rate, [name for name, _ in named], [begin for _, begin in named])


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Engine:
    """The library, loaded once, and what its callback has heard."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL(ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1")
        except OSError:
            raise ImportError("speech with its timings needs the library of espeak-ng: apt install espeak-ng") from None
        self.rate: int = self.library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
        if self.rate <= 0:
            raise ImportError("espeak-ng does not find its data: install the package espeak-ng-data")
        self.sound: list[np.ndarray] = []
        self.events: list[tuple[str, int]] = []
        self.callback = _Callback(self._hear)  # kept, or the library would call what is gone
        self.library.espeak_SetSynthCallback(self.callback)

    def _hear(self, sound, count, events) -> int:
        if count > 0 and sound:
            self.sound.append(np.ctypeslib.as_array(sound, (count,)).copy())
        i = 0
        while events[i].type:
            if events[i].type == _PHONEME:
                self.events.append((events[i].id.string.decode("utf-8", "replace"), events[i].sample))
            i += 1
        return 0


@lru_cache(maxsize=1)
def _engine() -> _Engine:
    return _Engine()

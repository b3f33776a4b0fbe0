"""Spectrograms with their texts, as voices are trained on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffeo.apps.speech.audio import pad_frames

Example = tuple[Tensor, dict[str, Tensor]]


class Spoken(Dataset[Example]):
    """Spectrograms with their texts and speakers, as `diffeo.fit` takes them with `collate=join`.

    Args:
        mels: (T, mels) each.
        texts: (L,) symbols 1, 2, … each.
        speakers: numbers, or None for one voice.
        together: frames of which lengths are made a multiple, by repeating the last one.
        durations: (L,) steps of each letter, as `forced_alignment` finds them; None to search for them in training.
        prosody: (4,) numbers each, as `prosody_of` finds them, for voices that read them.

    Raises:
        ValueError: a text with more letters than steps of its spectrogram, by number.
    """

    def __init__(
        self,
        mels: Sequence[Tensor],
        texts: Sequence[Tensor],
        speakers: Sequence[int] | None = None,
        together: int = 2,
        durations: Sequence[Tensor] | None = None,
        prosody: Sequence[Tensor] | None = None,
    ):
        self.durations, self.prosody = durations, prosody
        self.mels = [pad_frames(mel, together) for mel in mels]
        self.texts = list(texts)
        self.speakers = None if speakers is None else [torch.tensor(n) for n in speakers]
        for i, (mel, text) in enumerate(zip(self.mels, self.texts, strict=True)):
            if len(text) > len(mel) // together:
                raise ValueError(
                    f"clip {i}: {len(text)} letters in {len(mel) // together} steps of sound; every letter needs one"
                )

    @property
    def lengths(self) -> list[int]:
        """Frames of each clip, by which `fit` makes batches of similar ones."""
        return [len(mel) for mel in self.mels]

    def __len__(self) -> int:
        return len(self.mels)

    def __getitem__(self, i: int) -> Example:
        speaker = {} if self.speakers is None else {"speaker": self.speakers[i]}
        durations = {} if self.durations is None else {"durations": self.durations[i]}
        prosody = {} if self.prosody is None else {"prosody": self.prosody[i]}
        return self.mels[i], {"text": self.texts[i], **speaker, **durations, **prosody}


def join(examples: Sequence[Example]) -> Example:
    """Examples of different lengths as a batch: spectrograms and texts padded, and the mask of the frames."""
    pad = torch.nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(mel) for mel, _ in examples])
    mel = pad([mel for mel, _ in examples], batch_first=True)
    mask = (torch.arange(mel.shape[1]) < lengths[:, None]).unsqueeze(-1)
    context = {"text": pad([c["text"] for _, c in examples], batch_first=True), "mask": mask}
    if "durations" in examples[0][1]:
        context["durations"] = pad([c["durations"] for _, c in examples], batch_first=True)
    for name in ("speaker", "prosody"):  # in the same order in every process, as a fit that goes on has to find it
        if name in examples[0][1]:
            context[name] = torch.stack([c[name] for _, c in examples])
    return mel, context

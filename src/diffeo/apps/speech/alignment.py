"""Forced alignment: which letter of a text is said when, by a hidden Markov model of the recordings alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffeo.apps.speech.audio import pad_frames
from diffeo.solvers import alignment_posteriors, monotonic_alignment

COEFFICIENTS = 20  # of the cosine transform of a spectrogram
CLIPS = 64  # at a time
FLOOR = 0.05  # of a variance, of all frames' one
PRIOR = 5.0  # frames of all letters that count towards each letter's variance


@torch.no_grad()
def forced_alignment(
    mels: Sequence[Tensor],
    texts: Sequence[Tensor],
    speakers: Sequence[int] | None = None,
    *,
    together: int = 2,
    rounds: int = 8,
) -> list[Tensor]:
    """How many steps each letter of each text lasts, learned from the recordings by expectation maximisation.

    A letter is one state of a hidden Markov model that goes from left to right, with a Gaussian of cepstra: the cosine
    transform of log mels, standardised for each speaker. It starts from equal shares of the time, and needs no
    alignment by hand.

    Args:
        mels: spectrograms (T, mels).
        texts: symbols 1, 2, …, (L,) each.
        speakers: numbers, or None for one voice.
        together: frames of a step; lengths are made a multiple by repeating the last frame.
        rounds: of expectation maximisation, at least 1.

    Returns:
        For each clip (L,) whole numbers of at least 1 that add up to its steps.

    Raises:
        ValueError: no clip; a text without letters, or with more than steps; no round.

    Cost: O(L · T) for each clip and round.

    "A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition" (Rabiner, 1989),
    https://doi.org/10.1109/5.18626

    >>> import torch
    >>> low, high = torch.zeros(6, 8), torch.ones(4, 8)
    >>> clips = [torch.cat([low, high]), torch.cat([high, low, high])]
    >>> forced_alignment(clips, [torch.tensor([1, 2]), torch.tensor([2, 1, 2])])
    [tensor([3, 2]), tensor([2, 3, 2])]
    """
    if rounds < 1:
        raise ValueError(f"forced_alignment: expected rounds >= 1, got {rounds}")
    if not mels:
        raise ValueError("forced_alignment: expected at least one clip")
    for i, (mel, text) in enumerate(zip(mels, texts, strict=True)):
        if not 1 <= len(text) <= -(-len(mel) // together):
            raise ValueError(f"clip {i}: {len(text)} letters in {-(-len(mel) // together)} steps of sound")
    mels, texts = [mel.float().cpu() for mel in mels], [text.cpu() for text in texts]
    steps = _cepstra(mels, [0] * len(mels) if speakers is None else speakers, together)
    symbols = 1 + max(int(text.max()) for text in texts)
    order = sorted(range(len(steps)), key=lambda i: len(steps[i]))
    batches = [_Batch([steps[i] for i in order[a : a + CLIPS]], [texts[i] for i in order[a : a + CLIPS]])
               for a in range(0, len(order), CLIPS)]  # fmt: skip
    every = torch.cat(steps)
    overall = every.var(0)
    chances = [batch.equal_shares() for batch in batches]
    for i in range(rounds):
        count = torch.zeros(symbols)
        first, second = torch.zeros(symbols, every.shape[1]), torch.zeros(symbols, every.shape[1])
        for batch, chance in zip(batches, chances, strict=True):
            flat = batch.texts.flatten()
            count.index_add_(0, flat, chance.sum(2).flatten())
            first.index_add_(0, flat, (chance @ batch.steps).flatten(0, 1))
            second.index_add_(0, flat, (chance @ batch.steps.square()).flatten(0, 1))
        weight = count.clamp_min(1e-3).unsqueeze(1)
        mean = first / weight
        variance = ((second - weight * mean.square()).clamp_min(0) + PRIOR * overall) / (weight + PRIOR)
        variance = variance.clamp_min(FLOOR * overall.clamp_min(1e-6))
        scores = [batch.scores(mean, variance) for batch in batches]
        if i < rounds - 1:
            chances = [
                alignment_posteriors(score, batch.letters, batch.lengths)[0]
                for score, batch in zip(scores, batches, strict=True)
            ]
    found: dict[int, Tensor] = {}
    ids = iter(order)
    for score, batch in zip(scores, batches, strict=True):  # pyright: ignore[reportPossiblyUnboundVariable]
        durations = monotonic_alignment(score, batch.letters, batch.lengths)
        found.update({next(ids): row[:n] for row, n in zip(durations, batch.letters.tolist(), strict=True)})
    return [found[i] for i in range(len(steps))]


def _cepstra(mels: Sequence[Tensor], speakers: Sequence[int], together: int) -> list[Tensor]:
    """Steps of cepstra, each coefficient standardised over the clips of a speaker."""
    bands = mels[0].shape[1]
    k, m = torch.arange(min(COEFFICIENTS, bands)), torch.arange(bands)
    cosines = math.sqrt(2 / bands) * torch.cos(math.pi / bands * (m + 0.5)[:, None] * k)
    plain = [pad_frames(mel, together) @ cosines for mel in mels]
    means: dict[int, Tensor] = {}
    scales: dict[int, Tensor] = {}
    for speaker in dict.fromkeys(speakers):
        rows = torch.cat([c for c, s in zip(plain, speakers, strict=True) if s == speaker])
        means[speaker], scales[speaker] = rows.mean(0), rows.std(0).clamp_min(1e-5)
    return [
        ((c - means[s]) / scales[s]).unflatten(0, (-1, together)).flatten(1)
        for c, s in zip(plain, speakers, strict=True)
    ]


class _Batch:
    """Clips of similar length, padded."""

    def __init__(self, steps: list[Tensor], texts: list[Tensor]):
        pad = torch.nn.utils.rnn.pad_sequence
        self.steps, self.texts = pad(steps, batch_first=True), pad(list(texts), batch_first=True)
        self.lengths = torch.tensor([len(step) for step in steps])
        self.letters = torch.tensor([len(text) for text in texts])

    def equal_shares(self) -> Tensor:
        """Chances (n, L, T) in which each letter has an equal share of its clip."""
        t = torch.arange(self.steps.shape[1])
        letter = t * self.letters[:, None] // self.lengths[:, None]
        mine = letter.unsqueeze(1) == torch.arange(self.texts.shape[1])[:, None]
        return (mine & (t < self.lengths[:, None]).unsqueeze(1)).float()

    def scores(self, mean: Tensor, variance: Tensor) -> Tensor:
        """log N of each step by each letter's Gaussian, (n, L, T), but for a constant."""
        precision = 1 / variance
        fixed = (mean.square() * precision + variance.log()).sum(1)
        each = self.steps.square() @ precision.mT - 2 * self.steps @ (mean * precision).mT + fixed  # of every symbol
        return -0.5 * each.gather(2, self.texts.unsqueeze(1).expand(-1, each.shape[1], -1)).mT

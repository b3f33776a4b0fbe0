"""Listeners that know natural clips alone: what word or speaker a spectrogram is of, and which phonemes it says."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Listener(nn.Module):
    """Tells spectrograms apart: convolutions over frames, the mean and the largest of each feature."""

    def __init__(self, mels: int, classes: int):
        super().__init__()
        self.near = nn.Conv1d(mels, 96, 5, padding=2)
        self.far = nn.Conv1d(96, 96, 5, padding=2, dilation=1)
        self.leave = nn.Linear(192, classes)
        self.dropout = nn.Dropout(0.3)

    def forward(self, mels: Tensor, real: Tensor) -> Tensor:
        h = torch.where(real, (mels + 5) / 3, 0.0).mT
        h = self.far(self.near(h).relu()).relu()
        h = torch.where(real.mT, h, 0.0)
        mean = h.sum(-1) / real.sum(-2)
        return self.leave(self.dropout(torch.cat([mean, h.amax(-1)], -1)))


def listen(model: Listener, mels: list[Tensor], labels: Tensor) -> tuple[float, float]:
    """The share of spectrograms whose class is heard, and −log p of the right class in the mean."""
    with torch.no_grad():
        heard = torch.cat([model(*padded(mels[i : i + 100])) for i in range(0, len(mels), 100)]).double()
    return float((heard.argmax(-1) == labels).double().mean()), float(F.cross_entropy(heard, labels))


def padded(mels: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(mel) for mel in mels])
    x = torch.nn.utils.rnn.pad_sequence(list(mels), batch_first=True)
    return x, (torch.arange(x.shape[1]) < lengths[:, None]).unsqueeze(-1)


def train_listener(mels: list[Tensor], labels: Tensor, classes: int, epochs: int = 12) -> Listener:
    torch.manual_seed(0)
    model = Listener(mels[0].shape[1], classes)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for index in torch.randperm(len(mels)).split(64):
            x, real = padded([mels[i] for i in index.tolist()])
            loud = 0.5 * torch.randn(len(x), 1, 1)  # recordings differ in loudness
            optimizer.zero_grad()
            F.cross_entropy(model(x + loud + 0.1 * torch.randn_like(x), real), labels[index]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


class Recogniser(nn.Module):
    """Phonemes of a spectrogram, frame by frame, or none (0): convolutions and a recurrent net in both directions."""

    def __init__(self, mels: int, symbols: int, width: int = 96):
        super().__init__()
        self.near = nn.Conv1d(mels, width, 5, padding=2)
        self.around = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.leave = nn.Linear(2 * width, symbols + 1)
        self.dropout = nn.Dropout(0.2)

    def forward(self, mels: Tensor, real: Tensor) -> Tensor:
        h = torch.where(real, (mels + 5) / 3, 0.0).mT
        h = self.dropout(self.near(h).relu().mT)
        packed = nn.utils.rnn.pack_padded_sequence(h, real.sum((1, 2)), batch_first=True, enforce_sorted=False)
        h = nn.utils.rnn.pad_packed_sequence(self.around(packed)[0], batch_first=True)[0]
        return self.leave(self.dropout(h)).log_softmax(-1)


def train_recogniser(mels: list[Tensor], texts: list[Tensor], symbols: int, epochs: int = 25) -> Recogniser:
    """By connectionist temporal classification; texts are of symbols 1, 2, …."""
    torch.manual_seed(0)
    model = Recogniser(mels[0].shape[1], symbols)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for index in torch.randperm(len(mels)).split(16):
            x, real = padded([mels[i] for i in index.tolist()])
            said = [texts[i] for i in index.tolist()]
            loud = 0.5 * torch.randn(len(x), 1, 1)
            found = model(x + loud + 0.1 * torch.randn_like(x), real)
            lengths = torch.tensor([len(text) for text in said])
            loss = F.ctc_loss(found.transpose(0, 1), torch.cat(said), real.sum((1, 2)), lengths, zero_infinity=True)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def error_rate(model: Recogniser, mels: list[Tensor], texts: list[Tensor]) -> float:
    """Phonemes to be put in, left out or changed, as a share of those of the texts."""
    wrong = 0
    for i in range(0, len(mels), 20):
        x, real = padded(mels[i : i + 20])
        best = model(x, real).argmax(-1)
        for row, length, text in zip(best, real.sum((1, 2)).tolist(), texts[i : i + 20], strict=True):
            heard = row[:length].unique_consecutive()
            wrong += edits(heard[heard > 0].tolist(), text.tolist())
    return wrong / sum(map(len, texts))


def edits(a: list[int], b: list[int]) -> int:
    """The least number of insertions, deletions and changes that make one sequence of the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]

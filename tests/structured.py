"""The smallest real uses of structured events: a flow of 8×8 digits and one of made-up sentences, as a program too.

python tests/structured.py digits FOLDER OUT STEPS      # fits, writes its state to FOLDER, and the weights to OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import diffeo


class Pixels(nn.Module):
    """Two convolutions as the conditioner of channels; `reads` says that classes are a vector."""

    def __init__(self, channels: int, out: int, classes: int):
        super().__init__()
        self.reads = {"classes": 1}
        self.enter = nn.Conv2d(channels, 16, 3, padding=1)
        self.by_class = nn.Linear(classes, 16)
        self.leave = nn.Conv2d(16, 2 * out, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, context: dict[str, Tensor]) -> Tensor:
        batch = x.shape[:-3]
        h = self.enter(x.reshape(-1, *x.shape[-3:])).unflatten(0, batch)
        h = (h + self.by_class(context["classes"])[..., None, None]).relu()
        params = self.leave(h.flatten(0, len(batch) - 1)).unflatten(1, (-1, 2)).movedim(2, -1)
        return params.unflatten(0, h.shape[: len(batch)])


def digits() -> tuple[Tensor, dict[str, Tensor]]:
    """Images of 17 levels, (n, 1, 8, 8), and their classes, one-hot."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1)
    return images, {"classes": nn.functional.one_hot(torch.from_numpy(found.target), 10).float()}


def digit_flow() -> diffeo.Dequantized:
    """Squeeze and couple: (1, 8, 8) to (4, 4, 4), where channels set channels."""
    torch.manual_seed(0)
    parts: list[diffeo.Transform] = [diffeo.Squeeze(), diffeo.Along(diffeo.Standardize(4), -3)]
    for i in range(4):
        mask = torch.arange(4) % 2 == i % 2
        parts += [diffeo.Coupling(mask, Pixels(2, 2, 10), diffeo.Affine(), dim=-3), diffeo.Conv1x1(4)]
    return diffeo.Dequantized(diffeo.Flow(diffeo.Chain(*parts), diffeo.Normal((4, 4, 4))))


class Sentences(Dataset):
    """Made-up sentences: three letters, each of which sounds as two numbers, and lasts one to three frames."""

    def __init__(self, n: int):
        random = torch.Generator().manual_seed(0)
        sounds = torch.tensor([[-2.0, 1.0], [0.0, -1.0], [2.0, 0.5]])
        self.examples = []
        for _ in range(n):
            letters = torch.randint(3, (int(torch.randint(2, 7, (), generator=random)),), generator=random)
            frames = letters.repeat_interleave(torch.randint(1, 4, (len(letters),), generator=random))
            noise = 0.3 * torch.randn(len(frames), 2, generator=random)
            self.examples.append((sounds[frames] + noise, {"letters": nn.functional.one_hot(frames, 3).float()}))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.examples[i]


class Frames(nn.Module):
    """The conditioner of one number of each frame: the other one, and the letters around."""

    def __init__(self):
        super().__init__()
        self.reads = {"letters": 2}
        self.around = nn.Conv1d(4, 16, 3, padding=1)
        self.each = nn.Linear(16, 2)
        nn.init.zeros_(self.each.weight)
        nn.init.zeros_(self.each.bias)

    def forward(self, x: Tensor, context: dict[str, Tensor]) -> Tensor:
        letters = context["letters"].expand(*x.shape[:-2], -1, -1)
        seen = torch.cat([x, letters], -1).flatten(0, -3).transpose(-1, -2)
        h = self.around(seen).relu().transpose(-1, -2)
        return self.each(h).unflatten(0, x.shape[:-2]).unsqueeze(-2)


def sentence_flow() -> diffeo.Flow:
    """Couplings of the two numbers of each frame, for sentences of any length."""
    torch.manual_seed(0)
    parts: list[diffeo.Transform] = [diffeo.Along(diffeo.ActNorm(2), -1, 2)]
    for i in range(4):
        parts.append(diffeo.Coupling(torch.arange(2) == i % 2, Frames(), diffeo.Affine(), event_ndim=2))
    return diffeo.Flow(diffeo.Chain(*parts), diffeo.Normal((None, 2)))


def fit(kind: str, **options) -> tuple[diffeo.Density, diffeo.FitResult]:
    """Either fit."""
    if kind == "digits":
        model, data = digit_flow(), digits()
    else:
        model, data = sentence_flow(), (Sentences(400),)
        options["collate"] = diffeo.training.padded
    return model, diffeo.fit(model, *data, batch_size=64, lr=5e-3, progress=False, **options)


def train(kind: str, folder: str | Path, out: str | Path, steps: str | int) -> None:
    """A fit that goes on where it was, if it was, and keeps its weights."""
    model, result = fit(kind, steps=int(steps), checkpoint=folder, checkpoint_every=0.02, resume=True)
    torch.save({"state": model.state_dict(), "resumed": result.resumed_steps}, out)


if __name__ == "__main__":
    train(*sys.argv[1:])

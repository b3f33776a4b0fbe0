"""How a clip is said, in numbers counted from what is usual for its speaker."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Size, Tensor, nn

from diffeo.functional import as_fixed_event

LEAST = 1e-3  # standard deviation of a number, below which it is the same in all clips but for rounding
FARTHEST = 4.0  # standard deviations: no clip is said further from what is usual


class Prosody(nn.Module):
    """How a clip is said, in numbers such as pitch and pace, as a vector: W clamp((c − mean) / std, −4, 4).

    Means are those of the speaker, standard deviations those within speakers, of the training clips. Numbers that are
    NaN, those that all clips share, and all of a context without the entry `"prosody"`, (*batch, count), count as the
    mean.

    Args:
        count: numbers.
        width: of the vector.
        speakers: how many there are; 0 for one voice.

    Raises:
        ValueError: sizes outside these; another count of numbers.

    >>> import torch, diffeo
    >>> net = diffeo.nets.Prosody(4, 8)
    >>> net({"prosody": torch.zeros(5, 4)}, torch.Size([5])).shape
    torch.Size([5, 8])
    """

    mean: Tensor
    scale: Tensor
    initialized: Tensor

    def __init__(self, count: int, width: int, speakers: int = 0):
        super().__init__()
        as_fixed_event((count, width), self)
        self.count = count
        self.register_buffer("mean", torch.zeros(max(1, speakers), count))
        self.register_buffer("scale", torch.ones(count))
        self.register_buffer("initialized", torch.tensor(False))
        self.vector = nn.Linear(count, width, bias=False)
        nn.init.zeros_(self.vector.weight)

    def forward(self, given: Mapping[str, Tensor], batch: Size) -> Tensor:
        """Of shape (rows, width), for a batch of that shape."""
        if "prosody" not in given:
            return self.mean.new_zeros(math.prod(batch), self.vector.out_features)
        found = self._rows(given["prosody"], batch)
        away = (found - self._usual(given.get("speaker"), batch)) / self.scale
        return self.vector(torch.where(away.isnan(), 0.0, away.clamp(-FARTHEST, FARTHEST)))

    def usual(self, speaker: int | None = None) -> Tensor:
        """What is usual for a speaker, (count,)."""
        return self.mean[speaker or 0]

    def within(self, prosody: Tensor, speaker: int | None = None) -> Tensor:
        """The nearest prosody, (count,), that a speaker's clips come close to; further ones count as this."""
        usual, away = self.usual(speaker), torch.where(self.scale.isinf(), 0.0, FARTHEST * self.scale)
        asked = prosody.to(usual)
        return torch.where(asked.isnan(), usual, asked.clamp(usual - away, usual + away))

    @torch.no_grad()
    def initialize(self, given: Mapping[str, Tensor]) -> None:
        """Learn what is usual from training clips, once; a speaker of whom they tell nothing has the mean of all."""
        if self.initialized or "prosody" not in given:
            return
        batch = given["prosody"].shape[:-1]
        rows = given["prosody"].double().reshape(-1, self.count)
        who = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        if len(self.mean) > 1 and "speaker" in given:
            who = given["speaker"].long().expand(batch).reshape(-1)
        usual, left = rows.nanmean(0).nan_to_num(0.0).repeat(len(self.mean), 1), rows.isfinite().sum(0)
        for k in who.unique().tolist():
            own = rows[who == k].nanmean(0)
            usual[k] = torch.where(own.isfinite(), own, usual[k])
            left = left - own.isfinite().long()  # a mean of one's own takes one clip's worth of differences
        spread = ((rows - usual[who]).square().nansum(0) / left.clamp_min(1)).sqrt()
        self.mean.copy_(usual)
        self.scale.copy_(torch.where((spread > LEAST) & (left > 0), spread, torch.inf))
        self.initialized.fill_(True)

    def _rows(self, prosody: Tensor, batch: Size) -> Tensor:
        if prosody.shape[-1] != self.count:
            raise ValueError(f"Prosody: expected {self.count} numbers, got {prosody.shape[-1]}")
        return prosody.to(self.mean).expand(*batch, self.count).reshape(-1, self.count)

    def _usual(self, speaker: Tensor | None, batch: Size) -> Tensor:
        if speaker is None or len(self.mean) == 1:
            return self.mean[0]
        return self.mean[speaker.long().expand(batch).reshape(-1)]

"""LSTMs that go from frame to frame and listen to a text."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from diffeo.core import Incremental
from diffeo.functional import Context, as_fixed_event, entries, joined, real_frames
from diffeo.kernels.dispatch import is_traced

SUMS = 1 << 24  # of a query and a key, that attention keeps for the backward pass


class Heard(NamedTuple):
    """What a run listens to: letters, their keys, what is added to the scores of each frame, and how far it is."""

    letters: Tensor
    keys: Tensor
    bias: Tensor
    done: int
    hearing: tuple[Tensor, Tensor] | None
    speaking: tuple[Tensor, Tensor] | None


class Listened(NamedTuple):
    """What a net made of frames and a text.

    Attributes:
        params: (*batch, T, features, n_params).
        attention: its logarithm, (*batch, T, L).
        stop: (*batch, T), the logit of the chance that a frame is the last one, in the order of the steps; None
            without a gate.
    """

    params: Tensor
    attention: Tensor
    stop: Tensor | None


class AttentiveLSTM(Incremental):
    """Parameters of each frame from the frames before it and what they attend to in a text; zero at the start.

    An LSTM reads the frames before; its output asks the letters by additive attention, a_l ∝ exp(v · tanh(W q + U
    k_l)); a second LSTM reads both, and layers h ↦ tanh(W h) its output. A beta-binomial prior keeps attention near the
    diagonal; it takes the sound to be as long as the mask says, or as the entry `"length"` of the context, (*batch,)
    frames, after which it stays at the end. A step costs the same, however far the run is.

    Args:
        features: of a frame.
        n_params: of each scalar.
        width: of the letters' vectors, the entry `"letters"` of the context, (*batch, L, width); `"text"`, (*batch, L),
            is 0 where they are padding.
        hidden: of both LSTMs.
        attention: width of the attention.
        depth: layers of the second LSTM.
        dense: layers after it, at least 1.
        strength: ω of the prior, > 0; 0 for none.
        backward: whether the frames come in reverse order, so that the prior is too.
        gate: whether steps also emit `"stop"`, (rows,), the logit of the chance that theirs is the last frame.

    Returns:
        Parameters of shape `(*batch, T, features, n_params)`.

    Raises:
        ValueError: sizes outside these; a context without letters.

    Cost: O(hidden²) for each frame, one after the other in both directions, and O(L · attention).

    "Flowtron: an Autoregressive Flow-based Generative Network for Text-to-Speech Synthesis" (Valle et al., 2020),
    https://arxiv.org/abs/2005.05957; "One TTS Alignment To Rule Them All" (Badlani et al., 2021),
    https://arxiv.org/abs/2108.10447, for the prior; "Neural Machine Translation by Jointly Learning to Align and
    Translate" (Bahdanau et al., 2014), https://arxiv.org/abs/1409.0473

    >>> import torch, diffeo
    >>> net = diffeo.nets.AttentiveLSTM(4, 2, width=6, hidden=8)
    >>> context = {"letters": torch.zeros(3, 6), "text": torch.tensor([1, 2, 3])}
    >>> net(torch.zeros(5, 9, 4), context).shape
    torch.Size([5, 9, 4, 2])
    """

    traceable = False  # PyTorch's compiler and vmap do not follow its LSTMs

    def __init__(
        self,
        features: int,
        n_params: int,
        *,
        width: int,
        hidden: int = 128,
        attention: int = 64,
        depth: int = 1,
        dense: int = 1,
        strength: float = 1.0,
        backward: bool = False,
        gate: bool = False,
    ):
        super().__init__()
        as_fixed_event((features, n_params, width, hidden, attention, depth, dense), self)
        if not strength >= 0:
            raise ValueError(f"AttentiveLSTM: expected strength >= 0, got {strength}")
        self.features, self.n_params, self.width = features, n_params, width
        self.strength, self.backward = strength, backward
        self.reads = {"letters": 2, "text": 1, "length": 0}
        self.hear = nn.LSTM(features, hidden, batch_first=True)
        self.query, self.key = nn.Linear(hidden, attention), nn.Linear(width, attention, bias=False)
        self.score = nn.Parameter(torch.randn(attention) / math.sqrt(attention))
        self.speak = nn.LSTM(hidden + width, hidden, depth, batch_first=True)
        self.think = nn.Sequential(*(layer for _ in range(dense) for layer in (nn.Linear(hidden, hidden), nn.Tanh())))
        self.leave = nn.Linear(hidden, features * n_params)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.gate = nn.Linear(hidden, 1) if gate else None

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        return self.listen(x, context).params

    def listen(self, x: Tensor, context: Context = None) -> Listened:
        """The parameters, and what they come with."""
        state, batch = self._state(x, context)
        seen = nn.functional.pad(x[..., :-1, :], (0, 0, 1, 0))
        seen = seen.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
        found, _ = self._run(seen, state)
        return Listened(*(None if t is None else t.reshape(*batch, *t.shape[1:]) for t in found))  # pyright: ignore

    def start(self, z: Tensor, context: Context = None) -> Heard:
        return self._state(z, context)[0]

    def step(self, x_prev: Tensor | None, state: Heard) -> tuple[Tensor, Any, Heard]:
        seen = state.letters.new_zeros(len(state.letters), self.features) if x_prev is None else x_prev
        found, state = self._run(seen.unsqueeze(1), state)
        return found.params.squeeze(1), None if found.stop is None else {"stop": found.stop.squeeze(1)}, state

    def _state(self, x: Tensor, context: Context) -> tuple[Heard, tuple[int, ...]]:
        """What a run begins with, and the batch of all."""
        given = entries(context)
        letters, text = given.get("letters"), given.get("text")
        if letters is None or text is None or letters.shape[-1] != self.width:
            got = "none" if letters is None else f"shape {tuple(letters.shape)}"
            raise ValueError(
                f"AttentiveLSTM: expected the entries 'letters', of width {self.width}, and 'text'; got {got}"
            )
        batch, longest = joined(x.shape[:-2], letters.shape[:-2], text.shape[:-1]), x.shape[-2]
        frames = real_frames(context, longest)
        if frames is None:
            frames = torch.tensor(longest, device=x.device)
        length = given.get("length", frames).long()  # that the prior takes the sound to have
        batch = joined(batch, frames.shape, length.shape)
        length = length.expand(batch).reshape(-1)
        text = text.expand(*batch, text.shape[-1]).reshape(-1, text.shape[-1])
        letters = letters.to(self.score.dtype).expand(*batch, *letters.shape[-2:]).reshape(-1, *letters.shape[-2:])
        real = text > 0
        bias = torch.where(real, 0.0, -1e4).unsqueeze(1).expand(-1, longest, -1)
        if self.strength:
            # the frame that each step is of; steps after the last one stay there
            at = torch.minimum(torch.arange(longest, device=x.device), length.unsqueeze(-1) - 1).clamp_min(0)
            at = (length.unsqueeze(-1) - 1 - at).clamp_min(0) if self.backward else at
            bias = bias + beta_binomial_prior(real.sum(-1), length, text.shape[-1], at, self.strength)
        return Heard(letters, self.key(letters), bias.to(letters.dtype), 0, None, None), tuple(batch)

    def _run(self, seen: Tensor, state: Heard) -> tuple[Listened, Heard]:
        """What becomes of the frames after those of the state, and the state after them."""
        if is_traced():
            raise RuntimeError(
                "AttentiveLSTM: vmap and torch.compile do not follow PyTorch's LSTMs, and would fail inside them; "
                "run it without"
            )
        done = state.done + seen.shape[1]
        hidden, hearing = _recurrent(self.hear, seen.to(self.score.dtype), state.hearing)
        attention = (self._scores(self.query(hidden), state.keys) + state.bias[:, state.done : done]).log_softmax(-1)
        heard = attention.exp() @ state.letters
        found, speaking = _recurrent(self.speak, torch.cat([hidden, heard], -1), state.speaking)
        params = self.leave(self.think(found)).unflatten(-1, (self.features, self.n_params))
        stop = None if self.gate is None else self.gate(found).squeeze(-1)
        return Listened(params, attention, stop), state._replace(done=done, hearing=hearing, speaking=speaking)

    def _scores(self, asked: Tensor, keys: Tensor) -> Tensor:
        """v · tanh(q + k), (rows, T, L): of long sounds block after block, made again in the backward pass."""

        def of_block(asked: Tensor, keys: Tensor, score: Tensor) -> Tensor:
            return (asked.unsqueeze(2) + keys.unsqueeze(1)).tanh() @ score

        size = max(1, SUMS // max(1, keys.numel()))
        if asked.shape[1] <= size:
            return of_block(asked, keys, self.score)
        again: Any = checkpoint
        blocks = [again(of_block, part, keys, self.score, use_reentrant=False) for part in asked.split(size, 1)]
        return torch.cat(blocks, 1)


def _recurrent(net: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`net(x, state)`; of a single frame by its cells, since PyTorch lays weights out anew at each call of a net."""
    if x.shape[1] != 1:
        return net(x, state)
    before = (x.new_zeros(net.num_layers, len(x), net.hidden_size),) * 2 if state is None else state
    h, hidden, cells = x[:, 0], list[Tensor](), list[Tensor]()
    for weights, *now in zip(net.all_weights, *before, strict=True):
        h, c = torch.lstm_cell(h, now, *weights)  # pyright: ignore[reportArgumentType] (four of them)
        hidden.append(h)
        cells.append(c)
    return h.unsqueeze(1), (torch.stack(hidden), torch.stack(cells))


def beta_binomial_prior(letters: Tensor, frames: Tensor, most: int, at: Tensor, strength: float) -> Tensor:
    """log of the chance of letter l at frame t, (*batch, T, most), near the diagonal; 0 where there is padding.

    Args:
        letters, frames: (*batch,), how many there are.
        most: how many columns.
        at: (*batch, T), the frames t.
        strength: ω > 0; the higher, the closer to the diagonal.

    Cost: a few values of log Γ for each letter and frame, in float64.

    "One TTS Alignment To Rule Them All" (Badlani et al., 2021), https://arxiv.org/abs/2108.10447

    >>> import torch
    >>> at = torch.arange(3)
    >>> beta_binomial_prior(torch.tensor(2), torch.tensor(3), 2, at, 1.0).exp()
    tensor([[0.7500, 0.2500],
            [0.5000, 0.5000],
            [0.2500, 0.7500]])
    """
    trials = (letters - 1).double()[..., None, None]
    total = frames.double()[..., None, None]
    t = at.double().unsqueeze(-1)
    k = torch.arange(most, device=letters.device, dtype=torch.float64)
    real = (k <= trials) & (t < total)
    k, t = torch.where(real, k, 0.0), torch.where(real, t, 0.0)
    a, b = strength * (t + 1), strength * (total - t)

    def log_beta(x: Tensor, y: Tensor) -> Tensor:
        return torch.lgamma(x) + torch.lgamma(y) - torch.lgamma(x + y)

    choose = -(trials + 1).log() - log_beta(k + 1, trials - k + 1)
    found = choose + log_beta(k + a, trials - k + b) - log_beta(a, b)
    return torch.where(real, found, 0.0).float()

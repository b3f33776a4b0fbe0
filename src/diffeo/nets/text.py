"""Encoders of text: a transformer that knows how far letters are apart, and attention from frames to letters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from diffeo.functional import Context, as_fixed_event, context_mask, entries
from diffeo.kernels.dispatch import TENSORS, is_traced
from diffeo.nets.prosody import Prosody

TINY = 1e-6


class TextEncoder(nn.Module):
    """Letters as means of frames, one for each letter, and how long each letter lasts.

    Convolutions and relative-position attention over the letters; durations are predicted from what these found, which
    learns nothing from the durations' errors.

    Args:
        symbols: how many there are, numbered 1 … symbols; 0 is padding.
        features: of a frame.
        width: of the letters' vectors; `heads` divide it.
        layers: of attention.
        heads: of attention.
        window: how many letters away attention tells apart.
        speakers: how many there are; 0 for one voice.
        prosody: how many numbers say how a clip is said (`Prosody`); 0 for none.
        recurrent: whether an LSTM in both directions reads the letters, in place of attention.
        dropout: in [0, 1).

    Returns:
        The context with `"means"`, (*batch, L, features); `"log_durations"`, (*batch, L), in frames; `"text"` as it
        came; and `"features"`, (*batch, width), where there are speakers or prosody, whose vectors it adds.

    Raises:
        ValueError: sizes outside these; no text, or symbols and speakers that are not there.

    "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search" (Kim et al., 2020),
    https://arxiv.org/abs/2005.11129; "Natural TTS Synthesis by Conditioning WaveNet on Mel Spectrogram Predictions"
    (Shen et al., 2017), https://arxiv.org/abs/1712.05884; "Self-Attention with Relative Position Representations"
    (Shaw et al., 2018), https://arxiv.org/abs/1803.02155

    >>> import torch, diffeo
    >>> encoder = diffeo.nets.TextEncoder(30, 8, width=16, heads=2)
    >>> encoder({"text": torch.tensor([[3, 1, 4], [1, 5, 0]])})["means"].shape
    torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        symbols: int,
        features: int,
        *,
        width: int = 96,
        layers: int = 3,
        heads: int = 2,
        window: int = 4,
        speakers: int = 0,
        prosody: int = 0,
        recurrent: bool = False,
        dropout: float = 0.1,
    ):
        super().__init__()
        as_fixed_event((symbols, features, width, layers, heads, window), self)
        if width % heads or speakers < 0:
            raise ValueError(f"TextEncoder: expected heads that divide width, speakers >= 0; got {heads}, {speakers}")
        self.reads = {"text": 1, "speaker": 0, "prosody": 1}
        self.symbols, self.speakers = symbols, speakers
        self.letters = nn.Embedding(symbols + 1, width, padding_idx=0)
        nn.init.normal_(self.letters.weight, std=width**-0.5)
        self.enter = nn.ModuleList(ConvNorm(width, width, dropout) for _ in range(3))
        self.layers = nn.ModuleList(
            RecurrentLayer(width) if recurrent else RelativeLayer(width, heads, window, dropout) for _ in range(layers)
        )
        self.leave = nn.Linear(width, features)
        self.voice = nn.Embedding(speakers, width) if speakers else None
        self.manner = Prosody(prosody, width, speakers) if prosody else None
        self.pace = nn.ModuleList([ConvNorm(width, width, dropout), ConvNorm(width, width, dropout)])
        self.duration = nn.Linear(width, 1)

    def forward(self, context: Context) -> Context:
        given = dict(entries(context))
        text = given.get("text")
        if text is None:
            raise ValueError('TextEncoder: expected a context {"text": …} of symbols 1, 2, …, and 0 for padding')
        if self.manner is None and "prosody" in given:
            raise ValueError(
                'TextEncoder: the context has the entry "prosody", which this one does not read: prosody=0'
            )
        if not text.shape[-1] or (_is_known(text) and not bool((text > 0).any(-1).all())):
            raise ValueError("TextEncoder: a text without letters")
        _check_numbers("symbols", text, 0, self.symbols)
        batch, text = text.shape[:-1], text.reshape(-1, text.shape[-1]).long()
        real = (text > 0).unsqueeze(-1)
        h = self.letters(text) * math.sqrt(self.letters.embedding_dim)
        clip = None  # what is the same for all letters
        if self.voice is not None:
            if "speaker" not in given:
                raise ValueError(f'TextEncoder: expected the entry "speaker", 0 … {self.speakers - 1}, got none')
            _check_numbers("speakers", given["speaker"], 0, self.speakers - 1)
            clip = F.normalize(self.voice(given["speaker"].long().expand(batch).reshape(-1)), dim=-1)
        if self.manner is not None:
            manner = self.manner(given, batch)
            clip = manner if clip is None else clip + manner
        if clip is not None:
            given["features"] = clip.reshape(*batch, -1)
        for layer in self.enter:
            h = h + layer(h, real)
        for layer in self.layers:
            h = layer(h, real)
        if clip is not None:
            h = h + clip.unsqueeze(-2)
        pace = h.detach()
        for layer in self.pace:
            pace = layer(pace, real)
        means, durations = self.leave(h), self.duration(pace).squeeze(-1)
        return {
            **given,
            "means": means.reshape(*batch, *means.shape[1:]),
            "log_durations": durations.reshape(*batch, -1),
        }

    def initialize(self, context: Context) -> None:
        """Learn what prosody is usual; once."""
        if self.manner is not None:
            self.manner.initialize(entries(context))


def _is_known(t: Tensor) -> bool:
    """Whether numbers can be looked at: nobody traces, and they are in the memory of the CPU, where that is no wait."""
    return not is_traced() and type(t) in TENSORS and t.is_cpu


def _check_numbers(what: str, given: Tensor, low: int, high: int) -> None:
    """Refuse numbers that an embedding does not have."""
    if _is_known(given) and given.numel() and not bool(((given >= low) & (given <= high)).all()):
        found = f"{given.min().item()} … {given.max().item()}"
        raise ValueError(f"TextEncoder: expected {what} {low} … {high}, got {found}")


class PositionalAttention(nn.Module):
    """What each frame hears of a text: attention from the places of frames to letters, without looking at sound.

    Queries are places of frames, keys are letters and their places, both as sinusoids. Letter l lies between e_{l − 1}
    and e_l, the sums of the durations up to it, given or predicted, stretched to as many frames as there are. A prior
    keeps attention near: the chance that frame t is of letter l, where ends are known up to a logistic error,

        σ(ω (t + ½ − e_{l − 1})) − σ(ω (t + ½ − e_l)).

    Args:
        symbols: how many there are, numbered 1 … symbols; 0 is padding.
        features: of a frame of the result, even.
        layers: of attention among letters.
        heads: of that attention; they divide `features`.
        together: frames of the mask that make one of the result.
        speakers: how many there are; 0 for one voice.
        prosody: how many numbers say how a clip is said; 0 for none.
        dropout: in [0, 1).
        strength: ω of the prior, > 0, in 1 / frames of the result; 0 for no prior.

    Returns:
        The context with `"features"`, (*batch, T, features), speakers and prosody counted in; `"attention"`,
        (*batch, T, L), its logarithm; and `"log_durations"`, (*batch, L), as of `TextEncoder`.

    Raises:
        ValueError: sizes outside these; no text, or no mask, which says how many frames there are.

    Cost: O(L · T) for each of the features.

    "Flow-TTS: A Non-Autoregressive Network for Text to Speech Based on Flow" (Miao et al., 2020),
    https://doi.org/10.1109/ICASSP40776.2020.9054484, which stretches all letters alike

    >>> import torch, diffeo
    >>> encoder = diffeo.nets.PositionalAttention(30, 8)
    >>> context = {"text": torch.tensor([3, 1, 4]), "mask": torch.ones(12, 1, dtype=torch.bool)}
    >>> encoder(context)["features"].shape
    torch.Size([6, 8])
    """

    def __init__(
        self,
        symbols: int,
        features: int,
        *,
        layers: int = 2,
        heads: int = 2,
        together: int = 2,
        speakers: int = 0,
        prosody: int = 0,
        dropout: float = 0.1,
        strength: float = 1.0,
    ):
        super().__init__()
        if features % 2 or not strength >= 0:
            raise ValueError(f"PositionalAttention: expected even features, strength >= 0; got {features}, {strength}")
        self.text = TextEncoder(
            symbols,
            features,
            width=features,
            layers=layers,
            heads=heads,
            speakers=speakers,
            prosody=prosody,
            dropout=dropout,
        )
        self.reads = {**self.text.reads, "mask": 2, "durations": 1}
        self.together, self.strength, self.width = together, strength, features
        self.query, self.key = nn.Linear(features, features), nn.Linear(2 * features, features)
        self.value = nn.Linear(2 * features, features)
        self.clip = nn.Linear(features, features, bias=False) if speakers or prosody else None
        nn.init.zeros_(self.query.weight)  # attention starts as the prior
        nn.init.zeros_(self.query.bias)

    def forward(self, context: Context) -> Context:
        mask = context_mask(context)
        if mask is None:
            raise ValueError(
                'PositionalAttention: expected a context with a "mask", which says how many frames there are'
            )
        given = dict(entries(self.text(context)))
        letters = given.pop("means")
        text, steps = given["text"], mask.any(-1).sum(-1) // self.together
        batch = torch.broadcast_shapes(letters.shape[:-2], steps.shape)
        if "durations" in given:
            batch = torch.broadcast_shapes(batch, given["durations"].shape[:-1])
        letters = letters.expand(*batch, *letters.shape[-2:])
        real = (text > 0).expand(*batch, text.shape[-1])
        frames = (steps.expand(batch), mask.shape[-2] // self.together)
        count = real.sum(-1)
        if _is_known(count) and bool((long := (count > frames[0]) & (frames[0] > 0)).any()):
            told = f"{count[long][0].item()} letters in {frames[0][long][0].item()} steps of sound"
            raise ValueError(f"PositionalAttention: {told}; is this the text?")
        t = torch.arange(frames[1], device=letters.device) + 0.5
        lasting = given["durations"].to(letters.dtype) if "durations" in given else given["log_durations"].exp()
        lasting = torch.where(real, lasting, 0.0)
        lasting = lasting * (frames[0].unsqueeze(-1) / lasting.sum(-1, keepdim=True).clamp_min(TINY))
        ends = lasting.cumsum(-1)
        keys = torch.cat([letters, self._waves(ends - lasting / 2).to(letters.dtype)], -1)
        query = self.query(self._waves(t).to(letters.dtype))
        scores = query @ self.key(keys).mT / math.sqrt(self.width)
        if self.strength:
            scores = scores + self._prior(t, ends - lasting, lasting)
        attention = scores.masked_fill(~real.unsqueeze(-2), -1e4).log_softmax(-1)
        value = self.value(keys)
        found = attention.exp().to(value.dtype) @ value
        if self.clip is not None:
            found = found + self.clip(given["features"]).unsqueeze(-2)
        heard = (t < frames[0].unsqueeze(-1)).unsqueeze(-1)  # padding hears nothing
        return {**given, "features": torch.where(heard, found, 0.0), "attention": attention}

    def initialize(self, context: Context) -> None:
        """Learn what prosody is usual; once."""
        self.text.initialize(context)

    def _prior(self, t: Tensor, begins: Tensor, lasting: Tensor) -> Tensor:
        """log (σ(a) − σ(b)) = log σ(a) + log σ(−b) + log (1 − exp(b − a)) of the places of frames, (*batch, T, L)."""
        after = self.strength * (t.unsqueeze(-1) - begins.unsqueeze(-2))
        width = self.strength * lasting.unsqueeze(-2)
        inside = (-torch.expm1(-width)).clamp_min(TINY).log()
        return F.logsigmoid(after) + F.logsigmoid(width - after) + inside

    def _waves(self, place: Tensor) -> Tensor:
        """Sines and cosines of places, (*place, width), of wavelengths from a few frames to thousands."""
        n = self.width // 2
        rates = torch.logspace(0, -3, n, device=place.device)
        angle = place.unsqueeze(-1) * rates
        return torch.cat([angle.sin(), angle.cos()], -1)


class Letters(nn.Module):
    """A text as vectors of its letters: convolutions and an LSTM in both directions, as in Tacotron 2.

    Args:
        symbols: how many there are, numbered 1 … symbols; 0 is padding.
        width: of the vectors, even.
        speakers: how many there are; 0 for one voice.
        prosody: how many numbers say how a clip is said; 0 for none.
        dropout: in [0, 1).

    Returns:
        The context with `"letters"`, (*batch, L, width), and `"log_durations"`, (*batch, L), as of `TextEncoder`.

    Raises:
        ValueError: sizes outside these; no text.

    "Natural TTS Synthesis by Conditioning WaveNet on Mel Spectrogram Predictions" (Shen et al., 2017),
    https://arxiv.org/abs/1712.05884

    >>> import torch, diffeo
    >>> diffeo.nets.Letters(30, 8)({"text": torch.tensor([3, 1, 4])})["letters"].shape
    torch.Size([3, 8])
    """

    def __init__(self, symbols: int, width: int, *, speakers: int = 0, prosody: int = 0, dropout: float = 0.1):
        super().__init__()
        self.text = TextEncoder(
            symbols,
            width,
            width=width,
            layers=1,
            heads=1,
            speakers=speakers,
            prosody=prosody,
            recurrent=True,
            dropout=dropout,
        )
        self.reads = {**self.text.reads, "durations": 1}  # not read here: a clip of a corpus may come with them

    def forward(self, context: Context) -> Context:
        given = dict(entries(self.text(context)))
        return {**given, "letters": given.pop("means")}

    def initialize(self, context: Context) -> None:
        """Learn what prosody is usual; once."""
        self.text.initialize(context)


class ConvNorm(nn.Module):
    """Dropout of layer norm of relu of a convolution over five letters, padding left out."""

    def __init__(self, into: int, out: int, dropout: float):
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv1d(into, out, 5, padding=2), nn.LayerNorm(out), nn.Dropout(dropout)

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        return self.dropout(self.norm(self.conv(torch.where(real, h, 0.0).mT).mT.relu()))


class RecurrentLayer(nn.Module):
    """An LSTM in both directions, of half the width each, padding left out."""

    def __init__(self, width: int):
        super().__init__()
        if width % 2:
            raise ValueError(f"TextEncoder: an LSTM in both directions needs an even width, got {width}")
        self.both = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        lengths = real.sum((-2, -1)).clamp_min(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        found = nn.utils.rnn.pad_packed_sequence(self.both(packed)[0], batch_first=True, total_length=h.shape[-2])
        return found[0]


class RelativeLayer(nn.Module):
    """Attention that knows distances up to a window, and convolutions, each added and normalised."""

    def __init__(self, width: int, heads: int, window: int, dropout: float):
        super().__init__()
        self.heads, self.window = heads, window
        self.ask, self.answer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        size = width // heads
        self.far_keys = nn.Parameter(size**-0.5 * torch.randn(2 * window + 1, size))
        self.far_values = nn.Parameter(size**-0.5 * torch.randn(2 * window + 1, size))
        self.wide, self.back = nn.Conv1d(width, 4 * width, 3, padding=1), nn.Conv1d(4 * width, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        h = self.norms[0](h + self.dropout(self._attended(h, real)))
        inner = self.wide(torch.where(real, h, 0.0).mT).relu()
        inner = self.back(torch.where(real.mT, inner, 0.0)).mT
        return self.norms[1](h + self.dropout(inner))

    def _attended(self, h: Tensor, real: Tensor) -> Tensor:
        query, key, value = self.ask(h).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2).unbind(0)
        n = h.shape[-2]
        steps = torch.arange(n, device=h.device)
        apart = (steps - steps[:, None]).clamp(-self.window, self.window) + self.window  # beyond the window, its end
        scores = query @ key.mT + torch.einsum("bhqd,qkd->bhqk", query, self.far_keys[apart])
        scores = (scores / math.sqrt(query.shape[-1])).masked_fill(~real.mT.unsqueeze(1), -1e4)
        share = self.dropout(scores.softmax(-1))
        seen = share @ value + torch.einsum("bhqk,qkd->bhqd", share, self.far_values[apart])
        return self.answer(seen.transpose(-3, -2).flatten(-2))

"""Flows of sound given its mel spectrogram: vocoders."""

from __future__ import annotations

import torch

from diffeo.core import Chain, Flow, Inverse, Transform
from diffeo.densities import Normal
from diffeo.nets import Beside, CausalWaveNet, MelEncoder, RowWaveNet, WaveNet
from diffeo.recipes.parts import preset_sizes
from diffeo.recipes.registry import recipe
from diffeo.transforms import (
    Affine,
    Along,
    Autoregressive,
    Coupling,
    Fold,
    LinearPrediction,
    LocationScale,
    LULinear,
    Partial,
    Standardize,
)

WAVEFLOW = {
    "tiny": {"height": 8, "flows": 4, "hidden": 24, "layers": 4, "width": 32},
    "small": {"height": 16, "flows": 6, "hidden": 32, "layers": 6, "width": 64},
    "paper": {"height": 16, "flows": 8, "hidden": 64, "layers": 8, "width": 80},
}
WAVEGLOW = {
    "tiny": {"group": 8, "flows": 6, "hidden": 32, "layers": 3, "width": 32},
    "small": {"group": 8, "flows": 8, "hidden": 64, "layers": 5, "width": 64},
    "paper": {"group": 8, "flows": 12, "hidden": 512, "layers": 8, "width": 640},
}
WAVENET = {
    "tiny": {"hidden": 24, "layers": 8, "width": 32},
    "small": {"hidden": 48, "layers": 16, "width": 64},
    "paper": {"hidden": 128, "layers": 20, "width": 80},
}
STUDENT = {
    "tiny": {"flows": 2, "hidden": 24, "layers": 8, "width": 32},
    "small": {"flows": 4, "hidden": 32, "layers": 10, "width": 64},
    "paper": {"flows": 6, "hidden": 64, "layers": 10, "width": 80},
}
CYCLE = 10  # layers after which dilations of one sample come again
HEIGHTS = {8: (1,), 16: (1,), 32: (1, 2, 4), 64: (1, 2, 4, 8, 16)}  # dilations from row to row, as published
EARLY = 4  # flows of WaveGlow after which two channels leave
LEAVING = 2
LOUDEST = 9.0  # largest log-scale of a single layer that makes noise of sound: silence is e⁻⁹ of the loudest


@recipe(events="waveforms")
def waveflow(
    mels: int,
    hop: int,
    *,
    preset: str = "small",
    height: int | None = None,
    flows: int | None = None,
    hidden: int | None = None,
    layers: int | None = None,
    width: int | None = None,
    order: int = 0,
    rate: int = 0,
    window: int = 0,
) -> Flow:
    """WaveFlow: sound folded into rows, autoregressive from row to row by two-dimensional WaveNets.

    Events are samples (N, 1), N a multiple of `height`. The context is a dict: `"mel"`, the spectrogram (F, mels) with
    a frame every `hop` samples, the first one centred on the first sample; and `"mask"`, (N, 1), for samples and
    batches. Row i holds every `height`-th sample from sample i on. Each of the `flows` maps a row given those before
    it; rows are taken in another order each time: reversed, and in the second half of the flows reversed in each half.
    As many rows as samples are WaveNet's limit; two rows, of which one sets the other, couple halves as WaveGlow does.

    Args:
        mels: of a frame; 0 for sound without a context.
        hop: samples from frame to frame.
        preset: "tiny", "small" or "paper" (of 64 channels, 5.91 M parameters), which set the next five where these are
            None.
        height: rows, at least 1: the steps that a sample takes in each flow.
        flows: at least 1.
        hidden: channels of each WaveNet.
        layers: of each WaveNet.
        width: features of a frame of the spectrogram.
        order: of a linear prediction by the spectrogram, which comes first: the flow then has no spectra to learn. It
            wants to know the
        rate: samples in a second, and the
        window: samples of a window of the spectrogram, whose bands reach from 0 to half the rate. 0 for none.

    Returns:
        A `Flow`. `diffeo.apps.speech.vocode` makes sound of a spectrogram by it.

    Raises:
        ValueError: an unknown preset; sizes outside these.

    Cost: one pass for a density; `height` passes over one row for a sample, which together cost one.

    "WaveFlow: A Compact Flow-based Model for Raw Audio" (Ping et al., 2019), https://arxiv.org/abs/1912.01219

    >>> import torch, diffeo
    >>> flow = diffeo.waveflow(8, 100, preset="tiny")
    >>> context = {"mel": torch.zeros(9, 8), "mask": torch.ones(800, 1, dtype=torch.bool)}
    >>> flow.sample((), context).shape
    torch.Size([800, 1])
    """
    asked = {"height": height, "flows": flows, "hidden": hidden, "layers": layers, "width": width}
    sizes = preset_sizes("waveflow", WAVEFLOW, preset, **asked)
    rows, count = sizes["height"], sizes["flows"]
    beside = _beside(mels, sizes["width"], hop, rows)
    parts = [*_first(mels, hop, order), *([Fold(rows, 1)] if rows > 1 else [])]
    turn = torch.arange(rows)
    for i in range(count):
        net = RowWaveNet(
            rows,
            Affine.n_params,
            hidden=sizes["hidden"],
            layers=sizes["layers"],
            heights=HEIGHTS.get(rows, (1,)),
            order=turn,
            beside=beside,
        )
        parts.append(Autoregressive(net, Affine(), dim=-1, event_ndim=2))
        half = rows // 2
        turn = turn.flip(0) if i < count // 2 else torch.cat([turn[:half].flip(0), turn[half:].flip(0)])
    return Flow(Chain(*parts), Normal((None, rows)), _encoder(mels, sizes["width"], hop, order, rate, window))


@recipe(events="waveforms")
def waveglow(
    mels: int,
    hop: int,
    *,
    preset: str = "small",
    group: int | None = None,
    flows: int | None = None,
    hidden: int | None = None,
    layers: int | None = None,
    width: int | None = None,
    order: int = 0,
    rate: int = 0,
    window: int = 0,
) -> Flow:
    """WaveGlow: groups of samples as channels, mixed linearly and coupled by WaveNets, some leaving early.

    Events and context are those of `waveflow`, N a multiple of `group`. After every fourth flow two channels leave.

    Args:
        mels: of a frame; 0 for sound without a context.
        hop: samples from frame to frame.
        preset: "tiny", "small" or "paper", which set the next five where these are None.
        group: samples that become channels, even.
        flows: at least 1.
        hidden: channels of each WaveNet.
        layers: of each WaveNet.
        width: features of a frame of the spectrogram.
        order: of a linear prediction by the spectrogram, which comes first: the flow then has no spectra to learn. It
            wants to know the
        rate: samples in a second, and the
        window: samples of a window of the spectrogram, whose bands reach from 0 to half the rate. 0 for none.

    Returns:
        A `Flow`. `diffeo.apps.speech.vocode` makes sound of a spectrogram by it.

    Raises:
        ValueError: an unknown preset; sizes outside these; fewer channels than leave.

    Cost: one pass for a density and one for a sample, both in parallel over time.

    "WaveGlow: A Flow-based Generative Network for Speech Synthesis" (Prenger et al., 2018),
    https://arxiv.org/abs/1811.00002

    >>> import torch, diffeo
    >>> flow = diffeo.waveglow(8, 100, preset="tiny")
    >>> context = {"mel": torch.zeros(9, 8), "mask": torch.ones(800, 1, dtype=torch.bool)}
    >>> flow.sample((), context).shape
    torch.Size([800, 1])
    """
    asked = {"group": group, "flows": flows, "hidden": hidden, "layers": layers, "width": width}
    sizes = preset_sizes("waveglow", WAVEGLOW, preset, **asked)
    channels, left = sizes["group"], LEAVING * ((sizes["flows"] - 1) // EARLY)
    if channels % 2 or channels - left < 2:
        raise ValueError(
            f"waveglow: expected an even group of which at least 2 channels stay, got {channels} with {left} leaving"
        )
    beside = _beside(mels, sizes["width"], hop, channels)
    parts = [*_first(mels, hop, order), Fold(channels, 1)]
    for i in range(sizes["flows"]):
        left = LEAVING * (i // EARLY)
        kept = channels - left
        net = WaveNet(
            kept // 2,
            kept - kept // 2,
            Affine.n_params,
            hidden=sizes["hidden"],
            layers=sizes["layers"],
            kernel=3,
            dilation=2,
            beside=beside,
        )
        step = Chain(
            Along(LULinear(kept), -1, 2),
            Coupling(torch.arange(kept) < kept // 2, net, Affine(), dim=-1, event_ndim=2),
        )
        parts.append(Partial(step, torch.arange(channels) >= left, dim=-1) if left else step)
    return Flow(Chain(*parts), Normal((None, channels)), _encoder(mels, sizes["width"], hop, order, rate, window))


@recipe(events="waveforms")
def wavenet(
    mels: int,
    hop: int,
    *,
    preset: str = "small",
    hidden: int | None = None,
    layers: int | None = None,
    width: int | None = None,
) -> Flow:
    """WaveNet with Gaussians: each sample is normal, with mean and scale from the samples before it and a spectrogram.

    Events and context are those of `waveflow`, with any N. As a flow it is one autoregressive layer of scalar
    standardisations; it teaches a `parallel_wavenet`.

    Args:
        mels: of a frame; 0 for sound without a context.
        hop: samples from frame to frame.
        preset: "tiny", "small" or "paper", which set the next three where these are None.
        hidden: channels.
        layers: of dilations 1, 2, 4, …, 512 and again.
        width: features of a frame of the spectrogram.

    Raises:
        ValueError: an unknown preset; sizes outside these.

    Cost: one pass for a density; N steps for a sample, each that of one sample of a pass.

    "WaveNet: A Generative Model for Raw Audio" (van den Oord et al., 2016), https://arxiv.org/abs/1609.03499;
    "ClariNet: Parallel Wave Generation in End-to-End Text-to-Speech" (Ping et al., 2018),
    https://arxiv.org/abs/1807.07281

    >>> import torch, diffeo
    >>> flow = diffeo.wavenet(0, 1, preset="tiny")
    >>> flow(torch.zeros(5, 100, 1)).shape
    torch.Size([5])
    """
    sizes = preset_sizes("wavenet", WAVENET, preset, hidden=hidden, layers=layers, width=width)
    net = _causal(LocationScale.n_params, sizes, _beside(mels, sizes["width"], hop, 1))
    layer = Autoregressive(net, LocationScale(bound=LOUDEST), dim=-2, event_ndim=2)
    return Flow(Chain(Along(Standardize(1), -1, 2), layer), Normal((None, 1)), _encoder(mels, sizes["width"], hop))


@recipe(events="waveforms")
def parallel_wavenet(
    mels: int,
    hop: int,
    *,
    preset: str = "small",
    flows: int | None = None,
    hidden: int | None = None,
    layers: int | None = None,
    width: int | None = None,
) -> Flow:
    """Parallel WaveNet: inverse autoregressive flows, whose samples take one pass; `Distillation` trains it.

    Events and context are those of `waveflow`, with any N. Each flow scales and shifts its noise by what a WaveNet
    makes of the noise before it.

    Args:
        mels: of a frame; 0 for sound without a context.
        hop: samples from frame to frame.
        preset: "tiny", "small" or "paper", which set the next four where these are None.
        flows: at least 1.
        hidden: channels of each WaveNet.
        layers: of each WaveNet.
        width: features of a frame of the spectrogram.

    Raises:
        ValueError: an unknown preset; sizes outside these.

    Cost: one pass for a sample; N steps for each flow for a density.

    "Parallel WaveNet: Fast High-Fidelity Speech Synthesis" (van den Oord et al., 2017),
    https://arxiv.org/abs/1711.10433; "ClariNet: Parallel Wave Generation in End-to-End Text-to-Speech" (Ping et al.,
    2018), https://arxiv.org/abs/1807.07281

    >>> import torch, diffeo
    >>> flow = diffeo.parallel_wavenet(0, 1, preset="tiny")
    >>> flow.sample(3, {"mask": torch.ones(100, 1, dtype=torch.bool)}).shape
    torch.Size([3, 100, 1])
    """
    asked = {"flows": flows, "hidden": hidden, "layers": layers, "width": width}
    sizes = preset_sizes("parallel_wavenet", STUDENT, preset, **asked)
    beside = _beside(mels, sizes["width"], hop, 1)
    parts: list[Transform] = [Along(Standardize(1), -1, 2)]
    for _ in range(sizes["flows"]):
        net = _causal(Affine.n_params, sizes, beside)
        parts.append(Inverse(Autoregressive(net, Affine(bound=LOUDEST), dim=-2, event_ndim=2)))
    return Flow(Chain(*parts), Normal((None, 1)), _encoder(mels, sizes["width"], hop))


def _causal(n_params: int, sizes: dict[str, int], beside: Beside | None) -> CausalWaveNet:
    return CausalWaveNet(1, n_params, hidden=sizes["hidden"], layers=sizes["layers"], cycle=CYCLE, beside=beside)


def _beside(mels: int, width: int, hop: int, rows: int) -> Beside | None:
    """Frames beside columns of so many samples, which lie around their middle."""
    return Beside("features", width, hop / rows, -(rows - 1) / 2 / rows) if mels else None


def _first(mels: int, hop: int, order: int) -> list[Transform]:
    """What sound goes through first: a linear prediction, and the scale of all."""
    if order and not mels:
        raise ValueError("a linear prediction comes from the spectrogram: expected mels, or order=0")
    return [*([LinearPrediction(order, hop)] if order else []), Along(Standardize(1), -1, 2)]


def _encoder(mels: int, width: int, hop: int, order: int = 0, rate: int = 0, window: int = 0) -> MelEncoder | None:
    return MelEncoder(mels, width, hop, order=order, rate=rate, window=window) if mels else None

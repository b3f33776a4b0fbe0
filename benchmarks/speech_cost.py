"""What speech costs: real-time factors, memory, and Glow-TTS and WaveGlow beside those of other libraries.

    COQUI=coqui NEMO=nemo python benchmarks/speech.py --parts peer

with their files as speech_peers.py says.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import diffeo
from diffeo.apps import speech as tools
from image_cost import saved_bytes
from results import markdown
from speech_peers import coqui_decoder, nemo_waveglow

SYSTEMS = ("glow_tts", "flow_tts", "flowtron")
ROUNDS = 7
BATCH, FRAMES, MELS = 8, 200, 80  # of the race with Glow-TTS
CLIPS, HOP, CLIP_FRAMES = 4, 256, 64  # and with WaveGlow: a second of sound at 16 kHz
OURS = ("diffeo", "diffeo, compiled_kernels", "diffeo, compile()")
PEERS, COMPILED = {"glow_tts": "Coqui TTS", "waveglow": "NeMo"}, ", torch.compile"


def interleaved(calls: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Seconds of each call, in turns, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(ROUNDS + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if round_:
                times[name].append(time.perf_counter() - began)
    return {name: {"median": statistics.median(t), "low": min(t), "high": max(t)} for name, t in times.items()}


@torch.no_grad()
def speed(_: float) -> dict[str, Any]:
    """Seconds of work for a second of sound at 16 kHz, of models that have learned nothing."""
    settings = tools.Mel.of(16000)
    mel = torch.randn(81, settings.mels)
    quiet = mel.clamp(-5, 1)  # as sound in [−1, 1] is
    calls = {}
    for system in ("waveglow", "waveflow", "parallel_wavenet"):
        for preset in ("tiny", "small"):
            first = {} if system == "parallel_wavenet" else tools.prediction(settings)
            flow = getattr(diffeo, system)(settings.mels, settings.hop, preset=preset, **first).eval()
            calls[f"{system}, {preset}"] = lambda flow=flow: tools.vocode(flow, mel, settings)
            if system == "waveglow":
                calls[f"{system}, {preset}, and 10 rounds"] = lambda flow=flow: tools.vocode(
                    flow, quiet, settings, rounds=10
                )
    text = torch.arange(1, 13)
    for system in SYSTEMS:
        for preset in ("tiny", "small"):
            flow = getattr(diffeo, system)(settings.mels, 40, preset=preset).eval()
            steps = torch.tensor([4] * 4 + [3] * 8)  # forty of two frames: one second
            calls[f"{system}, {preset}"] = lambda flow=flow, steps=steps: tools.say(flow, text, durations=steps)
    calls["Griffin-Lim, 60 rounds"] = lambda: tools.from_mel(quiet, settings, fixed=True)
    calls["from_mel, 60 rounds"] = lambda: tools.from_mel(quiet, settings)
    return {"factor": interleaved(calls)}


@torch.no_grad()
def stepwise(_: float) -> dict[str, Any]:
    """Milliseconds of a step, whatever was drawn before it: a frame of flowtron, a row of waveflow."""
    settings = tools.Mel.of(16000)
    voice = diffeo.flowtron(settings.mels, 40, preset="tiny").eval()
    text, calls, counts = torch.arange(1, 13), {}, {}
    for steps in (50, 200, 800):  # of two frames
        name = f"flowtron, {2 * steps} frames"
        durations = torch.full((12,), steps // 12)
        durations[0] += steps - int(durations.sum())
        calls[name], counts[name] = lambda d=durations: tools.say(voice, text, durations=d), steps
    mel, columns = torch.randn(81, settings.mels), 200
    for height in (8, 32, 128):
        name = f"waveflow, {height} rows"
        vocoder = diffeo.waveflow(
            settings.mels, settings.hop, preset="tiny", height=height, **tools.prediction(settings)
        )
        mask = torch.ones(height * columns, 1, dtype=torch.bool)
        context = {"mel": mel.repeat(2, 1), "mask": mask}
        calls[name], counts[name] = lambda v=vocoder.eval(), c=context: v.sample((), c), height
    found = interleaved(calls)
    return {"ms": {name: {key: 1e3 * t / counts[name] for key, t in of.items()} for name, of in found.items()}}


@torch.no_grad()
def _stir(module: torch.nn.Module) -> None:
    """Weights that start at zero, so that a flow is the identity, as after some training."""
    for p in module.parameters():
        if not p.any():
            p.normal_(0.0, 0.01)


def peer(_: float) -> dict[str, Any]:
    """A training step, forward and backward, and a sample, of equal flows of ours and of others, by preset."""
    found = {}
    for preset in ("tiny", "small"):
        for name, race in (("glow_tts", _race_glow_tts), ("waveglow", _race_waveglow)):
            torch.manual_seed(0)
            found[f"{name}, {preset}"] = race(preset)
    return {"races": found}


def _race(
    name: str,
    ours: tuple[Any, Any],
    value: Callable[[Any], Tensor],
    sample: Callable[[Any], Any],
    theirs: tuple[Any, Any],
    their_value: Callable[[Any], Tensor],
    their_sample: Callable[[Any], Any],
) -> dict[str, Any]:
    """Times of a step and a sample: of ours as it is, in `compiled_kernels`, and compiled; and of theirs and compiled.

    A flow is given as it is trained and as it is prepared for inference.
    """
    steps, samples = {}, {}
    for how in OURS:
        flow, ready = copy.deepcopy(ours)
        if how == OURS[2]:
            flow.compile(), ready.compile()

        def step(flow: Any = flow, kernels: bool = how == OURS[1]) -> None:
            with diffeo.compiled_kernels(kernels):
                value(flow).backward()

        @torch.no_grad()
        def draw(ready: Any = ready, kernels: bool = how == OURS[1]) -> None:
            with diffeo.compiled_kernels(kernels):
                sample(ready)

        steps[how], samples[how] = step, draw
    steps[PEERS[name]] = lambda: their_value(theirs[0]).backward()
    samples[PEERS[name]] = torch.no_grad()(lambda: their_sample(theirs[1]))
    compiled_value, compiled_sample = torch.compile(their_value), torch.compile(their_sample)
    steps[PEERS[name] + COMPILED] = lambda: compiled_value(theirs[0]).backward()
    samples[PEERS[name] + COMPILED] = torch.no_grad()(lambda: compiled_sample(theirs[1]))
    return {
        "step": interleaved(steps),
        "sample": interleaved(samples),
        "parameters": {how: sum(p.numel() for p in (ours if how in OURS else theirs)[0].parameters()) for how in steps},
    }


def _race_glow_tts(preset: str) -> dict[str, Any]:
    """The decoder alone, whose sample is the inverse of one spectrogram of noise."""
    from diffeo.recipes.speech.acoustic import GLOW_TTS

    x, mask = torch.randn(BATCH, FRAMES, MELS), torch.ones(BATCH, FRAMES, 1, dtype=torch.bool)
    sizes = GLOW_TTS[preset]
    flow = diffeo.glow_tts(MELS, 40, preset=preset, dropout=0.0, grouped=4)
    flow.transform.initialize(x, {"mask": mask})
    theirs, theirs_ready = coqui_decoder(MELS, sizes), coqui_decoder(MELS, sizes).eval()
    _stir(flow), _stir(theirs)
    for part in theirs.flows:  # by the first batch, as ours
        if hasattr(part, "initialize"):
            part.initialized = True
    theirs_ready.store_inverse()
    noise, frames = torch.randn(1, FRAMES // 2, 2 * MELS), torch.randn(1, MELS, FRAMES)
    mel, there = x.mT.contiguous(), mask.mT.to(x.dtype)

    def loss(z: Tensor, logdet: Tensor) -> Tensor:
        return (0.5 * z.square().sum((-1, -2)) - logdet).mean()

    return _race(
        "glow_tts",
        (flow.transform, diffeo.prepare_inference(flow).transform),
        lambda transform: loss(*transform(x, {"mask": mask})),
        lambda transform: transform.inverse(noise, {"mask": mask[:1]}),
        (theirs, theirs_ready),
        lambda decoder: loss(*decoder(mel, there)),
        lambda decoder: decoder(frames, there[:1], reverse=True),
    )


def _race_waveglow(preset: str) -> dict[str, Any]:
    from diffeo.recipes.speech.waveforms import WAVEGLOW

    mel, x = torch.randn(CLIPS, CLIP_FRAMES + 1, MELS), 0.1 * torch.randn(CLIPS, CLIP_FRAMES * HOP, 1)
    sizes = WAVEGLOW[preset]
    flow = diffeo.waveglow(MELS, HOP, preset=preset)
    flow.initialize(x, {"mel": mel})
    bands = sizes["width"] // sizes["group"]  # of which their nets see a group at once: as many channels as ours
    theirs, theirs_ready = nemo_waveglow(bands, sizes), nemo_waveglow(bands, sizes).eval()
    _stir(flow), _stir(theirs)
    theirs_ready.remove_weightnorm()
    one = {"mel": mel[:1], "mask": torch.ones(1, x.shape[1], 1, dtype=torch.bool)}
    their_mel, sound = mel[:, :-1, :bands].mT.contiguous(), x[..., 0]

    def their_value(model: Any) -> Tensor:
        z, log_scales, logdets = model.audio_to_normal_dist(spec=their_mel, audio=sound)
        return (0.5 * z.square().sum() - sum(s.sum() for s in log_scales) - sum(logdets)) / CLIPS

    return _race(
        "waveglow",
        (flow, diffeo.prepare_inference(flow)),
        lambda flow: -flow(x, {"mel": mel}).mean(),
        lambda flow: flow.sample((1,), one),
        (theirs, theirs_ready),
        their_value,
        lambda model: model.norm_dist_to_audio(spec=their_mel[:1]),
    )


def memory(_: float) -> dict[str, Any]:
    """What a forward pass keeps for the backward pass, by the number of flow steps and the policy."""
    settings = tools.Mel.of(8000)
    sound = {"mel": torch.randn(4, 41, settings.mels), "mask": torch.ones(4, 40 * settings.hop, 1, dtype=torch.bool)}
    text = {"text": torch.randint(1, 20, (4, 15)), "durations": torch.full((4, 15), 4)}
    text["mask"] = torch.ones(4, 120, 1, dtype=torch.bool)
    rows = []
    for steps in (4, 8, 16):
        for system in ("waveglow", "glow_tts"):
            row: dict[str, Any] = {"system": system, "steps": steps}
            for policy in ("store", "invert"):
                torch.manual_seed(0)
                if system == "waveglow":  # two channels leave after every fourth
                    flow, x, context = (
                        diffeo.waveglow(settings.mels, settings.hop, preset="tiny", flows=steps, group=16),
                        0.1 * torch.randn(4, 40 * settings.hop, 1),
                        sound,
                    )
                else:
                    flow = diffeo.glow_tts(settings.mels, 20, preset="tiny", blocks=steps)
                    x, context = torch.randn(4, 120, settings.mels), text
                flow.initialize(x, context)
                flow.eval().transform.memory = policy  # pyright: ignore[reportAttributeAccessIssue]
                row[policy] = saved_bytes(flow, lambda flow=flow, x=x, context=context: flow(x, context)) / 2**20
            rows.append(row)
    return {"kept": rows}


def told_speed(r: dict[str, Any]) -> str:
    rows = [[name, f"{t['median']:.3f} ({t['low']:.3f} – {t['high']:.3f})"] for name, t in r["factor"].items()]
    return f"""\
**Speed.** Seconds of work for a second of sound at 16 kHz: median of {ROUNDS} interleaved rounds (extremes) on
{r["cores"]} shared cores.

{markdown(["model", "real-time factor"], rows)}"""


def told_stepwise(r: dict[str, Any]) -> str:
    rows = [[name, f"{t['median']:.2f} ({t['low']:.2f} – {t['high']:.2f})"] for name, t in r["ms"].items()]
    return f"""\
**Step by step.** What a step costs, whatever was drawn before it: two frames of `flowtron`, or a row of 200 samples of
`waveflow`, whose nets keep what they have seen. Milliseconds, median of {ROUNDS} interleaved rounds (extremes):

{markdown(["sound", "ms a step"], rows)}"""


def told_peer(r: dict[str, Any]) -> str:
    rows = []
    for race, found in r["races"].items():
        theirs = PEERS[race.partition(",")[0]]
        for library, count in found["parameters"].items():
            row = [race, library, f"{count:,}"]
            for name in ("step", "sample"):
                t = found[name][library]
                their = min(found[name][theirs + way]["median"] for way in ("", COMPILED))
                range_ = f"{1e3 * t['median']:.1f} ({1e3 * t['low']:.1f} – {1e3 * t['high']:.1f})"
                row.append(f"{range_}; {t['median'] / their:.2f}×")
            rows.append(row)
    return f"""\
**Beside other libraries.** Flows of equal sizes, ours and others'. The decoder of Glow-TTS: a step on {BATCH}
spectrograms of {FRAMES} frames, forward and backward, and the inverse of one of them. WaveGlow: a step on {CLIPS} clips
of {CLIP_FRAMES * HOP:,} samples, and one such clip drawn; its nets see as many channels beside the sound in both, of
theirs upsampled spectrograms of few bands, all samples of a group, of ours an encoding of all {MELS} interpolated,
which is counted in. For samples ours is prepared (`prepare_inference`), theirs stores its inverse matrices and removes
its weight norms. Last layers, which start at zero, have small weights, as after some training. A WaveNet of ours is
one operation in C with `compiled_kernels`, as in `fit`, and after `compile()`. Milliseconds, median of {ROUNDS}
interleaved rounds (extremes), and as a multiple of the faster of theirs.

{markdown(["flow", "library", "parameters", "step", "one sample"], rows)}"""


def told_memory(r: dict[str, Any]) -> str:
    rows = [[k["system"], k["steps"], f"{k['store']:.1f}", f"{k['invert']:.1f}"] for k in r["kept"]]
    return f"""\
**Memory.** What a forward pass of four clips keeps for the backward pass, in MiB, by policy; presets `tiny`, the text
encoder and what it makes of text counted in.

{markdown(["model", "steps of flow", "store", "invert"], sorted(rows, key=lambda row: (str(row[0]), row[1])))}"""

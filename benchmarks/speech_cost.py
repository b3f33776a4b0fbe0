"""What speech costs: real-time factors, memory, and Glow-TTS beside that of another library.

The peer is the decoder of Coqui TTS, whose files need PyTorch alone, at the place that COQUI names:

    pip download --no-deps coqui-tts && unzip -d coqui coqui_tts-*.whl
    COQUI=coqui python benchmarks/speech.py --parts peer
"""

from __future__ import annotations

import copy
import importlib
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffeo
from diffeo.apps import speech as tools
from image_cost import saved_bytes
from results import markdown

SYSTEMS = ("glow_tts", "flow_tts", "flowtron")
ROUNDS = 7
BATCH, FRAMES, MELS = 8, 200, 80  # of the race with the peer
RACERS = ("diffeo", "diffeo, compiled_kernels", "diffeo, compile()", "Coqui TTS")


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
    calls = {}
    for system in ("waveglow", "waveflow", "parallel_wavenet"):
        for preset in ("tiny", "small"):
            first = {} if system == "parallel_wavenet" else tools.prediction(settings)
            flow = getattr(diffeo, system)(settings.mels, settings.hop, preset=preset, **first).eval()
            calls[f"{system}, {preset}"] = lambda flow=flow: tools.vocode(flow, mel, settings)
    text = torch.arange(1, 13)
    for system in SYSTEMS:
        for preset in ("tiny", "small"):
            flow = getattr(diffeo, system)(settings.mels, 40, preset=preset).eval()
            steps = torch.tensor([4] * 4 + [3] * 8)  # forty of two frames: one second
            calls[f"{system}, {preset}"] = lambda flow=flow, steps=steps: tools.say(flow, text, durations=steps)
    calls["Griffin-Lim, 60 rounds"] = lambda: tools.from_mel(mel.clamp(-5, 1), settings, fixed=True)
    calls["from_mel, 60 rounds"] = lambda: tools.from_mel(mel.clamp(-5, 1), settings)
    return {"factor": interleaved(calls)}


def _peer(sizes: dict[str, int]) -> Any:
    """Coqui's decoder; the packages around it, which import much else, are left out."""
    place = os.environ.get("COQUI")
    if not place:
        raise SystemExit("speech_cost.py: set COQUI to where the files of coqui-tts are; see the top of this file")
    for name in ("TTS", "TTS.tts", "TTS.tts.layers", "TTS.tts.layers.generic", "TTS.tts.layers.glow_tts"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(place, *name.split(".")))]
        sys.modules[name] = package
    decoder = importlib.import_module("TTS.tts.layers.glow_tts.decoder").Decoder
    return decoder(
        MELS, sizes["hidden"], kernel_size=5, dilation_rate=1, num_flow_blocks=sizes["blocks"],
        num_coupling_layers=sizes["layers"],
    )  # fmt: skip


@torch.no_grad()
def _stir(module: torch.nn.Module) -> None:
    """Weights that start at zero, so that a flow is the identity, as after some training."""
    for p in module.parameters():
        if not p.any():
            p.normal_(0.0, 0.01)


def peer(_: float) -> dict[str, Any]:
    """A step of the decoder of Glow-TTS, forward and backward, and its inverse, at the sizes of both presets."""
    from diffeo.recipes.speech.acoustic import GLOW_TTS

    x = torch.randn(BATCH, FRAMES, MELS)
    mask = torch.ones(BATCH, FRAMES, 1, dtype=torch.bool)
    found = {}
    for preset in ("tiny", "small"):
        torch.manual_seed(0)
        sizes = GLOW_TTS[preset]
        flow = diffeo.glow_tts(MELS, 40, preset=preset, dropout=0.0, grouped=4)
        flow.transform.initialize(x, {"mask": mask})
        theirs = _peer(sizes)
        _stir(flow), _stir(theirs)
        for part in theirs.flows:  # by the first batch, as ours
            if hasattr(part, "initialize"):
                part.initialized = True

        def ours_step(flow: Any = flow) -> None:
            z, logdet = flow.transform(x, {"mask": mask})
            (0.5 * z.square().sum((-1, -2)) - logdet).mean().backward()

        def their_step(theirs: Any = theirs) -> None:
            z, logdet = theirs(x.mT, mask.mT.to(x.dtype))
            (0.5 * z.square().sum((-1, -2)) - logdet).mean().backward()

        def kernels_step(step: Callable[[], None] = ours_step) -> None:
            with diffeo.compiled_kernels():
                step()

        compiled = copy.deepcopy(flow.transform)
        compiled.compile()

        def compiled_step(transform: Any = compiled) -> None:
            z, logdet = transform(x, {"mask": mask})
            (0.5 * z.square().sum((-1, -2)) - logdet).mean().backward()

        ready, frames = diffeo.prepare_inference(flow).transform, torch.randn(1, FRAMES, MELS)
        ready_compiled = copy.deepcopy(ready)
        ready_compiled.compile()
        noise = torch.randn(1, FRAMES // 2, 2 * MELS)
        theirs_ready = _peer(sizes).eval()
        theirs_ready.store_inverse()

        @torch.no_grad()
        def ours_sample(ready: Any = ready, noise: Tensor = noise) -> None:
            ready.inverse(noise, {"mask": mask[:1]})

        def kernels_sample(sample: Callable[[], None] = ours_sample) -> None:
            with diffeo.compiled_kernels():
                sample()

        @torch.no_grad()
        def compiled_sample(ready: Any = ready_compiled, noise: Tensor = noise) -> None:
            ready.inverse(noise, {"mask": mask[:1]})

        @torch.no_grad()
        def their_sample(ready: Any = theirs_ready, frames: Tensor = frames) -> None:
            ready(frames.mT, mask[:1].mT.to(x.dtype), reverse=True)

        found[preset] = {
            "step": interleaved(dict(zip(RACERS, (ours_step, kernels_step, compiled_step, their_step), strict=True))),
            "sample": interleaved(
                dict(zip(RACERS, (ours_sample, kernels_sample, compiled_sample, their_sample), strict=True))
            ),
            "parameters": {
                name: sum(p.numel() for p in (theirs if name == RACERS[-1] else flow.transform).parameters())
                for name in RACERS
            },
        }
    return {"presets": found}


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
                row[policy] = saved_bytes(lambda flow=flow, x=x, context=context: flow(x, context)) / 2**20
            rows.append(row)
    return {"kept": rows}


def told_speed(r: dict[str, Any]) -> str:
    rows = [[name, f"{t['median']:.3f} ({t['low']:.3f} – {t['high']:.3f})"] for name, t in r["factor"].items()]
    return f"""\
**Speed.** Seconds of work for a second of sound at 16 kHz: median of {ROUNDS} interleaved rounds (extremes) on
{r["cores"]} shared cores.

{markdown(["model", "real-time factor"], rows)}"""


def told_peer(r: dict[str, Any]) -> str:
    rows = []
    for preset, found in r["presets"].items():
        for library, count in found["parameters"].items():
            row = [preset, library, f"{count:,}"]
            for name in ("step", "sample"):
                t, theirs = found[name][library], found[name]["Coqui TTS"]["median"]
                spread = f"{1e3 * t['median']:.1f} ({1e3 * t['low']:.1f} – {1e3 * t['high']:.1f})"
                row.append(f"{spread}; {t['median'] / theirs:.2f}×")
            rows.append(row)
    return f"""\
**Beside another library.** The decoder of Glow-TTS at equal sizes: a step on {BATCH} spectrograms of {FRAMES} frames,
forward and backward, and the inverse of one of them; ours is prepared for inference (`prepare_inference`), theirs
stores its inverse matrices. Last layers, which start at zero, have small weights, as after some training. A WaveNet is
one operation in C with `compiled_kernels`, as in `fit`, and after `compile()`. Milliseconds, median of {ROUNDS}
interleaved rounds (extremes), and as a multiple of their time.

{markdown(["preset", "library", "parameters", "step", "one sample"], rows)}"""


def told_memory(r: dict[str, Any]) -> str:
    rows = [[k["system"], k["steps"], f"{k['store']:.1f}", f"{k['invert']:.1f}"] for k in r["kept"]]
    return f"""\
**Memory.** What a forward pass of four clips keeps for the backward pass, in MiB, by policy; presets `tiny`, the text
encoder and what it makes of text counted in.

{markdown(["model", "steps of flow", "store", "invert"], sorted(rows, key=lambda row: (str(row[0]), row[1])))}"""

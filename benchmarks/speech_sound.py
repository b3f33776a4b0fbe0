"""The parts of benchmarks/speech.py that are about sound: a vocoder, and a student of a flow that is slow to sample."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import diffeo
import listening
from diffeo.apps import speech as tools
from listeners import listen, train_listener
from results import markdown, number
from speech_corpora import digits, griffin_lim

ROUNDS = (3, 10, 60)  # that follow a vocoder, and by themselves


def lpc_nats(sound: Tensor, train: Tensor, order: int = 20) -> float:
    """−log p of a sample by a linear prediction of that order and one Gaussian, least squares on training sound."""

    def rows(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.unfold(0, order, 1)[:-1], x[order:]

    a, b = rows(train)
    weights = torch.linalg.lstsq(a, b.unsqueeze(1)).solution
    spread = (b - (a @ weights)[:, 0]).std()
    a, b = rows(sound)
    return -float(torch.distributions.Normal((a @ weights)[:, 0], spread).log_prob(b).mean())


def two_draws() -> float:
    """The spectral error between two draws of the same white noise, as a model without a fault would make them."""
    generator = torch.Generator().manual_seed(0)
    x, y = (0.1 * torch.randn(100, 4000, generator=generator) for _ in range(2))
    return float(tools.spectral_error(x, y).mean())


def vocoder(seconds: float) -> dict[str, Any]:
    """A vocoder of spoken digits beside Griffin-Lim from the same spectrograms."""
    data = digits()
    settings, sounds, mels = data["settings"], data["sounds"], data["mels"]
    train = [i for i, test in enumerate(data["test"]) if not test]
    test = [i for i, test in enumerate(data["test"]) if test]
    words = train_listener([mels[i] for i in train], data["word"][train], 10)
    torch.manual_seed(0)
    flow = diffeo.waveglow(settings.mels, settings.hop, preset="tiny", **tools.prediction(settings))
    multiple = tools.multiple_of(flow)
    held = tools.Sounds([sounds[i] for i in test], settings, multiple=multiple, seed=1)
    result = diffeo.fit(
        tools.Vocoder(flow), tools.Sounds([sounds[i] for i in train], settings, multiple=multiple),
        batch_size=16, time_limit=seconds, epochs=1000, lr=2e-3, seed=0, progress=False,
    )  # fmt: skip
    flow.eval()
    generator = torch.Generator().manual_seed(0)
    made = {
        "recorded": [sounds[i] for i in test],
        "waveglow": [tools.vocode(flow, mels[i], settings, generator=generator) for i in test],
        **{
            f"waveglow and {rounds} rounds": [
                tools.vocode(flow, mels[i], settings, rounds=rounds, generator=generator) for i in test
            ]
            for rounds in ROUNDS
        },
        **{
            f"the {rounds} rounds alone": [tools.from_mel(mels[i], settings, rounds=rounds) for i in test]
            for rounds in ROUNDS
        },
        **{
            f"{name}, {rounds} rounds": [griffin_lim(mels[i], settings, rounds, momentum) for i in test]
            for name, momentum in (("Griffin-Lim of 1984", 0.0), ("fast Griffin-Lim", 0.99))
            for rounds in (10, 60)
        },
    }
    few = [n for n, i in enumerate(test) if int(data["word"][i]) == 3 * int(data["speaker"][i]) % 10]
    makers = ["fast Griffin-Lim, 60 rounds", "waveglow", "waveglow and 10 rounds", "the 10 rounds alone"]
    listening.keep(
        "vocoder",
        {f"{data['text'][test[n]]}, {data['speakers'][int(data['speaker'][test[n]])]}":
         {"recorded": sounds[test[n]]} | {name: made[name][n] for name in makers} for n in few},
        settings,
    )  # fmt: skip
    rows = {}
    for name, clips in made.items():
        again = [tools.to_mel(clip, settings) for clip in clips]
        pairs = [(m[: min(len(m), len(mels[i]))], mels[i][: min(len(m), len(mels[i]))])
                 for m, i in zip(again, test, strict=True)]  # fmt: skip
        word, word_nats = listen(words, again, data["word"][test])
        rows[name] = {
            "spectral": statistics.mean(
                float(tools.spectral_error(sounds[i][: len(clip)], clip[: len(sounds[i])]))
                for clip, i in zip(clips, test, strict=True)
            ),
            "mel_l1": statistics.mean(float((a - b).abs().mean()) for a, b in pairs),
            "word": word,
            "word_nats": word_nats,
        }
    bare = diffeo.waveglow(settings.mels, settings.hop, preset="tiny", **tools.prediction(settings)).eval()
    bare.initialize(*torch.utils.data.default_collate([held[i] for i in range(50)]))

    @torch.no_grad()
    def nats_of(model: Any) -> float:
        return statistics.mean(float(-model(*held[i])) / len(held[i][0]) for i in range(len(held)))

    quiet = torch.cat([held[i][0][:, 0] for i in range(len(held))]).double()
    loud = torch.cat(
        [s[0][:, 0] for s in (tools.Sounds([sounds[i] for i in train[::10]], settings, multiple=multiple))]
    ).double()
    return {
        "made": rows, "nats": nats_of(flow), "untrained_nats": nats_of(bare),
        "lpc_nats": lpc_nats(quiet, loud), "two_draws": two_draws(), "steps": result.steps,
        "seconds": seconds, "parameters": sum(p.numel() for p in flow.parameters()),
    }  # fmt: skip


class Known(diffeo.core.Incremental):
    """x_t ~ N(0.8 sin 2x_{t−1} + 0.3 x_{t−2}, exp(−1 + 0.5 tanh 2x_{t−1})): its parameters."""

    @staticmethod
    def of(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([0.8 * torch.sin(2 * a) + 0.3 * b, -1 + 0.5 * torch.tanh(2 * a)], -1)

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        return self.of(F.pad(x[..., :-1, :], (0, 0, 1, 0)), F.pad(x[..., :-2, :], (0, 0, 2, 0)))

    def start(self, z: Tensor, context: Any = None) -> Any:
        nothing = z.new_zeros(len(z.reshape(-1, *z.shape[-2:])), 1)
        return nothing, nothing

    def step(self, x_prev: Tensor | None, state: Any) -> Any:
        a, b = state if x_prev is None else (x_prev, state[0])
        return self.of(a, b), None, (a, b)


def distillation(seconds: float) -> dict[str, Any]:
    """KL(student ‖ teacher) of a known process, and how much faster a student of a `wavenet` makes sound."""
    layer = diffeo.Autoregressive(Known(), diffeo.LocationScale(bound=9.0), dim=-2, event_ndim=2)
    teacher = diffeo.Flow(layer, diffeo.Normal((None, 1)))
    length = 64
    mask = {"mask": torch.ones(length, 1, dtype=torch.bool)}
    torch.manual_seed(0)
    x = teacher.sample(2000, mask)
    student = diffeo.parallel_wavenet(0, 1, preset="tiny", flows=4, hidden=32, layers=5)
    objective = diffeo.Distillation(student, teacher)
    result = diffeo.fit(
        objective, x[200:], validation=x[:200], batch_size=64, time_limit=seconds, epochs=1000, lr=4e-3, seed=0,
        progress=False,
    )  # fmt: skip
    with torch.no_grad():
        objective.train()
        draws = torch.cat([objective(torch.zeros(500, length, 1)) for _ in range(8)])
        sample, log_q = student.eval().sample_and_log_prob(500, mask)
        by_samples = (log_q - teacher(sample)) / length
    slow, fast = diffeo.wavenet(0, 1, preset="tiny").eval(), diffeo.parallel_wavenet(0, 1, preset="tiny").eval()
    second = {"mask": torch.ones(16000, 1, dtype=torch.bool)}
    times = {}
    with torch.no_grad():
        for name, flow in (("teacher", slow), ("student", fast)):
            flow.sample((), {"mask": second["mask"][:200]})
            began = time.perf_counter()
            flow.sample((), second)
            times[name] = time.perf_counter() - began
    return {
        "kl": float(draws.mean()), "error": float(draws.std()) / len(draws) ** 0.5,
        "kl_by_samples": float(by_samples.mean()), "error_by_samples": float(by_samples.std()) / 500**0.5,
        "steps": result.steps, "seconds": seconds, "second_of_sound": times,
    }  # fmt: skip


def told_vocoder(r: dict[str, Any]) -> str:
    rows = [
        [name, f"{m['spectral']:.3f}", f"{m['mel_l1']:.3f}", f"{100 * m['word']:.1f} %", f"{m['word_nats']:.4f}"]
        for name, m in r["made"].items()
    ]
    return f"""\
**Vocoder.** `waveglow`, `tiny`, {r["parameters"]:,} parameters, after at most {r["seconds"] / 60:.0f} minutes
({r["steps"]:,} steps) on the training split of the digits; test clips made anew from their spectrograms. Held-out
nats a sample {number(r["nats"])}; before training, by linear prediction from the spectrogram alone,
{number(r["untrained_nats"])}; by one linear prediction of order 20 for all sound, {number(r["lpc_nats"])}. The rounds
are those of `from_mel`: Griffin and Lim's, but with magnitudes that are free within a band. Where sound is like noise,
no draw of it comes near to rounds in spectral error, since they smooth: two draws of the same white noise are
{number(r["two_draws"])} apart. In voiced sound a draw could be nearer; a flow of so little training blurs harmonics. So
`resynthesize` lets rounds follow the flow.

{markdown(["sound by", "multi-resolution STFT error", "mel L1", "digit heard", "−log p of the digit"], rows)}"""


def told_distillation(r: dict[str, Any]) -> str:
    t = r["second_of_sound"]
    return f"""\
**Distillation.** A `parallel_wavenet` of four flows learns a known nonlinear process from {r["steps"]:,} steps
({r["seconds"] / 60:.0f} minutes): KL(student ‖ teacher) {r["kl"]:.4f} ± {r["error"]:.4f} nats a sample, by samples
{r["kl_by_samples"]:.4f} ± {r["error_by_samples"]:.4f}. A second of sound at 16 kHz takes a `wavenet`
{t["teacher"]:.1f} s and its student {t["student"]:.2f} s, {t["teacher"] / t["student"]:.0f} times less, both
`tiny`."""

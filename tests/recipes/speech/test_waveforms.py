"""Flows of sound: steps as one pass, padding, published sizes, what is refused; and a student of a known teacher."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch

import diffeo
from diffeo.apps import speech as tools
from diffeo.core import Incremental

RECIPES = {
    "waveflow": lambda: diffeo.waveflow(3, 10, preset="tiny", height=4, flows=3, hidden=6, layers=2, width=5),
    "waveflow, prediction": lambda: diffeo.waveflow(
        3, 10, preset="tiny", height=4, flows=1, hidden=6, layers=2, width=5, order=4, rate=800, window=32
    ),
    "waveglow": lambda: diffeo.waveglow(3, 10, preset="tiny", group=4, flows=5, hidden=6, layers=2, width=5),
    "wavenet": lambda: diffeo.wavenet(3, 10, preset="tiny", hidden=6, layers=3, width=5),
    "parallel_wavenet": lambda: diffeo.parallel_wavenet(3, 10, preset="tiny", flows=2, hidden=6, layers=2, width=5),
}


def calmed(flow):
    """With weights that are not zero, but a map that is tame enough for float32."""
    torch.manual_seed(0)
    return diffeo.testing.perturbed(flow).double().eval()


@pytest.mark.parametrize("name", RECIPES)
def test_alone_and_in_a_batch_sound_has_the_same_density_and_samples(name):
    flow = calmed(RECIPES[name]())
    generator = torch.Generator().manual_seed(0)
    lengths = [48, 32, 16]  # which end between frames
    sounds = [torch.randn(n, 1, generator=generator).double() for n in lengths]
    mels = [torch.randn(1 + n // 10, 3, generator=generator).double() for n in lengths]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = (torch.arange(48) < torch.tensor(lengths)[:, None]).unsqueeze(-1)
    batch = {"mel": pad(mels, batch_first=True, padding_value=7.0), "mask": mask}
    x = torch.where(mask, pad(sounds, batch_first=True), 9.0)
    with torch.no_grad():
        together = flow(x, batch)
        for i, (sound, mel) in enumerate(zip(sounds, mels, strict=True)):
            alone = {"mel": mel, "mask": torch.ones(len(sound), 1, dtype=torch.bool)}
            assert torch.allclose(flow(sound, alone), together[i], atol=1e-6)
            assert torch.allclose(flow(sound, {"mel": mel}), together[i], atol=1e-6)
            drawn = [
                flow.sample(shape, given, generator=[torch.Generator().manual_seed(seed) for seed in seeds])
                for shape, given, seeds in (((3,), batch, range(3)), ((), alone, (i,)))
            ]
            assert torch.allclose(drawn[1], drawn[0][i, : len(sound)], atol=1e-6)  # by the same seed
        encoded = flow.encode(batch)
        inner = flow.transform(x, encoded)[0]
        back = flow.transform.inverse(inner, encoded)[0]
        assert torch.allclose(torch.where(mask, back, 0.0), torch.where(mask, x, 0.0), atol=1e-6)
    flow(x, batch).sum().backward()
    gradients = {name: p.grad.clone() for name, p in flow.named_parameters() if p.grad is not None}
    flow.zero_grad()
    sum(flow(sound, {"mel": mel}) for sound, mel in zip(sounds, mels, strict=True)).backward()
    assert gradients
    for name, p in flow.named_parameters():
        if name in gradients:
            assert torch.allclose(p.grad, gradients[name], rtol=1e-7, atol=1e-7), name


def test_waveflow_is_a_wavenet_at_one_end_and_a_coupling_at_the_other():
    """As many rows as samples: causal in all samples. Two rows: the first of each pair is free of all others."""

    def jacobian(height):
        sizes = {"preset": "tiny", "flows": 1, "hidden": 6, "layers": 5, "width": 5}
        flow = calmed(diffeo.waveflow(0, 1, height=height, **sizes))
        x = torch.randn(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return torch.autograd.functional.jacobian(lambda x: flow.transform(x)[0].flatten(), x).squeeze(-1)

    below = jacobian(16)
    assert (below.triu(1) == 0).all()
    assert (below.tril().diagonal() != 0).all()
    assert (below[-1] != 0).sum() > 8  # its nets see that far back
    pairs = jacobian(2)
    first, second = pairs[0::2], pairs[1::2]
    assert (first == torch.diag_embed(pairs.diagonal())[0::2]).all()
    assert (second[:, 1::2] == torch.diag_embed(pairs.diagonal())[1::2, 1::2]).all()
    assert (second[:, 0::2].triu(1) != 0).any()  # later samples too
    assert (second[:, 0::2].tril(-1) != 0).any()


@pytest.mark.parametrize("name", RECIPES)
def test_sound_depends_on_its_spectrogram_and_seed(name):
    flow = calmed(RECIPES[name]()).float()
    generator = torch.Generator().manual_seed(0)
    context = {"mel": torch.randn(5, 3, generator=generator), "mask": torch.ones(40, 1, dtype=torch.bool)}

    def drawn(mel, temperature=1.0):
        g = torch.Generator().manual_seed(1)
        return flow.sample((), {**context, "mel": mel}, temperature=temperature, generator=g)

    assert torch.equal(drawn(context["mel"]), drawn(context["mel"]))
    assert not torch.allclose(drawn(context["mel"]), drawn(context["mel"] + 1))
    still = flow.sample(2, context, temperature=0.0)
    assert torch.equal(still[0], still[1])
    with pytest.raises(ValueError, match=r"too few for"):
        drawn(context["mel"][:2])
    with pytest.raises(ValueError, match="3 mels a frame"):
        drawn(torch.zeros(5, 4))


def test_linear_prediction_whitens_sound_of_its_spectrum():
    """Noise through a resonance: a spectrogram gives back the filter, and what is missed is the noise."""
    settings = tools.Mel.of(8000)
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(16000, generator=generator).double()
    angle, radius = 2 * torch.pi * 1000 / 8000, 0.9
    b, a = [1.0], [1.0, -2 * radius * float(torch.tensor(angle).cos()), radius**2]
    x = torch.from_numpy(scipy.signal.lfilter(b, a, noise.numpy()))
    mel = tools.to_mel(x.float(), settings)
    encoder = diffeo.nets.MelEncoder(settings.mels, 4, settings.hop, order=2, rate=8000, window=settings.window)
    taps = encoder({"mel": mel})["prediction"][10:-10].mean(0)
    assert torch.allclose(taps[:2], -torch.tensor(a[1:]), atol=0.15)
    assert abs(float(taps[2].exp()) - 0.05) < 0.01
    context = encoder({"mel": mel})
    z = diffeo.LinearPrediction(2, settings.hop)(x.float().unsqueeze(-1), context)[0][1000:-1000, 0]
    assert 0.8 < float(z.std()) < 1.2
    assert float((z[1:] * z[:-1]).mean().abs()) < 0.2


def _size(module):
    return sum(p.numel() for p in module.parameters())


# table 2 of the paper on WaveFlow, which has WaveGlow too
@pytest.mark.parametrize(("hidden", "millions"), [(64, 5.91), (96, 12.78), (128, 22.25)])
def test_published_sizes_of_waveflow(hidden, millions):
    assert _size(diffeo.waveflow(80, 256, preset="paper", hidden=hidden)) == pytest.approx(1e6 * millions, rel=0.01)


@pytest.mark.parametrize(("hidden", "millions"), [(64, 17.59), (128, 34.83), (256, 87.88)])
def test_published_sizes_of_waveglow(hidden, millions):
    upsampled = 80 * 80 * 1024 + 80  # its layer that makes a frame's features of every sample, in place of our encoder
    model = diffeo.waveglow(80, 256, preset="paper", hidden=hidden)
    assert _size(model.transform) + upsampled == pytest.approx(1e6 * millions, rel=0.01)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: diffeo.waveglow(8, 100, group=3), "even group"),
        (lambda: diffeo.waveglow(8, 100, group=4, flows=12), "at least 2 channels stay"),
        (lambda: diffeo.waveflow(8, 100, preset="huge"), "preset must be one of"),
        (lambda: diffeo.waveflow(8, 100, height=0), "height"),
        (lambda: diffeo.waveflow(0, 1, order=4, rate=8000, window=512), "comes from the spectrogram"),
        (lambda: tools.prediction(tools.Mel()._replace(high=4000.0)), "half the rate"),
        (lambda: diffeo.waveflow(0, 1, preset="tiny")(torch.zeros(13, 1)), "cannot be folded by 8"),
        (lambda: diffeo.Distillation(diffeo.wavenet(0, 1), diffeo.wavenet(0, 1)), "student of inverses"),
        (lambda: diffeo.Distillation(diffeo.waveglow(0, 1), diffeo.wavenet(0, 1)), "the student must be a chain"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


class Known(Incremental):
    """x_t ~ N(0.8 sin 2x_{t−1} + 0.3 x_{t−2}, exp(−1 + 0.5 tanh 2x_{t−1})): its parameters."""

    @staticmethod
    def of(a, b):
        return torch.stack([0.8 * torch.sin(2 * a) + 0.3 * b, -1 + 0.5 * torch.tanh(2 * a)], -1)

    def forward(self, x, context=None):
        shift = torch.nn.functional.pad
        return self.of(shift(x[..., :-1, :], (0, 0, 1, 0)), shift(x[..., :-2, :], (0, 0, 2, 0)))

    def start(self, z, context=None):
        nothing = z.new_zeros(len(z.reshape(-1, *z.shape[-2:])), 1)
        return nothing, nothing

    def step(self, x_prev, state):
        a, b = state if x_prev is None else (x_prev, state[0])
        return self.of(a, b), None, (a, b)


def known_teacher():
    layer = diffeo.Autoregressive(Known(), diffeo.LocationScale(bound=9.0), dim=-2, event_ndim=2)
    return diffeo.Flow(layer, diffeo.Normal((None, 1)))


def test_the_divergence_in_closed_form_is_that_of_samples():
    teacher = known_teacher().double()
    student = calmed(diffeo.parallel_wavenet(0, 1, preset="tiny", flows=2, hidden=6, layers=2))
    objective = diffeo.Distillation(student, teacher)
    torch.manual_seed(0)
    with torch.no_grad():
        closed = torch.cat([objective.train()(torch.zeros(2000, 6, 1).double()) for _ in range(3)])
        context = {"mask": torch.ones(6, 1, dtype=torch.bool)}
        x, log_q = student.sample_and_log_prob(6000, context)
        drawn = (log_q - teacher(x)) / 6
    error = (drawn.std() ** 2 / len(drawn) + closed.std() ** 2 / len(closed)) ** 0.5
    assert abs(closed.mean() - drawn.mean()) < 4 * error
    assert closed.std() < drawn.std()
    assert closed.mean() > 0.1
    assert objective.teacher.training is False


def test_a_further_loss_pulls_spectra_together():
    """The recordings are half as loud as the teacher: a student that hears them, too, ends up nearer to them."""
    torch.manual_seed(0)
    teacher = known_teacher()
    mask = {"mask": torch.ones(64, 1, dtype=torch.bool)}
    x = 0.5 * teacher.sample(60, mask)

    def apart(x, y):
        return tools.spectral_error(x[..., 0], y[..., 0], windows=(16, 32))

    after = []
    for extra in (None, lambda x, y: 10 * apart(x, y)):
        torch.manual_seed(0)
        student = diffeo.parallel_wavenet(0, 1, preset="tiny", flows=1, hidden=6, layers=2)
        objective = diffeo.Distillation(student, teacher, extra=extra)
        diffeo.fit(objective, x, batch_size=30, steps=60, lr=1e-2, progress=False)
        after.append(float(apart(x, student.sample(60, mask)).mean()))
    assert after[1] < 0.9 * after[0]


def test_spectra_are_as_far_apart_as_their_formula_says():
    x, y = torch.randn(2, 3, 500, generator=torch.Generator().manual_seed(0)).double().unbind()
    size = 64
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)

    def magnitudes(sound):
        padded = np.pad(sound.numpy(), size // 2, mode="reflect")
        starts = range(0, len(padded) - size + 1, size // 4)
        return np.abs(np.stack([np.fft.rfft(padded[i : i + size] * window) for i in starts])).clip(1e-4)

    found = tools.spectral_error(x, y, windows=(size,))
    for one, other, error in zip(x, y, found.tolist(), strict=True):
        a, b = magnitudes(one), magnitudes(other)
        wanted = np.linalg.norm(a - b) / np.linalg.norm(a) + np.abs(np.log(a) - np.log(b)).mean()
        assert error == pytest.approx(wanted, rel=1e-9)
    short = x[:1, :40].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tools.spectral_error(x, y[:1, :40], windows=(16, 32)), short)
    with pytest.raises(ValueError, match="too few for windows of 1024"):
        tools.spectral_error(x, y)
    with pytest.raises(ValueError, match="of one shape"):
        tools.spectral_error(x, y[:1])


def test_a_student_comes_near_its_teacher():
    teacher = known_teacher()
    torch.manual_seed(0)
    student = diffeo.parallel_wavenet(0, 1, preset="tiny", flows=2, hidden=12, layers=3)
    objective = diffeo.Distillation(student, teacher, weight=1.0)
    x = teacher.sample(100, {"mask": torch.ones(16, 1, dtype=torch.bool)})
    before = float(objective.eval()(x).mean().detach())
    diffeo.fit(objective, x, batch_size=50, steps=60, lr=1e-2, progress=False)
    assert float(objective.eval()(x).mean().detach()) < 0.5 * before

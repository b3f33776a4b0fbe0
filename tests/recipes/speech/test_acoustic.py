"""Flows of spectrograms given text: padding, attention, style, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import betabinom
from torch import nn

import diffeo
from diffeo.apps import speech as tools
from diffeo.nets import beta_binomial_prior

SYSTEMS = ("glow_tts", "flow_tts", "flowtron")


@pytest.fixture(params=SYSTEMS)
def voice(request):
    torch.manual_seed(0)
    flow = getattr(diffeo, request.param)(6, 9, preset="tiny", hidden=8, width=8, speakers=3, prosody=2)
    return diffeo.testing.perturbed(flow).eval()


@pytest.fixture(scope="module")
def clips():
    generator = torch.Generator().manual_seed(0)
    mels = [torch.randn(n, 6, generator=generator) for n in (12, 8, 4)]
    texts = [torch.tensor([1, 2, 3]), torch.tensor([4, 5]), torch.tensor([7])]
    durations = [torch.tensor([1, 3, 2]), torch.tensor([3, 1]), torch.tensor([2])]
    return mels, texts, durations


PROSODY = [torch.tensor([0.5, -1.0]), torch.tensor([torch.nan, 2.0]), torch.tensor([-0.3, torch.nan])]


def test_alone_and_in_a_batch_a_clip_has_the_same_loss_and_gradient(voice, clips):
    mels, prosody = [mel.double() for mel in clips[0]], [p.double() for p in PROSODY]
    data = tools.Spoken(mels, clips[1], [0, 1, 2], durations=clips[2], prosody=prosody)
    voice = voice.double()
    objective = tools.Voice(voice)
    x, context = tools.join([data[i] for i in range(3)])
    together = objective(torch.where(context["mask"], x, 9.0), context)
    together.sum().backward()
    gradients = {name: p.grad.clone() for name, p in voice.named_parameters() if p.grad is not None}
    voice.zero_grad()
    for i in range(3):
        alone = objective(*tools.join([data[i]]))[0]
        assert torch.allclose(alone, together[i], atol=1e-8)
        alone.backward()
    assert gradients
    for name, p in voice.named_parameters():
        if name in gradients:
            assert torch.allclose(p.grad, gradients[name], atol=1e-8), name


def test_a_clip_has_the_same_sample_alone_and_in_a_batch(voice, clips):
    """From the same noise, what is drawn for padding left out; and by the same seed."""
    data = tools.Spoken(*clips[:2], [0, 1, 2], durations=clips[2], prosody=PROSODY)
    context = tools.join([data[i] for i in range(3)])[1]
    encoded = voice.encode(context)
    inner = voice.transform.map_context(encoded)
    with torch.no_grad():
        z = voice.base.draw(torch.Size((3,)), inner, 1.0, torch.Generator().manual_seed(0))
        x = voice.transform.inverse(z, encoded)[0]
        for i in range(3):
            n, letters = 2 * int(clips[2][i].sum()), len(clips[1][i])
            own = {"text": context["text"][i, :letters], "speaker": context["speaker"][i],
                   "prosody": PROSODY[i], "durations": clips[2][i], "mask": context["mask"][i, :n]}  # fmt: skip
            alone = voice.transform.inverse(z[i, : n // 2], voice.encode(own))[0]
            assert torch.allclose(alone, x[i, :n], atol=1e-4)
            drawn = [
                voice.sample(shape, given, generator=[torch.Generator().manual_seed(seed) for seed in seeds])
                for shape, given, seeds in (((3,), context, range(3)), ((), own, (i,)))
            ]
            assert torch.allclose(drawn[1], drawn[0][i, :n], atol=1e-4)  # by the same seed


def test_attention_follows_the_durations_that_it_is_taught(clips):
    torch.manual_seed(0)
    mels, texts, durations = clips
    for name in ("flow_tts", "flowtron"):
        flow = getattr(diffeo, name)(6, 9, preset="tiny", hidden=8, width=16, dropout=0.0)
        data = tools.Spoken(mels, texts, durations=durations)
        diffeo.fit(
            tools.Voice(flow), data, validation=0, collate=tools.join, batch_size=3, steps=100, lr=1e-2, progress=False
        )
        for mel, text, wanted in zip(mels, texts, durations, strict=True):
            assert tools.align(flow, mel, text).tolist() == (2 * wanted).tolist()
    without = tools.Spoken(mels, texts)  # all alignments in order, none in particular
    loss = tools.Voice(flow)(*tools.join([without[i] for i in range(3)]))
    assert loss.isfinite().all()


@pytest.mark.parametrize("flows", [1, 2])
def test_a_gate_ends_speech(flows):
    """Letter k lasts k steps; whether the layer that speaks first goes forwards in time or backwards."""
    generator = torch.Generator().manual_seed(0)
    means, mels, texts = torch.randn(5, 6, generator=generator), [], []
    for _ in range(60):
        text = 1 + torch.randperm(4, generator=generator)[: int(torch.randint(1, 5, (), generator=generator))]
        frames = means[text].repeat_interleave(2 * text, 0)
        mels.append(frames + 0.1 * torch.randn(frames.shape, generator=generator))
        texts.append(text)
    torch.manual_seed(0)
    flow = diffeo.flowtron(6, 4, preset="tiny", flows=flows, hidden=16, width=16, dropout=0.0)
    data = tools.Spoken(mels, texts, durations=texts)
    diffeo.fit(
        tools.Voice(flow), data, validation=0, collate=tools.join, batch_size=20, steps=220, lr=1e-2, progress=False
    )
    pairs = list(zip(mels, texts, strict=True))
    off = [len(tools.say(flow, text, temperature=0.0, gate=True)) - len(mel) for mel, text in pairs]
    assert sum(map(abs, off)) <= 2 * len(off)  # a step is two frames
    exact = off.index(0)
    said = [tools.say(flow, texts[exact], temperature=0.0, gate=gate) for gate in (True, False)]
    assert torch.allclose(*said, atol=1e-4)
    gate = [part.gate for part in flow.modules() if isinstance(part, diffeo.nets.AttentiveLSTM)][-1]
    torch.nn.init.zeros_(gate.weight)
    for bias, steps in ((1e3, 1), (-1e3, math.ceil(1.5 * int(tools.durations_of(flow, texts[0]).sum())))):
        torch.nn.init.constant_(gate.bias, bias)
        assert len(tools.say(flow, texts[0], gate=True)) == 2 * steps


def test_attention_to_long_texts_in_blocks(clips, monkeypatch):
    """The same values and gradients, however many sums of a query and a key are kept."""
    torch.manual_seed(0)
    flow = diffeo.testing.perturbed(diffeo.flowtron(6, 9, preset="tiny", hidden=8, width=8)).double().eval()
    data = tools.Spoken(*clips[:2], durations=clips[2])
    mels, context = tools.join([data[i] for i in range(3)])
    found = []
    for sums in (1 << 24, 1 << 10, 1):
        monkeypatch.setattr("diffeo.nets.recurrent.SUMS", sums)
        flow.zero_grad()
        losses = tools.Voice(flow)(mels.double(), context)
        losses.sum().backward()
        found.append((losses.detach(), torch.cat([p.grad.flatten() for p in flow.parameters()])))
    for losses, gradients in found[1:]:
        assert torch.allclose(losses, found[0][0])
        assert torch.allclose(gradients, found[0][1])


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_a_prior_of_another_length_than_the_sound(backward, length):
    """It ends early, or stays at the last frame; and is what a sound of that length has."""
    torch.manual_seed(0)
    net = diffeo.nets.AttentiveLSTM(3, 2, width=4, hidden=8, strength=2.0, backward=backward)
    context = {"letters": torch.randn(2, 5, 4), "text": torch.tensor([[1, 2, 3, 4, 5], [1, 2, 0, 0, 0]])}
    x = torch.randn(2, 6, 3)
    attention = net.listen(x, {**context, "length": torch.tensor(length)}).attention
    n = min(length, 6)
    own = net.start(torch.zeros(2, length, 3), context).bias
    found = net.start(x, {**context, "length": torch.tensor([length, length])}).bias
    assert torch.equal(found[:, :n], own[:, :n])
    assert (found[:, n:] == own[:, -1:]).all()
    assert attention.isfinite().all()


def test_voices_without_a_gate_refuse_one(clips):
    for flow in (diffeo.glow_tts(6, 9, preset="tiny"), diffeo.flowtron(6, 9, preset="tiny", gate=False)):
        with pytest.raises(ValueError, match="no gate"):
            tools.say(flow, clips[1][0], gate=True)


def test_style_moves_what_is_said(voice, clips):
    data = tools.Spoken(*clips[:2], [0, 1, 2], prosody=PROSODY)
    style = tools.style_of(voice, data)
    plain = tools.say(voice, clips[1][0], speaker=0, temperature=0.0)
    moved = tools.say(voice, clips[1][0], speaker=0, temperature=0.0, style=style)
    half = tools.say(voice, clips[1][0], speaker=0, temperature=0.0, style=0.5 * style)
    none = tools.say(voice, clips[1][0], speaker=0, temperature=0.0, style=0 * style)
    assert torch.allclose(plain, none, atol=1e-5)
    assert float((half - plain).abs().mean()) < float((moved - plain).abs().mean())
    assert style.shape == (12,)
    assert torch.allclose(style, 0.75 * tools.style_of(voice, data, prior=0.0))  # of three clips
    with pytest.raises(ValueError, match="prior >= 0"):
        tools.style_of(voice, data, prior=-1.0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_prosody_says_how_a_text_is_said(system):
    """Frames are their letter's, shifted by the first number of each clip; the second says nothing."""
    generator = torch.Generator().manual_seed(0)
    means, mels, texts, prosody = torch.randn(4, 6, generator=generator), [], [], []
    for _ in range(60):
        text = torch.randperm(4, generator=generator)[:3]
        numbers = torch.randn(2, generator=generator)
        frames = means[text].repeat_interleave(4, 0) + 0.5 * numbers[0]
        mels.append(frames + 0.1 * torch.randn(frames.shape, generator=generator))
        texts.append(text + 1)
        prosody.append(100 + 5 * numbers)  # units of its own
    durations = [torch.full((3,), 2)] * len(mels)
    torch.manual_seed(0)
    size = {"flows": 1} if system == "flowtron" else {"blocks": 2}
    flow = getattr(diffeo, system)(6, 4, preset="tiny", hidden=16, width=16, prosody=2, dropout=0.0, **size)
    data = tools.Spoken(mels, texts, durations=durations, prosody=prosody)
    diffeo.fit(
        tools.Voice(flow), data, validation=0, collate=tools.join, batch_size=20, steps=120, lr=1e-2, progress=False
    )
    usual = tools.usual_prosody(flow)
    assert torch.allclose(usual, torch.stack(prosody).mean(0), atol=1e-3)

    def said(**how):
        return float(tools.say(flow, texts[0], durations=durations[0], temperature=0.0, **how).mean())

    first, second = (5 * torch.eye(2)[i] for i in range(2))
    higher, lower = said(prosody=usual + first), said(prosody=usual - first)
    assert abs(higher - lower - 1.0) < 0.25
    assert abs(said(prosody=usual + second) - said(prosody=usual - second)) < 0.15
    assert said() == said(prosody=usual) == said(prosody=torch.full((2,), torch.nan))


def test_usual_prosody_is_learned_from_all_clips():
    """Of more clips and speakers than layers are initialised with."""
    speakers, each, frames = 200, 6, 1000
    generator = torch.Generator().manual_seed(0)
    usual = torch.randn(speakers, 2, generator=generator)
    who = [k for k in range(speakers) for _ in range(each)]
    numbers = usual[who] + 0.1 * torch.randn(len(who), 2, generator=generator)
    mels, texts = [torch.zeros(frames, 80)] * len(who), [torch.tensor([1, 2])] * len(who)
    data = tools.Spoken(mels, texts, who, prosody=list(numbers))
    flow = diffeo.glow_tts(80, 3, preset="tiny", blocks=1, hidden=8, width=8, speakers=speakers, prosody=2)
    tools.learn_prosody(flow, data)
    means = numbers.reshape(speakers, each, 2).mean(1)
    found = torch.stack([tools.usual_prosody(flow, k) for k in range(speakers)])
    assert torch.allclose(found, means, atol=1e-5)
    assert torch.allclose(flow.encoder.manner.scale, torch.tensor(0.1), rtol=0.1)
    with pytest.raises(ValueError, match="without prosody"):
        tools.learn_prosody(flow, tools.Spoken(mels[:1], texts[:1], [0]))


def test_a_number_that_all_clips_share_tells_nothing():
    for value in (-1.5432, -2.1, 5.3):
        net = diffeo.nets.Prosody(1, 2)
        net.initialize({"prosody": torch.full((37, 1), value)})
        nn.init.ones_(net.vector.weight)
        assert not net({"prosody": torch.tensor([[value], [value + 1]])}, torch.Size([2])).any()
        for asked in (torch.nan, value + 1):
            assert net.within(torch.tensor([asked])).tolist() == net.usual().tolist()


def test_prosody_is_refused_where_nothing_reads_it(clips):
    flow = diffeo.glow_tts(6, 9, preset="tiny", hidden=8, width=8)
    with pytest.raises(ValueError, match="prosody"):
        flow.initialize(*tools.join([tools.Spoken(*clips[:2], prosody=PROSODY)[0]]))
    with pytest.raises(ValueError, match="reads no prosody"):
        tools.say(flow, clips[1][0], prosody=torch.zeros(2))
    with pytest.raises(ValueError, match="reads no prosody"):
        tools.within_reach(flow, torch.zeros(4))


def test_usual_prosody_is_that_of_the_speaker():
    encoder = diffeo.nets.Letters(3, 8, speakers=3, prosody=2)
    given = torch.tensor([[1.0, 10.0], [3.0, torch.nan], [7.0, torch.nan], [9.0, torch.nan]])
    encoder.initialize({"prosody": given, "speaker": torch.tensor([0, 0, 1, 1])})
    known = encoder.text.manner
    assert known.usual(0).tolist() == [2.0, 10.0]
    assert known.usual(1).tolist() == [8.0, 10.0]  # where nothing is known of a speaker, the mean of all
    assert known.usual(2).tolist() == [5.0, 10.0]
    assert torch.equal(known.scale, torch.tensor([2.0**0.5, torch.inf]))  # one clip shows no difference
    assert torch.allclose(known.within(torch.tensor([9.0, 10.0]), 0), torch.tensor([2 + 4 * 2.0**0.5, 10.0]))
    far = {"prosody": torch.tensor([[8.0, 10.0], [9.0, torch.nan]]), "speaker": torch.zeros(2)}
    nn.init.normal_(known.vector.weight)
    assert torch.equal(*known(far, torch.Size([2])))
    before = known.mean.clone()
    encoder.initialize({"prosody": given + 5, "speaker": torch.tensor([0, 0, 1, 1])})
    assert torch.equal(known.mean, before)  # once


def test_the_prior_is_beta_binomial():
    found = beta_binomial_prior(torch.tensor([4, 2]), torch.tensor([6, 3]), 4, torch.arange(6).expand(2, 6), 0.7)
    for i, (letters, frames) in enumerate([(4, 6), (2, 3)]):
        for t in range(frames):
            wanted = betabinom(letters - 1, 0.7 * (t + 1), 0.7 * (frames - t)).logpmf(range(letters))
            assert torch.allclose(found[i, t, :letters], torch.tensor(wanted).float(), atol=1e-4)
    assert (found[1, 3:] == 0).all()
    assert (found[1, :, 2:] == 0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: diffeo.flow_tts(6, 9, width=7), "even features"),
        (lambda: diffeo.flow_tts(6, 9, strength=-1.0), "strength >= 0"),
        (lambda: diffeo.flowtron(6, 9, preset="huge"), "preset must be one of"),
        (lambda: diffeo.flowtron(6, 9, preset="tiny", width=7), "even width"),
        (lambda: diffeo.flow_tts(6, 9, preset="tiny")(torch.zeros(4, 6), {"text": torch.tensor([1])}), '"mask"'),
        (lambda: diffeo.flowtron(6, 9, preset="tiny")(torch.zeros(4, 6)), "'letters'"),
        (lambda: tools.Voice(diffeo.maf(2)), "no voice"),
        (lambda: tools.Voice(diffeo.flowtron(6, 9, preset="tiny"), attention=-1.0), "attention >= 0"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()

"""Speech: spectrograms, corpora with everything wrong, and a voice that learns, speaks and aligns."""

from __future__ import annotations

import csv
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import diffeo
import librosa_mels
from diffeo.apps import speech as tools
from diffeo.apps.speech.text import usual_reading
from diffeo.cli import main
from diffeo.recipes import read_notes

RATE = 8000
LETTERS = {"a": 300.0, "e": 700.0, "o": 1500.0}  # a made-up language: each letter is a tone


def spoken(text, rng, rate=RATE):
    """A text as tones, each as long as chance has it; and how long."""
    lengths = rng.integers(600, 1400, len(text))
    parts = [0.4 * np.sin(2 * np.pi * LETTERS[c] * np.arange(n) / rate) for c, n in zip(text, lengths, strict=True)]
    return np.concatenate(parts) + 0.003 * rng.normal(size=lengths.sum()), lengths


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    (folder / "wavs").mkdir()
    lines = []
    for i in range(60):
        text = "".join(rng.choice(list(LETTERS), rng.integers(3, 6)))
        soundfile.write(folder / "wavs" / f"c{i:02}.wav", spoken(text, rng)[0], RATE)
        lines.append(f"c{i:02}|{text.upper()}|{text}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def voice(corpus):
    path = corpus.parent / "voice.safetensors"
    call = ["speech", "fit", str(corpus), "-o", str(path), "--preset", "tiny", "--steps", "30", "--batch-size", "16"]
    call += ["--reading", "letters"]
    assert main([*call, "--samples-dir", str(corpus.parent / "sheets")]) == 0
    return path


def test_the_mel_matrix_is_that_of_its_formula():
    settings = tools.Mel.of(16000)
    matrix = diffeo.apps.speech.audio.mel_matrix(*settings.bands)
    assert settings == tools.Mel(16000, 1024, 200, 80, 0.0, 8000.0)
    width = settings.rate / settings.window
    assert torch.allclose(matrix.sum(1) * width, torch.ones(80), atol=0.15)  # triangles of unit area, sampled
    peaks = matrix.argmax(1) * width
    assert (peaks[1:] >= peaks[:-1]).all()
    low = peaks[peaks < 900]
    assert torch.allclose(low.diff(), torch.full((len(low) - 1,), 37.2), atol=2 * width)  # linear below 1,000 Hz


def test_a_tone_lies_in_its_band_and_comes_back():
    settings = tools.Mel.of(RATE)
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / RATE)
    mel = tools.to_mel(tone, settings)
    assert mel.shape == (81, 64)
    band = diffeo.apps.speech.audio.mel_matrix(*settings.bands)[:, 64].argmax()  # bin 64 of 512 is 1,000 Hz
    assert (mel[5:-5].argmax(1) == band).all()
    back = tools.from_mel(mel, settings)
    spectrum = torch.fft.rfft(back[1000:7000] * torch.hann_window(6000)).abs()
    assert abs(int(spectrum.argmax()) * RATE / 6000 - 1000) < 40
    again = tools.to_mel(back, settings)
    assert float((again - mel)[5:-5, band].abs().mean()) < 0.3
    both = tools.to_mel(torch.stack([tone, 0.1 * tone]), settings)
    assert torch.allclose(both[0], mel, atol=1e-4)
    with pytest.raises(ValueError, match="too few"):
        tools.to_mel(torch.zeros(100), settings)


def test_magnitudes_that_are_free_within_a_band_bring_harmonics_back():
    """Held at those of least squares, they smear harmonics; and sound that is right already stays as it is."""
    settings = tools.Mel.of(RATE)
    t = torch.arange(RATE) / RATE
    phase = 2 * torch.pi * (140 * t - 2 * torch.cos(2 * torch.pi * 3 * t))  # a voice of 100 to 180 Hz
    sound = sum(torch.sin(k * phase) / k for k in range(1, 20)) * (0.1 + 0.2 * t)
    mel = tools.to_mel(sound, settings)

    def error(made):
        return float((tools.to_mel(made, settings) - mel).abs().mean())

    free, fixed = (tools.from_mel(mel, settings, fixed=fixed) for fixed in (False, True))
    assert error(free) < 0.6 * error(fixed)
    assert float(free.square().mean()) == pytest.approx(float(sound.square().mean()), rel=0.1)
    kept = tools.from_mel(mel, settings, rounds=2, start=sound)
    assert float((kept - sound[: len(kept)]).square().mean()) < 1e-3 * float(sound.square().mean())
    silence = tools.from_mel(torch.full((30, 64), -11.5), settings)
    assert silence.isfinite().all()
    assert silence.abs().max() < 1e-3


def test_files_of_sound(tmp_path):
    stereo = np.stack([np.ones(4000), -0.5 * np.ones(4000)], 1) * 0.4
    soundfile.write(tmp_path / "s.wav", stereo, 16000)
    audio, rate, notes = tools.read_audio(tmp_path / "s.wav", 8000)
    assert (rate, len(audio)) == (8000, 2000)
    assert abs(float(audio[500:1500].mean()) - 0.1) < 0.01
    assert notes == ["2 channels were mixed to one", "resampled from 16000 to 8000 Hz"]
    tools.write_audio(torch.linspace(-2, 2, 800), tmp_path / "o.wav", 8000)
    with wave.open(str(tmp_path / "o.wav")) as file:
        assert file.getframerate() == 8000
    assert float(tools.read_audio(tmp_path / "o.wav")[0].abs().max()) <= 1.0
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "nan.wav", np.full(4000, np.nan), 8000, subtype="FLOAT")
    for name, message in (("bad.wav", "no sound that can be read"), ("nan.wav", "not finite"), ("no.wav", "no such")):
        with pytest.raises(ValueError, match=message):
            tools.read_audio(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected \.wav"):
        tools.write_audio(torch.zeros(10), tmp_path / "o.txt", 8000)


@pytest.mark.parametrize("ending", ["wav", "aiff", "w64", "au", "rf64", "mp3", "flac", "ogg", "caf"])
def test_recordings_that_were_cut_short_are_named(tmp_path, ending):
    soundfile.write(tmp_path / f"a.{ending}", 0.4 * np.sin(np.arange(16000) / 10), 16000, format=ending.upper())
    audio, _, notes = tools.read_audio(tmp_path / f"a.{ending}")
    assert not notes
    assert len(audio) == 16000
    content = (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"cut.{ending}").write_bytes(content[: len(content) // 2])
    if ending in ("flac", "ogg", "caf"):  # which libsndfile does not open
        with pytest.raises(ValueError, match=r"no sound that can be read \(.+\)"):
            tools.read_audio(tmp_path / f"cut.{ending}")
    else:
        assert tools.read_audio(tmp_path / f"cut.{ending}")[2] == ["cut short: it holds less sound than it says"]
        clip = tools.Clip(tmp_path / f"cut.{ending}", "a", "")
        assert any("cut short" in line for line in tools.check_corpus([clip]))


def test_sound_that_was_written_to_a_pipe_is_whole(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(4000, 0.4), 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    for place in (4, content.find(b"data") + 4):
        content[place : place + 4] = b"\xff" * 4  # its writer did not know how much would come
    (tmp_path / "pipe.wav").write_bytes(content)
    audio, _, notes = tools.read_audio(tmp_path / "pipe.wav")
    assert (len(audio), notes) == (4000, [])


def test_a_check_names_everything_that_is_wrong(tmp_path):
    rng = np.random.default_rng(0)
    made = {
        "good": (spoken("aeo", rng)[0], "aeo"),
        "silent": (np.zeros(8000), "aeo"),
        "clipped": (np.sign(np.sin(np.arange(8000.0))), "aeo"),
        "short": (0.3 * np.ones(1), "a"),
        "much": (spoken("a", rng)[0], "aeo" * 30),
        "mute": (spoken("aeo", rng)[0], ""),
        "figures": (spoken("aeo", rng)[0], "Dr. 12"),
        "other": (0.3 * np.sin(np.arange(10.0 * RATE)), "a"),
        **{f"good{i}": (spoken("aeo", rng)[0], "aeo") for i in range(8)},
    }
    rows = [["path", "text", "speaker"], ["gone.wav", "aeo", "x"]]
    for name, (audio, text) in made.items():
        soundfile.write(tmp_path / f"{name}.wav", audio, RATE)
        rows.append([f"{name}.wav", text, "x"])
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    clips = tools.read_corpus(tmp_path / "clips.csv")
    found = "\n".join(tools.check_corpus(clips))
    for name, what in {
        "gone": "no such file", "silent": "silence", "clipped": "clipped", "short": "0.00 seconds",
        "much": "90 letters in", "mute": "no text", "figures": "'12': letters do not say how it is read",
        "other": "0.1 signs a second, others",
    }.items():  # fmt: skip
        assert any(f"{name}.wav" in line and what in line for line in found.splitlines()), (name, found)
    assert "good" not in found
    if shutil.which("espeak-ng"):
        assert not any("letters do not say" in line for line in tools.check_corpus(clips, reading="en-us"))
    (tmp_path / "long.csv").write_text("path,text\na.wav,seven, yes\n")
    with pytest.raises(ValueError, match="line 2 has more fields"):
        tools.read_corpus(tmp_path / "long.csv")
    (tmp_path / "latin.csv").write_bytes("path,text\na.wav,né\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv: no text in UTF-8"):
        tools.read_corpus(tmp_path / "latin.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns path and text"):
        tools.read_corpus(tmp_path / "other.csv")
    with pytest.raises(ValueError, match=r"expected metadata\.csv"):
        tools.read_corpus(tmp_path)


@pytest.mark.parametrize("hertz", [75, 110, 220, 330, 450])
def test_the_pitch_of_voiced_sound(hertz):
    rng, time = np.random.default_rng(0), np.arange(RATE) / RATE
    glottal = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, int(RATE / 2 / hertz)))
    noisy = torch.from_numpy(0.2 * glottal + 0.01 * rng.normal(size=RATE)).float()
    assert (tools.pitch_of(noisy, RATE) / hertz - 1).abs().max() < 0.01
    assert torch.equal(tools.pitch_of(noisy, RATE).isnan(), tools.pitch_of(0.01 * noisy, RATE).isnan())
    half = tools.pitch_of(torch.cat([noisy, torch.zeros(RATE)]), RATE)
    assert half[:90].isfinite().all()
    assert half[106:].isnan().all()


def test_prosody_of_sound():
    rng, time = np.random.default_rng(0), np.arange(RATE) / RATE
    silence = torch.zeros(RATE // 2)
    tone = torch.from_numpy(0.3 * np.sin(2 * np.pi * 200 * time)).float()
    pitch, spread, loudness, pace = tools.prosody_of(torch.cat([silence, tone, silence]), RATE, 8).tolist()
    assert abs(np.exp(pitch) - 200) < 2
    assert spread < 0.01
    assert abs(np.exp(loudness) - 0.3 / np.sqrt(2)) < 0.01
    assert abs(np.exp(pace) - 8) < 0.1
    for length in (400, 800, 2400, RATE):  # without silence around it
        alone = tools.prosody_of(tone[:length], RATE, 10)[3].exp()
        assert abs(alone * length / RATE / 10 - 1) < 0.01
    whisper = tools.prosody_of(torch.from_numpy(0.1 * rng.normal(size=RATE)).float(), RATE, 8)
    assert whisper.isnan().tolist() == [True, True, False, False]
    for nothing in (silence, silence[:10], silence[:0]):
        assert tools.prosody_of(nothing, RATE, 8).isnan().all()
    fifth = torch.from_numpy(0.3 * np.sin(2 * np.pi * 300 * time)).float()
    assert abs(float(tools.prosody_of(torch.cat([tone, fifth]), RATE, 8)[1]) - np.log(1.5) / 2) < 0.02


def test_pitch_and_style_of_a_voice(voice, corpus, tmp_path, capsys):
    made = []
    for options in ([], ["--pitch", "1.3"], ["--loudness", "2"], ["--style", str(corpus), "--style-weight", "0.5"]):
        out = tmp_path / f"{len(made)}.wav"
        assert main(["speech", "say", str(voice), "aeo", "-o", str(out), "--temperature", "0", *options]) == 0
        made.append(out.read_bytes())
    assert len(set(made)) == len(made)
    assert (
        "loudness:" in capsys.readouterr().err
    )  # twice as loud is more than its clips, which are nearly as loud, allow
    plain = tmp_path / "plain.safetensors"
    flow, notes = diffeo.load(voice), read_notes(voice)
    other = diffeo.glow_tts(notes["mel"][3], len(notes["symbols"]), preset="tiny")
    data = tools.Spoken([torch.randn(20, notes["mel"][3])], [torch.tensor([1, 2])], durations=[torch.tensor([4, 6])])
    other.initialize(*tools.join([data[0]]))
    diffeo.save(other, plain, notes=notes)
    assert tools.usual_prosody(flow) is not None
    for options in (["--pitch", "1.3"], ["--loudness", "0.5"]):
        assert main(["speech", "say", str(plain), "aeo", *options]) == 2
        assert "reads prosody" in capsys.readouterr().err


def test_a_voice_says_a_text_and_hears_where_its_letters_are(voice, corpus, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert main(["speech", "say", str(voice), "aeo", "-o", str(out), "--temperature", "0"]) == 0
    slow = tmp_path / "slow.wav"
    assert main(["speech", "say", str(voice), "aeo", "-o", str(slow), "--tempo", "0.5"]) == 0
    seconds = [len(tools.read_audio(p)[0]) / RATE for p in (out, slow)]
    assert seconds[1] > 1.6 * seconds[0]
    assert main(["speech", "say", str(voice), "aeo", "-o", str(tmp_path / "again.wav"), "--temperature", "0"]) == 0
    assert out.read_bytes() == (tmp_path / "again.wav").read_bytes()
    assert list((corpus.parent / "sheets").glob("*.wav"))
    assert list((corpus.parent / "sheets").glob("*.png"))
    table, grids = tmp_path / "a.csv", tmp_path / "grids"
    assert main(["speech", "align", str(voice), str(corpus), "-o", str(table), "--textgrids", str(grids)]) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["clip"] for row in rows} == {f"c{i:02}.wav" for i in range(60)}
    assert all(float(row["begin"]) < float(row["end"]) for row in rows)
    assert 'class = "IntervalTier"' in (grids / "c00.TextGrid").read_text()
    assert main(["speech", "check", str(corpus), "--reading", "letters"]) == 0
    assert "60 clips, 0 remarks" in capsys.readouterr().out
    (tmp_path / "clips.csv").write_text("path,text\ngone.wav,a\n")
    assert main(["speech", "check", str(tmp_path / "clips.csv"), "--reading", "letters"]) == 1
    assert "1 clip, " in capsys.readouterr().out


def test_texts_are_read_as_phonemes_where_that_can_be(monkeypatch, corpus, capsys):
    english, german = ["the owls", "a naïve one" + 200 * " more"], ["schöne Eulen", "eine Eule"]
    monkeypatch.setattr("shutil.which", lambda program: "/usr/bin/" + program)
    assert usual_reading(english) == "en-us"
    assert usual_reading(german) == usual_reading(["совы"]) == "letters"
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert usual_reading(english) == "letters"
    assert main(["speech", "check", str(corpus)]) == 0
    assert "Texts are read letter by letter; --reading chooses" in capsys.readouterr().out


@pytest.mark.parametrize("system", ["glow_tts", "flow_tts", "flowtron"])
def test_ends_between_two_recordings_are_the_recordings(system, corpus):
    settings = tools.Mel.of(8000)
    clips = tools.read_corpus(corpus)[:2]
    symbols = tools.symbols_of([tools.units_of(clip.text) for clip in clips])
    text = tools.encode_text(clips[0].text, symbols)
    mels = tools.mels_of(clips, settings)
    torch.manual_seed(0)
    prosody = (torch.tensor([1.0, -0.5]), torch.tensor([torch.nan, 2.0]))
    flow = getattr(diffeo, system)(settings.mels, len(symbols), preset="tiny", prosody=2).eval()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.02 * torch.randn_like(p))
    ends = tools.interpolate(flow, *mels, text, [0.0, 0.5, 1.0], prosody=prosody)
    for mel, end in zip(mels, ends[::2], strict=True):
        whole = 2 * (len(mel) // 2)
        assert torch.allclose(end[:whole], mel[:whole], atol=1e-3)
    assert min(map(len, ends[::2])) <= len(ends[1]) <= max(map(len, ends[::2]))
    with pytest.raises(ValueError, match="weights in"):
        tools.interpolate(flow, *mels, text, [1.5])


def test_a_voice_speaks_between_two_recordings(voice, corpus, tmp_path, capsys):
    settings, clips = tools.Mel(*read_notes(voice)["mel"]), tools.read_corpus(corpus)
    a, b = tools.mels_of(clips[:2], settings)
    out = tmp_path / "between.wav"
    call = ["speech", "interpolate", str(voice), str(clips[0].path), str(clips[1].path), clips[0].text, "-o", str(out)]
    assert main([*call, "-n", "3"]) == 0
    assert "3 versions" in capsys.readouterr().out
    sound, rate, _ = tools.read_audio(out)
    assert len(sound) / rate > (len(a) + len(b)) * settings.hop / settings.rate


@pytest.mark.parametrize("system", ["glow_tts", "flow_tts", "flowtron"])
def test_sharpness_is_a_share(system, corpus):
    settings = tools.Mel.of(8000)
    clips = tools.read_corpus(corpus)[:3]
    symbols = tools.symbols_of([tools.units_of(clip.text) for clip in clips])
    texts = [tools.encode_text(clip.text, symbols) for clip in clips]
    torch.manual_seed(0)
    flow = getattr(diffeo, system)(settings.mels, len(symbols), preset="tiny").eval()
    found = tools.sharpness(flow, tools.Spoken(tools.mels_of(clips, settings), texts))
    assert 1 / max(map(len, texts)) - 1e-6 <= found <= 1


def _clips(number, rng):
    """Spectrograms of tones, what they spell, and how long each lasts."""
    settings, found = tools.Mel.of(RATE), []
    while len(found) < number:
        text = "".join(rng.choice(sorted(LETTERS), rng.integers(3, 6)))
        if all(a != b for a, b in itertools.pairwise(text)):  # where one tone ends and the same begins is open
            audio, lengths = spoken(text, rng)
            found.append((tools.to_mel(torch.from_numpy(audio).float(), settings), text, lengths))
    return found


def test_letters_end_neither_early_nor_late():
    settings, clips = tools.Mel.of(RATE), _clips(60, np.random.default_rng(0))
    texts = [tools.encode_text(text, sorted(LETTERS)) for _, text, _ in clips]
    steps = tools.forced_alignment([mel for mel, *_ in clips], texts)
    late = [
        settings.ends(2 * each, len(mel)).numpy()[:-1] * RATE - lengths.cumsum()[:-1]
        for each, (mel, _, lengths) in zip(steps, clips, strict=True)
    ]
    assert abs(np.concatenate(late).mean()) < settings.hop / 4
    assert np.abs(np.concatenate(late)).mean() < 1.5 * settings.hop


@pytest.mark.slow
def test_a_voice_learns_where_letters_begin():
    settings, symbols, rng = tools.Mel.of(RATE), sorted(LETTERS), np.random.default_rng(0)

    def data(made):
        mels, texts = [mel for mel, *_ in made], [tools.encode_text(text, symbols) for _, text, _ in made]
        return tools.Spoken(mels, texts, durations=tools.forced_alignment(mels, texts))

    torch.manual_seed(0)
    flow = diffeo.glow_tts(settings.mels, len(symbols), preset="tiny")
    diffeo.fit(
        tools.Voice(flow), data(_clips(60, rng)), validation=data(_clips(10, rng)), collate=tools.join, batch_size=16,
        steps=150, lr=2e-3, progress=False,
    )  # fmt: skip
    wrong, uniform = [], []
    for mel, text, lengths in _clips(20, rng):
        frames = tools.align(flow, mel, tools.encode_text(text, symbols))
        truth = lengths.cumsum()[:-1]
        wrong.append(np.abs(settings.ends(frames, len(mel)).numpy()[:-1] * RATE - truth).mean())
        uniform.append(np.abs(np.arange(1, len(text)) / len(text) * lengths.sum() - truth).mean())
    assert np.mean(wrong) < min(1.1 * settings.hop, 0.65 * np.mean(uniform))  # a step is two frames


def test_alone_and_in_a_batch_a_clip_has_the_same_density():
    flow = diffeo.testing.perturbed(
        diffeo.glow_tts(6, 9, preset="tiny", hidden=8, width=8, blocks=2, speakers=3)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    mels = [torch.randn(n, 6, generator=generator) for n in (8, 6, 4)]
    texts = [torch.tensor([1, 2, 3]), torch.tensor([4, 5]), torch.tensor([7])]
    data = tools.Spoken(mels, texts, [0, 1, 2])
    x, context = tools.join([data[i] for i in range(3)])
    found = flow(torch.where(context["mask"], x, 9.0), context)
    for i in range(3):
        alone = tools.join([data[i]])
        assert torch.allclose(found[i], flow(*alone)[0], atol=1e-4)
    with pytest.raises(ValueError, match="clip 0: 3 letters in 2 steps"):
        tools.Spoken([mels[2]], [texts[0]])
    objective = tools.Voice(flow)
    assert objective(x, context).shape == (3,)


def test_info_says_what_a_voice_knows(voice, capsys):
    assert main(["info", str(voice)]) == 0
    told = capsys.readouterr().out
    assert "8000 Hz" in told
    assert "letters: 'a' 'e' 'o'" in told


def test_styles_come_from_recordings_with_their_texts(voice, corpus, tmp_path, capsys):
    made = []
    styles = [[], ["--style", "{tmp}/a.wav"], ["--style", "{tmp}/a.wav", "--style", "{tmp}/b.wav"]]
    for i, options in enumerate(styles):
        for name, clip in (("a", "c00"), ("b", "c01")):
            shutil.copy(corpus / "wavs" / f"{clip}.wav", tmp_path / f"{name}.wav")
            text = next(clip_.text for clip_ in tools.read_corpus(corpus) if clip_.path.stem == clip)
            (tmp_path / f"{name}{'.txt' if name == 'a' else '.lab'}").write_text(text + "\n")
        call = ["speech", "say", str(voice), "aeo", "-o", str(tmp_path / f"{i}.wav")]
        assert main([*call, *(option.format(tmp=tmp_path) for option in options)]) == 0
        made.append((tmp_path / f"{i}.wav").read_bytes())
    assert len(set(made)) == 3
    (tmp_path / "a.txt").write_bytes("aeo".encode("utf-16"))
    assert main(["speech", "say", str(voice), "aeo", "--style", str(tmp_path / "a.wav")]) == 2
    assert "a.txt: no text in UTF-8" in capsys.readouterr().err
    (tmp_path / "a.txt").unlink()
    capsys.readouterr()
    assert main(["speech", "say", str(voice), "aeo", "--style", str(tmp_path / "a.wav")]) == 2
    assert "what does it say? Write its text to" in capsys.readouterr().err


def test_what_is_changed_in_recordings_is_said_once(voice, corpus, tmp_path, capsys):
    """At another rate and in two channels: by every command that hears them; and silence is refused by name."""
    other = tmp_path / "corpus"
    (other / "wavs").mkdir(parents=True)
    clips = tools.read_corpus(corpus)[:24]
    lines = []
    for clip in clips:
        audio = np.repeat(soundfile.read(clip.path)[0], 2)
        soundfile.write(other / "wavs" / clip.path.name, np.stack([audio, audio], 1), 2 * RATE)
        lines.append(f"{clip.path.stem}|{clip.text}")
    (other / "metadata.csv").write_text("\n".join(lines) + "\n")
    one = other / "wavs" / clips[0].path.name
    fresh, steps = str(tmp_path / "m.safetensors"), ["--rate", str(RATE), "--preset", "tiny", "--steps", "1"]
    calls = {
        "fit": (["fit", str(other), "-o", fresh, *steps], 24),
        "vocoder": (["vocoder", str(other), "-o", fresh, *steps], 24),
        "align": (["align", str(voice), str(other), "-o", str(tmp_path / "a.csv")], 24),
        "style": (["say", str(voice), "aeo", "--style", str(other), "-o", str(tmp_path / "s.wav")], 24),
        "ends": (["interpolate", str(voice), *[str(one)] * 2, clips[0].text, "-o", str(tmp_path / "i.wav")], 2),
    }
    for name, (call, count) in calls.items():
        capsys.readouterr()
        assert main(["speech", *call]) == 0, name
        said = capsys.readouterr().err.splitlines()
        for what in ("2 channels were mixed to one", f"resampled from {2 * RATE} to {RATE} Hz"):
            matching = [line for line in said if what in line]
            assert len(matching) == 1, (name, said)
            assert f"and {count - 1} more recordings" in matching[0], (name, said)
    soundfile.write(one, np.zeros(2 * RATE), 2 * RATE)
    for call, _ in calls.values():
        capsys.readouterr()
        assert main(["speech", *call]) == 2
        assert f"{one}: silence" in capsys.readouterr().err


def test_a_spectrogram_louder_than_any_sound_still_gives_sound():
    settings = tools.Mel.of(RATE)
    loud = tools.from_mel(torch.full((9, settings.mels), 900.0), settings, rounds=3)
    assert loud.isfinite().all()
    plain = tools.to_mel(0.9 * torch.randn(4000).clamp(-1, 1), settings)
    assert torch.equal(tools.from_mel(plain, settings, rounds=3), tools.from_mel(plain, settings, rounds=3))


def test_a_batch_has_its_entries_in_the_same_order_in_every_process():
    """By it the data of a fit that goes on are known to be the same."""
    program = (
        "import torch; from diffeo.apps import speech as t;"
        "e = torch.zeros(4, 1), {'text': torch.ones(1).long(), 'prosody': torch.zeros(4), 'speaker': torch.tensor(0)};"
        "print(list(t.join([e])[1]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": str(seed)}, capture_output=True,
            text=True, check=True,
        ).stdout
        for seed in range(4)
    }  # fmt: skip
    assert len(found) == 1


def test_clips_of_one_name_in_two_folders_are_told_apart(voice, corpus, tmp_path):
    rows = [["path", "text"]]
    for folder in ("a/x", "b/x"):
        (tmp_path / folder).mkdir(parents=True)
        for clip in tools.read_corpus(corpus)[:2]:
            shutil.copy(clip.path, tmp_path / folder / clip.path.name)
            rows.append([f"{folder}/{clip.path.name}", clip.text])
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*rows, ["b/x/none.wav", "aeo"]])
    call = ["speech", "align", str(voice), str(tmp_path / "clips.csv"), "-o", str(tmp_path / "out.csv")]
    assert main([*call, "--textgrids", str(tmp_path / "grids")]) == 2
    assert main([*call, "--textgrids", str(tmp_path / "grids"), "--skip-bad"]) == 0
    with (tmp_path / "out.csv").open() as file:
        names = {row["clip"] for row in csv.DictReader(file)}
    wanted = {f"{folder}/x/{n}" for folder in "ab" for n in ("c00", "c01")}
    assert names == {f"{name}.wav" for name in wanted}
    grids = tmp_path / "grids"
    assert {path.relative_to(grids).as_posix() for path in grids.rglob("*.*")} == {f"{n}.TextGrid" for n in wanted}


@pytest.mark.parametrize("command", ["fit", "vocoder"])
def test_a_killed_run_goes_on_with_resume(command, corpus, tmp_path, capsys):
    """From what it wrote last; and where it wrote nothing yet, afresh, which it says."""
    output = tmp_path / "m.safetensors"
    steps = ["--steps", "40", "--batch-size", "8", "--preset", "tiny"]
    call = [sys.executable, "-m", "diffeo", "speech", command, str(corpus), "-o", str(output), *steps]
    folder = output.with_name(output.name + ".ckpt")
    state, environment = folder / "fit.safetensors", {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not state.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(20) == -signal.SIGKILL
    assert not output.exists()
    done = subprocess.run([*call, "--resume"], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "40 steps" in done.stdout
    assert "starting afresh" not in done.stderr
    assert output.exists()
    assert not folder.exists()
    again = ["speech", command, str(corpus), "-o", str(output), "--preset", "tiny", "--steps", "1", "--resume"]
    assert main(again) == 2
    assert "there is no interrupted fit to resume; without --resume" in capsys.readouterr().err
    output.unlink()
    folder.mkdir()
    assert main(again) == 0
    assert "starting afresh" in capsys.readouterr().err


WRONG = [
    (["say", "{voice}", ""], "the text is empty"),
    (["interpolate", "{voice}", "{tmp}/a.wav", "{tmp}/b.wav", "ae"], "no such file"),
    (["say", "{voice}", "aex"], "does not know 'x'"),
    (["say", "{voice}", "ae 7"], "write numbers as words"),
    (["say", "{voice}", "ae o"], "it learned from single words"),
    (["say", "{voice}", "ae", "--gate"], "this voice has no gate"),
    (["say", "{voice}", "ae", "--style", "{corpus}", "--style-weight", "nan"], "--style-weight"),
    (["say", "{voice}", "ae", "--pitch", "nan"], "--pitch"),
    (["say", "{voice}", "ae", "--loudness", "nan"], "--loudness"),
    (["say", "{voice}", "ae", "--tempo", "nan"], "tempo"),
    (["say", "{voice}", "ae", "--temperature", "nan"], "temperature"),
    (["resynthesize", "{voice}", "{corpus}"], "no vocoder, as"),
    (["say", "{voice}", "ae", "--speaker", "me"], "--speaker: the voice knows"),
    (["say", "{voice}", "ae", "-o", "{tmp}/x.txt"], "ends in .wav"),
    (["say", "{tmp}/none.safetensors", "ae"], "no such file"),
    (["fit", "{tmp}/none"], "no such file or folder"),
    (["fit", "{corpus}", "-o", "{tmp}/v.safetensors", "--preset", "huge"], "--preset"),
    (["fit", "{corpus}", "-o", "{tmp}/v.safetensors", "--system", "tacotron"], "--system: expected one of flow_tts"),
    (["fit", "{corpus}", "-o", "{tmp}/v.safetensors", "--reading", "xx-none"], "cannot read 'xx-none'"),
    (["say", "{voice}", "ae", "--vocoder", "{voice}"], "no vocoder, as"),
    (["align", "{voice}", "{tmp}"], "expected metadata.csv"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_calls_in_one_line(voice, corpus, tmp_path, capsys, call, message):
    filled = [part.format(voice=voice, corpus=corpus, tmp=tmp_path) for part in call]
    capsys.readouterr()
    assert main(["speech", *filled]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_forced_alignment_finds_where_letters_begin():
    settings, rng = tools.Mel.of(RATE), np.random.default_rng(1)
    texts = ["".join(rng.permutation(list(LETTERS))) for _ in range(12)]  # a letter follows itself nowhere
    made = [spoken(text, rng) for text in texts]
    mels = [tools.to_mel(torch.from_numpy(audio).float(), settings) for audio, _ in made]
    found = tools.forced_alignment(mels, [tools.encode_text(text, sorted(LETTERS)) for text in texts])
    wrong, uniform = [], []
    for durations, mel, (_, lengths) in zip(found, mels, made, strict=True):
        assert int(durations.sum()) == -(-len(mel) // 2)
        assert (durations >= 1).all()
        truth = lengths.cumsum()[:-1]
        wrong.append(np.abs(2 * settings.hop * durations.cumsum(0).numpy()[:-1] - truth).mean())
        uniform.append(np.abs(np.arange(1, len(lengths)) / len(lengths) * lengths.sum() - truth).mean())
    assert np.mean(wrong) < min(settings.hop, np.mean(uniform))  # half a step of two frames
    with pytest.raises(ValueError, match="at least one clip"):
        tools.forced_alignment([], [])
    twice = tools.forced_alignment(mels[:6] * 2, [tools.encode_text(t, sorted(LETTERS)) for t in texts[:6]] * 2,
                                   speakers=[0] * 6 + [1] * 6)  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(twice[:6], twice[6:], strict=True))


def test_texts_are_read_as_letters_or_phonemes():
    assert tools.units_of(" Ein  Öl ") == ["e", "i", "n", " ", "ö", "l"]
    assert tools.symbols_of([["b", "a"], ["a"]]) == ["a", "b"]
    if shutil.which("espeak-ng") is None:
        with pytest.raises(ImportError, match="apt install espeak-ng"):
            tools.units_of("a", "en-us")
        return
    assert tools.units_of("two", "en-us") == tools.units_of("2", "en-us") == ["t", "u:"]
    assert tools.units_of("two owls", "en-us")[2] == "|"
    assert tools.units_of("", "en-us") == []
    with pytest.raises(ValueError, match="cannot read 'xx-none'"):
        tools.units_of("a", "xx-none")
    spoken = tools.speak("Seven owls.", pitch=70)
    assert spoken.phonemes[:3] == ["s", "E", "v"]
    assert spoken.begins == sorted(spoken.begins)
    assert spoken.begins[-1] <= len(spoken.audio) / spoken.rate
    assert float(spoken.audio.abs().max()) > 0.05
    slower = tools.speak("Seven owls.", words_per_minute=100)
    assert len(slower.audio) > 1.3 * len(spoken.audio)
    with pytest.raises(ValueError, match="no voice 'nobody'"):
        tools.speak("a", voice="nobody")
    with pytest.raises(ValueError, match="nothing to say"):
        tools.speak("")


@pytest.fixture(scope="module")
def vocoder(corpus):
    path = corpus.parent / "vocoder.safetensors"
    assert main(["speech", "vocoder", str(corpus), "-o", str(path), "--steps", "4", "--batch-size", "4"]) == 0
    return path


@pytest.mark.parametrize("system", ["flow_tts", "flowtron"])
def test_every_system_learns_speaks_and_aligns(system, corpus, tmp_path, capsys):
    voice, out = str(tmp_path / "v.safetensors"), str(tmp_path / "o.wav")
    call = ["speech", "fit", str(corpus), "-o", voice, "--system", system, "--preset", "tiny", "--steps", "3"]
    assert main([*call, "--batch-size", "8", "--reading", "letters"]) == 0
    assert f"{system}, tiny" in capsys.readouterr().out
    assert main(["speech", "say", voice, "aeo", "-o", out, "--style", str(corpus), "--style-weight", "0.5"]) == 0
    assert len(tools.read_audio(out)[0]) > 0
    if system == "flowtron":
        assert main(["speech", "say", voice, "aeo", "-o", out, "--gate"]) == 0
        assert len(tools.read_audio(out)[0]) > 0
    assert main(["speech", "align", voice, str(corpus), "-o", str(tmp_path / "a.csv")]) == 0


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng here")
def test_words_of_other_languages_bring_sounds_and_nothing_else():
    for language, text in (("de", "Das ist ein Download vom Computer"), ("fr-fr", "Le weekend à Paris")):
        units = tools.units_of(text, language)
        assert units.count("|") == text.count(" ")
        assert not any("(" in unit for unit in units)
        assert units[0] != "|"
        assert units[-1] != "|"


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng here")
def test_pauses_within_words_are_no_sounds():
    for language, text in (
        ("en-us", "an elephant (not) now"), ("de", "beobachten, über alles"), ("it", "te, 3,000"), ("ru", "три, да"),
    ):  # fmt: skip
        assert not {":", "!", "|:", "_"} & set(tools.units_of(text, language)), language
    assert tools.units_of("Ei Ei", "de") == ["aI", "|", "aI"]


def test_a_picture_names_the_letters_of_an_alignment():
    mel, frames = torch.randn(20, 8), torch.tensor([4, 2, 2, 12])
    bare = Image.open(io.BytesIO(tools.spectrogram_png(mel, frames)))
    full = Image.open(io.BytesIO(tools.spectrogram_png(mel, frames, ["m", "Ж", "u:", "a"])))
    assert full.width == bare.width
    assert full.height > bare.height
    assert np.array_equal(np.asarray(full)[: bare.height], np.asarray(bare))
    ink = (np.asarray(full)[bare.height :] < 128).any((0, 2))  # columns with letters
    for begin, end in ((0, 40), (40, 60), (60, 80), (80, 200)):
        assert ink[begin:end].any()
    with pytest.raises(ValueError, match="2 letters, 4 durations"):
        tools.spectrogram_png(mel, frames, ["a", "b"])


def test_numbers_beyond_the_symbols_and_texts_without_letters_are_named():
    x = torch.randn(2, 12, 6)
    for build in (diffeo.glow_tts, diffeo.flow_tts, diffeo.flowtron):
        flow = build(6, 9, preset="tiny", speakers=3)
        given = {"text": torch.tensor([[1, 2, 3], [1, 2, 0]]), "speaker": torch.tensor([0, 1])}

        def run(x, **changed):
            mask = torch.ones(*x.shape[:2], 1, dtype=torch.bool)
            return flow(x, {**given, "mask": mask, **changed})  # noqa: B023

        flow.initialize(x, {**given, "mask": torch.ones(2, 12, 1, dtype=torch.bool)})
        assert run(x).isfinite().all()
        for changed, message in (
            ({"text": torch.tensor([[1, 10, 3], [1, 2, 0]])}, "symbols 0 … 9, got 0 … 10"),
            ({"speaker": torch.tensor([0, 3])}, "speakers 0 … 2, got 0 … 3"),
            ({"text": torch.zeros(2, 0, dtype=torch.long)}, "without letters"),
            ({"text": torch.tensor([[1, 2, 3], [0, 0, 0]])}, "without letters"),
        ):
            with pytest.raises(ValueError, match=message):
                run(x, **changed)
        with pytest.raises(ValueError, match="11 frames cannot be folded by 2"):
            run(x[:, :11])
        if build is not diffeo.flowtron:
            with pytest.raises(ValueError, match="9 letters"):
                run(x[:, :4], text=torch.arange(1, 10).expand(2, 9))


def test_errors_name_the_clip(voice, corpus, tmp_path, capsys):
    clip = corpus / "wavs" / "c00.wav"
    soundfile.write(tmp_path / "one.wav", 0.1 * np.ones(1), RATE)
    for row, message in (
        (f"{clip},aexo,", "does not know 'x'"), (f"{clip},aeo,nobody", "the voice knows"),
        (f"{clip},{'aeo' * 60},", "180 letters in"), (f"{clip},,", "the text is empty"),
        (f"{tmp_path / 'one.wav'},aeo,", "1 samples, expected more than"),
    ):  # fmt: skip
        clip = row.split(",")[0]
        (tmp_path / "clips.csv").write_text(f"path,text,speaker\n{row}\n")
        for call in (["align", str(voice), str(tmp_path / "clips.csv")],
                     ["say", str(voice), "aeo", "--style", str(tmp_path / "clips.csv")]):  # fmt: skip
            capsys.readouterr()
            assert main(["speech", *call]) == 2
            error = capsys.readouterr().err
            assert message in error
            assert str(clip) in error


def test_a_fit_by_letters_names_what_is_not_spelled(capsys):
    from diffeo.cli import speech

    clips = [tools.Clip("a.wav", "Dr. Owl ate 12 % of it, e.g. no. 3", "")]
    speech._name_unspelled(clips, "en-us")
    assert not capsys.readouterr().err
    speech._name_unspelled(clips, "letters")
    assert "'Dr.', '12', '%' and 3 more: letters do not say" in capsys.readouterr().err


def test_the_first_clip_may_be_bad(corpus, tmp_path):
    lines = (corpus / "metadata.csv").read_text().splitlines()
    rows = [f"{corpus / 'wavs' / line.split('|')[0]}.wav,{line.split('|')[2]}" for line in lines[:25]]
    (tmp_path / "clips.csv").write_text("\n".join(["path,text", "gone.wav,aeo", *rows]) + "\n")
    soundfile.write(tmp_path / "gone.wav", 0.1 * np.ones(1), RATE)  # of one sample
    for command in ("fit", "vocoder"):
        output = tmp_path / f"{command}.safetensors"
        call = ["speech", command, str(tmp_path / "clips.csv"), "-o", str(output), "--preset", "tiny", "--steps", "1"]
        assert main(call) == 2
        assert main([*call, "--skip-bad"]) == 0
    written = sorted(p.name for p in (tmp_path / "fit-samples").iterdir())  # beside the voice, unless told otherwise
    assert written == ["00000001.png", "00000001.wav"]


def test_samples_of_an_earlier_fit_go_and_nothing_else(corpus, tmp_path, capsys):
    folder, voice = tmp_path / "sheets", str(tmp_path / "v.safetensors")
    folder.mkdir()
    for name in ("00000900.wav", "00000900.png", "20240115.wav", "00000007.png", "mine.wav", "mine.png"):
        (folder / name).touch()
    call = ["-o", voice, "--preset", "tiny", "--steps", "1", "--samples-dir", str(folder)]
    assert main(["speech", "fit", str(tmp_path / "nowhere"), *call]) == 2
    assert len(list(folder.iterdir())) == 6  # nothing goes before it is known that a fit begins
    assert main(["speech", "fit", str(corpus), *call]) == 0
    left = {"20240115.wav", "00000007.png", "mine.wav", "mine.png"}
    assert {p.name for p in folder.iterdir()} == left | {"00000001.png", "00000001.wav"}
    assert main(["speech", "fit", str(corpus), *call[:-1], str(folder / "mine.wav")]) == 2
    assert "no folder for samples can be made there" in capsys.readouterr().err


def test_samples_on_the_way_can_be_left_out(corpus, tmp_path, capsys):
    call = ["speech", "fit", str(corpus), "-o", str(tmp_path / "v.safetensors"), "--preset", "tiny", "--steps", "1"]
    assert main([*call, "--no-samples"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]
    assert main([*call, "--no-samples", "--samples-dir", str(tmp_path)]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_a_vocoder_makes_sound_of_spectrograms(vocoder, voice, corpus, tmp_path, capsys):
    clip = corpus / "wavs" / "c00.wav"
    capsys.readouterr()
    assert main(["speech", "resynthesize", str(vocoder), str(clip), "-o", str(tmp_path / "r.wav")]) == 0
    assert abs(len(tools.read_audio(tmp_path / "r.wav")[0]) - len(tools.read_audio(clip)[0])) <= 100
    for name in ("a", "b"):
        call = ["speech", "say", str(voice), "aeo", "--vocoder", str(vocoder), "-o", str(tmp_path / f"{name}.wav")]
        assert main(call) == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    soundfile.write(tmp_path / "short.wav", 0.1 * np.ones(1), RATE)
    for call, message in (
        (["resynthesize", str(voice), str(clip)], "no vocoder, as"),
        (["resynthesize", str(vocoder), str(tmp_path / "short.wav")], "samples, expected more than"),
        (["say", str(vocoder), "a"], "no voice, as"),
        (["vocoder", str(corpus), "--system", "wavenot", "-o", str(tmp_path / "v.safetensors")], "--system"),
    ):
        capsys.readouterr()
        assert main(["speech", *call]) == 2
        assert message in capsys.readouterr().err


def test_rounds_pull_sound_to_its_spectrogram(vocoder, corpus):
    flow, notes = diffeo.load(vocoder).eval(), read_notes(vocoder)
    settings = tools.Mel(*notes["mel"])
    mel = tools.mels_of(tools.read_corpus(corpus)[:1], settings)[0]

    def away(rounds):
        sound = tools.vocode(flow, mel, settings, rounds=rounds, generator=torch.Generator().manual_seed(0))
        assert len(sound) == (len(mel) - 1) * settings.hop
        return float((tools.to_mel(sound, settings) - mel).abs().mean())

    assert away(20) < away(2) < away(0)


def test_segments_of_sound_lie_beside_their_spectrograms():
    settings = tools.Mel.of(RATE)
    clips = [torch.linspace(-0.5, 0.5, n) for n in (9000, 2000)]
    data = tools.Sounds(clips, settings, seconds=0.4, multiple=8)
    assert len(data) == 4
    for i in range(4):
        x, context = data[i]
        assert x.shape == (3200, 1)
        assert context["mel"].shape == (33, 64)
        assert torch.equal(data[i][0], x)  # the noise is the same each time
    assert float((data[0][0][:, 0] - clips[0][:3200]).abs().max()) <= 2.0**-12
    x, context = data[1]
    begin = data.places[1][1]
    whole = tools.to_mel(data.clips[0], settings)
    assert torch.equal(context["mel"], whole[begin // settings.hop :][:33])
    with pytest.raises(ValueError, match="at least one clip"):
        tools.Sounds([], settings)


def test_published_size_of_glow_tts():
    model = diffeo.glow_tts(80, 148, preset="paper")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(28.6e6, rel=0.02)


def test_the_demo_makes_a_page_without_espeak(tmp_path, monkeypatch):
    from diffeo.apps.speech import demo

    def missing(rate):
        raise ImportError("no espeak-ng")

    monkeypatch.setattr(demo, "spoken_words", missing)
    demo.main(tmp_path, 3.0)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<audio") == 24
    assert page.count("<img") == 3
    assert "recorded of espeak-ng" in page
    for name in ("voice", "vocoder"):
        card = (tmp_path / f"{name}.md").read_text()
        assert all(f"## {part}" in card for part in ("Data", "Training", "Scores", "Limits"))
        assert "nan" not in card.lower().split()
    assert main(["speech", "say", str(tmp_path / "voice.safetensors"), "seven", "-o", str(tmp_path / "s.wav")]) == 0
    call = ["speech", "resynthesize", str(tmp_path / "vocoder.safetensors"), str(tmp_path / "s.wav")]
    assert main([*call, "-o", str(tmp_path / "r.wav")]) == 0


@pytest.mark.parametrize("name", librosa_mels.SETTINGS)
def test_mels_are_those_of_librosa(name):
    settings = librosa_mels.SETTINGS[name]
    theirs = np.load(Path(librosa_mels.__file__).with_suffix(".npz"))[name]
    ours = tools.to_mel(torch.from_numpy(librosa_mels.sound(settings[0])), tools.Mel(*settings))
    assert np.abs(ours.numpy() - theirs).max() < 1e-4

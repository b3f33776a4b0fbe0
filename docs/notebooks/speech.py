# %% [markdown]
# # Flows of sequences, and a voice
#
# A spectrogram of speech is a sequence of frames whose length differs from clip to clip, and which frame belongs to which
# letter of the text is not known. This tutorial shows both: events of free length under a mask, and alignment, derived
# and drawn; then it trains a small Glow-TTS on words that espeak-ng speaks and lets it speak. It takes about three
# minutes on two cores, and needs `diffeo[speech]`.

# %%
import matplotlib.pyplot as plt
import torch
from IPython.display import Audio, display

import diffeo
from diffeo.apps.speech import (
    Mel,
    Spoken,
    Voice,
    align,
    encode_text,
    forced_alignment,
    from_mel,
    interpolate,
    join,
    say,
    sharpness,
    symbols_of,
    to_mel,
    units_of,
)  # fmt: skip
from diffeo.apps.speech.demo import corpus
from diffeo.solvers import monotonic_alignment

# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]

# %% [markdown]
# ## Events whose length the context gives
#
# A flow of sequences has events of shape `(None, C)`: the mask of the context says which frames are real. Transforms act
# on the real ones alone, and a log-density is a sum over these, so **padding changes nothing**: a clip has the same
# density alone and in a batch beside longer ones.

# %%
torch.manual_seed(0)
flow = diffeo.glow_tts(8, symbols=5, preset="tiny").eval()
clips = [torch.randn(12, 8), torch.randn(20, 8)]
texts = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 1, 2])]
x, context = join([(clip, {"text": text}) for clip, text in zip(clips, texts)])
print("the batch:", tuple(x.shape), " real frames:", context["mask"].sum((-1, -2)).tolist())
with torch.no_grad():
    together = flow(x, context)
    alone = [flow(c, {"text": t, "mask": torch.ones(len(c), 1, dtype=torch.bool)}) for c, t in zip(clips, texts)]
print("log-densities together:", [round(float(v), 3) for v in together], " alone:", [round(float(v), 3) for v in alone])

# %% [markdown]
# ## Which frame is of which letter
#
# Glow-TTS maps frames to noise $z_t$ whose mean is that of a letter, $m_l$. An alignment $l(t)$ begins at the first letter,
# ends at the last, and at each frame stays or goes on to the next. The likeliest one,
#
# $$\max_{l} \sum_t \log N(z_t;\, m_{l(t)}, 1),$$
#
# is found by going through the table of all $s_{lt} = \log N(z_t; m_l, 1)$ once (monotonic alignment search):
#
# $$Q_{lt} = s_{lt} + \max(Q_{l,\,t-1},\, Q_{l-1,\,t-1}).$$
#
# Here it is on made-up scores: bright where a frame fits a letter, with the path that the search finds.

# %%
generator = torch.Generator().manual_seed(1)
owner = torch.arange(5).repeat_interleave(torch.tensor([4, 9, 3, 7, 5]))
scores = -(torch.arange(5)[:, None] - owner[None]).abs().float() + 0.8 * torch.randn(5, len(owner), generator=generator)
durations = monotonic_alignment(scores[None], torch.tensor([5]), torch.tensor([len(owner)]))[0]
figure, ax = plt.subplots(figsize=(7, 2.2), layout="constrained")
ax.imshow(scores, aspect="auto", origin="lower", cmap="Blues")
ax.step(torch.arange(len(owner)), torch.arange(5).repeat_interleave(durations), where="mid", color="#ee6c4d", lw=2)
ax.set(xlabel="frame", ylabel="letter")
plt.show()
print("true durations", [4, 9, 3, 7, 5], " found", durations.tolist())

# %% [markdown]
# ## Words, and where their letters are
#
# espeak-ng speaks 24 words at three pitches and three paces (where it is missing, recordings of it that come with diffeo
# are taken). `forced_alignment` finds the letters' places from these clips alone: each letter is a state of a hidden Markov
# model with a Gaussian of cepstra.

# %%
settings = Mel.of(8000)
sounds, words, pitches, source = corpus(settings)
print(
    f"{len(sounds)} clips, {source}; a frame every {1000 * settings.hop / settings.rate:.1f} ms, {settings.mels} bands"
)
symbols = symbols_of([units_of(word) for word in words])
codes = [encode_text(word, symbols) for word in words]
mels = [to_mel(sound, settings) for sound in sounds]
speakers = [sorted(set(pitches)).index(pitch) for pitch in pitches]
known = forced_alignment(mels, codes, speakers)


def draw(mel: torch.Tensor, frames: torch.Tensor, word: str, ax: plt.Axes) -> None:
    """A spectrogram with its letters."""
    ax.imshow(mel.T, origin="lower", aspect="auto", cmap="magma")
    ends = frames.cumsum(0).tolist()
    for begin, end, letter in zip([0, *ends[:-1]], ends, word):
        ax.axvline(end - 0.5, color="white", lw=0.7)
        ax.text((begin + end) / 2 - 0.5, mel.shape[1] + 0.5, letter, ha="center", va="bottom")
    ax.set(yticks=[], xlabel="frame")


chosen = [i for i, word in enumerate(words) if word in ("mountain", "river") and pitches[i] == 50][1::3]
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
for ax, i in zip(axes, chosen):
    draw(mels[i], 2 * known[i], words[i], ax)
plt.show()

# %% [markdown]
# ## A voice
#
# Two minutes of training; the loss is nats per number of the spectrogram plus the error of predicted durations.

# %%
order = torch.randperm(len(mels), generator=torch.Generator().manual_seed(0)).tolist()


def of(index: list[int]) -> Spoken:
    """These clips, as `diffeo.fit` takes them."""
    parts = [[values[i] for i in index] for values in (mels, codes, speakers, known)]
    return Spoken(parts[0], parts[1], parts[2], durations=parts[3])


torch.manual_seed(0)
voice = diffeo.glow_tts(settings.mels, len(symbols), preset="tiny", speakers=3)
result = diffeo.fit(
    Voice(voice), of(order[12:]), validation=of(order[:12]), collate=join, batch_size=16, epochs=1000, lr=2e-3,
    time_limit=120, progress=False,
)  # fmt: skip
voice.eval()
print(
    f"{result.steps} steps; held-out loss {result.validation_loss:.3f}; sharpness {sharpness(voice, of(order[:12])):.2f}"
)

# %% [markdown]
# The trained flow searches for alignments itself, by the means that it has learned:

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
for ax, i in zip(axes, chosen):
    draw(mels[i], align(voice, mels[i], codes[i], speakers[i]), words[i], ax)
plt.show()

# %% [markdown]
# It says words, at a tempo and a temperature, as any of the three speakers. Sound is made from the spectrogram by an
# algorithm that needs no training (`from_mel`); `diffeo speech vocoder` trains a flow for it.


# %%
def play(title: str, mel: torch.Tensor) -> None:
    """A player."""
    print(title)
    display(Audio(from_mel(mel, settings).numpy(), rate=settings.rate))


held = order[0]
play(f"{words[held]}, as recorded, from its spectrogram", mels[held])
play(f"{words[held]}, as the voice says it", say(voice, codes[held], speaker=speakers[held]))
play("garden, slow", say(voice, encode_text("garden", symbols), speaker=1, tempo=0.7))
play("garden, fast", say(voice, encode_text("garden", symbols), speaker=1, tempo=1.5))
play("winter, the highest voice", say(voice, encode_text("winter", symbols), speaker=2))

# %% [markdown]
# The same word nine times as the voice's noise allows: the spread over samples grows with the temperature.

# %%
for temperature in (0.0, 0.33, 0.67, 1.0):
    made = torch.stack([
        say(voice, encode_text("summer", symbols), speaker=1, temperature=temperature,
            generator=torch.Generator().manual_seed(k)) for k in range(9)
    ])  # fmt: skip
    print(f"temperature {temperature:.2f}: standard deviation of a number {float(made.std(0).mean()):.3f}")

# %% [markdown]
# Between a slow and a fast recording of a word: letters last in between, and the noise turns from one into the other.

# %%
slow, fast = (next(i for i, w in enumerate(words) if w == "seven" and pitches[i] == 50) + k for k in (0, 2))
between = interpolate(voice, mels[slow], mels[fast], codes[slow], [0.0, 0.5, 1.0], speaker=1)
print("frames:", [len(mel) for mel in between])
play("half way", between[1])

# %% [markdown]
# To go on: [a voice of one's own](../speech.md); [how the systems compare](../benchmarks.md#speech).
#
# "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search" (Kim et al., 2020),
# https://arxiv.org/abs/2005.11129.

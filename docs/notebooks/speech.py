# %% [markdown]
# # Flows of sequences, and a voice
#
# A spectrogram of speech is a sequence of frames whose length differs from clip to clip, and which frame belongs to which
# letter of the text is not known. This tutorial shows both: events of free length under a mask, and alignment and attention,
# derived and drawn; then it trains a small Glow-TTS on words that espeak-ng speaks and lets it speak. It takes about three
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
from diffeo.nets.recurrent import beta_binomial_prior
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
# ## Attention in place of alignment
#
# Flow-TTS and Flowtron don't decide. A frame asks with a query $q_t$, letters answer with keys $k_l$, and what it hears is a
# mean of their vectors $v_l$, by weights
#
# $$a_{tl} = \frac{\exp e(q_t, k_l)}{\sum_{l'} \exp e(q_t, k_{l'})}, \qquad h_t = \sum_l a_{tl}\, v_l.$$
#
# In **Flowtron** the query is what an LSTM made of the frames before, $q_t = \mathrm{LSTM}(x_{1 \ldots t-1})$, and
# $e(q, k) = v \cdot \tanh(W q + U k)$. So $h_t$ depends on earlier frames alone, $z_t = \exp(s_t)\, x_t + b_t$ with
# $(s_t, b_t)$, two numbers for each of the frame's, a function of $h_t$ and of them is triangular, and
# $\log|\det| = \sum_t \sum_c s_{tc}$ is exact: attention costs the flow nothing but the sums. In **Flow-TTS** all frames are
# spoken at once, so that none can ask by what came before: the query is the place of the frame, the key a letter's vector
# with its own place $p_l$ on the same ruler, $e = W\,\mathrm{PE}(t) \cdot U\,[v_l, \mathrm{PE}(p_l)] / \sqrt{d}$ with waves of
# rates $r_1 = 1$ down to $r_{d/2} = 1/1000$:
#
# $$\mathrm{PE}(p) = \big(\sin r_1 p, \ldots, \sin r_{d/2}\, p,\; \cos r_1 p, \ldots, \cos r_{d/2}\, p\big).$$
#
# Since $\mathrm{PE}(t) \cdot \mathrm{PE}(p) = \sum_i \cos r_i (t - p)$ is largest at $t = p$, such a product can say "near". The
# paper puts letters at equal distances, diffeo where their durations put them, known in training, predicted in speech.
#
# Attention by $e$ alone starts out everywhere at once, and a flow that can do without the text never learns to listen. Two
# things help, and both say the same: letters are spoken in order.
#
# **A prior.** Speech at an even pace has the letter at frame $t$ of $T$ near $l = L\,t/T$. If the share of the text that is said
# by then is drawn from $\mathrm{Beta}(\omega t, \omega (T - t + 1))$, and each of the $L - 1$ other letters lies before that point
# with this chance, the number before is beta-binomial:
#
# $$p(l \mid t) = \binom{L-1}{l-1}\, \frac{B\big(l - 1 + \omega t,\; L - l + \omega (T - t + 1)\big)}{B\big(\omega t,\; \omega (T - t + 1)\big)}.$$
#
# Its logarithm is added to the scores $e$ of Flowtron. It is broad in the middle, where pace may differ most, narrow at both
# ends, and narrower with a larger $\omega$. Flow-TTS knows more, the end $e_l$ of each letter but for an error, and its prior
# is the chance that frame $t$ lies between two of them: $\sigma(\omega(t + \tfrac12 - e_{l-1})) - \sigma(\omega(t + \tfrac12 -
# e_l))$. So both start out at their priors.

# %%
frames, letters = 40, 8
at = torch.arange(frames)
figure, axes = plt.subplots(1, 3, figsize=(8, 2.2), layout="constrained", sharey=True)
for ax, strength in zip(axes, (0.3, 1.0, 4.0)):
    prior = beta_binomial_prior(torch.tensor(letters), torch.tensor(frames), letters, at, strength).exp()
    ax.imshow(prior.T, aspect="auto", origin="lower", cmap="Blues")
    ax.set(xlabel="frame", title=f"ω = {strength}")
axes[0].set(ylabel="letter")
plt.show()
print("each frame's weights sum to", round(float(prior.sum(-1).min()), 6), "at least")

# %% [markdown]
# **A loss.** An alignment $\pi$ gives each frame a letter or none ($\varnothing$); it spells the text if its letters, repeats
# and gaps left out, are $1, 2, \ldots, L$. With $b_t$ the chances of letters and of none at frame $t$, attention and a
# constant made to sum to one, the chance that the text is heard in order is
#
# $$P = \sum_{\pi \to 1 \ldots L}\; \prod_t b_t(\pi_t),$$
#
# a sum of very many terms that one pass over a table of size $T \times (2L + 1)$ finds, as for hidden Markov models: write
# the text with gaps between all letters, $\varnothing\, 1\, \varnothing\, 2 \ldots L\, \varnothing$, and let $\alpha_t(s)$ be the
# chance of having heard the first $s$ of these signs by frame $t$. A sign may be kept, follow the one before it, or, if it is
# a letter, skip the gap:
#
# $$\alpha_t(s) = b_t(s)\, \big(\alpha_{t-1}(s) + \alpha_{t-1}(s-1) + [s \text{ is a letter}]\; \alpha_{t-1}(s-2)\big), \qquad
# P = \alpha_T(2L) + \alpha_T(2L + 1).$$
#
# `ctc_alignment_loss` is $-\log P / L$ (connectionist temporal classification). Here the recursion is written out, and compared
# with it; then the scores themselves, which start out as noise with a trace of the diagonal, are moved to make the loss small.


# %%
def heard_in_order(attention: torch.Tensor, blank: float = -1.0) -> torch.Tensor:
    """−log P / L of attention (T, L) by the recursion, from its logarithm."""
    scores = torch.cat([torch.full((len(attention), 1), blank), attention], 1).log_softmax(1)
    count = attention.shape[1]
    signs = [0 if s % 2 == 0 else s // 2 + 1 for s in range(2 * count + 1)]  # the gap is sign 0
    alpha = [scores[0, sign] if s < 2 else torch.tensor(-torch.inf) for s, sign in enumerate(signs)]
    for t in range(1, len(attention)):
        before = [torch.tensor(-torch.inf)] * 2 + alpha
        alpha = [
            scores[t, sign] + torch.stack(before[s if sign else s + 1 : s + 3]).logsumexp(0)
            for s, sign in enumerate(signs)
        ]
    return -torch.stack(alpha[-2:]).logsumexp(0) / count


scores = beta_binomial_prior(torch.tensor(letters), torch.tensor(frames), letters, at, 0.3)
scores = (scores + 0.7 * torch.randn(frames, letters, generator=generator)).requires_grad_()
counts = torch.tensor([letters]), torch.tensor([frames])
before = scores.detach().softmax(-1)
print("by the recursion", round(float(heard_in_order(scores.detach().log_softmax(-1))), 4), end="; ")
print("by the library", round(float(diffeo.ctc_alignment_loss(scores.detach().log_softmax(-1)[None], *counts)), 4))
optimizer = torch.optim.Adam([scores], 0.1)
for _ in range(60):
    optimizer.zero_grad()
    loss = diffeo.ctc_alignment_loss(scores.log_softmax(-1)[None], *counts).mean()
    loss.backward()
    optimizer.step()
figure, axes = plt.subplots(1, 2, figsize=(7, 2.2), layout="constrained", sharey=True)
for ax, weights, title in zip(
    axes, (before, scores.detach().softmax(-1)), ("before", f"after: loss {loss.item():.2f}")
):
    ax.imshow(weights.T, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1)
    ax.set(xlabel="frame", title=title)
axes[0].set(ylabel="letter")
plt.show()

# %% [markdown]
# With both, a `flowtron` that is given no alignments attends in order within minutes; with one of them or with neither, it
# does not ([measured](../benchmarks.md#speech)). Where durations are known, as below, attention is taught them instead.
#
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
# https://arxiv.org/abs/2005.11129; "Flow-TTS: A Non-Autoregressive Network for Text to Speech Based on Flow" (Miao et al.,
# 2020), https://doi.org/10.1109/ICASSP40776.2020.9054484; "Flowtron: an Autoregressive Flow-based Generative Network for
# Text-to-Speech Synthesis" (Valle et al., 2020), https://arxiv.org/abs/2005.05957; "One TTS Alignment To Rule Them All"
# (Badlani et al., 2021), https://arxiv.org/abs/2108.10447; "Connectionist Temporal Classification" (Graves et al., 2006),
# https://doi.org/10.1145/1143844.1143891.

# %% [markdown]
# # Flows of pictures
#
# A picture is an array of whole numbers. This tutorial derives the two ideas that make flows of pictures work, noise in
# the cells of whole numbers (dequantization) and vectors that leave early (multiscale flows), and trains a Glow on the
# 8×8 digits that come with scikit-learn, on two cores in about a minute.

# %%
import math

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import diffeo
from diffeo.apps.images import decode, encode, interpolate, typicality

# %matplotlib inline
# %config InlineBackend.figure_formats = ["svg"]

LEVELS = 17  # the shades of these digits: 0 … 16
found = load_digits()
images = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1)  # (n, C, H, W)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
test, held, train = images[order[:200]], images[order[200:400]], images[order[400:]]


def show(pictures: torch.Tensor, columns: int, title: str, width: float = 7.0) -> None:
    """Pictures in rows."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width, width * rows / columns + 0.3), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture in zip(axes.flat, pictures):
        ax.imshow(picture[0], cmap="gray_r", vmin=0, vmax=LEVELS - 1)
    figure.suptitle(title, fontsize=10)
    plt.show()


show(train[:20], 10, "Digits of 8×8 pixels and 17 shades")

# %% [markdown]
# ## Whole numbers have no density
#
# A flow has a density, and a density can be as high as it likes at whole numbers: a flow trained on them directly puts
# narrow peaks there, and its log-likelihood grows without end. So each number x gets noise u, uniform in [0, 1)ᴰ, and the
# flow learns the density p of x + u. What is wanted is the probability of x, the mass in its cell:
#
# $$P(x) = \int_{[0,1)^D} p(x + u)\, du, \qquad
# \log P(x) \ge \mathbb{E}_u \log p(x + u).$$
#
# The inequality is Jensen's, and it makes the training objective a bound: **what noise costs, the bound loses**. Here is
# one pixel of the digits as its histogram, and as the density that a small flow finds for it with noise.

# %%
pixel = train[:, 0, 2, 3].float()
torch.manual_seed(0)
flow = diffeo.Dequantized(diffeo.nsf_ar(1), levels=LEVELS)
diffeo.fit(flow, pixel[:, None].long(), steps=400, batch_size=256, progress=False)
grid = torch.linspace(0, LEVELS, 1701)[:-1]
with torch.no_grad():
    density = flow.flow(grid[:, None]).exp()
share = torch.bincount(pixel.long(), minlength=LEVELS) / len(pixel)
figure, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
ax.bar(torch.arange(LEVELS) + 0.5, share, width=1.0, color="#c8d3e0", label="share of the pictures")
ax.plot(grid, density, color="#ee6c4d", lw=1.2, label="density of x + u")
ax.set(xlabel="x + u", xlim=(0, LEVELS))
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# `diffeo.Dequantized` does this: its `log_prob(x, samples=k)` takes the mean of p over k draws of the noise, which tightens
# the bound as k grows, and its samples are rounded down to whole numbers. Flow++ goes further: the noise is drawn from a
# flow of its own that reads x, q(u | x), and the bound becomes E log p(x + u) − log q(u | x); `diffeo.flowpp` has it.
#
# **Bits per dimension** are −log₂ P(x) / D. A model that knows nothing of 17 shades needs log₂ 17 = 4.09.
#
# ## Half of a picture leaves early
#
# A coupling needs channels, and a digit has one. A **squeeze** turns each 2×2 block of pixels into four channels of one
# pixel: nothing is lost, and neighbours lie in one column that a 1×1 convolution can mix.

# %%
squeeze = diffeo.Squeeze(channels=1)
channels, log_det = squeeze(train[:1].float())
print(tuple(train[:1].shape), "→", tuple(channels.shape), " log |det| =", float(log_det))
show(torch.cat([channels[:, [k]] for k in range(4)]), 4, "The four channels of a squeezed digit", 3.4)

# %% [markdown]
# After some steps, half of the channels **leave**: they are standardised by a normal whose mean and scale a small network
# reads from the other half,
#
# $$z_1 = \frac{h_1 - \mu(h_2)}{\sigma(h_2)},$$
#
# and the rest is squeezed again. What leaves first is detail; what stays longest has seen most of the picture. All parts
# that left are put into one flat vector z with a standard normal, so that the whole model is a bijection from a picture to
# a vector, and temperature, interpolation and directions act on one vector. `diffeo.glow` is made of these:

# %%
torch.manual_seed(0)
model = diffeo.glow((1, 8, 8), preset="tiny", levels=LEVELS)
count = sum(p.numel() for p in model.parameters())
print(
    f"{count:,} parameters; a digit of shape {(1, 8, 8)} becomes a vector of {encode(model, test[:1]).shape[-1]} numbers"
)

# %%
result = diffeo.fit(model, train, validation=held, batch_size=64, epochs=400, time_limit=60, progress=False)
bits = diffeo.bits_per_dim(model, test, generator=torch.Generator().manual_seed(0))
print(f"{result.steps} steps; {bits.mean():.3f} ± {bits.std() / 200**0.5:.3f} bits per dimension of 200 test digits")
with torch.no_grad():
    log_p = model(test[:1], generator=torch.Generator().manual_seed(0))
one = diffeo.bits_per_dim(model, test[:1], generator=torch.Generator().manual_seed(0))
print(f"one of them, by hand and by diffeo.bits_per_dim: {float(-log_p / 64 / math.log(2)):.4f}, {float(one):.4f}")
result.plot()
plt.show()

# %% [markdown]
# What leaves early and what stays: the same digit, with the numbers that left first drawn anew, and with those that stayed
# drawn anew.

# %%
z = encode(model, test[:1])
first = z.shape[-1] // 2  # so many leave at the first scale
with torch.no_grad():
    again = z.repeat(8, 1)
    again[1:, :first] = 0.8 * torch.randn(7, first, generator=torch.Generator().manual_seed(1))
    show(decode(model, again), 8, "The digit, and seven times with other details")
    again = z.repeat(8, 1)
    again[1:, first:] = 0.8 * torch.randn(7, z.shape[-1] - first, generator=torch.Generator().manual_seed(1))
    show(decode(model, again), 8, "The digit, and seven times with another layout")

# %% [markdown]
# ## Samples, and what temperature does
#
# A sample is noise sent back. Noise scaled down by a temperature below one stays closer to the mode: cleaner, and less
# varied.

# %%
for temperature in (0.5, 0.8, 1.0):
    samples = model.sample(20, temperature=temperature, generator=torch.Generator().manual_seed(3))
    show(samples, 10, f"temperature {temperature}")

# %% [markdown]
# Between two pictures, along an arc of z (a straight line would pass near the origin, where no noise lies):

# %%
show(interpolate(model, test[0], test[5], 10), 10, "from one test digit to another")

# %% [markdown]
# ## Likely is not typical
#
# Low likelihood finds noise. But an empty picture, which is no digit, is **likelier** than the digit: smooth pictures are.
# `typicality` asks how a picture's bits rank among those of held-out ones on both sides: the empty picture is among the
# likeliest, and so is hardly more typical than the noise. (Still, no score of one number is a classifier.)

# %%
flat = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
noise = torch.randint(0, LEVELS, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
known = diffeo.bits_per_dim(model, held, generator=torch.Generator().manual_seed(0))
for name, picture in (("a test digit", test[:1]), ("an empty picture", flat), ("noise", noise)):
    found_bits = diffeo.bits_per_dim(model, picture, samples=8, generator=torch.Generator().manual_seed(0))
    rank = float(typicality(found_bits, known).typicality[0])
    print(
        f"{name:<18}{float(found_bits[0]):7.2f} bits per dimension, more typical than {rank:.0f} % of held-out digits"
    )

# %% [markdown]
# To go on: [flows of one's own pictures](../images.md), from a folder to a page; [how the systems compare](../benchmarks.md#pictures-mnist).
#
# "NICE" (Dinh et al., 2014), https://arxiv.org/abs/1410.8516; "Density estimation using Real NVP" (Dinh et al., 2016),
# https://arxiv.org/abs/1605.08803; "Glow" (Kingma and Dhariwal, 2018), https://arxiv.org/abs/1807.03039; "Flow++" (Ho et
# al., 2019), https://arxiv.org/abs/1902.00275.

"""How unusual pictures are: bits per dimension against those of held-out pictures."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffeo.apps.images.resolution import shrink
from diffeo.densities import Dequantized, Noisy, bits_per_dim
from diffeo.functional import Context
from diffeo.kernels import compiled_kernels
from diffeo.nets import LowResolution, OneHot
from diffeo.transforms import prepare_inference


class Scores(NamedTuple):
    """Of each picture.

    Attributes:
        bits_per_dim: bits per dimension.
        percentile: share of held-out pictures, in percent, that are at least as likely: 100 for the least likely.
        typicality: share of held-out pictures, in percent, whose bits are at least as far from their median: small for
            pictures that are too unlikely and for those that are too likely, such as a blank one.
    """

    bits_per_dim: Tensor
    percentile: Tensor
    typicality: Tensor


def typicality(bits: Tensor, held_out: Tensor) -> Scores:
    """The scores of pictures from their bits and those of held-out pictures.

    "Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality" (Nalisnick et al., 2019),
    https://arxiv.org/abs/1906.02994

    >>> import torch
    >>> typicality(torch.tensor([0.1, 3.0]), torch.tensor([2.0, 3.0, 4.0])).typicality
    tensor([  0., 100.])
    """
    center = held_out.median()
    far, here = (held_out - center).abs(), (bits - center).abs()
    share = 100.0 / len(held_out)
    return Scores(
        bits,
        share * (held_out[None] <= bits[:, None]).sum(1).to(bits.dtype),
        share * (far[None] >= here[:, None]).sum(1).to(bits.dtype),
    )


def score(
    model: Dequantized | Noisy, images: Tensor, held_out: Tensor, labels: Tensor | None = None, seed: int = 0
) -> Scores:
    """How likely pictures are, and how that compares with held-out ones.

    Args:
        model: of pictures.
        images: (n, C, H, W), whole numbers.
        held_out: bits per dimension of pictures that the model was not fitted to, as `picture_bits` gives them: with
            their labels if the others come with theirs, otherwise without.
        labels: of the pictures; None where they are unknown.
        seed: of the noise.

    Raises:
        ValueError: a model of pictures with Gaussian noise, which gives no bits.
    """
    return typicality(picture_bits(model, images, labels, seed), held_out)


def picture_bits(model: Dequantized | Noisy, images: Tensor, labels: Tensor | None = None, seed: int = 0) -> Tensor:
    """Bits per dimension of pictures; where classes are unknown, of the mixture of all of them.

    A model that enlarges pictures is given them, shrunk. A prepared copy of the model is asked, with compiled kernels,
    which is worth it for more than a few pictures.

    Raises:
        ValueError: a model of pictures with Gaussian noise, which gives no bits; one that has not seen data yet.
    """
    with compiled_kernels():
        return _bits(prepare_inference(model), images, labels, seed)


def _bits(model: Dequantized | Noisy, images: Tensor, labels: Tensor | None, seed: int) -> Tensor:
    encoder = model.flow.encoder
    context: Context = labels
    if isinstance(encoder, LowResolution) and (labels is None or encoder.classes):
        small = shrink(images, encoder.scale, model.levels or 256)
        context = small if labels is None else {"features": small, "label": labels}
    if context is not None or not isinstance(encoder, OneHot):
        return bits_per_dim(model, images, context, generator=torch.Generator().manual_seed(seed))
    dims = math.prod(images.shape[1:]) * math.log(2)
    each = [_bits(model, images, images.new_full((len(images),), k).long(), seed) for k in range(encoder.classes)]
    return (math.log(encoder.classes) - torch.logsumexp(-dims * torch.stack(each), 0)) / dims


@torch.no_grad()
def likeliest_class(model: Dequantized | Noisy, images: Tensor, classes: int, seed: int = 0) -> Tensor:
    """The class under which each picture is most likely, (n,): a classifier by a density of each class.

    Args:
        model: of pictures, that reads labels 0 … classes − 1.
        images: (n, C, H, W), whole numbers.
        classes: how many.
        seed: of the noise, which is the same for every class.

    Cost: `classes` passes of the density of all pictures.
    """
    model, likely = prepare_inference(model), []
    for k in range(classes):
        labels, generator = images.new_full((len(images),), k).long(), torch.Generator(images.device).manual_seed(seed)
        with compiled_kernels():
            likely.append(model.log_prob(images, labels, generator=generator))
    return torch.stack(likely).argmax(0)


def histogram_bits(train: Tensor, test: Tensor, levels: int) -> float:
    """Bits per dimension under a histogram of each number of the picture, with half a count added to each level."""
    rows, fresh = (images.flatten(1).long() for images in (train, test))
    total = 0.0
    for j in range(rows.shape[1]):
        counts = torch.bincount(rows[:, j], minlength=levels).double() + 0.5
        total -= float((counts / counts.sum()).log()[fresh[:, j]].mean())
    return total / (rows.shape[1] * math.log(2))


def gaussian_bits(train: Tensor, test: Tensor, seed: int = 0) -> float:
    """Bits per dimension under a Gaussian with shrunk covariance, of pictures with uniform noise; an upper bound."""
    from sklearn.covariance import LedoitWolf

    generator = torch.Generator().manual_seed(seed)
    rows, fresh = (
        (images.flatten(1) + torch.rand(len(images), images[0].numel(), generator=generator)).double().numpy()
        for images in (train, test)
    )
    found = LedoitWolf().fit(rows)
    precision = torch.from_numpy(found.precision_)
    gap = torch.from_numpy(fresh - found.location_)
    log_norm = 0.5 * (torch.linalg.slogdet(precision)[1] - rows.shape[1] * math.log(2 * math.pi))
    log_p = log_norm - 0.5 * ((gap @ precision) * gap).sum(1)
    return float(-log_p.mean() / (rows.shape[1] * math.log(2)))

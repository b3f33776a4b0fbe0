"""Encoders of pictures."""

from __future__ import annotations

import pytest
import torch

import diffeo
from diffeo.nets.features import enlarged, faithful, shrunk


@pytest.mark.parametrize(("size", "scale"), [((1, 2), 2), ((8, 8), 4), ((3, 7), 8), ((16, 5), 2)])
def test_the_guess_of_a_fresh_encoder_shrinks_to_the_small_image(size, scale):
    torch.manual_seed(0)
    small = torch.randint(0, 256, (4, 3, *size))
    encoder = diffeo.nets.LowResolution(3, size, scale=scale, scales=1, features=8, blocks=1)
    guess = (encoder(small)["guess"] + 1) * 127.5
    assert guess.shape == (4, 3, scale * size[0], scale * size[1])
    assert (shrunk(guess, scale) - small).abs().max() < 1e-3
    rows, columns = faithful(size[0], scale), faithful(size[1], scale)
    assert torch.allclose(rows @ small.double() @ columns.mT, guess.double(), atol=1e-3)
    flat = torch.full((1, 3, *size), 0.7, dtype=torch.float64)
    assert torch.allclose(rows @ flat @ columns.mT, enlarged(flat, scale))


def test_small_images_of_another_size_are_named():
    encoder = diffeo.nets.LowResolution(3, (4, 4), features=8, blocks=1)
    for shape in ((3, 5, 4), (1, 4, 4), (4, 4)):
        with pytest.raises(ValueError, match=r"expected small images \(…, 3, 4, 4\) as context, got shape"):
            encoder(torch.zeros(shape))

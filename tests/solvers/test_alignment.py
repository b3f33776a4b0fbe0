"""The loss of all alignments: against brute force, without padding, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import diffeo


def by_brute_force(attention, letters, frames, blank):
    """The loss by summing over everything that frames may hear."""
    scores = torch.cat([torch.full_like(attention[:, :1], blank), attention], 1).log_softmax(1)
    total = torch.zeros((), dtype=attention.dtype)
    for heard in itertools.product(range(letters + 1), repeat=frames):
        order = [letter for letter, _ in itertools.groupby(heard) if letter]
        if order == list(range(1, letters + 1)):
            total = total + torch.stack([scores[t, letter] for t, letter in enumerate(heard)]).sum().exp()
    return -total.log() / letters


def example(letters=((1,), (2,), (3,)), frames=5):
    attention = torch.randn(len(letters), frames, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor(letters).squeeze(1)
    absent = torch.arange(3) >= counts[:, None, None]
    return attention.masked_fill(absent, -torch.inf).log_softmax(-1), counts


@pytest.mark.parametrize("blank", [-1.0, 0.5])
def test_the_loss_sums_over_everything_that_may_be_heard(blank):
    attention, letters = example()
    frames = torch.tensor([3, 4, 5])
    found = diffeo.ctc_alignment_loss(attention, letters, frames, blank)
    for i in range(3):
        expected = by_brute_force(attention[i, : frames[i]], int(letters[i]), int(frames[i]), blank)
        assert torch.allclose(found[i], expected, atol=1e-6)


LOSSES = [diffeo.ctc_alignment_loss, diffeo.guided_alignment_loss]


@pytest.mark.parametrize("of", LOSSES)
def test_padding_changes_neither_the_loss_nor_its_gradient(of):
    attention, letters = example()
    frames = torch.tensor([3, 4, 4])
    attention.requires_grad_()
    loss = of(attention, letters, frames)
    gradient = torch.autograd.grad(loss.sum(), attention)[0]
    for i, (n, t) in enumerate(zip(letters.tolist(), frames.tolist(), strict=True)):
        alone = attention[i : i + 1, :t, :n].detach().requires_grad_()
        one = of(alone, letters[i : i + 1], frames[i : i + 1])
        assert torch.allclose(one, loss[i], atol=1e-9)
        assert torch.allclose(torch.autograd.grad(one.sum(), alone)[0], gradient[i : i + 1, :t, :n], atol=1e-9)
        assert (gradient[i, t:] == 0).all()


def test_attention_that_dwells_on_a_letter_is_worse_than_one_that_goes_on():
    on = torch.tensor([[0.0, -9, -9], [0, -9, -9], [-9, 0, -9], [-9, -9, 0]])
    dwells = torch.tensor([[0.0, -9, -9]] * 4)
    letters, frames = torch.tensor([3, 3]), torch.tensor([4, 4])
    good, bad = diffeo.ctc_alignment_loss(torch.stack([on, dwells]).log_softmax(-1), letters, frames)
    assert good + 5 < bad


def test_a_guide_counts_what_lies_off_the_diagonal():
    attention = torch.tensor([[[1.0, 0.0], [0.25, 0.75]], [[0.0, 1.0], [0.0, 1.0]]]).log()
    found = diffeo.guided_alignment_loss(attention, torch.tensor([2, 2]), torch.tensor([2, 2]), 0.5)
    off = 1 - math.exp(-0.5)  # a letter half the text away
    assert torch.allclose(found, torch.tensor([0.125 * off, 0.5 * off]))
    with pytest.raises(ValueError, match="width > 0"):
        diffeo.guided_alignment_loss(attention, torch.tensor([2, 2]), torch.tensor([2, 2]), 0.0)


@pytest.mark.parametrize("of", LOSSES)
def test_more_letters_than_frames_are_refused(of):
    attention, letters = example()
    with pytest.raises(ValueError, match="row 2 has 3 letters and 2 frames"):
        of(attention, letters, torch.tensor([2, 3, 2]))

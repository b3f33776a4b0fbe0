"""Frames of letters: the search against brute force, batches against their members, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch

import diffeo


def by_brute_force(scores, letters, frames):
    """Durations of the best of all monotonic alignments."""

    def total(cuts):
        spans = list(itertools.pairwise((0, *cuts, frames)))
        return sum(float(scores[i, a:b].sum()) for i, (a, b) in enumerate(spans)), [b - a for a, b in spans]

    return max(total(cuts) for cuts in itertools.combinations(range(1, frames), letters - 1))[1]


def test_the_search_finds_the_best_of_all_alignments():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 5, 9, generator=generator)
    letters, frames = (torch.randint(a, b, (40,), generator=generator) for a, b in ((1, 6), (5, 10)))
    found = diffeo.monotonic_alignment(scores, letters, frames)
    for row, s, n, t in zip(found.tolist(), scores, letters.tolist(), frames.tolist(), strict=True):
        assert row == by_brute_force(s, n, t) + [0] * (5 - n)


def test_more_letters_than_frames_are_refused():
    with pytest.raises(ValueError, match="row 1 has 4 letters and 3 frames"):
        diffeo.monotonic_alignment(torch.zeros(2, 4, 5), torch.tensor([2, 4]), torch.tensor([5, 3]))


def context(**more):
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    means = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1))
    return {"means": means, "text": torch.tensor([[1, 2, 3], [4, 5, 0]]), "mask": mask.unsqueeze(-1), **more}


def test_the_density_is_that_of_the_likeliest_alignment():
    base, c = diffeo.Aligned(2), context()
    z = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    found, normal = base(z, c), torch.distributions.Normal(0.0, 1.0)
    for i, (letters, frames) in enumerate([(3, 5), (2, 3)]):
        each = normal.log_prob(z[i, None, :frames] - c["means"][i, :letters, None]).sum(-1)  # (letters, frames)
        durations = by_brute_force(each, letters, frames)
        assert base.durations(z, c)[i].tolist() == durations + [0] * (3 - letters)
        which = torch.repeat_interleave(torch.arange(letters), torch.tensor(durations))
        assert torch.allclose(found[i], each[which, torch.arange(frames)].sum(), atol=1e-5)
    assert torch.equal(base(torch.where(c["mask"], z, 7.0), c), found)


def test_samples_follow_their_durations():
    durations = torch.tensor([[1, 2, 2], [2, 1, 0]])
    base, c = diffeo.Aligned(2), context(durations=durations)
    plain = base.sample(2, c, temperature=0.0)
    assert torch.equal(plain[0], c["means"][0, [0, 1, 1, 2, 2]])
    assert torch.equal(plain[1, :3], c["means"][1, [0, 0, 1]])
    assert (plain[1, 3:] == 0).all()
    spread = base.sample((4000, 2), c, generator=torch.Generator().manual_seed(0)) - plain
    assert torch.allclose(spread[:, 0].std(0), torch.ones(5, 2), atol=0.05)
    with pytest.raises(ValueError, match="samples need the entry"):
        base.sample(2, context())
    with pytest.raises(ValueError, match="do not add up"):
        base(torch.zeros(2, 5, 2), context(durations=durations + 1))
    with pytest.raises(ValueError, match='expected the entry "means"'):
        base(torch.zeros(5, 2), {"text": torch.tensor([1]), "mask": torch.ones(5, 1).bool()})

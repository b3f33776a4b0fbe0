"""Examples of different lengths: batches of similar ones, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

import diffeo
from diffeo.training.source import EVALUATED, batch_index


class Ragged(Dataset):
    """Sequences of two numbers, of which a few are long."""

    def __init__(self, count=500, claimed=None):
        generator = torch.Generator().manual_seed(0)
        self.lengths = torch.randint(2, 30, (count,), generator=generator)
        self.lengths[::50] = 400
        self.rows = [torch.randn(int(n), 2, generator=generator) for n in self.lengths]
        self.lengths = self.lengths if claimed is None else torch.ones(claimed)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def _source(data):
    return diffeo.training.source.as_source(data, None, None, torch.float32, diffeo.training.padded)


def test_batches_are_of_similar_lengths():
    lengths = Ragged().lengths
    batches = batch_index(len(lengths), 16, 0, 0, lengths)
    epoch = [next(batches) for _ in range(500 // 16)]
    padded = sum(16 * int(lengths[index].max()) for index in epoch)
    apart = sum(16 * int(lengths[index].max()) for index, _ in zip(batch_index(500, 16, 0, 0), epoch, strict=False))
    assert padded < 1.4 * sum(int(lengths[index].sum()) for index in epoch) < 0.5 * apart
    seen = torch.cat(epoch)
    assert len(seen.unique()) == len(seen) == 31 * 16
    order = [int(lengths[index].max()) for index in epoch]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


@pytest.mark.parametrize("step", [1, 30, 31, 47])
def test_they_go_on_where_a_run_stopped(step):
    lengths = Ragged().lengths
    whole = batch_index(500, 16, 3, 0, lengths)
    resumed = batch_index(500, 16, 3, step, lengths)
    for _ in range(step):
        next(whole)
    assert all(torch.equal(next(whole), next(resumed)) for _ in range(40))


def test_fewer_examples_than_a_batch():
    assert next(batch_index(5, 16, 0, 0, torch.tensor([3, 1, 2, 9, 4]))).sort().values.tolist() == [0, 1, 2, 3, 4]


def test_all_held_out_examples_are_scored_in_blocks_of_bounded_size():
    data = Ragged(3000)
    source = _source(data)
    shapes = [x.shape for (x, _) in source.blocks()]
    assert sum(shape[0] for shape in shapes) == len(data)
    assert all(shape.numel() <= EVALUATED for shape in shapes)
    assert source.sample()[0].shape[1] < 30


@pytest.mark.parametrize("count", [200, 203])
def test_examples_meet_others_in_every_epoch(count):
    """Also where all of them are sorted at once."""
    lengths = torch.arange(count) + 100
    batches = batch_index(count, 8, 0, 0, lengths)
    epochs = [{tuple(next(batches).sort().values.tolist()) for _ in range(count // 8)} for _ in range(2)]
    assert len(epochs[0] & epochs[1]) < 5


def test_lengths_may_be_seconds_or_zero():
    data = Ragged(3000)
    data.lengths = data.lengths / 100.0
    data.lengths[0] = 0.0
    data.rows[0] = data.rows[0][:0]
    source = _source(data)
    shapes = [x.shape for (x, _) in source.blocks()]
    assert sum(shape[0] for shape in shapes) == len(data)
    assert max(shape.numel() for shape in shapes) <= EVALUATED
    assert source.sample()[0].shape[1] < 30


def test_held_out_examples_and_parts_keep_their_lengths():
    data = Ragged()
    kept, held, _ = _source(data).hold_out(0.2, 0)
    for source in (kept, held):
        assert source.lengths.tolist() == [len(source.rows(torch.tensor([i]))[0][0]) for i in range(len(source))]
    whole, part = kept.batches(8, 0, 0), kept.batches(8, 0, 0, slice(1, None, 2))
    for _ in range(5):
        (index, _), (some, batch) = next(whole), next(part)
        assert torch.equal(index[1::2], some)
        assert len(batch[0]) == 4


def test_other_lengths_are_another_fit():
    one, other = Ragged(), Ragged()
    other.lengths = other.lengths.flip(0)
    assert _source(one).fingerprint != _source(other).fingerprint


def test_a_wrong_number_of_lengths_is_named():
    with pytest.raises(ValueError, match="7 lengths of 500 examples"):
        _source(Ragged(claimed=7))

"""Batches that are shuffled and changed in each epoch: every row once, with its target."""

import pytest
import torch

from swsmix.problems.augmentation import Augmented


def shifted(x, *, generator):
    return x + torch.rand(len(x), 1, generator=generator)


def test_each_epoch_has_every_row_once_with_its_target_and_in_another_way():
    x = torch.arange(10.0)[:, None]
    batches = Augmented(x, torch.arange(10), shifted, batch_size=4, seed=3)
    assert [len(y) for _, y in batches] == [4, 4, 2] and len(batches) == 3
    epochs = [[torch.cat(part) for part in zip(*batches, strict=True)] for _ in range(2)]
    for changed, y in epochs:
        assert sorted(y.tolist()) == list(range(10))
        assert torch.equal(changed[:, 0].floor().long(), y)
    assert not torch.equal(epochs[0][1], epochs[1][1])
    assert not torch.equal(epochs[0][0].sort(0).values, epochs[1][0].sort(0).values)
    assert torch.equal(x, torch.arange(10.0)[:, None])  # the data are as they were


def test_the_generators_state_says_what_the_next_epoch_is():
    batches = Augmented(torch.zeros(6, 1), torch.arange(6), shifted, batch_size=6, seed=0)
    list(batches)
    state = batches.generator.get_state()
    ((x, y),) = batches
    again = Augmented(torch.zeros(6, 1), torch.arange(6), shifted, batch_size=6, seed=1)
    again.generator.set_state(state)
    ((x2, y2),) = again
    assert torch.equal(x, x2) and torch.equal(y, y2)


def test_rows_without_targets_and_empty_batches_are_refused():
    for n, size in ((3, 2), (4, 0)):
        with pytest.raises(ValueError, match="must have one length"):
            Augmented(torch.zeros(4, 1), torch.zeros(n), shifted, batch_size=size)

"""Early stopping: what it remembers, when it is stale, and that it survives a checkpoint."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swsmix.training.stopping import EarlyStopping


def seen(values, patience):
    """A module that holds, in each epoch, the epoch's number; and what stopping saw."""
    net = nn.Linear(1, 1, bias=False)
    stopping = EarlyStopping({"network": net}, patience)
    for epoch, value in enumerate(values):
        nn.init.constant_(net.weight, epoch)
        if stopping.stale:
            break
        stopping.see(value)
    return net, stopping


@given(
    values=st.lists(st.sampled_from([0.5, 1.0, 2.0, math.nan]), min_size=1, max_size=12),
    patience=st.integers(1, 4),
)
def test_it_stops_and_goes_back_as_a_loop_by_hand_does(values, patience):
    best, at, last = math.inf, None, 0
    for epoch, value in enumerate(values):
        last = epoch
        if value < best:  # nan is no better, nor is an equal one
            best, at = value, epoch
        if epoch - (-1 if at is None else at) >= patience:
            break
    net, stopping = seen(values[: last + 1], patience)
    assert stopping.stale == (last - (-1 if at is None else at) >= patience)
    assert stopping.restore_() == (at not in (None, last))
    assert net.weight.item() == (last if at is None else at)


def test_without_patience_it_never_stops_and_keeps_nothing():
    net, stopping = seen([1.0, 2.0, 3.0, 4.0], None)
    assert not stopping.stale and not stopping.restore_() and not stopping.states
    assert net.weight.item() == 3.0


@pytest.mark.parametrize("values", [[1.0, 2.0], [2.0, 1.0], [math.nan]])
def test_its_state_in_a_new_one_goes_on_like_the_old(values):
    _, old = seen(values, 2)
    net, new = seen([], 2)
    new.load_state_dict(old.state_dict())
    for each in (old, new):
        each.see(3.0)
    assert (new.value, new.since, new.stale) == (old.value, old.since, old.stale)
    restored = [each.restore_() for each in (old, new)]
    assert restored in ([True, True], [False, False])
    if restored[0]:
        assert torch.equal(net.weight, old.modules["network"].weight)

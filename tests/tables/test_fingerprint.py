"""The fingerprint of weights: whatever changes them changes it, and their order does not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swsmix import tables
from swsmix.tables import fingerprint

numbers = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30)


@given(numbers, st.randoms(use_true_random=False))
def test_the_order_of_weights_and_their_division_into_tensors_do_not_matter(values, random):
    w = torch.tensor(values, dtype=torch.float32)
    mixed = list(values)
    random.shuffle(mixed)
    cut = random.randrange(len(values) + 1)
    parts = torch.tensor(mixed, dtype=torch.float32).split([cut, len(values) - cut])
    assert fingerprint(parts) == fingerprint([w])


@given(numbers, st.integers(0, 29), st.sampled_from([torch.float32, torch.float64]))
def test_one_other_bit_of_one_weight_is_another_fingerprint(values, which, dtype):
    w = torch.tensor(values, dtype=dtype)
    other = w.clone()
    bits = other.view(torch.int32 if dtype == torch.float32 else torch.int64)
    bits[which % len(bits)] ^= 1 << (which % 23)
    assert fingerprint([other]) != fingerprint([w])


@pytest.mark.parametrize("step", [2.0**-24, 0.0625])
def test_changes_that_leave_the_sum_as_it_is_are_seen(step):
    w = torch.tensor([0.6, 0.8, 0.7])
    assert fingerprint([w + torch.tensor([step, -step, 0.0])]) != fingerprint([w])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_same_without_compiled_loops(dtype):
    w = torch.randn(200_000, dtype=dtype)
    with tables.uncompiled():
        plain = fingerprint([w[:5], w[5:]])
    assert plain == fingerprint([w])

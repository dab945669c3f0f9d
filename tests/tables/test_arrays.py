"""A tensor's memory as an array, without taking the right to give it back from torch."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from swsmix import tables
from swsmix.tables.arrays import array, indices, zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.int64])
def test_the_array_is_the_tensors_memory(dtype):
    t = torch.arange(6).to(dtype).view(2, 3)
    a = array(t)
    assert a.dtype == t.numpy().dtype and np.array_equal(a, t.numpy())
    a[1, 2] = 9
    assert t[1, 2] == 9


def test_it_keeps_the_memory():
    a = array(torch.full((1000,), 3.0))
    gc.collect()
    torch.zeros(1000)
    assert (a == 3.0).all()


def test_no_numbers_and_gaps():
    assert array(torch.empty(0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match="with gaps"):
        array(torch.zeros(4, 4)[:, :2])


def test_memory_for_indices_is_kept_by_each_thread():
    mine = indices(8)
    assert np.shares_memory(indices(5), mine) and len(indices(5)) == 5
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(indices, 8).result()
    assert not np.shares_memory(theirs, mine)
    assert len(indices(1000)) == 1000


def test_memory_for_sums_is_zero_even_after_a_loop_that_failed():
    with zeros(8) as mine:
        mine[:] = 0
    with pytest.raises(KeyboardInterrupt), zeros(5) as sums:
        assert np.shares_memory(sums, mine)
        sums[:] = 1
        raise KeyboardInterrupt
    with zeros(5) as sums, zeros(5) as inner:
        assert not sums.any() and not inner.any() and not np.shares_memory(sums, inner)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_can_give_the_memory_of_weights_back(dtype):
    """As FSDP does with those that it has gathered; after `Tensor.numpy` it cannot."""
    table = tables.build(torch.ones(1), torch.zeros(1), torch.ones(1))
    for n in (100, 70_000):
        w, at, grad = torch.randn(3, n).to(dtype).unbind()
        table.full(w), table.value(w), table.add_gradient_(grad, w, 0.1)
        table.proximal_(w, at, tables.Adaptive(at.square(), 0.1, 0.1), 0.1)
        tables.fingerprint([w])
        w.untyped_storage().resize_(0)

"""Tables by the first 16 bits of numbers answer as a search does."""

import numpy as np
import pytest
import torch

from swsmix.codec.distinct import PlacesOf, distinct_values
from swsmix.codec.header import to_patterns
from swsmix.compression.patterns import Intervals, all_values, counts

HALF = [torch.bfloat16, torch.float16]


def numbers(dtype, ends):
    """Numbers of all sizes, and the boundaries with their neighbours."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(20_000, generator=generator).double()
    some *= 10 ** (6 * torch.rand(20_000, generator=generator).double() - 3)
    near = [ends.to(dtype), *(torch.nextafter(ends.to(dtype), e) for e in _ends(dtype, ends))]
    odd = torch.tensor([0.0, -0.0, 1e-42, -1e-42, 65504.0, -65504.0]).to(dtype)
    return torch.cat([some.to(dtype), odd, *near])


def _ends(dtype, ends):
    return torch.full_like(ends, 1e4).to(dtype), torch.full_like(ends, -1e4).to(dtype)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 60, 5000])
def test_the_interval_of_a_number_is_that_of_a_search(dtype, count):
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(count)
    ends = torch.randn(count, generator=generator, dtype=exact).sort().values
    w = numbers(dtype, ends)
    wanted = torch.bucketize(w.to(exact), ends, out_int32=True)
    for many in (True, False):
        assert torch.equal(Intervals(ends, dtype, many=many).of(w), wanted)


@pytest.mark.parametrize("dtype", HALF)
def test_every_number_of_16_bits_is_counted_at_its_bits(dtype):
    w = numbers(dtype, torch.zeros(1))
    count = counts(w)
    values = all_values(dtype)
    used = count > 0
    found, size = w.double().unique(return_counts=True)  # 0 and -0 are one
    assert count.sum() == len(w)
    assert torch.equal(values[used].double().unique(), found)
    assert count[[0, 1 << 15]].sum() == size[found == 0].sum()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("values", [1, 2, 70, 3000])
def test_distinct_values_and_their_places_are_those_of_numpy(dtype, values):
    generator = torch.Generator().manual_seed(values)
    raw = torch.randint(-(1 << 62), 1 << 62, (values,), generator=generator).view(torch.uint8)
    book = raw.view(dtype)[:values]
    if dtype == torch.float32:
        book[: values // 2] = 1.0 + torch.arange(values // 2) * 2.0**-20  # the same first bits
    index = torch.randint(len(book), (200_000,), generator=generator)
    patterns = to_patterns(book[index])
    found = distinct_values(patterns, dtype)
    assert (np.sort(found) == np.unique(patterns)).all()
    places = PlacesOf(found).of(patterns)
    assert (found[places] == patterns).all()
    others = np.setdiff1d(patterns ^ patterns.dtype.type(1), found)
    assert (PlacesOf(found).of(others) == -1).all()

"""k-means of numbers against the exact optimum, found among all partitions of the sorted ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swsmix._kmeans import kmeans


def cost(x, centre):
    """The sum of squares about the nearest centres."""
    return (x.double()[:, None] - centre).square().amin(1).sum().item()


def least(x, k, zero=False):
    """The least sum of squares of at most k clusters, one of them about 0 if asked: recursion."""
    x, known = sorted(x.tolist()), {}

    def about(centre, numbers):
        return math.fsum((v - centre) ** 2 for v in numbers)

    def best(end, k, zero):
        if (end, k, zero) not in known:
            found = math.inf if end or (zero and not k) else 0.0
            for begin in range(end) if k else ():
                part = x[begin:end]
                mean = math.fsum(part) / len(part)
                found = min(found, best(begin, k - 1, zero) + about(mean, part))
                if zero:
                    found = min(found, best(begin, k - 1, False) + about(0.0, part))
            if zero and k:  # no number is at 0
                found = min(found, best(end, k - 1, False))
            known[end, k, zero] = found
        return known[end, k, zero]

    return best(len(x), k, zero)


def draw(kind, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    if kind == "heavy":
        return x / torch.randn(n, generator=generator).double().abs().clamp_min(0.05)
    if kind == "planted":
        centre = torch.tensor([-1.0, -0.3, 0.0, 0.0, 0.2, 2.0]).double()
        return centre[torch.randint(6, (n,), generator=generator)] + 0.01 * x
    if kind == "offset":
        return 1e3 + 1e-3 * x
    return x


KINDS = ["normal", "heavy", "planted", "offset"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_no_other_clusters_have_a_smaller_sum_of_squares(kind, zero, k):
    x = draw(kind, 40)
    centre = kmeans(x, k, zero=zero)
    assert len(centre) == k and (centre.diff() > 0).all()
    assert not zero or (centre == 0.0).any()
    assert cost(x, centre) == pytest.approx(least(x, k, zero), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_of_more_numbers_than_cells_each_centre_has_numbers_and_is_their_mean(kind):
    x = draw(kind, 20_000)
    for k in (3, 16, 200):
        centre = kmeans(x, k)
        owner = torch.bucketize(x, (centre[1:] + centre[:-1]) / 2)
        count = torch.bincount(owner, minlength=k)
        assert len(centre) == k and (count > 0).all()
        mean = torch.bincount(owner, x, minlength=k) / count
        torch.testing.assert_close(centre, mean, rtol=1e-9, atol=1e-9)


def test_outliers_and_spikes_get_their_centres():
    x = torch.cat([torch.zeros(50_000), torch.randn(50_000), torch.tensor([900.0, -700.0])])
    centre = kmeans(x, 6)
    assert centre[-1] == 900.0 and centre[0] == -700.0


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(1, 12), st.booleans())
@settings(deadline=None)
def test_few_different_numbers_are_the_centres_themselves(numbers, k, zero):
    x = torch.tensor(numbers).double() * 0.1
    centre = kmeans(x, k, zero=zero)
    different = len(set(numbers) | ({0} if zero else set()))
    assert len(centre) == min(k, different)
    if k >= different:
        assert cost(x, centre) == pytest.approx(0.0, abs=1e-24)
    assert not zero or (centre == 0.0).any()


def test_the_order_of_the_numbers_does_not_matter():
    x = draw("normal", 3000)
    assert torch.equal(kmeans(x, 7), kmeans(x.flip(0), 7))

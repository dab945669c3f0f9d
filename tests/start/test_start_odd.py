"""Odd weights: the start is finite, finds what is there, and follows the unit."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from swsmix import initial_mixture
from swsmix.start.cells import cells_of


def normal(n, seed=0, dtype=torch.float32):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clusters(centres, noise, n=2000, dtype=torch.float32):
    return torch.cat([c + noise * normal(n, i, dtype) for i, c in enumerate(centres)])


numbers = st.lists(
    st.floats(allow_nan=False, allow_infinity=False, width=32) | st.sampled_from([0.0, 1.0]),
    min_size=1,
    max_size=30,
)


@given(numbers, st.integers(1, 6), st.booleans())
def test_any_weights_give_a_finite_start_with_as_many_components_as_asked(values, k, zero):
    w = torch.tensor(values, dtype=torch.float32)
    for number in (min(k, len(w)), "auto"):
        mixture = initial_mixture(w, number, zero=zero)
        assert number == "auto" or mixture.num_components == number
        assert mixture.mean.isfinite().all() and (mixture.std > 0).all()
        assert mixture.mixing.double().sum().item() == pytest.approx(1.0, abs=1e-5)
        assert not zero or mixture.mean[0] == 0.0


@pytest.mark.parametrize("exponent", [-1020, -700, -40, 40, 700, 1000])
def test_the_start_follows_the_unit_of_the_weights(exponent):
    w = clusters([-1.0, 0.0, 2.0], 0.01, n=300, dtype=torch.float64)
    near, far = initial_mixture(w, 3), initial_mixture(torch.ldexp(w, torch.tensor(exponent)), 3)
    back = torch.ldexp(far.mean, torch.tensor(-exponent))
    torch.testing.assert_close(back, near.mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(far.mixing, near.mixing, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("w", "number"),
    [
        (torch.full((1000,), 0.3), 1),
        (torch.tensor([0.0] * 900 + [1.0] * 100), 2),
        (torch.tensor([-0.2, -0.1, 0.0, 0.1, 0.2]).repeat(1000), 5),
        (torch.cat([0.05 * normal(5000), torch.tensor([1e4])]), 2),
        (torch.cat([clusters([-0.1, 0.0, 0.1], 0.01), torch.tensor([1e6])]), 4),
        (1e6 + normal(5000), 1),
        (1e6 + clusters([0.0, 20.0], 1.0, dtype=torch.float64), 2),
        (torch.cat([10.0**-e * (1 + 0.01 * normal(500, e)) for e in range(7)]), 7),
        (torch.cat([normal(4000), 1e-4 * normal(4000, 1)]), 2),
        (torch.cat([normal(4000), 1e-2 * normal(4000, 1), 1e-4 * normal(4000, 2)]), 3),
        (clusters([-2.0, 0.0, 1.0], 0.01).bfloat16(), 3),
        (clusters([-2.0, 0.0, 1.0], 0.01).half(), 3),
        (0.05 * normal(20_000).bfloat16(), 1),
        (clusters([-1.0, 0.0, 0.5], 1e-12, dtype=torch.float64), 3),
    ],
)
def test_auto_counts_what_is_there(w, number):
    assert initial_mixture(w, "auto").num_components == number


def test_a_shape_that_is_no_gaussian_needs_few_components_not_many():
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    laplace = u.sign() * (2 * u.abs()).neg().log1p()
    assert 2 <= initial_mixture(laplace, "auto").num_components <= 6
    both = torch.cat([laplace, 0.02 * normal(20_000, dtype=torch.float64)])
    assert 3 <= initial_mixture(both, "auto").num_components <= 9


@pytest.mark.parametrize("value", [0.3, -1e5, 0.0])
def test_equal_weights_get_a_std_that_is_no_rounding_error(value):
    mixture = initial_mixture(torch.full((50,), value), 1)
    assert mixture.std.item() == pytest.approx(1e-2 * (abs(value) or 1.0))


def test_a_zero_that_no_weight_is_near_stays_and_the_clusters_are_found():
    w = clusters([-1.0, 1.0], 0.1)
    mixture = initial_mixture(w, 3, zero=True)
    assert mixture.mean[0] == 0.0 and mixture.mixing[0] < 0.01
    assert mixture.mean[1:].sort().values.round(decimals=1).tolist() == [-1.0, 1.0]


def test_a_fixed_share_of_zeros_needs_no_second_component_there():
    w = torch.cat([0.01 * normal(20_000), clusters([-1.0, 1.0], 0.1)])
    mixture = initial_mixture(w, "auto", zero=True, zero_mixing=0.99)
    assert mixture.num_components == 3 and mixture.mixing[0].item() == pytest.approx(0.99)


def test_a_long_run_of_equal_weights_among_many_has_a_cell_of_its_own():
    w = torch.cat([normal(60_000), torch.zeros(300_000), torch.full((20_000,), 0.7)])
    cells = cells_of(w, 512)
    for value, count in ((0.0, 300_000), (0.7, 20_000)):
        assert cells.count[(cells.mean - value).abs() < 1e-7].item() == count


def test_the_widest_gaps_of_many_weights_are_cut():
    w = torch.cat([c + 1e-4 * normal(10_000, c) for c in range(10)])
    cells = cells_of(w, 256)
    owner = cells.mean.round().long()
    assert torch.zeros(10).double().index_add(0, owner, cells.count).tolist() == [10_000.0] * 10

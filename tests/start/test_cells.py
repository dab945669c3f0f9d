"""Cells keep what the weights sum to, and their cost is the integrated likelihood."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import integrate

from swsmix import GaussianMixture
from swsmix.start import cells as module
from swsmix.start.cell_em import e_step_on_cells
from swsmix.start.cells import Cells, cells_for, cells_of, cost, union_of

numbers = st.lists(
    st.floats(-1e3, 1e3, allow_nan=False, width=32) | st.sampled_from([0.0, 0.0, 1.0]),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@given(numbers, st.integers(1, 20))
def test_cells_hold_all_weights_their_mean_and_their_scatter(values, most):
    w = torch.tensor(values, dtype=torch.float64)
    cells = cells_of(w, most)
    assert len(cells) <= most or len(cells) <= len(set(values))
    assert cells.count.sum() == len(w)
    assert (cells.mean.diff() > 0).all()
    mean = (cells.count * cells.mean).sum() / len(w)
    torch.testing.assert_close(mean, w.mean(), atol=1e-9, rtol=1e-9)
    scatter = (cells.scatter + cells.count * (cells.mean - w.mean()).square()).sum()
    torch.testing.assert_close(scatter, (w - w.mean()).square().sum(), atol=1e-6, rtol=1e-9)


def test_many_weights_make_the_same_cells_as_their_sums_say():
    w = torch.randn(70_000, generator=torch.Generator().manual_seed(0)).double()
    cells = cells_of(w, 500)
    assert len(cells) == 500 and cells.count.sum() == len(w)
    ends = (cells.count.cumsum(0) - 1).long()
    begins = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1] + 1])
    x = w.sort().values
    for begin, end, mean in zip(begins[::50], ends[::50], cells.mean[::50], strict=True):
        torch.testing.assert_close(x[begin : end + 1].mean(), mean)


def test_a_few_weights_far_narrower_than_a_cell_of_equal_ranks_keep_a_cell_of_their_own():
    generator = torch.Generator().manual_seed(0)
    w = torch.cat([torch.randn(100_000, generator=generator), torch.full((50,), 0.5)]).double()
    w[-50:] += 1e-7 * torch.randn(50, generator=generator)
    cells = cells_of(w, 256)
    near = (cells.mean - 0.5).abs() < 1e-6
    assert near.sum() >= 1 and cells.count[near].sum() >= 45


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_few_weights_far_nearer_to_zero_than_all_others_have_cells_of_their_own(sign):
    w = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).double().abs()
    few = torch.linspace(1e-9, 1.1e-9, 8).double()
    cells = cells_of(sign * torch.cat([w, few]), 256)
    assert cells.count[cells.mean.abs() < 1e-8].sum() == 8


def test_in_parts_of_bounded_size_the_cells_are_the_same(monkeypatch):
    w = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    whole = cells_of(w, 4000)
    monkeypatch.setattr(module, "_CHUNK", 300)
    assert torch.equal(cells_of(w, 4000).values, whole.values)


@pytest.mark.parametrize("exponent", [-60, -8, 8, 60])
def test_the_smallest_std_and_the_range_follow_the_unit_of_the_weights(exponent):
    w = torch.randn(500, generator=torch.Generator().manual_seed(0))
    w[0] = 300.0
    near, far = cells_of(w, 64), cells_of(w * 2.0**exponent, 64)
    assert far.floor == near.floor * 2.0**exponent and far.spread == near.spread * 2.0**exponent


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_rounding_of_the_dtype_belongs_to_the_scatter(dtype):
    w = torch.full((10,), 1.0, dtype=dtype)
    ulp = torch.finfo(dtype).eps
    assert cells_of(w, 4).scatter.item() == pytest.approx(10 * ulp**2 / 12)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_cost_is_minus_the_log_of_the_integrated_likelihood(count):
    x = np.array([0.1, 0.4, 0.45, 0.5, 0.9])[:count]
    scatter = ((x - x.mean()) ** 2).sum()
    cells = Cells(torch.tensor([[count], [x.mean()], [scatter]], dtype=torch.float64), 1e-6, 1e3)

    def density(log_std, mean):
        std = math.exp(log_std)
        return math.exp(-0.5 * (((x - mean) / std) ** 2).sum()) / (
            (math.sqrt(2 * math.pi) * std) ** count
        )

    if count == 1:  # the mean's uniform density alone
        value = 1.0 / cells.spread
    else:
        inside = integrate.dblquad(density, -6, 3, math.log(1e-3), 3.0, epsrel=1e-6)[0]
        value = inside / cells.spread / math.log(cells.spread / cells.floor)
    expected = -math.log(value) - math.lgamma(count + 1)
    assert cost(cells).item() == pytest.approx(expected, abs=0.05 if count == 2 else 0.01)


def test_the_union_of_groups_is_the_group_of_their_weights():
    w = torch.tensor([0.0, 0.1, 0.5, 0.6, 2.0], dtype=torch.float64)
    one, other = cells_of(w[:2], 1), cells_of(w[2:], 1)
    both = union_of(one, other)
    torch.testing.assert_close(both.values, cells_of(w, 1).values)


@pytest.mark.parametrize("k", [3, 20, 40])
def test_cells_bound_the_log_likelihood_of_k_components_from_below_and_closely(k):
    generator = torch.Generator().manual_seed(k)
    std = torch.randn(k, generator=generator, dtype=torch.float64).exp() / k
    mean = torch.linspace(-1, 1, k, dtype=torch.float64)
    mixture = GaussianMixture(torch.full_like(mean, 1.0 / k), mean, std)
    w = mixture.sample(20_000, generator=generator)
    cells = cells_of(w, cells_for(k))
    missing = mixture.log_prob(w).sum() - e_step_on_cells(mixture, cells)[0]
    assert 0.0 <= missing < 0.003 * len(w)

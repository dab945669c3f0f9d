"""The partitions are the cheapest ones: against all partitions, one by one."""

import itertools
import math

import pytest
import torch

from swsmix.start.cells import cells_of, cost
from swsmix.start.segments import best_partitions, divided, merged, pooled


def few_cells(seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.cat([c + 0.05 * torch.randn(5, generator=generator) for c in (-1.0, 0.0, 0.8)])
    return cells_of(w.double(), 9)


def cost_of(cells, ends):
    owner = torch.zeros(len(cells), dtype=torch.long)
    for end in ends:
        owner[end:] += 1
    return cost(pooled(cells, torch.nn.functional.one_hot(owner).double())).sum().item()


@pytest.mark.parametrize("seed", range(5))
def test_no_partition_is_cheaper_than_the_one_of_dynamic_programming(seed):
    cells = few_cells(seed)
    parts = best_partitions(cells, 5)
    for k in range(1, 6):
        all_of_k = itertools.combinations(range(1, len(cells)), k - 1)
        least = min(cost_of(cells, ends) for ends in all_of_k)
        assert parts.cost[k - 1].item() == pytest.approx(least)
        assert cost(parts.segments(k)).sum().item() == pytest.approx(least)
        assert len(parts.segments(k)) == k


def test_what_lies_on_both_sides_of_a_spike_becomes_one_slab():
    generator = torch.Generator().manual_seed(0)
    slab = torch.randn(2000, generator=generator)
    spike = 1e-4 * torch.randn(3000, generator=generator)
    cells = cells_of(torch.cat([slab, spike]).double(), 256)
    groups = merged(best_partitions(cells, 5).segments(5), 2)
    std = (groups.scatter / groups.count).sqrt().sort().values
    assert std[0] < 2e-4 and std[1] == pytest.approx(1.0, rel=0.05)


def test_mergers_end_where_the_next_would_cost_the_price():
    cells = few_cells(0)
    groups = best_partitions(cells, 6).segments(6)
    assert len(merged(groups, price=-math.inf)) == 6
    assert len(merged(groups)) == 1
    left = merged(groups, price=0.0)
    assert cost(left).sum() <= cost(groups).sum()


def test_narrow_segments_far_from_zero_keep_their_digits():
    generator = torch.Generator().manual_seed(0)
    w = 1e3 + 1e-6 * torch.randn(300, dtype=torch.float64, generator=generator)
    other = -1e3 + 1e-6 * torch.randn(300, dtype=torch.float64, generator=generator)
    groups = best_partitions(cells_of(torch.cat([w, other]), 256), 2).segments(2)
    expected = torch.stack([other.std(correction=0), w.std(correction=0)])
    torch.testing.assert_close((groups.scatter / groups.count).sqrt(), expected, rtol=1e-3, atol=0)


def test_halves_have_the_count_mean_and_scatter_of_their_group():
    w = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = pooled(cells_of(w, 64), torch.ones(64, 1).double())
    parts = divided(whole, 5)
    assert len(parts) == 5 and parts.mean.tolist() == sorted(parts.mean.tolist())
    torch.testing.assert_close(pooled(parts, torch.ones(5, 1).double()).values, whole.values)


@pytest.mark.parametrize(("gap", "number"), [(5.9, 3), (6.1, 2)])
def test_a_group_more_than_six_stds_from_the_next_is_a_cluster_and_not_halved(gap, number):
    w = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = (w - w.mean()) / w.std(correction=0)
    groups = best_partitions(cells_of(torch.cat([w, w + 1000.0]), 64), 2).segments(2)
    mean = torch.tensor([0.0, gap], dtype=torch.float64)
    near = groups.having(torch.stack([groups.count, mean, groups.scatter]))
    assert len(divided(near, 3)) == number

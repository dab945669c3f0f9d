"""Cheaper values for snapped weights: one multiplier between rate and distortion."""

import pytest
import torch

from swsmix.compression.spending import (
    Spender,
    entropy_bytes,
    replaced,
    spend_to_bound,
    spend_to_size,
)


def spender(n=2000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
    share = torch.tensor([0.4, 0.02, 0.08, 0.2, 0.2, 0.08, 0.02])
    index = torch.multinomial(share, n, replacement=True, generator=generator)
    curvature = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
    return Spender({"w": values[index].clone()}, {"w": index}, {"w": curvature})


def distortion(spender, index):
    w, c = spender.centre["w"][spender.index["w"]], spender.centre["w"][index["w"]]
    return (spender.curvature["w"] * (w - c).square()).sum().item()


def test_with_a_growing_multiplier_bytes_fall_and_distortion_rises():
    each = spender()
    found = [each.assign(price) for price in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)]
    size = [entropy_bytes(index) for index in found]
    cost = [distortion(each, index) for index in found]
    assert size == sorted(size, reverse=True) and size[-1] < 0.2 * size[0]
    assert cost == sorted(cost) and cost[0] == 0.0 < cost[-1]
    assert torch.equal(found[0]["w"], each.index["w"])


def test_the_scale_is_the_mean_cost_of_setting_a_weight_outside_zero_to_zero():
    each = spender()
    outside = int((each.index["w"] != 0).sum())
    nothing = {"w": torch.zeros_like(each.index["w"])}
    assert each.scale() == pytest.approx(distortion(each, nothing) / outside)


def test_weights_that_are_zero_stay_zero():
    each = spender()
    zero = each.index["w"] == 0
    assert all((each.assign(price)["w"][zero] == 0).all() for price in (0.01, 0.1, 1.0))


def test_a_bound_is_kept_and_nearly_used():
    each = spender()
    tried = []

    def used(index):
        tried.append(distortion(each, index) / 30.0)
        return tried[-1]

    index, _ = spend_to_bound(each, used, full=0.95, fits=1.0)
    assert 0.95 <= distortion(each, index) / 30.0 <= 1.0
    assert max(tried) > 1.0  # it has been crossed, and left


@pytest.mark.parametrize("share", [0.02, 0.06, 0.2])
def test_no_lambda_that_the_bound_allows_saves_noticeably_more(share):
    each = spender(n=10_000)
    bound = share * len(each.index["w"]) * each.scale()
    index, price = spend_to_bound(
        each, lambda i: distortion(each, i) / bound, full=0.98, fits=1.0
    )  # fmt: skip
    assert distortion(each, each.assign(price)) <= bound
    tried = [each.assign(p) for p in torch.logspace(-3, 1, 80).tolist()]
    least = min(entropy_bytes(i) for i in tried if distortion(each, i) <= bound)
    before = entropy_bytes(each.index)
    assert before - entropy_bytes(index) >= 0.95 * (before - least) > 0.0


def test_few_weights_are_tried_by_themselves():
    # One step of lambda moves all thirty; the bound allows ten of them.
    w = torch.tensor([0.0] * 100 + [1.0] * 30)
    each = Spender({"w": w}, {"w": (w != 0).long()}, {"w": torch.ones(130, dtype=torch.float64)})
    index, _ = spend_to_bound(each, lambda i: distortion(each, i) / 10.5, full=0.9, fits=1.0)
    assert distortion(each, index) == 10.0


@pytest.mark.parametrize("asked", [250, 400, 600])
def test_a_size_is_found_between_its_limits(asked):
    each = spender()

    def encoded(index):
        return int(1.1 * entropy_bytes(index)) + 20

    size = encoded(each.index)
    index, _ = spend_to_size(
        each, encoded, size=size, fixed=20, low=0.97 * asked, high=1.0 * asked,
    )  # fmt: skip
    assert 0.97 * asked <= encoded(index) <= asked


def test_placing_sets_each_weight_to_its_clusters_centre():
    each = spender()
    index = each.place_(each.assign(0.5))
    w = each.weights["w"]
    assert len(w.unique()) == int(index["w"].max()) + 1 < 7
    assert (w[index["w"] == 0] == 0).all()
    for j in range(int(index["w"].max()) + 1):
        assert len(w[index["w"] == j].unique()) == 1


def test_some_of_the_changes_between_two_assignments():
    each = spender()
    other = each.assign(0.3)
    changes = each.changes(each.index, other)
    assert changes.shape[1] == int((each.index["w"] != other["w"]).sum())
    assert torch.equal(replaced(each.index, other, changes)["w"], other["w"])
    half = replaced(each.index, other, changes[:, : changes.shape[1] // 2])
    assert distortion(each, half) < 0.5 * distortion(each, other)  # the cheap ones come first

import math

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swsmix import MixturePrior, snap_
from swsmix.quantize import assign, bits_per_weight, within_share


@pytest.mark.parametrize("name", cases.mixtures())
def test_each_weight_goes_to_its_most_responsible_component(name):
    mixture, w = cases.mixtures()[name], cases.weights()
    assert torch.equal(assign(mixture, w), mixture.responsibilities(w).argmax(-1))


def test_snapping_leaves_at_most_k_values_and_the_rest_of_the_network_alone():
    net = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 5))
    biases = [layer.bias.detach().clone() for layer in net]
    prior = MixturePrior(net, 4)
    prior.em_step_()
    index = snap_(prior)
    values = prior.flat_weights("all").unique()
    assert len(values) <= 4 and set(values.tolist()) <= set(prior.mixtures["all"].mean.tolist())
    assert torch.equal(net[0].weight, prior.mixtures["all"].mean[index["0.weight"]])
    assert all(torch.equal(layer.bias, b) for layer, b in zip(net, biases, strict=True))


def test_snapping_is_idempotent_once_the_clusters_are_tight():
    net = nn.Linear(40, 40)
    prior = MixturePrior(net, 4)
    prior.mixtures["all"].cap_std_(0.01)
    first = snap_(prior)
    weight = net.weight.detach().clone()
    assert torch.equal(snap_(prior)["weight"], first["weight"]) and torch.equal(net.weight, weight)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=200))
def test_bits_per_weight_is_the_entropy_of_the_shares(index):
    share = [index.count(v) / len(index) for v in set(index)]
    expected = -sum(p * math.log2(p) for p in share)
    assert bits_per_weight(torch.tensor(index)) == pytest.approx(expected, abs=1e-12)


def test_within_share_is_one_for_one_component_and_zero_for_collapsed_weights():
    w = cases.weights()
    one = cases.mixtures()["one"]
    one.mean.fill_(w.mean().item())
    assert within_share(one, w) == pytest.approx(1.0)
    typical = cases.mixtures()["typical"]
    assert within_share(typical, typical.mean[assign(typical, w)]) == 0.0
    assert 0.0 < within_share(typical, w) < 1.0


def test_weights_that_are_not_finite_are_not_snapped():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    prior = MixturePrior(net, 2, groups="tensor")
    net[1].weight.data[0, 0] = torch.nan
    before = net[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"1 of the 16 weights of 1\.weight are nan or inf"):
        snap_(prior)
    assert torch.equal(net[0].weight, before)  # not half of them either

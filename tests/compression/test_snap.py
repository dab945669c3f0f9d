import math
import warnings

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swsmix import GaussianMixture, MixturePrior, snap_
from swsmix.compression.snap import (
    assign,
    bits_per_weight,
    quantize,
    snap_to_grid,
    snapped_state,
    within_share,
)

# Networks that no prior has trained are snapped here.
pytestmark = pytest.mark.filterwarnings("ignore:snapping took")


@pytest.mark.parametrize("name", cases.mixtures())
def test_each_weight_goes_to_its_most_responsible_component(name):
    mixture, w = cases.mixtures()[name], cases.weights()
    assert torch.equal(assign(mixture, w), mixture.responsibilities(w).argmax(-1))


def test_snapping_leaves_at_most_k_values_and_the_rest_of_the_network_alone():
    net = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 5))
    biases = [layer.bias.detach().clone() for layer in net]
    prior = MixturePrior(net, 4)
    prior.em_step_()
    index = snap_(prior, distortion=0.0)  # components that share a value: test_duplicates.py
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


@pytest.mark.parametrize("middle", [0.0, 20.0])
@pytest.mark.parametrize(("spread", "warns"), [(0.0, False), (0.01, False), (0.4, True)])
def test_snapping_weights_that_were_not_drawn_together_warns(spread, warns, middle):
    net = nn.Linear(40, 40)
    ends, std = torch.tensor([middle - 0.5, middle + 0.5]), max(spread, 0.1)
    mixture = GaussianMixture([0.5, 0.5], ends, [std, std])
    prior = MixturePrior(net, initial=mixture)
    centres = ends[torch.randint(2, net.weight.shape)]
    with torch.no_grad():
        net.weight.copy_(centres + spread * torch.randn_like(centres))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        snap_(prior)
        snap_(prior)  # they are there now: no second warning
    assert [str(each.message).split(" of ")[1] for each in caught] == ["the variance"] * warns


def test_equal_weights_lose_nothing():
    net = nn.Linear(40, 40)
    prior = MixturePrior(net, initial=GaussianMixture([1.0], [0.0], [0.1]))
    nn.init.constant_(net.weight, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snap_(prior)
    assert (net.weight == 0.0).all()


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


def test_the_smallest_floats_lie_on_their_grid():
    smallest = torch.tensor([5e-324, -5e-324, 0.0], dtype=torch.float64)
    assert torch.equal(snap_to_grid(smallest, 8), smallest)


def test_one_bias_that_is_not_finite_is_refused_by_name():
    net = nn.Linear(2, 3)
    with torch.no_grad():
        net.bias[1] = torch.nan
    with pytest.raises(ValueError, match=r"^bias holds nan or inf, which 8 bits cannot hold"):
        snapped_state(net, bias_bits=8)


def test_quantized_tensors_of_a_group_share_a_codebook_and_leave_the_network_alone():
    net = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 7))
    before = net[0].weight.detach().clone()
    prior = MixturePrior(net, 4)
    found = quantize(prior)
    assert found["0.weight"].codebook is found["1.weight"].codebook
    assert torch.equal(net[0].weight, before)
    snap_(prior)
    assert all(torch.equal(net.get_parameter(n), q.values) for n, q in found.items())


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.sampled_from([2, 8, 16])
)
def test_a_grid_has_few_steps_and_errs_by_half_a_step(values, bits):
    t = torch.tensor(values)
    snapped = snap_to_grid(t, bits).double()
    step = 2.0 ** math.ceil(math.log2(max(t.abs().max().item(), 1e-300) / (2 ** (bits - 1) - 1)))
    assert ((snapped / step) == (snapped / step).round()).all()
    assert (snapped / step).abs().max() <= 2 ** (bits - 1) - 1
    assert ((snapped - t.double()).abs() <= step / 2 * (1 + 1e-6)).all()
    assert torch.equal(snap_to_grid(snapped, bits), snapped)


def test_the_snapped_state_follows_ties_and_treats_the_rest_as_asked():
    net = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)})
    net["b"].weight = net["a"].weight
    net["norm"].running_var.uniform_(1e-4, 1.0)
    prior = MixturePrior(net, 3)
    exact, coarse = (snapped_state(net, prior, bias_bits=bits) for bits in (None, 8))
    assert len(exact["a.weight"].unique()) <= 3
    assert torch.equal(exact["a.weight"], exact["b.weight"])
    assert torch.equal(exact["a.bias"], net["a"].bias)
    assert not torch.equal(coarse["a.bias"], exact["a.bias"])
    ratio = coarse["norm.running_var"] / net["norm"].running_var
    assert ((ratio - 1.0).abs() < 2**-8).all()
    with pytest.raises(ValueError, match="8, 16 or None"):
        snapped_state(net, prior, bias_bits=4)
    with pytest.raises(ValueError, match="which the model does not have"):
        snapped_state({"x": torch.ones(2)}, prior)

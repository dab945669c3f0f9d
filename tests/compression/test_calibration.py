"""What a tensor's error costs at the answers, and that a network can be quantised over and over."""

import copy
import math

import pytest
import torch
from torch import nn

from swsmix.compression import layerwise, quantize_
from swsmix.compression.calibration import Calibration
from swsmix.compression.feeding import batches_of, first_tensor
from swsmix.compression.inputs import _weights


def job_of(net, x):
    used, held = batches_of(x, torch.device("cpu"))
    return Calibration(net, _weights(net), used, held, first_tensor, 0.1, False)


def prices(job):
    """What a bit is worth in each tensor, in units of the mean of its squares."""
    square = {n: job.given[n].square().mean().item() or 1.0 for n in job.price}
    return {n: price / square[n] for n, price in job.price.items()}


def small():
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 10))


class Two(nn.Module):
    """Two layers side by side, one of which counts so much less."""

    def __init__(self, share):
        super().__init__()
        self.loud, self.low, self.share = nn.Linear(24, 10), nn.Linear(24, 10), share

    def forward(self, x):
        return self.loud(x) + self.share * self.low(x)


def test_a_bit_is_worth_less_in_a_tensor_that_the_answers_depend_on_less():
    price = prices(job_of(Two(0.1), torch.randn(1000, 24)))
    # A hundredth of the squared error, half of it in logarithms.
    assert price["low.weight"] / price["loud.weight"] == pytest.approx(10.0, rel=0.3)
    assert sum(map(math.log, price.values())) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("scale", [2.0**-12, 2.0**12])
def test_a_network_in_other_units_is_compressed_alike(scale):
    """A factor in one layer and its inverse in the next change no answer, and no bit."""
    net, x = small(), torch.randn(1000, 24)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight *= scale
        other[0].bias *= scale
        other[2].weight /= scale
    one, two = (quantize_(each, x, bits=2.0) for each in (net, other))
    assert two.error == pytest.approx(one.error, rel=0.02)
    for here, there in zip(one.layers, two.layers, strict=True):
        assert there.bits == pytest.approx(here.bits, abs=0.02)


@pytest.mark.parametrize("share", [1e-9, 0.0])
def test_no_tensor_is_all_that_counts_and_none_counts_for_nothing(share):
    price = prices(job_of(Two(share), torch.randn(1000, 24)))
    least, most = price["loud.weight"], price["low.weight"]
    assert 1.0 / 64.1 <= least <= 1.001 and 0.999 <= most <= 4.001


def test_unused_and_zero_weights_are_as_dear_as_the_mean():
    net = Two(0.0)
    with torch.no_grad():
        net.low.weight.zero_()
    net.other = nn.Linear(24, 10)
    job = job_of(net, torch.randn(1000, 24))
    assert prices(job) == pytest.approx(dict.fromkeys(job.weights, 1.0))
    layers = quantize_(net, torch.randn(1000, 24), bits=1.0).layers
    assert [d.name for d in layers if d.note] == ["other.weight"]


def test_measuring_leaves_the_weights_as_they_were():
    net = small()
    given = copy.deepcopy(net.state_dict())
    job_of(net, torch.randn(400, 24))
    assert all(torch.equal(t, given[n]) for n, t in net.state_dict().items())


def test_an_attempt_forgets_those_before_it():
    job = job_of(small(), torch.randn(400, 24))
    first = job.quantise_(0.002, compensating=True)
    job.quantise_(0.1, compensating=True)
    again = job.quantise_(0.002, compensating=True)
    assert again.answers == first.answers
    assert again.layers == first.layers


def test_answers_are_compared_by_their_squares_and_their_largest():
    job = job_of(small(), torch.randn(400, 24))
    first = [y.clone() for y in job.first]
    for y in first:
        y[::4] = -y[::4].flip(0)
        y[1::4].clamp_(min=0.0)  # the largest stays where it is, the smallest does not
    whole = torch.cat(first)
    now = torch.cat(job.first)
    found = job.compare(job.held, first)
    assert found.error == pytest.approx(
        float((whole - now).square().sum() / whole.square().sum()), rel=1e-5
    )
    same = (whole.argmax(1) == now.argmax(1)).double().mean().item()
    assert found.agreement == pytest.approx(same)
    assert 0.74 < same < 1.0
    assert job.compare(job.held, job.first) == (0.0, 1.0)


@pytest.mark.parametrize("bits", [0.5, 2.0, 4.0])
def test_plain_quantisation_at_the_lambda_found_takes_just_so_many_bits(bits):
    net = small()
    for layer in (net[0], net[2]):
        nn.init.normal_(layer.weight)
    job = job_of(net, torch.randn(400, 24))
    lam = job.lambda_of(bits)
    assert 0.85 * bits < job.plain_bits(lam) <= bits
    made = job.quantise_(lam, compensating=False)
    assert made.bits == pytest.approx(job.plain_bits(lam), rel=1e-3)


def test_the_error_of_a_layer_is_that_on_held_out_inputs_around_the_mean_of_the_others():
    net = nn.Sequential(nn.Linear(24, 40))
    given = net[0].weight.detach().double().clone()
    x = torch.cat([torch.randn(256, 8) + 1.0, 3.0 * torch.randn(256, 8)]) @ torch.randn(8, 24)
    job = job_of(net, x)
    for compensating in (True, False):
        done = job.quantise_(0.002, compensating=compensating).layers[0]
        seen = torch.cat(job.held).double() - torch.cat(job.used).double().mean(0)
        change = seen @ (given - net[0].weight.detach().double()).T
        wanted = change.square().sum() / (seen @ given.T).square().sum()
        if compensating:
            assert done.error == pytest.approx(wanted.item(), rel=1e-3)
            assert done.error < 0.95 * done.plain_error
        else:
            assert math.isnan(done.error)


def test_layers_are_quantised_on_what_the_quantised_layers_before_them_give():
    net = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 2, bias=False))
    job = job_of(net, torch.randn(1000, 8) @ torch.randn(8, 24) + 0.3)
    done = job.quantise_(0.002, compensating=True)
    assert done.layers[1].way == "compensated"
    first = net[0].weight.detach().clone(), net[0].bias.detach().clone()
    last = net[2].weight.detach().clone()
    job.restore_()
    given = net[2].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.copy_(first[0]), net[0].bias.copy_(first[1])
        hidden = net[:2](torch.cat(job.used)).double()
        test = net[:2](torch.cat(job.held)).double()
    h, held = (x.T @ x / len(x) for x in (hidden, test))
    piece = layerwise.Piece(slice(0, 2), h, held, hidden.mean(0), None)
    start = layerwise.plain(given, 0.002 * job.price["2.weight"])
    wanted = layerwise.compensated(given, [piece], start.book, 0.1).values
    torch.testing.assert_close(last, wanted, rtol=0.0, atol=1e-6)

"""Centres fitted to the data while each weight keeps its own."""

import copy

import pytest
import torch
from torch import nn

from swsmix import MixturePrior, snap_
from swsmix.compression.centres import refine_, tie
from swsmix.compression.snap import Quantized, quantize

# Networks that no prior has trained are snapped here.
pytestmark = pytest.mark.filterwarnings("ignore:snapping took")


def test_refining_lowers_the_loss_and_keeps_assignments_zeros_and_sharing():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 10, generator=generator)
    y = torch.tanh(x @ torch.randn(10, 3, generator=generator))
    net = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    prior = MixturePrior(net, 8, zero=True)
    found = quantize(prior)
    snap_(prior)
    before = nn.functional.mse_loss(net(x), y).item()
    refined = refine_(net, found, nn.functional.mse_loss, [(x, y)] * 200, lr=1e-2)
    assert nn.functional.mse_loss(net(x), y).item() < 0.9 * before
    assert refined["0.weight"].codebook is refined["2.weight"].codebook
    for name, q in refined.items():
        assert torch.equal(q.index, found[name].index)
        assert torch.equal((q.values == 0), (found[name].values == 0))
        assert torch.equal(net.get_parameter(name), q.values)


def test_tied_weights_in_any_loop_move_as_refined_centres_do():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator).double()
    y = x[:, :2] * x[:, 1:3]
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    prior = MixturePrior(net, 4, groups="tensor", zero=True)
    found = quantize(prior)
    snap_(prior)
    twin = copy.deepcopy(net)
    refine_(net, found, nn.functional.mse_loss, [(x, y)] * 20, lr=1e-2)
    handles = [tie(twin.get_parameter(name), q.index) for name, q in found.items()]
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.mse_loss(twin(x), y).backward()
        optimizer.step()
    for handle in handles:
        handle.remove()
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-10), name


@pytest.mark.parametrize(
    ("fixed", "moved"), [(0, [0, 5]), (1, [1, 0]), (None, [1, 5]), (2, [1, 5])]
)
def test_a_tied_centre_stays_if_it_is_fixed_and_occurs(fixed, moved):
    w, index = torch.ones(3, requires_grad=True), torch.tensor([0, 1, 1])
    tie(w, index, fixed=fixed)
    (w * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.equal(w.grad, torch.tensor(moved, dtype=torch.float32)[index])


def test_centres_that_are_kept_and_other_parameters_move_only_when_asked():
    net, x = nn.Linear(2, 1).double(), torch.ones(1, 2).double()
    quantized = {"weight": Quantized(torch.tensor([0.0, 0.5]).double(), torch.tensor([[0, 1]]))}
    bias = net.bias.detach().clone()

    def refined(**options):
        (q,) = refine_(
            net, quantized, nn.functional.mse_loss, [(x, x[:, :1] + 9)], **options
        ).values()
        return (q.codebook != quantized["weight"].codebook).tolist()

    assert refined(others=False) == [False, True] and torch.equal(net.bias, bias)
    assert refined(others=False, keep=None) == [True, True] and torch.equal(net.bias, bias)
    assert refined(keep=0.5) == [True, False] and not torch.equal(net.bias, bias)
    assert net.weight.grad is None and net.bias.grad is None  # none is left for the caller's step
    with pytest.raises(KeyError, match=r"no parameters \['wight'\]; it has \['weight', 'bias'\]"):
        refine_(net, {"wight": quantized["weight"]}, nn.functional.mse_loss, [])


def test_without_a_batch_the_model_takes_the_centres_as_they_are():
    net = nn.Linear(2, 1)
    quantized = {"weight": Quantized(torch.tensor([0.0, 0.5]), torch.tensor([[0, 1]]))}
    refine_(net, quantized, nn.functional.mse_loss, [])
    assert net.weight.tolist() == [[0.0, 0.5]]

"""A network that answers with snapped weights and learns with them as they are."""

import pytest
import torch
from torch import nn

from swsmix import GaussianMixture, MixturePrior
from swsmix.compression.straight_through import StraightThrough


def two_values():
    """A layer of three weights, one of them held at zero, and a prior with a centre at 1."""
    net = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.02, 0.9, 1.2]]))
    mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1], pinned_mean=[True, False])
    prior = MixturePrior(net, initial=mixture, groups="tensor")
    return net, StraightThrough(net, prior, {"weight": torch.tensor([[True, False, False]])})


def test_the_network_answers_with_its_weights_snapped_and_they_learn_from_that():
    net, snapped = two_values()
    x = torch.tensor([[3.0, 5.0, 7.0]])
    answer = snapped(x)
    assert answer.item() == 12.0  # 0 x 3 + 1 x 5 + 1 x 7
    (answer**2).sum().backward()
    assert net.weight.grad.tolist() == [[0.0, 2 * 12.0 * 5.0, 2 * 12.0 * 7.0]]
    assert net.weight[0, 1:].tolist() == pytest.approx([0.9, 1.2])  # the weights themselves stay
